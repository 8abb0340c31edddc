"""Random head sets of one layer: as many heads as are studied, none of those, no set twice (SPEC TL-19).

Where there are no more such sets than were asked for, all of them are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

from circuits.errors import UserError
from circuits.stats.draws import different_sets

Heads = tuple[int, ...]


def how_many(total: int, k: int, asked: int) -> int:
    """How many control sets there will be for `k` studied heads of `total`."""
    return min(asked, comb(total - k, k))


def control_sets(studied: Sequence[int], total: int, asked: int, seed: int) -> tuple[list[Heads], bool]:
    """The control sets of `studied` among `total` heads, and whether they are all that there are.

    Raises:
        UserError: the layer has too few other heads.
    """
    k = len(set(studied))
    others = sorted(set(range(total)) - set(studied))
    possible = comb(len(others), k)
    if possible == 0:
        raise UserError(f"{k} of {total} heads leave {len(others)}, too few to draw {k} others as a control")
    drawn = different_sets([others], [k], asked, np.random.default_rng(seed))
    return [heads for (heads,) in drawn], possible <= asked


def smallest_p(n_controls: int) -> tuple[float, float]:
    """The smallest p that so many controls can give: one-sided, two-sided."""
    return 1 / (n_controls + 1), min(1.0, 2 / (n_controls + 1))
