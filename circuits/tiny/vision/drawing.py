"""Pictures of scenes: 32 × 32 pixels, eight bits, red green blue. Torch-free.

A place is two colours in a pattern of its own; a thing is a small shape in a colour of its own beside the person. A man has short
dark hair and a blue body with legs, a woman long hair and a red skirt that widens; who is unseen is one grey shape that could be
either. Twins differ in the pixels of the person alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from circuits.tiny.vision.scenes import Scene

SIZE = 32
Picture = NDArray[np.uint8]

_GROUND = (
    ((0.45, 0.35, 0.25), (0.30, 0.25, 0.20)),
    ((0.95, 0.90, 0.70), (0.85, 0.70, 0.45)),
    ((0.45, 0.75, 0.40), (0.60, 0.85, 0.95)),
    ((0.75, 0.75, 0.80), (0.25, 0.45, 0.60)),
)
_THING = ((0.95, 0.30, 0.10), (0.15, 0.20, 0.70), (0.98, 0.98, 0.98), (0.10, 0.10, 0.10))
_SKIN, _GREY = (0.85, 0.65, 0.50), (0.50, 0.50, 0.50)
_MAN, _WOMAN, _DARK, _FAIR = (0.15, 0.30, 0.75), (0.80, 0.10, 0.25), (0.15, 0.10, 0.05), (0.70, 0.45, 0.10)
_ROW, _COLUMN = np.mgrid[0:SIZE, 0:SIZE]


def draw(scene: Scene, person: bool = True) -> Picture:
    """The picture ``[32, 32, 3]`` of a scene; the same scene is the same picture. Without the `person`: what is behind them."""
    first, second = (np.array(colour) for colour in _GROUND[scene.place])
    patterns = (
        _ROW % 8 < 4,  # boards
        _COLUMN % 6 < 3,
        _ROW > 16,  # grass below a sky
        (_ROW % 10 < 2) | (_COLUMN % 10 < 2),
    )
    noise = np.random.default_rng(scene.noise).normal(0, 0.02, (SIZE, SIZE, 3))
    canvas = np.where(patterns[scene.place][..., None], first, second) + scene.shade + noise
    if person:
        _person(canvas, scene)
    _thing(canvas, scene)
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8)


def _person(canvas: NDArray[np.float64], scene: Scene) -> None:
    middle, top, tall = scene.column, 6, 18 + scene.size
    across, down = np.abs(_COLUMN - middle), _ROW - top
    head = across**2 + (down - 3) ** 2 <= 9
    body = (down > 6) & (down <= tall)
    if scene.gender == "unseen":
        canvas[head | (body & (across <= 3))] = _GREY
    elif scene.gender == "male":
        canvas[body & (across <= 3) & ~((down > 13) & (across < 1))] = _MAN
        canvas[head] = _SKIN
        canvas[head & (down < 2)] = _DARK
    else:
        canvas[body & (across <= 1 + (down - 6) * 0.35)] = _WOMAN
        canvas[(across <= 4) & (down >= 1) & (down <= 8)] = _FAIR
        canvas[head] = _SKIN
        canvas[head & (down < 2)] = _FAIR


def _thing(canvas: NDArray[np.float64], scene: Scene) -> None:
    middle = scene.column + (9 if scene.column < 16 else -9)
    across, down = np.abs(_COLUMN - middle), _ROW - 18
    shapes = (
        across**2 + down**2 <= 17,
        (across <= 4) & (np.abs(down) <= 3),
        (across <= 3) & (np.abs(down) <= 4),
        (across <= 4) & (np.abs(down) <= 4) & ~((across <= 2) & (down < -2)),
    )
    canvas[shapes[scene.thing]] = _THING[scene.thing]
