"""Maps of effects: layers by heads, layers by positions, units by conditions. Few paths however many cells, and no image.

A cell's colour is blue or orange (safe for colour blindness) laid over the paper as strongly as the effect is large, so that a map
follows the page's light or dark scheme; a cell that was not measured shows the hatched ground.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from circuits.drawing.style import GRID, INK, MUTED, PAPER, SERIES, Looks
from circuits.report.content import Figure
from circuits.report.sheet import LEFT, RIGHT, WIDTH, Sheet, drawing

Array = NDArray[np.float64]
BELOW, ABOVE = SERIES[0], SERIES[1]
STEPS = 24  # shades of each colour
HOVER = 600  # cells of a figure at most that say their value
CLIPPED = 0.998  # quantile of |value| that the colours reach where a few cells would wash out all others
FEW = 8  # rows or columns that all have a number
BAR = 0.62  # inches below the panels for the colour bar


@dataclass(frozen=True)
class Panel:
    """One map: NaN where nothing was measured; `dots` mark cells, `told` gives each cell's text."""

    title: str
    values: Array
    dots: NDArray[np.bool_]
    told: Callable[[int, int], str]


@dataclass(frozen=True)
class Axis:
    """What rows or columns stand for: numbers, or names that are all written out."""

    label: str
    ticks: Sequence[int] | Sequence[str]


def limit(panels: Sequence[Panel]) -> tuple[float, bool]:
    """Where the colours end, and whether values lie beyond."""
    sizes = np.abs(np.concatenate([panel.values[np.isfinite(panel.values)] for panel in panels]))
    largest = float(sizes.max(initial=0.0))
    most = float(np.quantile(sizes, CLIPPED)) if len(sizes) else 0.0
    return (most, True) if largest > 2 * most > 0 else (largest or 1.0, False)


def heatmap(
    name: str, panels: Sequence[Panel], rows: Axis, cols: Axis, unit: str, *,
    alpha: float | None, title: str, caption: str, alt: str, data: pd.DataFrame, across: int = 3,
    hatched: str = "hatched: not measured",
) -> Figure:  # fmt: skip
    """Maps of the same rows and columns, at most `across` side by side, under one colour scale centred on 0 that means `unit`.

    Rows stand from bottom to top where they are numbers, from top to bottom where they are names; dots stand for q < `alpha`.
    `hatched` says what a cell without a value means.
    """
    n_cols = min(across, len(panels))
    n_rows = -(-len(panels) // n_cols)
    named = [isinstance(axis.ticks[0], str) if len(axis.ticks) else False for axis in (rows, cols)]
    left = max(LEFT, 0.35 + 0.058 * max((len(str(tick)) for tick in rows.ticks), default=0)) if named[0] else LEFT
    turned = 0.056 * max(len(str(tick)) for tick in cols.ticks) if named[1] else 0.0
    width = WIDTH if n_cols > 1 or len(cols.ticks) > 12 else 5.5
    wide = (width - left - RIGHT) / n_cols * 0.88
    tall = len(rows.ticks) * 0.15 if named[0] else wide * len(rows.ticks) / max(1, len(cols.ticks))
    tall = max(tall, 0.5) if named[0] else min(max(tall, 0.12 * min(len(rows.ticks), 8), 0.35), 3.4)
    height = n_rows * (tall + 0.3) + (n_rows - 1) * 0.1 + BAR + 0.42 + turned
    reach, beyond = limit(panels)
    many = sum(panel.values.size for panel in panels) > HOVER
    with drawing():
        sheet = Sheet(name, Looks([""]), [""], height=height, width=width, grid=(n_rows, n_cols), titled=True)
        at: dict[str, Any] = {"left": left / width, "bottom": (BAR + 0.42 + turned) / height, "top": 1 - 0.3 / height}
        arrange(sheet, **at, hspace=0.4 / tall, wspace=0.12)
        for i, axes in enumerate(sheet.panels.flat):
            if i >= len(panels):
                axes.set_axis_off()
                continue
            _cells(sheet, axes, panels[i], reach, many)
            _dress(axes, panels[i].title, rows, cols, named)
            axes.tick_params(labelbottom=i + n_cols >= len(panels), labelleft=i % n_cols == 0)
            axes.set_xlabel(cols.label if i + n_cols >= len(panels) else "")
            axes.set_ylabel(rows.label if i % n_cols == 0 else "")
        says = [f"● q < {alpha:g}"] if alpha is not None else []
        says += [hatched] if any(np.isnan(panel.values).any() for panel in panels) else []
        _bar(sheet, reach, beyond, unit, says, left, width, height)
    if beyond:
        caption += f" Colours end at ±{reach:.3g}, so that few large values do not wash out the rest."
    return sheet.finish(title=title, caption=caption, alt=alt, data=data)


def arrange(sheet: Sheet, **place: float) -> None:
    """Other margins than a sheet's own."""
    for axes in sheet.panels.flat:
        spec = axes.get_subplotspec()
        spec.get_gridspec().update(**place)
        axes.set_position(spec.get_position(sheet.canvas))


def shade(value: float, reach: float) -> int:
    """−STEPS … STEPS, 0 without colour."""
    return int(np.clip(round(STEPS * value / reach), -STEPS, STEPS)) if reach > 0 else 0


def _ink(step: int) -> tuple[str, float]:
    # An opacity of exactly 0 would be drawn as no cell at all, and nothing could be pointed at.
    return (BELOW if step < 0 else ABOVE), max(abs(step) / STEPS, 0.004)


def _cells(sheet: Sheet, axes: Axes, panel: Panel, reach: float, many: bool) -> None:
    """Cells of one shade are one path; where there are few, each is its own and can be pointed at."""
    height, width = panel.values.shape
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(-0.5, height - 0.5)
    holes = not np.isfinite(panel.values).all()
    if holes:
        ground = (-0.5, -0.5), width, height
        axes.add_artist(Rectangle(*ground, facecolor="none", edgecolor=GRID, hatch="//////", linewidth=0, zorder=0.5))
    shades: dict[int, list[Path]] = {}
    for i, j in np.argwhere(np.isfinite(panel.values)):
        step, box = shade(float(panel.values[i, j]), reach), (j - 0.5, i - 0.5, j + 0.5, i + 0.5)
        square = Path(np.array([box[:2], (box[2], box[1]), box[2:], (box[0], box[3]), box[:2]]), closed=True)
        if many:
            shades.setdefault(step, []).append(square)
            continue
        if holes:
            _paper(axes, square)
        color, strength = _ink(step)
        artist = axes.add_artist(PathPatch(square, facecolor=color, alpha=strength, linewidth=0, zorder=2))
        sheet.tell(artist, panel.told(int(i), int(j)))
    if many and shades:
        if holes:
            _paper(axes, Path.make_compound_path(*(square for found in shades.values() for square in found)))
        for step, squares in sorted(shades.items()):
            if step:
                color, strength = _ink(step)
                whole = Path.make_compound_path(*squares)
                axes.add_artist(PathPatch(whole, facecolor=color, alpha=strength, linewidth=0, zorder=2))
    if panel.dots.any():
        y, x = np.nonzero(panel.dots)
        size = float(np.clip(50 / max(height, width), 1.4, 3.4))
        axes.plot(
            x, y, linestyle="none", marker="o", markersize=size, color=INK, markeredgecolor=PAPER,
            markeredgewidth=0.25 * size, zorder=3,
        )  # fmt: skip


def _paper(axes: Axes, path: Path) -> None:
    """Cells stand on paper, not on the hatched ground."""
    axes.add_artist(PathPatch(path, facecolor=PAPER, edgecolor=PAPER, linewidth=0.3, zorder=1))


def _dress(axes: Axes, title: str, rows: Axis, cols: Axis, named: Sequence[bool]) -> None:
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(MUTED)
    axes.set_title(title, loc="left", y=1.0, pad=3, color=INK, fontweight="bold")
    for axis, given, names in ((axes.yaxis, rows, named[0]), (axes.xaxis, cols, named[1])):
        ticks = list(given.ticks)
        if names or len(ticks) <= FEW:
            axis.set_major_locator(FixedLocator(list(range(len(ticks)))))
        else:
            axis.set_major_locator(MaxNLocator(min(9, max(1, len(ticks) - 1)), integer=True))
        axis.set_major_formatter(FuncFormatter(lambda at, _, ticks=ticks: _tick(at, ticks)))  # type: ignore[misc]
    if named[0]:
        axes.set_ylim(len(rows.ticks) - 0.5, -0.5)
    if named[1]:
        axes.tick_params(axis="x", rotation=90)


def _tick(at: float, ticks: Sequence[int] | Sequence[str]) -> str:
    i = round(at)
    found = ticks[i] if 0 <= i < len(ticks) and abs(at - i) < 1e-6 else ""
    return str(found).replace("-", "−") if isinstance(found, int) else found


def _bar(
    sheet: Sheet, reach: float, beyond: bool, unit: str, says: Sequence[str], left: float, width: float, height: float
) -> None:
    """The colour scale, and what dots and hatching mean."""
    long = min(3.0, width - left - RIGHT - 2.2)
    axes = sheet.canvas.add_axes((left / width, 0.36 / height, long / width, 0.1 / height))
    for step in range(-STEPS, STEPS + 1):
        color, strength = _ink(step)
        axes.add_artist(Rectangle((step - 0.5, 0), 1, 1, facecolor=color, alpha=strength, linewidth=0))
    axes.set_xlim(-STEPS - 0.5, STEPS + 0.5)
    axes.set_yticks([])
    ends = [f"{'≤ ' if beyond else ''}{-reach:.3g}", f"{-reach / 2:.3g}", "0", f"{reach / 2:.3g}"]
    axes.set_xticks(
        [-STEPS, -STEPS / 2, 0, STEPS / 2, STEPS],
        [end.replace("-", "−") for end in (*ends, f"{'≥ ' if beyond else ''}{reach:.3g}")],
    )
    axes.grid(False)
    axes.set_xlabel(unit, color=INK, labelpad=2)
    for i, text in enumerate(says):
        sheet.canvas.text((left + long + 0.3) / width, (0.42 - 0.16 * i) / height, text, fontsize=8, color=MUTED)
