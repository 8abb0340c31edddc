"""Statistics of many effects measured on the same samples at once: intervals, tests, equivalence, rank agreement.

Effects are ``[units, samples]``, NaN where a unit was not measured on a sample. The unit of sampling is the cluster (a distinct
clean prompt, a group): samples of one cluster are drawn, and change sign, together.

* Intervals: the percentile bootstrap over clusters (Efron & Tibshirani 1993, ch. 13), one matrix product for all units.
* Tests: the sign-flip permutation test of a mean of 0 (Fisher 1935), p = (1 + hits) / (R + 1) (Phipson & Smyth 2010).
* Corrections: Benjamini-Hochberg, and Benjamini-Yekutieli for tests that depend on each other in any way.
* Equivalence: two one-sided t tests against a stated bound (Schuirmann 1987), and the effect that a test with this standard error
  finds with a power of 80%.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control, rankdata, t

from circuits.stats.draws import share_beyond

Array = NDArray[np.float64]
CHUNK = 8_000_000
"""Numbers in memory at a time."""


@dataclass(frozen=True)
class Clustered:
    """Effects summed within clusters: ``sums`` and ``counts`` ``[units, clusters]``."""

    sums: Array
    counts: Array

    @staticmethod
    def of(values: ArrayLike, clusters: Sequence[object]) -> Clustered:
        """Sum `values` ``[units, samples]`` within the clusters of their samples.

        Raises:
            ValueError: shapes that do not belong together.
        """
        given = np.asarray(values, dtype=np.float64)
        if given.ndim != 2 or given.shape[1] != len(clusters):
            raise ValueError(
                f"values {given.shape} and {len(clusters)} clusters: [units, samples] and one for each sample"
            )
        _, code = np.unique(np.asarray([str(c) for c in clusters]), return_inverse=True)
        member = np.zeros((given.shape[1], int(code.max(initial=-1)) + 1))
        member[np.arange(given.shape[1]), code] = 1
        known = np.isfinite(given)
        return Clustered(np.where(known, given, 0.0) @ member, known.astype(np.float64) @ member)

    @property
    def n(self) -> NDArray[np.int64]:
        """Samples of each unit."""
        return self.counts.sum(1).astype(np.int64)

    @property
    def clusters(self) -> NDArray[np.int64]:
        """Clusters of each unit."""
        return (self.counts > 0).sum(1).astype(np.int64)

    @property
    def mean(self) -> Array:
        """Mean over samples; NaN without one."""
        return _ratio(self.sums.sum(1), self.counts.sum(1))

    @property
    def standard_error(self) -> Array:
        """Of the mean, over clusters (linearised, as of a ratio); NaN with fewer than two."""
        k, total = self.clusters, self.counts.sum(1)
        left = self.sums - self.mean[:, None] * self.counts
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(k > 1, np.sqrt(np.square(left).sum(1) * k / (k - 1)) / total, np.nan)


def intervals(given: Clustered, *, seed: int, resamples: int = 5000, level: float = 0.95) -> tuple[Array, Array]:
    """Ends of the bootstrap interval of each unit's mean; NaN with fewer than two clusters."""
    units, k = given.sums.shape
    low, high = np.full(units, np.nan), np.full(units, np.nan)
    if k < 2:
        return low, high
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(k, np.full(k, 1 / k), size=resamples).astype(np.float64)
    tail = 100 * (1 - level) / 2
    at_once = max(1, CHUNK // resamples)
    for start in range(0, units, at_once):
        part = slice(start, start + at_once)
        means = _ratio(drawn @ given.sums[part].T, drawn @ given.counts[part].T)
        known = np.isfinite(means).any(0)
        ends = np.full((2, means.shape[1]), np.nan)
        ends[:, known] = np.nanpercentile(means[:, known], [tail, 100 - tail], axis=0)
        enough = given.clusters[part] > 1
        low[part], high[part] = np.where(enough, ends, np.nan)
    return low, high


def sign_flip(given: Clustered, *, seed: int, resamples: int = 5000) -> Array:
    """Two-sided p of a mean of 0; where fewer than `resamples` sign patterns exist, all of them are counted."""
    units, k = given.sums.shape
    exact = k < 60 and 2**k <= resamples
    if exact:
        signs = 1.0 - 2.0 * ((np.arange(2**k)[:, None] >> np.arange(k)) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(resamples, k))
    observed = np.abs(given.sums.sum(1))
    p, at_once = np.full(units, np.nan), max(1, CHUNK // len(signs))
    for start in range(0, units, at_once):
        part = slice(start, start + at_once)
        drawn = np.abs(signs @ given.sums[part].T)
        hits = (drawn >= observed[part] * (1 - 1e-12)).sum(0)
        p[part] = hits / len(signs) if exact else share_beyond(hits, len(signs))
    return np.where(given.counts.sum(1) > 0, p, np.nan)


def corrected(p: ArrayLike, method: Literal["bh", "by"] = "bh") -> Array:
    """q of all p that are numbers, by ``bh`` or ``by``."""
    given = np.asarray(p, dtype=np.float64)
    q, known = np.full(given.shape, np.nan), np.isfinite(given)
    if known.any():
        q[known] = false_discovery_control(given[known], method=method)
    return q


def equivalence(given: Clustered, bound: float) -> Array:
    """p that the mean lies outside ±`bound`: the larger of two one-sided t tests; NaN with fewer than two clusters."""
    error, mean, df = given.standard_error, given.mean, np.maximum(given.clusters - 1, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        above, below = (mean + bound) / error, (bound - mean) / error
    p = np.maximum(t.sf(above, df), t.sf(below, df))
    exact = np.where(np.abs(mean) < bound, 0.0, 1.0)  # no spread at all: every sample says the same
    return np.where(error == 0, exact, p)


def detectable(given: Clustered, power: float = 0.8, level: float = 0.05) -> Array:
    """The smallest mean that a two-sided test at `level` finds with `power`, at this standard error."""
    df = np.maximum(given.clusters - 1, 1)
    return given.standard_error * (t.ppf(1 - level / 2, df) + t.ppf(power, df))


def permutation_p(observed: ArrayLike, null: ArrayLike, *, side: str = "both") -> Array:
    """p = (1 + hits) / (R + 1) of observed values among measured controls ``[..., R]``.

    Args:
        observed: ``[...]``.
        null: the same statistic of R random controls, NaN where one was not measured.
        side: ``both`` compares distances from the null's mean, ``above`` and ``below`` the values.

    A NaN where no control was measured.
    """
    value, drawn = np.asarray(observed, dtype=np.float64), np.asarray(null, dtype=np.float64)
    known = np.isfinite(drawn)
    r = known.sum(-1)
    with np.errstate(invalid="ignore"):
        if side == "both":
            centre = _ratio(np.where(known, drawn, 0.0).sum(-1), r.astype(float))
            hits = np.abs(drawn - centre[..., None]) >= np.abs(value - centre)[..., None]
        else:
            hits = drawn >= value[..., None] if side == "above" else drawn <= value[..., None]
    return np.where(r > 0, (1 + (hits & known).sum(-1)) / (r + 1), np.nan)


def rank_agreement(
    a: ArrayLike, b: ArrayLike, *, seed: int, resamples: int = 1000, least: int = 4
) -> tuple[float, float]:
    """Spearman's ρ of two vectors and its permutation p; (NaN, NaN) with fewer than `least` items or where one is constant."""
    x, y = (np.asarray(v, dtype=np.float64) for v in (a, b))
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < least or np.ptp(x[known]) == 0 or np.ptp(y[known]) == 0:
        return float("nan"), float("nan")
    rx, ry = (_unit(rankdata(v[known])) for v in (x, y))
    rho = float(rx @ ry)
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.permutation(ry) for _ in range(resamples)]) @ rx
    return rho, share_beyond(int((np.abs(drawn) >= abs(rho) - 1e-12).sum()), resamples)


def _unit(ranks: Array) -> Array:
    centred = ranks - ranks.mean()
    return np.asarray(centred / np.linalg.norm(centred), dtype=np.float64)


def _ratio(top: Array, bottom: Array) -> Array:
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0)
