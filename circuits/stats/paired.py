"""Intervals of a difference between two measurements: of the same samples, or known by their own intervals only.

Paired samples: the bootstrap over units of the mean of per-sample differences (Efron & Tibshirani 1993, ch. 8); samples of one
group are drawn together. Two intervals: the "square-and-add" interval (Newcombe 1998; Zou & Donner 2008),

    d − √((b − b_low)² + (a_high − a)²),  d + √((b_high − b)² + (a − a_low)²)        with d = b − a,

which takes the two for independent: of measurements on the same data, which mostly rise and fall together, it is too wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from circuits.stats.bootstrap import ratio_interval

Interval = tuple[float, float]


def paired_interval(
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence[object] | None = None,
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval | None:
    """The percentile interval of mean(b − a) over samples in the same order; None with fewer than two groups."""
    difference = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    if difference.ndim != 1 or (groups is not None and len(groups) != len(difference)):
        raise ValueError(f"samples and groups must be of one length, got {difference.shape} and {len(groups or ())}")
    _, unit = np.unique(
        np.asarray(groups if groups is not None else range(len(difference)), dtype=str), return_inverse=True
    )
    return ratio_interval(
        np.bincount(unit, weights=difference), np.bincount(unit), seed=seed, resamples=resamples, level=level
    )


def independent_interval(a: float, a_interval: Interval, b: float, b_interval: Interval) -> Interval:
    """The square-and-add interval of b − a, at the level of the two intervals."""
    d = b - a
    below = math.hypot(b - b_interval[0], a_interval[1] - a)
    above = math.hypot(b_interval[1] - b, a - a_interval[0])
    return d - below, d + above
