"""``pack=N``: elements that share one process, so that a model is loaded once for all of them. What can be made in one go (SAEs on
one stream) is, the rest one after the other.

Each keeps its own directory, log, status, W&B run and outcome; one that fails stops no other. On a cluster a pack is one array
element under the number of its first element, and ``task.resources`` is what that array element asks for, time included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from circuits.errors import UserError
from circuits.launch.estimate import Rates
from circuits.launch.plan import Element

SHORT_S, TOGETHER, JOBS = 60.0, 10, 40
ASKED = 8  # elements of a stage whose time is looked up


def packs(elements: Sequence[Element], sizes: Mapping[str, int] | None = None) -> list[list[Element]]:
    """`elements` (those to be run) in packs of ``pack=N`` consecutive ones; `sizes`: other sizes, by stage.

    Raises:
        UserError: elements of one pack differ in their model or resources.
    """
    found: list[list[Element]] = []
    for element in elements:
        last = found[-1] if found else []
        most = (sizes or {}).get(element.stage, element.cfg.pack)
        if last and (last[0].stage, last[0].task) == (element.stage, element.task) and len(last) < most:
            last.append(element)
        else:
            found.append([element])
    for pack in found:
        for other in pack[1:]:
            if what := differing(pack[0], other):
                count = len(pack) if sizes else pack[0].cfg.pack
                raise UserError(
                    f"pack={count}: elements {pack[0].index} and {other.index} would share a process, and their "
                    f"{what} differs; take a pack size that separates them, or leave pack out"
                )
    return found


def short(elements: Sequence[Element], rates: Rates, limit_s: Callable[[Element], float]) -> dict[str, int]:
    """The stages whose elements, as measured, need less than a minute each, and how many of them one job may take.

    They are `TOGETHER` or more, so that a stage is `JOBS` jobs at most, and take half of the time limit at most. A size that was
    asked for stays.
    """
    found = {}
    for stage in dict.fromkeys(element.stage for element in elements):
        mine = [element for element in elements if element.stage == stage]
        if len(mine) < 2 or any(word.startswith("pack=") for element in mine for word in element.overrides):
            continue
        asked = mine if len(mine) <= ASKED else [mine[i * (len(mine) - 1) // (ASKED - 1)] for i in range(ASKED)]
        known = [rates.of(element) for element in asked]
        if any(one is None or one.other_model or one.wall_s >= SHORT_S for one in known):
            continue
        longest = max(one.wall_s for one in known if one is not None)
        fit = int(min(limit_s(element) for element in mine) / 2 // max(longest, 1.0))
        if (size := min(fit, max(TOGETHER, -(-len(mine) // JOBS)))) > 1:
            found[stage] = size
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
