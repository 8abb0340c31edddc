"""Which features a study of captions edits, and the random ones beside them.

They are chosen on training pictures (``bias_stats``): at each layer the sets ``male``, ``female`` (the first of each side in any
language) and ``both``. Controls are random sets of equal size, drawn among the features nearest in activation to each of the set's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from circuits.data.seeds import derive_seed

SETS = ("male", "female", "both")
NEAREST = 30
"""Features nearest in activation, among which a control is drawn."""


@dataclass(frozen=True)
class Condition:
    """One edit."""

    layers: tuple[int, ...]
    which: str
    """``male``, ``female`` or ``both``."""
    kind: str
    factor: float
    features: Mapping[int, tuple[int, ...]]
    control: int = 0
    """0: what is studied; 1 … R: a random set in its place."""

    @property
    def name(self) -> str:
        """``L2 both ×0``."""
        at = f"L{self.layers[0]}" if len(self.layers) == 1 else f"L{self.layers[0]}-{self.layers[-1]}"
        return f"{at} {self.which} {'projected' if self.kind == 'project' else f'×{self.factor:g}'}"


@dataclass(frozen=True)
class Candidates:
    """What the statistics say of a layer's features.

    Attributes:
        sides: ``male`` and ``female``: the first features of each.
        activation: mean over pictures and languages, ``[d_sae]``.
        barred: features that no control may have.
    """

    sides: Mapping[str, Sequence[int]]
    activation: NDArray[np.float64]
    barred: set[int]


def candidates(
    tops: Mapping[str, Sequence[Sequence[int]]], pooled: Sequence[sparse.csc_matrix], significant: set[int], n: int
) -> Candidates:
    """The first `n` features of each side in any language, taking turns; significant ones are in no control.

    Where nearly every feature tells the groups apart, controls are drawn among all others.

    Args:
        tops: ``male`` and ``female``: of each language the features, the first one first.
        pooled: of each language ``[pictures, d_sae]``.
        significant: in any language.
        n: features of a side.
    """
    activation = np.mean([np.asarray(one.mean(0)).ravel() for one in pooled], axis=0)
    left = int(activation.astype(bool).sum()) - len(significant)
    sides = {
        side: list(dict.fromkeys(f for turn in zip_longest(*lists) for f in turn if f is not None))[:n]
        for side, lists in tops.items()
    }
    return Candidates(sides, activation, significant if left >= 4 * n else set())


def matched(
    chosen: Sequence[int], activation: NDArray[np.float64], barred: set[int], draws: int, seed: int
) -> list[tuple[int, ...]]:
    """`draws` random sets, each with a feature near in mean activation for every one of `chosen`; none that is `barred`.

    Raises:
        ValueError: too few features are active.
    """
    rng = np.random.default_rng(seed)
    able = np.array([i for i in np.flatnonzero(activation > 0) if i not in barred and i not in chosen], np.int64)
    if len(able) < len(chosen) + 1:
        raise ValueError(f"{len(able)} features are left for controls of {len(chosen)}; too few are active")
    found = []
    for _ in range(draws):
        taken: list[int] = []
        for one in chosen:
            near = able[np.argsort(np.abs(np.log(activation[able]) - np.log(max(activation[one], 1e-9))))]
            free = [int(i) for i in near[: max(NEAREST, len(chosen) + 1)] if int(i) not in taken]
            taken.append(int(rng.choice(free)))
        found.append(tuple(taken))
    return found


def conditions(
    layer_sets: Sequence[tuple[int, ...]],
    of: Mapping[int, Candidates],
    edits: Sequence[tuple[str, float]],
    controls: int,
    seed: int,
) -> list[Condition]:
    """Every layer set × male, female, both × edit, each with its controls.

    Raises:
        ValueError: too few features are active.
    """
    found = []
    for layers in layer_sets:
        for which in SETS:
            sides = SETS[:2] if which == "both" else (which,)
            sets = {layer: tuple(dict.fromkeys(f for side in sides for f in of[layer].sides[side])) for layer in layers}
            if not all(sets.values()):
                continue
            drawn = {
                layer: matched(
                    sets[layer],
                    of[layer].activation,
                    of[layer].barred,
                    controls,
                    derive_seed(seed, "controls", layer, which),
                )
                for layer in layers
            }
            for kind, factor in edits:
                found.append(Condition(layers, which, kind, factor, sets))
                for r in range(controls):
                    random = {layer: drawn[layer][r] for layer in layers}
                    found.append(Condition(layers, which, kind, factor, random, r + 1))
    return found
