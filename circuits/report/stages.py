"""The page's section of a pipeline's stages: drawn, and how each fared."""

from __future__ import annotations

from collections.abc import Sequence

from circuits.drawing.stages import svg
from circuits.report.content import Cell, Column, Drawing, Part, Table
from circuits.report.types import Stage
from circuits.report.words import plural


def stages(found: Sequence[Stage]) -> Part | None:
    """The section; None of a sweep that is no pipeline."""
    if not found:
        return None
    picture = svg({one.name: one.after for one in found}, {one.name: (one.task, one.fared) for one in found})
    columns = (
        Column("stage"),
        Column("task"),
        Column("elements", True),
        Column("how they fared"),
        Column("time of all", True),
        Column("after"),
    )
    rows = tuple(
        (
            Cell(one.name),
            Cell(one.task, code=True),
            Cell(str(one.elements), one.elements),
            Cell(one.fared),
            Cell(one.took),
            Cell(" ".join(one.after)),
        )
        for one in found
    )
    lead = f"{plural(len(found), 'stage')}, {plural(sum(one.elements for one in found), 'element')}."
    return Part("Stages", lead, (Drawing(picture), Table("Stages in order", columns, rows)))
