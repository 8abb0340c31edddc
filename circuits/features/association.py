"""Which features tell a behaviour's factors apart: rank tests over prompts, corrected for all that is tested.

For each feature and factor, the training prompts' pooled activations are compared between the factor's levels by the
Kruskal-Wallis test (two levels: the Mann-Whitney test), in its tie-corrected form

    H = (N − 1) · SS_between(ranks) / SS_total(ranks)  ~  χ² with levels − 1 degrees of freedom

so that one matrix of ranks serves all features at once. χ² is far too small in the tail where few prompts activate a feature
and a level is small: where fewer than 2.5 active prompts are to be expected in the smallest level, active prompts are counted
instead, by the exact hypergeometric test of each level (both tails, times the number of levels where there are more than two).
BH-FDR goes over all features × factors. Per level: the mean difference to the other levels' prompts, and the AUC (the chance
that a prompt of the level exceeds another one).

Two checks are measured: the same procedure on shuffled labels (how much is found where there is nothing), and the sign of the
difference on the test prompts, on which nothing was tested. The unit is the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2, rankdata

from circuits.stats.groups import EXPECTED, tails
from circuits.stats.many import corrected

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Factor:
    """One labelling of prompts, of which some have no tested level."""

    name: str
    levels: tuple[str, ...]
    codes: NDArray[np.int64]
    """Level of each prompt; -1: none that is tested."""


def factors_of(labels: pd.DataFrame, train: NDArray[np.bool_], least: int) -> tuple[list[Factor], dict[str, str]]:
    """The columns of `labels` that can be tested, and why the others cannot.

    A level needs `least` training prompts, a factor two such levels; a column that divides the prompts as one before it does is
    tested once.
    """
    found: list[Factor] = []
    left_out: dict[str, str] = {}
    for name in labels.columns:
        values = labels[name]
        counts = values[train].value_counts()
        levels = tuple(sorted(str(level) for level in counts.index[counts >= least]))
        if len(levels) < 2:
            left_out[str(name)] = f"fewer than two levels with {least} training prompts"
            continue
        place = {level: i for i, level in enumerate(levels)}
        codes = np.array([place.get(str(value), -1) if pd.notna(value) else -1 for value in values], dtype=np.int64)
        twin = next((f.name for f in found if _same(f.codes, codes)), None)
        if twin is not None:
            left_out[str(name)] = f"divides the prompts as {twin} does"
            continue
        found.append(Factor(str(name), levels, codes))
    return found, left_out


def _same(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    pairs = set(zip(one.tolist(), other.tolist(), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def associate(
    pooled: NDArray[Any],
    features: Sequence[int],
    factors: Sequence[Factor],
    train: NDArray[np.bool_],
    *,
    fdr: float = 0.05,
    shuffles: int = 20,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One row for each feature, factor and level, and a summary with the controls.

    Args:
        pooled: ``[prompts, features]``.
        features: the features' numbers.
        factors: from :func:`factors_of`.
        train: which prompts are tested; the others only repeat the difference.
        fdr: q below which an association counts.
        shuffles: of the labels.
        seed: of the shuffles.
    """
    values = np.asarray(pooled, dtype=np.float64)
    inside = [np.flatnonzero(train & (factor.codes >= 0)) for factor in factors]
    tests = [LevelTest(values[rows], f.codes[rows]) for f, rows in zip(factors, inside, strict=True)]
    p = np.array([test.p(f.codes[rows]) for test, f, rows in zip(tests, factors, inside, strict=True)])
    p = p.reshape(len(factors), len(features))
    q = corrected(p)
    tables = [
        _rows(values, features, factor, rows, test.ranks, train, p[i], q[i])
        for i, (factor, rows, test) in enumerate(zip(factors, inside, tests, strict=True))
    ]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)
    table["significant"] = table["q"].astype(float) < fdr
    rng = np.random.default_rng(seed)
    shuffled = []
    for _ in range(shuffles if factors else 0):
        drawn = [test.p(rng.permutation(f.codes[rows])) for test, f, rows in zip(tests, factors, inside, strict=True)]
        shuffled.append(np.array(drawn))
    return table, _summary(table, p, q, shuffled, fdr)


class LevelTest:
    """Tests of every feature between a factor's levels, for the levels as they are or shuffled."""

    def __init__(self, values: Array, codes: NDArray[np.int64]) -> None:
        self.counts = np.bincount(codes)
        self.ranks = rankdata(values, axis=0)
        self._on = (values > 0).astype(np.float64)
        self._active = self._on.sum(0).astype(int)
        n = len(codes)
        self._sparse = np.flatnonzero(self._active * self.counts.min() / n < EXPECTED)
        most = int(self._active[self._sparse].max(initial=0))
        # By level, number of active prompts in all and in the level: the two-sided hypergeometric p.
        self._tails = [tails(n, most, int(count)) for count in self.counts]

    def p(self, codes: NDArray[np.int64]) -> Array:
        """One p a feature; NaN for a feature whose values are all equal."""
        n, levels = len(codes), len(self.counts)
        member = (codes[:, None] == np.arange(levels)).astype(np.float64)
        centred = self.ranks - (n + 1) / 2
        total = np.square(centred).sum(0)
        between = (np.square(member.T @ centred) / self.counts[:, None]).sum(0)
        varies = total > 1e-9
        h = (n - 1) * np.divide(between, total, out=np.zeros_like(total), where=varies)
        p = np.where(varies, chi2.sf(h, levels - 1), np.nan)
        if len(self._sparse):
            inside = (member.T @ self._on[:, self._sparse]).round().astype(int)
            active = self._active[self._sparse]
            each = np.stack([tail[active, k] for tail, k in zip(self._tails, inside, strict=True)])
            exact = np.minimum(1.0, each.min(0) * (levels if levels > 2 else 1))
            p[self._sparse] = np.where(varies[self._sparse], exact, np.nan)
        return p


COLUMNS = ("feature", "factor", "level", "n", "n_rest", "mean", "mean_rest", "difference", "auc", "p", "q", "n_test",
           "difference_test")  # fmt: skip


def _rows(
    values: Array,
    features: Sequence[int],
    factor: Factor,
    rows: NDArray[np.int64],
    ranks: Array,
    train: NDArray[np.bool_],
    p: Array,
    q: Array,
) -> pd.DataFrame:
    codes, held = factor.codes[rows], np.flatnonzero(~train & (factor.codes >= 0))
    tables = []
    for code, level in enumerate(factor.levels):
        mine, n = codes == code, int((codes == code).sum())
        mean, rest = values[rows[mine]].mean(0), values[rows[~mine]].mean(0)
        auc = (ranks[mine].sum(0) - n * (n + 1) / 2) / (n * (len(codes) - n))
        there = factor.codes[held] == code
        both = bool(there.any() and (~there).any())
        again = values[held[there]].mean(0) - values[held[~there]].mean(0) if both else np.full(len(features), np.nan)
        columns = (
            features,
            factor.name,
            level,
            n,
            len(codes) - n,
            mean,
            rest,
            mean - rest,
            auc,
            p,
            q,
            int(there.sum()),
            again,
        )
        tables.append(pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))))
    return pd.concat(tables)


def _summary(table: pd.DataFrame, p: Array, q: Array, shuffled: Sequence[Array], fdr: float) -> dict[str, Any]:
    tested = int(np.isfinite(p).sum())
    hits = [int((corrected(drawn) < fdr).sum()) for drawn in shuffled]
    low = [float(np.mean(drawn[np.isfinite(drawn)] < 0.05)) for drawn in shuffled if np.isfinite(drawn).any()]
    largest = strongest(table[table["significant"]])
    again = largest[np.isfinite(largest["difference_test"].astype(float))]
    same = np.sign(again["difference"].astype(float)) == np.sign(again["difference_test"].astype(float))
    return {
        "tested": tested,  # features × factors
        "significant": int((q < fdr).sum()),
        "significant_features": int((q < fdr).any(0).sum()) if len(q) else 0,
        "significant_share": float((q < fdr).sum() / tested) if tested else None,
        "shuffled_share": float(np.mean(hits) / tested) if tested and hits else None,
        "shuffled_any": float(np.mean(np.array(hits) > 0)) if hits else None,  # shuffles in which anything was found
        "p_below_05": float(np.mean(p[np.isfinite(p)] < 0.05)) if tested else None,
        "shuffled_p_below_05": float(np.mean(low)) if low else None,
        "replicated": float(same.mean()) if len(again) else None,  # same sign on the test prompts
        "replicated_of": len(again),
        "shuffles": len(shuffled),
        "fdr": fdr,
    }


def strongest(table: pd.DataFrame) -> pd.DataFrame:
    """Of each feature and factor the level with the largest difference."""
    order = table.assign(_size=table["difference"].astype(float).abs()).sort_values(
        "_size", ascending=False, kind="stable"
    )
    return order.drop_duplicates(["feature", "factor"]).drop(columns="_size")
