"""Two groups of samples compared in thousands of sparse features at once: means, Cohen's d, rank tests, their controls.

Values are a sparse matrix ``[samples, features]`` of numbers ≥ 0; a sample (a picture, a prompt) is one row, so nothing is counted
twice. Per feature, between the groups a and b of n_a and n_b samples:

* differential = mean_a − mean_b; Cohen's d (1988) = differential / s, s² = ((n_a − 1) s_a² + (n_b − 1) s_b²) / (n_a + n_b − 2);
* Mann-Whitney's U, two-sided, tie-corrected, with continuity correction (1947; equal to scipy's ``asymptotic``). Zeros share one
  rank, so only what is not zero is sorted. Where fewer than 2.5 active samples are to be expected in the smaller group,
  active samples are counted instead, by the hypergeometric test, both tails;
* of pairs (twins): Wilcoxon's signed ranks of the differences that are not zero (1945), with fewer than ten by the exact sign test.

Labels are shuffled for all features in one sparse product, of pairs within each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import binom, hypergeom, norm, t

Array = NDArray[np.float64]
EXPECTED = 2.5
"""Active samples to be expected in the smaller group, below which a feature is tested exactly."""
FEW_PAIRS = 10


@dataclass(frozen=True)
class Ranked:
    """The ranks of what is not zero, column by column."""

    values: sparse.csc_matrix
    """``[samples, features]``: mid-ranks."""
    ties: Array
    """Σ (t³ − t) over the runs of equal values of a column, zeros included."""
    zeros: NDArray[np.int64]


def ranked(given: sparse.csc_matrix, zeros_count: bool = True) -> Ranked:
    """Mid-ranks in every column; with `zeros_count` zeros are the lowest, else they are left out."""
    x = sparse.csc_matrix(given, dtype=np.float32)
    x.eliminate_zeros()
    n, features = x.shape
    active = np.diff(x.indptr)
    column = np.repeat(np.arange(features, dtype=np.uint64), active)
    key = (column << np.uint64(32)) | x.data.view(np.uint32).astype(np.uint64)  # positive floats sort as their bits do
    order = np.argsort(key)
    key = key[order]
    new = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.zeros(0, np.int64)
    length = np.diff(np.append(new, len(key)))
    place = new + (length - 1) / 2  # of a run, in the whole sorted array
    zeros = (n - active).astype(np.int64)
    offset = 1 + (zeros if zeros_count else 0) - x.indptr[:-1]
    ranks = np.empty(len(key), np.float64)
    ranks[order] = np.repeat(place, length) + offset[(key >> np.uint64(32)).astype(np.int64)]
    runs = length.astype(np.float64) ** 3 - length
    owner = (key[new] >> np.uint64(32)).astype(np.int64)
    ties: Array = np.asarray(np.bincount(owner, weights=runs, minlength=features), np.float64)
    if zeros_count:
        ties = np.asarray(ties + zeros.astype(np.float64) ** 3 - zeros)
    return Ranked(sparse.csc_matrix((ranks, x.indices, x.indptr), shape=x.shape), ties.astype(np.float64), zeros)


class GroupTest:
    """Every feature compared between two groups, for the labels as they are or shuffled.

    Args:
        values: ``[samples, features]``, sparse, ≥ 0.
        in_a: which samples are group a; all others are b.

    Raises:
        ValueError: an empty group, or negative values.
    """

    def __init__(self, values: sparse.csc_matrix, in_a: NDArray[np.bool_]) -> None:
        x = sparse.csc_matrix(values, dtype=np.float32)
        if len(in_a) != x.shape[0] or in_a.all() or not in_a.any():
            raise ValueError(
                f"{int(in_a.sum())} and {int((~in_a).sum())} of {x.shape[0]} samples: two groups are needed"
            )
        if x.nnz and float(x.data.min()) < 0:
            raise ValueError("values below 0 have no place in a test whose zeros are the lowest")
        self.values, self.in_a = x, in_a
        self.n_a, self.n_b = int(in_a.sum()), int((~in_a).sum())
        self._ranked = ranked(x)
        self._on = sparse.csc_matrix((np.ones_like(x.data), x.indices, x.indptr), shape=x.shape)
        n = self.n_a + self.n_b
        active = np.diff(x.indptr)
        self._rare = np.flatnonzero(active * min(self.n_a, self.n_b) / n < EXPECTED)
        self._active = active[self._rare]
        self._tails = tails(n, int(self._active.max(initial=0)), self.n_a)
        ties = self._ranked.ties
        variance = self.n_a * self.n_b / 12 * ((n + 1) - ties / (n * (n - 1)))
        self._spread = np.sqrt(np.maximum(variance, 0.0))

    def p(self, in_a: NDArray[np.bool_] | None = None) -> Array:
        """Two-sided p of every feature; NaN where all values are equal. `in_a` ``[samples]`` or ``[samples, draws]``: other labels
        of equal group sizes, then ``[features, draws]``."""
        member = (self.in_a if in_a is None else in_a).astype(np.float64)
        single = member.ndim == 1
        member = member[:, None] if single else member
        z = self._z(member)
        p = 2 * norm.sf(np.abs(z))
        if len(self._rare):
            inside = np.asarray(self._on[:, self._rare].T @ member).round().astype(int)
            p[self._rare] = self._tails[self._active[:, None], inside]
        p[self._spread == 0] = np.nan
        p = np.minimum(p, 1.0)
        return p[:, 0] if single else p

    def _z(self, member: Array) -> Array:
        """Standardised U of a ``[features, draws]``, drawn half a step towards 0."""
        active = np.asarray(self._on.T @ member)
        zeros = self._ranked.zeros.astype(np.float64)
        ranks = self._ranked.values.T @ member + (self.n_a - active) * (zeros[:, None] + 1) / 2
        u = ranks - self.n_a * (self.n_a + 1) / 2 - self.n_a * self.n_b / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sign(u) * np.maximum(np.abs(u) - 0.5, 0) / self._spread[:, None]

    def shuffled(self, draws: int, seed: int) -> Array:
        """p of every feature under `draws` shuffles of the labels: ``[features, draws]``."""
        rng = np.random.default_rng(seed)
        return self.p(np.stack([rng.permutation(self.in_a) for _ in range(draws)], axis=1))

    def auc(self) -> Array:
        """The chance that a sample of a exceeds one of b; ½ without a difference."""
        member = self.in_a.astype(np.float64)[:, None]
        active, zeros = np.asarray(self._on.T @ member), self._ranked.zeros.astype(np.float64)[:, None]
        ranks = self._ranked.values.T @ member + (self.n_a - active) * (zeros + 1) / 2
        return np.asarray((ranks - self.n_a * (self.n_a + 1) / 2)[:, 0] / (self.n_a * self.n_b))

    def moments(self) -> dict[str, Array]:
        """Means, frequencies, differential and Cohen's d (0 where nothing varies)."""
        sides = np.stack([self.in_a, ~self.in_a], axis=1).astype(np.float64)
        n = np.array([self.n_a, self.n_b], np.float64)
        x = sparse.csc_matrix(self.values, dtype=np.float64)
        sums, squares = np.asarray(x.T @ sides), np.asarray(x.multiply(x).T @ sides)
        mean = sums / n
        freq = np.asarray(self._on.T @ sides) / n
        within = np.maximum(squares - n * mean**2, 0.0).sum(1) / max(1.0, n.sum() - 2)
        differential = mean[:, 0] - mean[:, 1]
        spread = np.sqrt(within)
        d = np.divide(differential, spread, out=np.zeros_like(differential), where=spread > 0)
        return {
            "mean_a": mean[:, 0], "mean_b": mean[:, 1], "freq_a": freq[:, 0], "freq_b": freq[:, 1],
            "differential": differential, "cohens_d": d,
        }  # fmt: skip


def tails(n: int, most: int, count: int) -> Array:
    """``[active, inside]``: P of so few or so many of `active` samples (0 … most) in a group of `count` of n, doubled."""
    inside = np.arange(count + 1)
    mass: Array = np.asarray(hypergeom.pmf(inside[None], n, np.arange(most + 1)[:, None], count))
    below = mass.cumsum(1)
    above = mass[:, ::-1].cumsum(1)[:, ::-1]
    return np.minimum(1.0, 2 * np.minimum(below, above))


@dataclass(frozen=True)
class Pairs:
    """Every feature compared within pairs."""

    difference: Array
    """Mean of a − b."""
    p: Array
    n: int


class PairTest:
    """Every feature compared within pairs, for the sides as they are or swapped: row i of `a` is the twin of row i of `b`."""

    def __init__(self, a: sparse.csc_matrix, b: sparse.csc_matrix) -> None:
        self.n = int(a.shape[0])
        difference = sparse.csc_matrix(a - b, dtype=np.float64)
        difference.eliminate_zeros()
        self._difference = difference
        places = (difference.indices, difference.indptr)
        ranks = ranked(sparse.csc_matrix((np.abs(difference.data), *places), shape=difference.shape), zeros_count=False)
        up = sparse.csc_matrix(((difference.data > 0).astype(np.float64), *places), shape=difference.shape)
        down = sparse.csc_matrix(((difference.data < 0).astype(np.float64), *places), shape=difference.shape)
        self._sides = [(one, sparse.csc_matrix(ranks.values.multiply(one))) for one in (up, down)]
        self._active = np.diff(difference.indptr).astype(np.float64)[:, None]
        self._ties = ranks.ties[:, None]

    @property
    def difference(self) -> Array:
        """Mean of a − b."""
        return np.asarray(self._difference.sum(0)).ravel() / max(1, self.n)

    def p(self, swapped: NDArray[np.bool_] | None = None) -> Array:
        """Two-sided p of every feature; NaN where no pair differs.

        Args:
            swapped: ``[pairs, draws]``, pairs whose sides change places; then p is ``[features, draws]``.
        """
        other = np.zeros((self.n, 1)) if swapped is None else swapped.astype(np.float64)
        n, few = self._active, self._active[:, 0] < FEW_PAIRS
        (up, up_ranks), (down, down_ranks) = self._sides
        plus: Array = np.asarray(up_ranks.T @ (1 - other)) + np.asarray(down_ranks.T @ other)
        ups: Array = np.asarray(up.T @ (1 - other)) + np.asarray(down.T @ other)
        variance = n * (n + 1) * (2 * n + 1) / 24 - self._ties / 48
        with np.errstate(divide="ignore", invalid="ignore"):
            p = 2 * norm.sf(np.abs(plus - n * (n + 1) / 4) / np.sqrt(variance))
        p[few] = np.minimum(1.0, 2 * binom.cdf(np.minimum(ups, n - ups)[few], n[few], 0.5))
        p[n[:, 0] == 0] = np.nan
        return np.asarray(p[:, 0] if swapped is None else p)

    def shuffled(self, draws: int, seed: int) -> Array:
        """p of every feature when the sides of each pair change places by chance: ``[features, draws]``."""
        return self.p(np.random.default_rng(seed).random((self.n, draws)) < 0.5)


def paired(a: sparse.csc_matrix, b: sparse.csc_matrix) -> Pairs:
    """Row i of `a` is the twin of row i of `b`; p is NaN where no pair differs."""
    test = PairTest(a, b)
    return Pairs(test.difference, test.p(), test.n)


def detectable_d(n_a: int, n_b: int, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest Cohen's d that a two-sided t test of these groups finds with `power` at `level`; ∞ of groups too small."""
    if min(n_a, n_b) < 1 or n_a + n_b < 3:
        return float("inf")
    df = n_a + n_b - 2
    return float((t.ppf(1 - level / 2, df) + t.ppf(power, df)) * np.sqrt(1 / n_a + 1 / n_b))


def difference_intervals(
    values: Array, in_a: NDArray[np.bool_], clusters: NDArray[np.int64], *, seed: int, resamples: int = 1000
) -> tuple[Array, Array]:
    """95% percentile intervals of mean_a − mean_b of each column of `values` ``[samples, k]``, whole clusters drawn."""
    k = int(clusters.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(k, np.full(k, 1 / k), size=resamples).astype(np.float64)
    means = []
    for side in (in_a, ~in_a):
        sums = np.zeros((k, values.shape[1]))
        np.add.at(sums, clusters[side], values[side])
        counts = np.bincount(clusters[side], minlength=k).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            means.append((drawn @ sums) / (drawn @ counts)[:, None])
    low, high = np.nanpercentile(means[0] - means[1], [2.5, 97.5], axis=0)
    return low, high
