"""``pack=N``: elements that share one process, so that a model is loaded once for all of them. What can be made in one go (SAEs on
one stream) is, the rest one after the other.

Each keeps its own directory, log, status, W&B run and outcome; one that fails stops no other. On a cluster a pack is one array
element under the number of its first element, and ``task.resources`` is what that array element asks for, time included.
"""

from __future__ import annotations

from collections.abc import Sequence

from typing import Any

from circuits.errors import UserError
from circuits.launch.plan import Element


def packs(elements: Sequence[Element]) -> list[list[Element]]:
    """`elements` (those to be run) in packs of ``pack=N`` consecutive ones.

    Raises:
        UserError: elements of one pack differ in their model or resources.
    """
    found: list[list[Element]] = []
    for element in elements:
        last = found[-1] if found else []
        if last and (last[0].stage, last[0].task) == (element.stage, element.task) and len(last) < last[0].cfg.pack:
            last.append(element)
        else:
            found.append([element])
    for pack in found:
        for other in pack[1:]:
            if what := differing(pack[0], other):
                raise UserError(
                    f"pack={pack[0].cfg.pack}: elements {pack[0].index} and {other.index} would share a process, and their "
                    f"{what} differs; take a pack size that separates them, or leave pack out"
                )
    return found


def differing(one: Element, other: Element) -> str | None:
    """The first thing that elements of one pack must have in common and these two do not."""
    same: dict[str, tuple[Any, Any]] = {
        "stage": (one.stage, other.stage),
        "task.resources": (one.cfg.task.resources, other.cfg.task.resources),
        "model": (one.cfg.model, other.cfg.model),
        "precision": (one.cfg.precision, other.cfg.precision),
    }
    return next((name for name, (a, b) in same.items() if a != b), None)


def next_pack(waiting: list[Element]) -> list[Element]:
    """Take the next pack off the front of `waiting`; shorter where what follows would not fit."""
    pack = [waiting.pop(0)]
    while waiting and len(pack) < pack[0].cfg.pack and differing(pack[0], waiting[0]) is None:
        pack.append(waiting.pop(0))
    return pack
