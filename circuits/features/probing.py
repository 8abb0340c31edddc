"""Sparse probing: whether a few features of an SAE say what a behaviour's prompts are labelled by.

SAEBench's most reliable measure (Karvonen et al. 2025, arXiv:2503.09532; Gurnee et al. 2023, arXiv:2305.01610): for each level of a
factor against its other levels, the k features with the largest difference of means between the two (in standard deviations, on
training prompts), and a logistic regression on them, judged on test prompts, whose groups it has not seen. Beside it stand

    all         the regression on every feature of the SAE
    raw         on the activations that the SAE reads: what can be known at all
    random      on the best k features of a random dictionary of equal size and sparsity: what any k of so many features say
    shuffled    the SAE's, with the training labels permuted: what chance gives

The unit is the prompt. Accuracies are balanced: the mean of the two classes' shares that are right; 1/2 is a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from circuits.features.association import Factor
from circuits.sae.modules import SAE, SAEConfig, architecture
from circuits.stats.bootstrap import ratio_interval
from circuits.stats.probes import fit, folds

Array = NDArray[np.float64]
Keep = Callable[[str, Callable[[], pd.DataFrame]], pd.DataFrame]
PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""Of a regression on many columns; chosen on training prompts, by whole groups."""
FOLDS = 3


@dataclass(frozen=True)
class Settings:
    """How many features, and how often labels are shuffled."""

    k: tuple[int, ...] = (1, 2, 5)
    shuffles: int = 5
    penalty: float = 1.0
    """Of the regressions on k features."""


def random_dictionary(sae: SAE, l0: float, seed: int) -> SAE:
    """Random unit directions, as many as the SAE has features, the k strongest of which are on: what frozen weights give."""
    k = int(np.clip(round(l0), 1, sae.cfg.d_sae))
    found = architecture("topk").sae(SAEConfig(sae.cfg.d_in, sae.cfg.d_sae, k=k))
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(sae.cfg.d_sae, sae.cfg.d_in, generator=generator), dim=1)
    found.W_enc.copy_(rows.T)
    found.W_dec.copy_(rows)
    if sae.cfg.d_out is None:
        found.b_dec.copy_(sae.b_dec.cpu())
    return found.to(sae.W_enc.device)


def identity(width: int) -> SAE:
    """x as the features [ReLU(x), ReLU(−x)]: :func:`raw_of` puts them together."""
    found = architecture("relu").sae(SAEConfig(width, 2 * width))
    eye = torch.eye(width)
    found.W_enc.copy_(torch.cat([eye, -eye], dim=1))
    return found


def raw_of(split: NDArray[np.float32]) -> NDArray[np.float32]:
    """Activations from the two halves of :func:`identity`."""
    half = split.shape[1] // 2
    return split[:, :half] - split[:, half:]


def chosen(x: Array, y: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
    """The k columns whose means differ most between the classes, in standard deviations; constant ones last."""
    spread = x.std(0)
    difference = np.abs(x[y].mean(0) - x[~y].mean(0))
    return np.argsort(-np.divide(difference, spread, out=np.zeros_like(spread), where=spread > 0), kind="stable")[:k]


def balanced(right: NDArray[np.bool_], y: NDArray[np.bool_]) -> float:
    """Mean of the shares of both classes that are right."""
    return float((right[y].mean() + right[~y].mean()) / 2)


def _accuracy(x: Array, y: NDArray[np.bool_], train: NDArray[np.bool_], penalty: float) -> NDArray[np.bool_]:
    """Whether each test row is right."""
    weights = np.where(y[train], 0.5 / max(y[train].mean(), 1e-9), 0.5 / max((~y[train]).mean(), 1e-9))
    probe = fit(x[train], y[train], penalty, weights)
    return np.asarray((probe.p(x[~train]) > 0.5) == y[~train])


def best_penalty(x: Array, y: NDArray[np.bool_], groups: Sequence[object], seed: int) -> float:
    """The penalty that does best on held-out groups of the training prompts."""
    fold = folds(groups, FOLDS, seed)
    scores = []
    for penalty in PENALTIES:
        found = []
        for one in np.unique(fold):
            inside = fold != one
            if len(set(y[inside])) == 2 and len(set(y[~inside])) == 2:
                found.append(balanced(_accuracy(x, y, inside, penalty), y[~inside]))
        scores.append(float(np.mean(found)) if found else -np.inf)
    return PENALTIES[int(np.argmax(np.array(scores)))]


def probe(
    pooled: Mapping[str, NDArray[np.float32]],
    factors: Sequence[Factor],
    train: NDArray[np.bool_],
    groups: Sequence[str],
    s: Settings,
    seed: int = 0,
    keep: Keep = lambda name, make: make(),
) -> tuple[pd.DataFrame, dict[str, str]]:
    """A row for each factor, level, probe and k; and why levels are left out.

    Args:
        pooled: ``[prompts, columns]`` of ``sae``, ``random`` and ``raw``.
        factors: the labellings.
        train: which prompts are fitted on; the others test.
        groups: whole groups stand on one side.
        keep: gives a level's rows: those that were kept under this name, or those that are made.
    """
    left: dict[str, str] = {}
    values = {name: np.asarray(x, np.float64) for name, x in pooled.items()}

    def level(one: Labelled) -> pd.DataFrame:
        own = {name: x[one.known] for name, x in values.items()}
        mine = [group for group, kept in zip(groups, one.known, strict=True) if kept]
        found = _level(own, one.y, one.train, mine, s, seed)
        return pd.DataFrame([{"factor": one.factor, "level": one.level, **row} for row in found])

    found = [keep(f"probes-{i}", partial(level, one)) for i, one in enumerate(labelled(factors, train, left))]
    columns = ["factor", "level", "probe", "k", "accuracy", "low", "high", "features", "n_test"]
    return (pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)), left


@dataclass(frozen=True)
class Labelled:
    """One level of a factor against its others.

    Attributes:
        known: ``[prompts]``, those that the factor labels.
        y: of these, which have the level.
        train: of these, which are fitted on.
    """

    factor: str
    level: str
    known: NDArray[np.bool_]
    y: NDArray[np.bool_]
    train: NDArray[np.bool_]


def labelled(
    factors: Sequence[Factor], train: NDArray[np.bool_], left: dict[str, str] | None = None
) -> Iterator[Labelled]:
    """Every level that can be probed (one of two that exclude each other); into `left` why others cannot."""
    for factor in factors:
        for n, level in enumerate(factor.levels[:1] if len(factor.levels) == 2 else factor.levels):
            known = factor.codes >= 0
            y, inside = factor.codes[known] == n, train[known]
            why = _too_few(y, inside)
            if why is None:
                yield Labelled(factor.name, level, known, y, inside)
            elif left is not None:
                left[f"{factor.name}={level}"] = why


def _too_few(y: NDArray[np.bool_], train: NDArray[np.bool_]) -> str | None:
    for side, name in ((train, "training"), (~train, "test")):
        for wanted in (True, False):
            if (count := int((y[side] == wanted).sum())) < 2:
                return f"{count} {name} prompts {'with' if wanted else 'without'} it; 2 are needed"
    return None


def _level(
    own: Mapping[str, Array], y: NDArray[np.bool_], train: NDArray[np.bool_], groups: list[str], s: Settings, seed: int
) -> list[dict[str, Any]]:
    test, rng = y[~train], np.random.default_rng(seed)
    of_train = [group for group, kept in zip(groups, train, strict=True) if kept]
    rows = []

    def add(name: str, k: int, right: NDArray[np.bool_], features: Sequence[int] = ()) -> None:
        low, high = _interval(right, test, seed)
        rows.append({"probe": name, "k": k, "accuracy": balanced(right, test), "low": low, "high": high,
                     "features": [int(one) for one in features], "n_test": len(test)})  # fmt: skip

    for name in ("sae", "random"):
        for k in s.k:
            at = chosen(own[name][train], y[train], k)
            add(name, k, _accuracy(own[name][:, at], y, train, s.penalty), at.tolist() if name == "sae" else ())
    for k in s.k:
        shuffled = []
        for _ in range(s.shuffles):
            drawn = y.copy()
            drawn[train] = rng.permutation(y[train])
            at = chosen(own["sae"][train], drawn[train], k)
            weights_of = np.where(train, drawn, y)
            shuffled.append(balanced(_accuracy(own["sae"][:, at], weights_of, train, s.penalty), test))
        rows.append({"probe": "shuffled", "k": k, "accuracy": float(np.mean(shuffled)), "low": float(min(shuffled)),
                     "high": float(max(shuffled)), "features": [], "n_test": len(test)})  # fmt: skip
    for name, title in (("sae", "all"), ("raw", "raw")):
        penalty = best_penalty(own[name][train], y[train], of_train, seed)
        add(title, own[name].shape[1], _accuracy(own[name], y, train, penalty))
    return rows


def _interval(right: NDArray[np.bool_], y: NDArray[np.bool_], seed: int) -> tuple[float, float]:
    """95% interval of the balanced accuracy over test prompts."""
    weight = np.where(y, 0.5 / y.mean(), 0.5 / (~y).mean())
    found = ratio_interval(right * weight, weight, seed=seed, resamples=1000)
    return (float("nan"), float("nan")) if found is None else (float(found[0]), float(found[1]))


def summary(table: pd.DataFrame, ks: Sequence[int]) -> dict[str, Any]:
    """Means over all levels, by probe and k."""
    found: dict[str, Any] = {"n_levels": int(table[["factor", "level"]].drop_duplicates().shape[0])}
    for name in ("sae", "random", "shuffled"):
        for k in ks:
            mine = table[(table["probe"] == name) & (table["k"] == k)]["accuracy"]
            found[f"{name}_{k}"] = float(mine.mean()) if len(mine) else None
    for name in ("all", "raw"):
        mine = table[table["probe"] == name]["accuracy"]
        found[name] = float(mine.mean()) if len(mine) else None
    return found
