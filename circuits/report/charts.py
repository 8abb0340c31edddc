"""The two shapes most results take: a value by layer with intervals, and small multiples of curves by layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from circuits.drawing.style import INK, Looks
from circuits.report.sheet import BOTTOM, Sheet, control_marks, drawing, joined, label_axes, reference

T = TypeVar("T")
PANELS = 18
LABELLED_LAYERS = 40
AXIS_LETTERS = 120  # what fits under the x axis in one line
TURNED = 40  # names fit there when they stand upright, as values without their keys


@dataclass(frozen=True)
class Point:
    """One measured value at a layer, with its interval when it has one."""

    layer: int
    series: str
    value: float
    interval: tuple[float, float] | None
    hover: str


def by_layer(
    name: str,
    looks: Looks,
    points: Sequence[Point],
    ylabel: str,
    *,
    control: Sequence[Point] = (),
    names: tuple[str, str] = ("", ""),
    floor: float | None = None,
    fractions: bool = False,
    height: float = 2.7,
    across_label: str | None = None,
) -> tuple[Sheet, int]:
    """Values by layer, one line per series, drawn side by side within a layer so that intervals stay apart.

    `names`: what the `control` is called, and what is measured where nothing sets series apart.

    Values below `floor` are drawn as ▼ on the floor; how many is returned, because the caption has to say it. Where all
    points are of one layer, the series take the place of the layers on the x axis, under `across_label`.
    """
    series = sorted({p.series for p in points}, key=looks.rank)
    layers = sorted({p.layer for p in points})
    across = len(layers) == 1 and (len(series) > 1 or across_label is not None)
    named = across and sum(len(label) + 2 for label in series) <= AXIS_LETTERS
    turned = across and not named and len(series) <= TURNED
    room = 0.056 * max(len(values_of(label)) for label in series) if turned else 0.0
    neighbours = set(itertools.pairwise(layers))
    with drawing():
        shown = [] if named or turned else series
        sheet = Sheet(
            name,
            looks,
            shown,
            height=height + room,
            control=names[0] if control else "",
            plain=names[1],
            bottom=BOTTOM + room,
        )
        axes = sheet.axes
        place = _places(layers, series, across)
        low = _axis_range(axes, [*points, *control], floor)
        below = 0
        # The control first, so that it lies behind; one control per layer and series, as measured.
        for label in series:
            mine = [p for p in control if p.series == label]
            below += _draw(sheet, mine, place, low, control_marks(), neighbours)
        for label in series:
            mine = sorted((p for p in points if p.series == label), key=lambda p: p.layer)
            look = looks[label]
            below += _draw(sheet, mine, place, low, joined(look), neighbours)
        if fractions:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        if across:
            labels = series if named else [values_of(label) if turned else "" for label in series]
            axes.set_xticks(range(len(series)), labels, rotation=90 if turned else 0)
            keys = keys_of(series[0]) if turned else ""
            label_axes(axes, across_label or f"{keys or 'swept value'} (layer {layers[0]})", ylabel)
        else:
            axes.set_xticks(layers if len(layers) <= LABELLED_LAYERS else layers[::2])
            label_axes(axes, "layer", ylabel)
        axes.margins(x=0.02 if len(layers) > 8 else 0.05)
        axes.grid(False, axis="x")
    return sheet, below


def values_of(series: str) -> str:
    """``8, relu`` of ``sae.k=8, sae=relu``."""
    return ", ".join(part.partition("=")[2] or part for part in series.split(", "))


def keys_of(series: str) -> str:
    """``sae.k, sae`` of ``sae.k=8, sae=relu``."""
    return ", ".join(key for key, equals, _ in (part.partition("=") for part in series.split(", ")) if equals)


def _places(layers: Sequence[int], series: Sequence[str], across: bool) -> Callable[[Point], float]:
    """Where a point stands on the x axis; series of one layer spread over at most half of its room."""
    rank = {label: i for i, label in enumerate(series)}
    if across:
        return lambda p: float(rank[p.series])
    step = min(0.5 / max(len(series), 1), 0.09)
    middle = (len(series) - 1) / 2
    return lambda p: p.layer + step * (rank[p.series] - middle)


def _axis_range(axes: Axes, points: Sequence[Point], floor: float | None) -> float | None:
    """Zero is in sight; the axis ends at `floor` when values lie below it. Returns the floor when it is used."""
    # A value can lie outside its own interval (a ratio whose denominator is near zero), and has to be in sight all the same.
    ends = [end for p in points for end in (p.value, *(p.interval or ()))]
    bottom, top = min([0.0, *ends]), max([0.0, *ends])
    used = floor if floor is not None and bottom < floor else None
    bottom = used if used is not None else bottom
    room = 0.06 * ((top - bottom) or 1.0)
    axes.set_ylim(bottom - (room if bottom < 0 else 0), top + room)
    if bottom < 0:
        reference(axes, y=0)
    return used


def _draw(
    sheet: Sheet,
    points: Sequence[Point],
    place: Callable[[Point], float],
    floor: float | None,
    style: dict[str, Any],
    neighbours: Collection[tuple[int, int]],
) -> int:
    """Draw one series; returns how many of its points lie below `floor`."""
    axes = sheet.axes
    sunk = [p for p in points if floor is not None and p.value < floor]
    seen = [p for p in points if p not in sunk]
    pairs = [pair for pair in itertools.pairwise(seen) if (pair[0].layer, pair[1].layer) in neighbours]
    if pairs:
        # Joined only where two layers follow one another: a layer that failed or lies below the floor leaves a gap.
        xs = [x for a, b in pairs for x in (place(a), place(b), math.nan)]
        ys = [y for a, b in pairs for y in (a.value, b.value, math.nan)]
        axes.plot(xs, ys, alpha=0.75, **_only(style, "color", "linestyle", "linewidth"))
    if barred := [(place(p), *p.interval) for p in seen if p.interval]:
        axes.vlines(*zip(*barred, strict=True), color=style["color"], linewidth=1.1)
    flat = {key: value for key, value in style.items() if key not in ("linestyle", "linewidth", "marker")}
    for group, marker in ((seen, style["marker"]), (sunk, "v")):
        if group:
            ys = [p.value if group is seen or floor is None else floor for p in group]
            xs = [place(p) for p in group]
            (artist,) = axes.plot(xs, ys, **flat, marker=marker, linestyle="none", clip_on=False)
            sheet.tell(artist, [p.hover for p in group])
    return len(sunk)


def _only(style: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: style[key] for key in keys}


def pages(panels: Iterable[T]) -> list[list[T]]:
    """The panels, each once, in groups of at most PANELS, as even as can be: no figure with two panels after one with eighteen."""
    ordered = list(dict.fromkeys(panels))
    n = max(1, math.ceil(len(ordered) / PANELS))
    ends = [round(i * len(ordered) / n) for i in range(n + 1)]
    return [ordered[start:end] for start, end in itertools.pairwise(ends) if end > start]


def multiples(
    name: str,
    looks: Looks,
    series: Sequence[str],
    panels: Sequence[T],
    x: str,
    y: str,
    *,
    title: Callable[[T], str] = lambda layer: f"layer {layer}",
    own_y: bool = False,
) -> tuple[Sheet, dict[T, Axes]]:
    """A grid with common axes, one panel for each of `panels` (layers, if no `title` says otherwise). Call inside `drawing()`.

    `own_y`: each panel has a y axis of its own.
    """
    n = len(panels)
    cols = n if n <= 4 else 4 if n <= 8 or max(len(title(panel)) for panel in panels) > 16 else 6
    rows = math.ceil(n / cols)
    width = 9.5 if n > 2 else 3.4 * n + 1.2
    height = (1.75 if cols <= 4 and rows <= 2 else 1.3) * rows + 0.65
    sheet = Sheet(
        name, looks, series, height=height, width=width, grid=(rows, cols), titled=True, shown="lines", own_y=own_y
    )
    placed: dict[T, Axes] = {}
    for i, axes in enumerate(sheet.panels.flat):
        if i >= n:
            axes.set_axis_off()
            continue
        placed[panels[i]] = axes
        # A given y spares matplotlib the search for one, which costs as much as drawing the panel.
        axes.set_title(title(panels[i]), loc="left", y=1.0, pad=3, color=INK, fontweight="bold")
        axes.xaxis.set_major_locator(MaxNLocator(3 if cols == 6 else 4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: steps(value)))
        if i + cols >= n:
            axes.tick_params(labelbottom=True)
    sheet.canvas.supxlabel(x, fontsize=8, y=0.005, va="bottom")
    if y:
        sheet.canvas.supylabel(y, fontsize=8, x=0.004, ha="left")
    return sheet, placed


def ends_inward(axes: Axes) -> None:
    """The first and the last label of the x axis end with it: those of neighbouring panels would touch."""
    labels = axes.get_xticklabels()
    if len(labels) > 1:
        labels[0].set_horizontalalignment("left")
        labels[-1].set_horizontalalignment("right")


def log_y(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis with plain numbers on it; fewer than two decades also get their 2s and 5s."""
    axes.set_yscale("log")
    subs = (1.0,) if math.log10(high / low) > 2 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(low / 1.15, high * 1.15)


def steps(value: float) -> str:
    """``500``, ``20k``, ``1.5M`` on an axis."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= (10 * size if unit == "k" else size):
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def power(exponent: float) -> str:
    """``10⁻³`` for -3."""
    signs = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return f"10{f'{exponent:g}'.translate(signs)}" if float(exponent).is_integer() else ""
