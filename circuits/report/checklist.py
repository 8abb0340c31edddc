"""The page's section of what a reader needs to get the same numbers again: each item passed, failed or not asked."""

from __future__ import annotations

from collections.abc import Sequence

from circuits.report.content import Cell, Column, Part, Table
from circuits.report.types import Check
from circuits.report.words import ABSENT

MARKS = {True: "✓ yes", False: "✗ no", None: ABSENT}
ORDER = {False: 0, True: 1, None: 2}


def checklist(checks: Sequence[Check]) -> Part | None:
    """The section; None without items."""
    if not checks:
        return None
    asked = [check for check in checks if check.passed is not None]
    lacking = [check for check in asked if not check.passed]
    lead = f"{len(asked) - len(lacking)} of {len(asked)} items hold"
    lead += f"; open: {', '.join(check.title.lower() for check in lacking)}." if lacking else "."
    columns = (Column("item"), Column("holds"), Column("because"))
    rows = tuple(
        (Cell(check.title), Cell(MARKS[check.passed], ORDER[check.passed]), Cell(check.reason)) for check in checks
    )
    return Part(
        "Reproducibility", lead, (Table("Checklist", columns, rows, "The same as checklist.json and checklist.md."),)
    )
