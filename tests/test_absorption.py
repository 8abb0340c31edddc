"""Feature absorption: found where it is planted, in the share in which it is, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from circuits.features import absorption
from circuits.stats.probes import fit

WORDS, WIDTH = 4, 12
W = np.eye(WIDTH)[0]
"""The level's direction."""


def world(n: int = 400, seed: int = 0) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]]:
    """Prompts with a level or not, each with one of four words beside it; x is the level's direction and the word's."""
    rng = np.random.default_rng(seed)
    y, word = rng.random(n) < 0.5, rng.integers(0, WORDS, n)
    x = 0.05 * rng.standard_normal((n, WIDTH))
    x[:, 0] += y
    x[np.arange(n), 1 + word] += 1
    return y, word, x


def dictionary(
    y: NDArray[np.bool_], word: NDArray[np.int64], swallows: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Feature 0 is the level, 1-4 the words; with `swallows` feature 5 stands for the level in word 0, and 0 is silent there."""
    decoder = np.eye(WIDTH)[: WORDS + 2].copy()
    decoder[5] = np.eye(WIDTH)[0] + np.eye(WIDTH)[1]
    f = np.zeros((len(y), WORDS + 2))
    f[np.arange(len(y)), 1 + word] = 1
    f[:, 0] = y
    if swallows:
        here = y & (word == 0)
        f[here, 0], f[here, 1], f[here, 5] = 0, 0, 1
    return f, decoder


@pytest.mark.parametrize("swallows", [False, True])
def test_the_share_of_prompts_on_which_a_specific_feature_stands_for_the_general_one(swallows: bool) -> None:
    y, word, x = world()
    f, decoder = dictionary(y, word, swallows)
    assert absorption.direction(fit(x, y, 10.0))[0] > 0.8
    main = absorption.main_features(f, y)
    assert main[0] == 0
    found = absorption.absorbed(f[y], x[y], decoder, np.zeros(WIDTH), W, [0])
    share = float((word[y] == 0).mean())
    assert found.full.mean() == pytest.approx(share if swallows else 0, abs=1e-9)
    assert found.fraction.mean() == pytest.approx(share if swallows else 0, abs=0.02)
    assert found.by == (5 if swallows else None)


def test_a_level_that_is_split_over_two_features_is_not_absorbed() -> None:
    """Each half of the words has its own feature of the level: both are main, and neither is silent for want of the other."""
    y, word, x = world()
    f, decoder = dictionary(y, word, False)
    f[:, 0], f[:, 5] = y & (word < 2), y & (word >= 2)
    decoder[5] = decoder[0]
    main = absorption.main_features(f, y)
    assert sorted(main) == [0, 5]
    found = absorption.absorbed(f[y], x[y], decoder, np.zeros(WIDTH), W, main)
    assert not found.full.any() and found.fraction.mean() == pytest.approx(0, abs=0.02)


def test_a_feature_that_only_shrinks_is_a_fraction() -> None:
    """Where the level's feature does a half of it and another the other half, half is absorbed and no prompt wholly."""
    y, word, x = world()
    f, decoder = dictionary(y, word, False)
    f[:, 0] = y * 0.5
    f[:, 5], decoder[5] = y * 0.5, decoder[0]
    found = absorption.absorbed(f[y], x[y], decoder, np.zeros(WIDTH), W, [0])
    assert not found.full.any() and found.fraction.mean() == pytest.approx(0.5, abs=0.05)


def test_what_points_away_from_the_level_does_not_count() -> None:
    y, word, x = world()
    f, decoder = dictionary(y, word, True)
    assert len(absorption.absorbed(f[~y], x[~y] - 1, decoder, np.zeros(WIDTH), W, [0]).full) == 0
    assert absorption.absorbed(f[y], x[y], decoder, np.zeros(WIDTH), W, []).fraction.size == 0
