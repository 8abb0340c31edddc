"""What the features of one dictionary do in two languages: every overlap beside what chance gives.

The samples are the same pictures, asked in both languages, so features are compared picture by picture. With F features that are
active in either language:

* profiles: Pearson's and Spearman's correlation of mean activations, of differentials (male − female), and their cosine; beside
  each, the same with one language's features permuted (mean and 95th percentile);
* lists: the overlap of both languages' first k features by d, for each side: Jaccard, its expectation for random lists (the mean of
  the hypergeometric distribution, k²/F features in common) and the hypergeometric p;
* *shared* features: correlated over pictures (r ≥ `least`, Benjamini-Hochberg over features of the t test), beside the same
  with the pictures of one language permuted;
* probes: male or female from pooled features, fitted on one language, tested on the other, grouped folds (no twin on both sides).

An index-wise overlap has a meaning only where both languages share one dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import hypergeom, rankdata, spearmanr, t

from circuits.data.seeds import derive_seed
from circuits.stats import probes
from circuits.stats.bootstrap import ratio_interval
from circuits.stats.many import corrected

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """How languages are compared."""

    n_top: int = 50
    least: float = 0.5
    fdr: float = 0.05
    draws: int = 100
    folds: int = 5
    penalty: float = 10.0


def shared(a: sparse.csc_matrix, b: sparse.csc_matrix, s: Settings, seed: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Each feature that is active in either language: its correlation over the pictures, q, whether it is shared; the control."""
    n = a.shape[0]
    active = np.flatnonzero((np.diff(a.indptr) > 0) | (np.diff(b.indptr) > 0))
    x, y = a[:, active].tocsc(), b[:, active].tocsc()
    r = _columns(x, y)
    p = _p(r, n)
    table = pd.DataFrame({"feature": active, "r": r, "p": p, "q": corrected(p)})
    table["shared"] = (table["r"] >= s.least) & (table["q"] < s.fdr)
    rng = np.random.default_rng(seed)
    chance = []
    for _ in range(max(1, s.draws // 10)):
        drawn = _columns(x, y[rng.permutation(n)].tocsc())
        chance.append(float(((drawn >= s.least) & (corrected(_p(drawn, n)) < s.fdr)).mean()) if len(active) else 0.0)
    return table, {
        "features": len(active),
        "shared": int(table["shared"].sum()),
        "shared_share": float(table["shared"].mean()) if len(active) else None,
        "shared_by_chance": float(np.mean(chance)),
        "median_r": float(np.nanmedian(r)) if np.isfinite(r).any() else None,
    }


def _columns(x: sparse.csc_matrix, y: sparse.csc_matrix) -> Array:
    """Pearson's r of each pair of columns; NaN where one is constant."""
    n = x.shape[0]
    x, y = x.astype(np.float64), y.astype(np.float64)
    sums = [np.asarray(one.sum(0)).ravel() for one in (x, y, x.multiply(x), y.multiply(y), x.multiply(y))]
    mx, my = sums[0] / n, sums[1] / n
    with np.errstate(invalid="ignore", divide="ignore"):
        vx, vy = np.maximum(sums[2] / n - mx**2, 0), np.maximum(sums[3] / n - my**2, 0)
        return np.where((vx > 1e-18) & (vy > 1e-18), (sums[4] / n - mx * my) / np.sqrt(vx * vy), np.nan)


def _p(r: Array, n: int) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(2 * t.sf(np.abs(r) * np.sqrt((n - 2) / np.maximum(1 - r**2, 1e-15)), n - 2))


def profiles(a: Array, b: Array, draws: int, seed: int) -> dict[str, Any]:
    """Agreement of two profiles over features, beside permuted ones."""
    rng = np.random.default_rng(seed)

    def cosine(x: Array, y: Array) -> float:
        size = float(np.linalg.norm(x) * np.linalg.norm(y))
        return float(x @ y) / size if size else float("nan")

    def pearson(x: Array, y: Array) -> float:
        return cosine(x - x.mean(), y - y.mean())

    found: dict[str, Any] = {
        "pearson": pearson(a, b),
        "spearman": float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else float("nan"),
        "cosine": cosine(a, b),
    }
    drawn = [rng.permutation(b) for _ in range(draws)]
    ranks = rankdata(a), [rankdata(other) for other in drawn]
    for name, how in (("pearson", pearson), ("cosine", cosine), ("spearman", pearson)):
        mine, others = ranks if name == "spearman" else (a, drawn)
        null = np.array([how(mine, other) for other in others])
        found |= {f"{name}_random": float(null.mean()), f"{name}_random_95": float(np.quantile(null, 0.95))}
    return found


def overlap(one: Sequence[int], other: Sequence[int], features: int) -> dict[str, Any]:
    """Two lists of features: what they have in common, beside what random lists of these lengths have."""
    a, b = set(one), set(other)
    common, k = len(a & b), (len(a), len(b))
    law = hypergeom(features, *k) if features and min(k) else None
    counts = np.arange(min(k) + 1)
    return {
        "k": max(k),
        "common": common,
        "jaccard": common / len(a | b) if a | b else None,
        "common_random": float(law.mean()) if law else None,
        "jaccard_random": float((law.pmf(counts) * counts / (sum(k) - counts)).sum()) if law else None,
        "p": float(law.sf(common - 1)) if law else None,
    }


def probe(
    by_language: dict[str, sparse.csc_matrix], male: NDArray[np.bool_], groups: Sequence[str], s: Settings, seed: int
) -> list[dict[str, Any]]:
    """Accuracy of probes fitted on each language and tested on each, with intervals over groups; beside the larger class."""
    fold = probes.folds(groups, s.folds, derive_seed(seed, "folds"))
    active = np.flatnonzero(np.any([np.diff(one.indptr) > 0 for one in by_language.values()], axis=0))
    dense = {name: np.asarray(one[:, active].todense(), np.float64) for name, one in by_language.items()}
    _, unit = np.unique(np.asarray(groups, str), return_inverse=True)
    found = []
    for fitted, x in dense.items():
        predicted = probes.held_out(x, male, fold, list(dense.values()), s.penalty)
        for tested, p in zip(dense, predicted, strict=True):
            right = ((p > 0.5) == male).astype(float)
            interval = ratio_interval(
                np.bincount(unit, weights=right), np.bincount(unit), seed=derive_seed(seed, fitted, tested)
            )
            found.append(
                {
                    "fitted": fitted,
                    "tested": tested,
                    "accuracy": float(right.mean()),
                    "ci": None if interval is None else list(interval),
                    "majority": float(max(male.mean(), 1 - male.mean())),
                    "n": len(male),
                }
            )
    return found


def compare(
    a: sparse.csc_matrix,
    b: sparse.csc_matrix,
    d: pd.DataFrame,
    names: tuple[str, str],
    s: Settings,
    seed: int,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One layer: the table of features and all comparisons but the probes.

    Args:
        a, b: pooled features ``[pictures, features]`` of the two languages, pictures in the same order.
        d: the statistics of this layer: ``language``, ``feature``, ``differential``, ``cohens_d``, ``significant``.
        names: the languages of `a` and `b`.
        s: settings.
        seed: of the controls.
    """
    table, facts = shared(a, b, s, seed)
    features = table["feature"].to_numpy()
    means = [np.asarray(one.mean(0)).ravel()[features] for one in (a, b)]
    sides = [d[d["language"] == name].set_index("feature").reindex(features) for name in names]
    for name, own_rows in zip(names, sides, strict=True):
        table[f"d.{name}"] = own_rows["cohens_d"].to_numpy()
        table[f"significant.{name}"] = own_rows["significant"].fillna(False).to_numpy(bool)
    differentials = [one["differential"].fillna(0.0).to_numpy(np.float64) for one in sides]
    lists = {}
    for side, sign in (("male", 1), ("female", -1)):
        first = []
        for name in names:
            own = (sign * table[f"d.{name}"]).fillna(0.0)
            first.append([int(f) for f in table.loc[own[own > 0].nlargest(s.n_top).index, "feature"]])
        lists[side] = overlap(first[0], first[1], len(features))
    both = table[[f"significant.{name}" for name in names]].all(axis=1)
    return table, facts | {
        "mean_activation": profiles(means[0], means[1], s.draws, seed),
        "differential": profiles(differentials[0], differentials[1], s.draws, seed + 1),
        "lists": lists,
        "significant_in_both": int(both.sum()),
        "significant_in_both_random": float(
            np.prod([table[f"significant.{name}"].mean() for name in names]) * len(both)
        ),
        "same_sign_in_both": float(
            (np.sign(table.loc[both, f"d.{names[0]}"]) == np.sign(table.loc[both, f"d.{names[1]}"])).mean()
        )
        if both.any()
        else None,
    }


def summary(by_layer: Sequence[Mapping[str, Any]], first: str, second: str) -> dict[str, Any]:
    """Means over layers: shared features, the lists of both sides, and what probes of the first language tell of the second."""

    def mean(values: list[Any]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    lists = [one["lists"][side] for one in by_layer for side in ("male", "female")]
    moved = [p for one in by_layer for p in one["probes"] if (p["fitted"], p["tested"]) == (first, second)]
    return {
        "shared_share": mean([one["shared_share"] for one in by_layer]),
        "shared_by_chance": mean([one["shared_by_chance"] for one in by_layer]),
        "jaccard": mean([one["jaccard"] for one in lists]),
        "jaccard_random": mean([one["jaccard_random"] for one in lists]),
        "transfer": mean([p["accuracy"] for p in moved]),
        "majority": mean([p["majority"] for p in moved]),
        "by_layer": list(by_layer),
    }
