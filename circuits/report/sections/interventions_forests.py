"""A row a unit: effects with intervals before their controls' range, and each unit among all its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from circuits.drawing.style import INK, PAPER, Looks
from circuits.report.content import Figure
from circuits.report.saved import number
from circuits.report.sections import interventions_records as say
from circuits.report.sections.interventions_maps import arrange
from circuits.report.sections.interventions_records import Record
from circuits.report.sheet import LEFT, WIDTH, Sheet, drawing, label_axes, marks, reference
from circuits.report.words import plural

ROWS = 30  # units of a forest
STRIPS = 14  # units among their controls
NAME = 46  # letters of a unit beside a forest


def clipped(text: str) -> str:
    """A name that fits beside a figure."""
    return text if len(text) <= NAME else f"{text[: NAME - 1]}…"


def rows_sheet(name: str, looks: Looks, series: Sequence[str], labels: Sequence[str], **more: Any) -> Sheet:
    """A figure with a row for each of `labels`, the first on top, and room for them on the left. Call inside `drawing()`."""
    sheet = Sheet(name, looks, series, height=0.2 * len(labels) + 0.75, shown="marks", **more)
    shown = [clipped(label) for label in labels]
    left = max(LEFT, 0.2 + 0.062 * max(map(len, shown), default=0))
    arrange(sheet, left=left / WIDTH)
    axes = sheet.axes
    axes.set_yticks(range(len(shown)), shown[::-1])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    reference(axes, x=0)
    axes.grid(False, axis="y")
    return sheet


def forest(name: str, looks: Looks, r: Record) -> Figure:
    """Units by |effect|, a row each, with intervals; their controls' mean and 95% range behind."""
    units = r.top[:ROWS]
    place = {unit: len(units) - 1 - i for i, unit in enumerate(units)}
    apart = min(0.6 / len(r.edits), 0.16) if len(r.edits) > 1 else 0.0
    with drawing():
        control = "random units" if r.controlled else ""
        sheet = rows_sheet(name, looks, r.edits if len(r.edits) > 1 or control else [""], units, control=control)
        for k, edit in enumerate(r.edits):
            rows = r.ranked[(r.ranked["edit"] == edit) & r.ranked["unit"].isin(units)].to_dict("records")
            shift = apart * ((len(r.edits) - 1) / 2 - k)
            ys = [place[str(row["unit"])] + shift for row in rows]
            for row, y in zip(rows, ys, strict=True):
                _behind(sheet, row, y)
                if ends := say.interval(row):
                    sheet.axes.hlines(y, *ends, color=looks[edit].color, linewidth=1.2, zorder=3)
            (artist,) = sheet.axes.plot([row["effect"] for row in rows], ys, **marks(looks[edit]), zorder=4)
            sheet.tell(artist, [say.tell(r, row) + _null(row) for row in rows])
        label_axes(sheet.axes, f"mean effect ({r.unit})", "")
    title = f"Effects of {say.counted(r)}: {r.condition}"
    more = f" The {ROWS} strongest of {len(r.top)}." if len(r.top) > ROWS else ""
    grey = " Grey: mean and 95% range of each unit's controls." if r.controlled else ""
    caption = f"One row a unit, the strongest on top.{more} {say.SIGN}{grey} {say.sample([r], control=True)} {say.sources([r])}"
    values = r.ranked["effect"]
    alt = f"{title}, from {values.min():+.2f} to {values.max():+.2f}"
    return sheet.finish(
        title=title, caption=caption, alt=alt, data=say.table_of([r], "null_mean", "null_low", "null_high", "p_null")
    )


def _behind(sheet: Sheet, row: Mapping[Any, Any], y: float) -> None:
    """A unit's controls."""
    if (ends := say.interval(row, "null_low", "null_high")) is None:
        return
    sheet.control(sheet.axes, [row["null_mean"]], [y], over_x=([ends[0]], [ends[1]]))


def _null(row: Mapping[Any, Any]) -> str:
    if (mean := number(row, "null_mean")) is None:
        return ""
    return f"\ncontrols {mean:+.2f} [{row['null_low']:+.2f}, {row['null_high']:+.2f}], p {say.chance(number(row, 'p_null'))}"


def nulls(name: str, looks: Looks, r: Record, edit: str) -> Figure | None:
    """Every control of the strongest units as a dot, and the unit among them."""
    rows = [
        (row, controls)
        for row in r.ranked[r.ranked["edit"] == edit].to_dict("records")
        if len(controls := r.controls_of(row))
    ]
    if not rows:
        return None
    shown, data = rows[:STRIPS], []
    with drawing():
        sheet = rows_sheet(name, looks, [edit], [str(row["unit"]) for row, _ in shown], control="random units")
        axes: Axes = sheet.axes
        for i, (row, controls) in enumerate(shown):
            y = len(shown) - 1 - i
            spread = np.linspace(-0.24, 0.24, len(controls))[np.random.default_rng(0).permutation(len(controls))]
            sheet.control(axes, controls, y + spread, small=True)
            if ends := say.interval(row):
                axes.hlines(y, *ends, color=looks[edit].color, linewidth=1.2, zorder=3)
            style: dict[str, Any] = {**marks(looks[edit]), "markersize": 6, "markeredgecolor": PAPER}
            (artist,) = axes.plot([row["effect"]], [y], **style, zorder=4)
            sheet.tell(artist, [say.tell(r, row) + _null(row)])
            text: dict[str, Any] = {
                "xycoords": ("axes fraction", "data"),
                "ha": "right",
                "va": "center",
                "fontsize": 7.5,
            }
            axes.annotate(f"p {say.chance(number(row, 'p_null'))}", (1.0, y), **text, color=INK)
            data += [(row["unit"], edit, "observed", row["effect"])]
            data += [(row["unit"], edit, "control", value) for value in controls]
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.1 * (high - low))
        label_axes(axes, f"mean effect ({r.unit})", "")
    sizes = [len(controls) for _, controls in shown]
    least = number(shown[0][0], "smallest_p")
    title = f"Units among their controls: {r.condition}" + (f", {edit}" if len(r.edits) > 1 else "")
    more = f" The {STRIPS} strongest of {len(rows)}." if len(rows) > STRIPS else ""
    caption = (
        f"Grey: the mean effect of each random unit of equal size at the same layers, as measured "
        f"({min(sizes)}{f'–{max(sizes)}' if max(sizes) > min(sizes) else ''} a row).{more} p: two-sided in the distance from the "
        f"controls' mean{f'; no less than {say.chance(least)} with so few' if least else ''}. {say.SIGN} "
        f"{say.sample([r])} {say.sources([r])}"
    )
    alt = f"{title}: {plural(len(shown), 'unit')}, strongest {say.effect(shown[0][0])}"
    frame = pd.DataFrame(data, columns=["unit", "edit", "role", "effect"])
    return sheet.finish(title=title, caption=caption, alt=alt, data=frame)
