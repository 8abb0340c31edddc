"""Random sets to compare with, all different, and the p that a number of them gives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

Sets = tuple[tuple[int, ...], ...]


def different_sets(
    pools: Sequence[Sequence[int]], sizes: Sequence[int], n: int, rng: np.random.Generator
) -> list[Sets]:
    """`n` different draws of as many of each pool as `sizes` says, without order; all that there are where those are no more."""
    if math.prod(math.comb(len(pool), k) for pool, k in zip(pools, sizes, strict=True)) <= n:
        each = [list(itertools.combinations(pool, k)) for pool, k in zip(pools, sizes, strict=True)]
        return list(itertools.product(*each))
    found: dict[Sets, None] = {}
    while len(found) < n:
        drawn = (sorted(rng.choice(pool, k, replace=False).tolist()) for pool, k in zip(pools, sizes, strict=True))
        found.setdefault(tuple(tuple(items) for items in drawn))
    return list(found)


@overload
def share_beyond(hits: int, draws: int) -> float: ...
@overload
def share_beyond(hits: NDArray[np.int64], draws: int) -> NDArray[np.float64]: ...
def share_beyond(hits: int | NDArray[np.int64], draws: int) -> float | NDArray[np.float64]:
    """p = (1 + hits) / (draws + 1) where `hits` of `draws` random ones are as far as what was observed (Phipson & Smyth 2010); NaN
    of no draws."""
    return (1 + hits) / ((draws or np.nan) + 1)
