"""The stages of a study as boxes and arrows, an SVG of its own: what comes first on the left, one column a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

BOX, ROW, GAP, LINE = 168, 64, 44, 15  # pixels: width of a box, of a row, between columns, of a line of text
LETTERS = 25  # of a line that fit a box


def svg(after: Mapping[str, Sequence[str]], notes: Mapping[str, Sequence[str]]) -> str:
    """The drawing.

    Args:
        after: for each stage, in order, the stages that it waits for.
        notes: up to two short lines below a stage's name.
    """
    column = _columns(after)
    rows: dict[int, int] = {}
    place = {}
    for stage in after:
        row = rows.get(column[stage], 0)
        rows[column[stage]] = row + 1
        place[stage] = (column[stage] * (BOX + GAP) + 1, row * ROW + 1)
    width = (max(column.values(), default=0) + 1) * (BOX + GAP) - GAP + 2
    height = max(rows.values(), default=1) * ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="stages" '
        f'style="max-width:{width}px;width:100%" font-family="DejaVu Sans, sans-serif" font-size="12">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="var(--muted,#626b7a)"/></marker></defs>'
    ]
    for stage, before in after.items():
        parts += [_arrow(place[one], place[stage]) for one in before]
    parts += [_box(stage, place[stage], notes.get(stage, ())) for stage in after]
    return "".join(parts) + "</svg>"


def _columns(after: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """How many steps come before each stage."""
    found: dict[str, int] = {}

    def of(stage: str, trail: tuple[str, ...] = ()) -> int:
        if stage not in found:
            earlier = [one for one in after[stage] if one in after and one not in trail]
            found[stage] = max((of(one, (*trail, stage)) + 1 for one in earlier), default=0)
        return found[stage]

    for stage in after:
        of(stage)
    return found


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y = start[0] + BOX, start[1] + ROW / 2 - 6
    u, v = end[0], end[1] + ROW / 2 - 6
    bend = (u - x) / 2
    return (
        f'<path d="M{x:g} {y:g}C{x + bend:g} {y:g} {u - bend:g} {v:g} {u - 2:g} {v:g}" fill="none" '
        'stroke="var(--muted,#626b7a)" stroke-width="1.2" marker-end="url(#tip)"/>'
    )


def _box(name: str, at: tuple[float, float], notes: Sequence[str]) -> str:
    x, y = at
    lines = [f'<tspan font-weight="600">{_cut(name)}</tspan>'] + [
        f'<tspan x="{x + 8:g}" dy="{LINE}" fill="var(--muted,#626b7a)" font-size="11">{_cut(line)}</tspan>'
        for line in notes[:2]
    ]
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{BOX}" height="{ROW - 12}" rx="5" fill="var(--paper,#fff)" '
        f'stroke="var(--muted,#626b7a)"/><text x="{x + 8:g}" y="{y + 16:g}" fill="var(--ink,#1f2430)">{"".join(lines)}</text>'
    )


def _cut(text: str) -> str:
    return escape(text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…")
