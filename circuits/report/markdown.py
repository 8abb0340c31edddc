"""The page of a sweep as Markdown: its answers, tables and notes, with its figures as files beside it.

Texts of models and files are escaped, so that none of them becomes markup. Long tables are cut, and say so; the page has all rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from circuits.report.content import Block, Cell, Drawing, Figure, Gallery, Listing, Note, Part, Table
from circuits.report.types import ArtifactRef, ReportInput
from circuits.report.words import plural, visible
from circuits.state import counts

ROWS = 40
_SIGNS = re.compile(r"([\\`*_{}\[\]<>#|~])")


def document(report: ReportInput, parts: Sequence[Part], refs: Sequence[ArtifactRef]) -> str:
    """The whole of it."""
    ended = ", ".join(f"{n} {state}" for state, n in counts(e.state for e in report.elements).items())
    measured = sum(e.finished for e in report.elements)
    lines = [
        f"# {text(report.title)}",
        "",
        text(report.question),
        "",
        f"`{report.sweep_id}` · {report.created} · {measured} of {plural(len(report.elements), 'element')} measured ({ended})",
        "",
    ]
    failed = [e for e in report.elements if e.state.badly]
    if failed:
        lines += ["## What failed", ""]
        lines += [
            f"* {e.index} {text(e.name)}: {e.state}: {text((e.error or '').splitlines()[0] if e.error else '')}"
            for e in failed
        ]
        lines += [""]
    for part in parts:
        lines += _part(part)
    lines += ["## Artifacts", "", *(f"* `{ref.label}` (key `{ref.key}`)" for ref in refs), ""]
    return "\n".join(lines)


def text(value: str) -> str:
    """A text in which nothing is markup, on one line."""
    return _SIGNS.sub(r"\\\1", visible(str(value)).replace("\n", " "))


def _part(part: Part) -> list[str]:
    lines = [f"## {text(part.title)}", ""]
    if part.answer is not None:
        lines += [f"**{text(part.answer.sentence)}**", ""]
    elif part.lead:
        lines += [text(part.lead), ""]
    for block in (*(part.answer.blocks if part.answer else ()), *part.blocks):
        lines += _block(block)
    lines += [f"* could not be read: {text(problem)}" for problem in part.problems]
    return [*lines, ""] if part.problems else lines


def _block(block: Block) -> list[str]:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Figure):
        return [f"![{text(block.title)}](figures/{block.name}.svg)", "", f"*{text(block.caption)}*", ""]
    if isinstance(block, Note):
        return [text(block.text), ""]
    if isinstance(block, Gallery):
        shown = [f"* {text(tile.heading)}: {' / '.join(text(line) for _, line in tile.lines)}" for tile in block.tiles]
        return [f"### {text(block.title)}", "", *shown, ""]
    if isinstance(block, Listing | Drawing):
        return []
    return [f"*{text(block.title)}: on the page.*", ""]


def _table(table: Table) -> list[str]:
    if not table.rows:
        return []
    head = "| " + " | ".join(text(column.label) for column in table.columns) + " |"
    rule = "|" + "|".join("--:" if column.numeric else "---" for column in table.columns) + "|"
    rows = ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows[:ROWS]]
    more = [f"… and {len(table.rows) - ROWS} rows more on the page.", ""] if len(table.rows) > ROWS else []
    caption = [f"*{text(table.caption)}*", ""] if table.caption else []
    return [f"### {text(table.title)}", "", head, rule, *rows, "", *more, *caption]


def _cell(cell: Cell) -> str:
    return f"`{cell.text}`" if cell.code and not set(cell.text) & set("`|\n") else text(cell.text)
