"""Effects of units in a comparison: what sweeps of interventions measured of heads, groups, sites and features, unit by unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from circuits.errors import GateError, UserError
from circuits.files import write_atomic
from circuits.words import number

if TYPE_CHECKING:
    from circuits.compare.units import Joined, Units
    from circuits.console import Terminal
    from circuits.report.content import Block
    from circuits.report.types import Element

SHOWN = 12  # rows in the terminal; units.csv has all


class Tolerance(Enum):
    """What two sweeps of one study may differ in."""

    device = "device"  # device and number format: effects are held to limits, and more is a failure


FREE = {Tolerance.device: ("precision.dtype",)}
"""What may be unlike under a tolerance; devices are in no key."""

Value = Callable[["Element", str], str]


def units(
    elements: Mapping[str, Sequence[Element]], value: Value, notes: list[str]
) -> tuple[list[tuple[str, Units]], list[str]]:
    """What each sweep measured of units (nothing, where its task measures none), and in what their prompts are unlike."""
    from circuits.compare.units import other_prompts, units_of

    keys = list(dict.fromkeys(key for mine in elements.values() for element in mine for key in element.swept))
    found = []
    for label, mine in elements.items():
        refs = [(ref, [(key, value(element, key)) for key in keys]) for element in mine for ref in element.artifacts]
        read = units_of({ref.key: (ref, swept) for ref, swept in refs}.values())
        if read.repeated:
            notes.append(f"{label} measured {read.repeated} effects of units twice; the first of each is compared")
        found.append((label, read))
    (base, mine_), *others = found
    return found, [
        f"{base} and {label} are of unlike prompts: {'; '.join(unlike)}"
        for label, its in others
        if (unlike := other_prompts(mine_, its))
    ]


def joined(found: Sequence[tuple[str, Units]], tolerance: Tolerance | None, task: str) -> list[Joined]:
    """Every sweep beside the base, unit by unit; empty where they measured none.

    Raises:
        UserError: limits were asked for, and there is nothing to hold against them.
    """
    from circuits.compare.units import joined

    base, *others = found
    pairs = [joined(base, other, tolerance is not None) for other in others]
    if tolerance is not None and not all(pairs):
        which = [label for (label, _), pair in zip(others, pairs, strict=True) if pair is None]
        raise UserError(
            f"compare.tolerance={tolerance.value}: no effects of units of {base[0]} match those of {' and '.join(which)} "
            f"(task={task}); sweeps of task=interventions with the same behaviour, edits and layers have them"
        )
    return [pair for pair in pairs if pair is not None]


def unmatched(found: Sequence[Joined], shortened: Callable[[Sequence[str]], str]) -> list[str]:
    """What only one sweep measured, one line each."""
    return [
        f"Effects of units only in {label}, of {one.base} and {one.other}: {len(places)} ({shortened(places)})."
        for one in found
        for label, places in one.only.items()
        if places
    ]


def page(found: Sequence[Joined], tolerance: Tolerance | None) -> tuple[str, list[Block]]:
    """The sentence and the tables of the page."""
    from circuits.compare.units_page import blocks, sentence

    return (sentence(found, tolerance is not None), blocks(found, tolerance is not None)) if found else ("", [])


def write(found: Sequence[Joined], out: Path) -> None:
    """``units.csv`` and ``ranks.csv``."""
    from circuits.compare.units import ranks, table

    for name, made in (("units.csv", table(found)), ("ranks.csv", ranks(found))) if found else ():
        write_atomic(out / name, made.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())


def show(found: Sequence[Joined], tolerance: Tolerance | None, terminal: Terminal) -> None:
    """The sentence, and the rows that matter most."""
    from circuits.compare.units_page import cells, columns, rows, sentence
    from circuits.console import Rows

    if not found:
        return
    shown = rows(found, tolerance is not None)
    heads = columns(shown, tolerance is not None)
    table = Rows([head.label for head in heads], [i for i, head in enumerate(heads) if not head.numeric and i])
    for line in cells(shown.head(SHOWN), tolerance is not None):
        table.add(*(cell.text for cell in line))
    terminal.table(table)
    if len(shown) > SHOWN:
        terminal.tell(f"… and {number(len(shown) - SHOWN, ',.0f')} more, in units.csv and the report")
    terminal.tell(sentence(found, tolerance is not None))


def gate(found: Sequence[Joined], tolerance: Tolerance | None) -> None:
    """Refuse what is not within the limits.

    Raises:
        GateError: with how many are not, and the farthest.
    """
    from circuits.compare.units_page import failures

    if tolerance is not None and (told := failures(found)):
        raise GateError(f"compare.tolerance={tolerance.value}: {told}")
