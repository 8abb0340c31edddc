"""Percentile bootstrap of a ratio of sums (Efron & Tibshirani 1993, ch. 13), over independent units.

A statistic such as 1 − Σ error / Σ variance is a ratio of sums over sequences. Tokens of one sequence are not
independent of each other, so whole sequences are drawn with replacement; how often each is drawn is multinomial, so all
resamples are one matrix product of the counts with the per-sequence sums.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

CHUNK = 4_000_000
"""Counts held in memory at a time."""


def resampled_ratios(
    numerator: ArrayLike, denominator: ArrayLike, *, seed: int, resamples: int = 1000
) -> NDArray[np.float64]:
    """Σ numerator / Σ denominator of `resamples` bootstrap samples; NaN where the denominator's sum is 0."""
    sums = np.stack([np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)], axis=1)
    if sums.ndim != 2:
        raise ValueError(f"numerator and denominator must be one-dimensional, got {sums.shape}")
    n, rng = len(sums), np.random.default_rng(seed)
    at_once = max(1, CHUNK // n)
    parts = []
    for start in range(0, resamples, at_once):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(at_once, resamples - start))
        parts.append(counts @ sums)
    top, bottom = np.concatenate(parts).T
    return np.divide(top, bottom, out=np.full(resamples, np.nan), where=bottom != 0)


def ratio_interval(
    numerator: ArrayLike, denominator: ArrayLike, *, seed: int, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float] | None:
    """The percentile interval of Σ numerator / Σ denominator over units; None when it has no meaning (fewer than two
    units, or a denominator that can be 0)."""
    if np.size(numerator) < 2:
        return None
    ratios = resampled_ratios(numerator, denominator, seed=seed, resamples=resamples)
    if not np.isfinite(ratios).all():
        return None
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return float(low), float(high)
