"""Feature absorption: prompts on which the feature of a level is silent because a more specific one does its work.

Chanin et al. 2024 (arXiv:2409.14507), with SAEBench's bounds (arXiv:2503.09532), for the levels of a behaviour's factors instead of
first letters. The probe is a logistic regression on the activations; ŵ is its unit direction. A level's *main* features are the one
that says most of it on training prompts, and further ones while each adds more than .03 to F1 (a level that is split over several).
On a test prompt of the level that the probe gets right, with p = (x − b_dec)·ŵ > 0 and each feature's share f_j W_dec,j·ŵ:

    absorbed    no main feature is on, and the feature of the largest share makes up at least .4 of p, with a cosine to ŵ ≥ .025
    fraction    of p what others than the main features do in their place: the three largest shares of features with a cosine ≥ .1,
                where they make up at least .4 of p; 0 where the main ones do it all, 1 where they do nothing

The unit is the prompt. Beside an SAE stands a random dictionary of equal size and sparsity with main features of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from circuits.features.association import Factor
from circuits.features.probing import Keep, Labelled, best_penalty, labelled
from circuits.stats.bootstrap import ratio_interval
from circuits.stats.probes import Probe, fit

Array = NDArray[np.float64]
F1_GAIN = 0.03
MAIN = 5
"""Main features at most."""
FULL_COSINE, FRACTION_COSINE, PORTION, ABSORBERS = 0.025, 0.1, 0.4, 3


@dataclass(frozen=True)
class Absorbed:
    """What was found of one level and dictionary.

    Attributes:
        main: the level's main features, the best first.
        full: of each counted prompt, whether it is absorbed.
        fraction: of each counted prompt, the fraction.
        by: the feature that absorbs most prompts; None where none does.
    """

    main: list[int]
    full: NDArray[np.bool_]
    fraction: Array
    by: int | None


def direction(probe: Probe) -> Array:
    """The unit vector along which a probe's answer rises, in the units of the activations."""
    w = probe.weights / probe.scale
    return np.asarray(w / max(float(np.linalg.norm(w)), 1e-30))


def main_features(f: Array, y: NDArray[np.bool_], penalty: float = 1.0) -> list[int]:
    """The features that say a level on these prompts: those that are larger with it, the best first.

    Args:
        f: activations ``[prompts, features]``.
        y: which prompts have the level.
    """
    spread, difference = f.std(0), f[y].mean(0) - f[~y].mean(0)
    size = np.divide(difference, spread, out=np.zeros_like(spread), where=spread > 0)
    order = [int(i) for i in np.argsort(-size, kind="stable")[:MAIN] if size[i] > 0]
    best, scores = 0, 0.0
    for k in range(1, len(order) + 1):
        found = _f1(f[:, order[:k]], y, penalty)
        if k > 1 and found - scores <= F1_GAIN:
            break
        best, scores = k, found
    return order[:best]


def _f1(x: Array, y: NDArray[np.bool_], penalty: float) -> float:
    weights = np.where(y, 0.5 / y.mean(), 0.5 / (~y).mean())
    told = fit(x, y, penalty, weights).p(x) > 0.5
    both = int((told & y).sum())
    return 2 * both / max(int(told.sum()) + int(y.sum()), 1)


def absorbed(f: Array, x: Array, decoder: Array, offset: Array, w: Array, main: list[int]) -> Absorbed:
    """Absorption on prompts of a level that the probe gets right; those that the probe's direction does not point at do not count.

    Args:
        f: activations of features ``[prompts, features]``.
        x: what the dictionary reads ``[prompts, width]``.
        decoder: ``[features, width]``.
        offset: b_dec, ``[width]``.
        w: the probe's unit direction, ``[width]``.
        main: the level's main features.
    """
    along = decoder @ w
    cosine = along / np.maximum(np.linalg.norm(decoder, axis=1), 1e-30)
    p = (x - offset) @ w
    f, p = f[p > 0], p[p > 0]
    if not len(p) or not main:
        return Absorbed(main, np.zeros(0, dtype=bool), np.zeros(0), None)
    shares = f * along
    mine = shares[:, main].sum(1)
    top = shares.argmax(1)
    most = shares[np.arange(len(p)), top]
    silent = ~(np.abs(f[:, main]) > 1e-8).any(1)
    full = silent & (cosine[top] >= FULL_COSINE) & (most >= PORTION * p)
    others = np.where((cosine >= FRACTION_COSINE)[None] & (shares > 0), shares, 0.0)
    others[:, main] = 0
    theirs = np.sort(others, axis=1)[:, -ABSORBERS:].sum(1)
    taken = np.minimum(theirs, np.maximum(p - mine, 0))
    fraction = np.where(mine > 0, taken / np.maximum(taken + mine, 1e-30), 1.0)
    fraction[(mine >= p) | (theirs < PORTION * p)] = 0
    names, counts = np.unique(top[full], return_counts=True)
    return Absorbed(main, full, fraction, int(names[counts.argmax()]) if len(names) else None)


def table(
    pooled: Mapping[str, NDArray[np.float32]],
    dictionaries: Mapping[str, tuple[Array, Array]],
    factors: Sequence[Factor],
    train: NDArray[np.bool_],
    groups: Sequence[str],
    seed: int = 0,
    keep: Keep = lambda name, make: make(),
) -> pd.DataFrame:
    """A row for each level and dictionary.

    Args:
        pooled: ``[prompts, columns]``: activations of each dictionary's features, and ``raw``, what they read.
        dictionaries: of each, W_dec ``[features, width]`` and b_dec.
        factors: the labellings.
        train: which prompts are fitted on; the others count.
        groups: whole groups stand on one side.
        keep: gives a level's rows: those that were kept under this name, or those that are made.
    """
    values = {name: np.asarray(x, np.float64) for name, x in pooled.items()}

    def level(one: Labelled) -> pd.DataFrame:
        x, mine = values["raw"][one.known], [g for g, kept in zip(groups, one.known, strict=True) if kept]
        of_train = [group for group, kept in zip(mine, one.train, strict=True) if kept]
        penalty = best_penalty(x[one.train], one.y[one.train], of_train, seed)
        y = one.y[one.train]
        probe = fit(x[one.train], y, penalty, np.where(y, 0.5 / y.mean(), 0.5 / (~y).mean()))
        counted = ~one.train & one.y & (probe.p(x) > 0.5)
        rows = []
        for name, (decoder, offset) in dictionaries.items():
            f = values[name][one.known]
            main = main_features(f[one.train], y)
            found = absorbed(f[counted], x[counted], decoder, offset, direction(probe), main)
            rows.append({"factor": one.factor, "level": one.level, "dictionary": name, **_row(found, seed)})
        return pd.DataFrame(rows)

    found = [keep(f"absorption-{i}", partial(level, one)) for i, one in enumerate(labelled(factors, train))]
    columns = ["factor", "level", "dictionary", "main", "n", "full", "fraction", "low", "high", "by"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def _row(found: Absorbed, seed: int) -> dict[str, Any]:
    interval = ratio_interval(found.fraction, np.ones(len(found.fraction)), seed=seed, resamples=1000)
    low, high = (np.nan, np.nan) if interval is None else interval[:2]
    return {
        "main": found.main,
        "n": len(found.fraction),
        "full": float(found.full.mean()) if len(found.full) else np.nan,
        "fraction": float(found.fraction.mean()) if len(found.fraction) else np.nan,
        "low": float(low),
        "high": float(high),
        "by": -1 if found.by is None else found.by,
    }


def summary(found: pd.DataFrame) -> dict[str, float | None]:
    """Means over levels, by dictionary: ``absorbed`` and ``absorption`` of the SAE, the same of the random one."""
    values: dict[str, float | None] = {}
    for name, after in (("sae", ""), ("random", "_random")):
        mine = found[(found["dictionary"] == name) & (found["n"] > 0)]
        values[f"absorbed{after}"] = float(mine["full"].mean()) if len(mine) else None
        values[f"absorption{after}"] = float(mine["fraction"].mean()) if len(mine) else None
    return values


__all__ = ["Absorbed", "absorbed", "direction", "main_features", "summary", "table"]
