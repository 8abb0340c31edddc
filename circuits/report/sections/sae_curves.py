"""Figures with one panel per layer: training curves and feature density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from circuits.report.charts import PANELS, log_y, multiples, pages, power
from circuits.report.content import Figure
from circuits.report.registry import View
from circuits.report.sections import sae_words as say
from circuits.report.sections.sae_figures import EV_FLOOR
from circuits.report.sections.sae_records import Record
from circuits.report.sheet import Sheet, drawing, stroke
from circuits.report.words import counts, plural, ranges, short, whole

CURVE_POINTS = 120
HOVER_POINTS = 8


@dataclass(frozen=True)
class Curve:
    """A column of the training history."""

    column: str
    title: str
    axis: str
    floor: float | None = None


CURVES = (
    Curve("explained_variance", "Explained variance while training", "explained variance", EV_FLOOR),
    Curve("l0", "L0 while training", "L0"),
    Curve("loss", "Loss while training", "loss"),
)


def training_figures(view: View, records: Sequence[Record], curve: Curve) -> list[Figure]:
    """`curve` against the step, one panel per layer, at most 18 panels to a figure."""
    drawn = [(r, table) for r in records if r.layer is not None and (table := _thinned(r, curve.column)) is not None]
    if not drawn:
        return []
    low = min(float(t[curve.column].min()) for _, t in drawn)
    high = max(float(t[curve.column].max()) for _, t in drawn)
    groups = pages(r.layer for r, _ in drawn if r.layer is not None)
    figures = []
    for number, layers in enumerate(groups):
        mine = [(r, table) for r, table in drawn if r.layer in layers]
        with drawing():
            stem = f"sae-train-{curve.column.replace('_', '-')}"
            sheet, panels = _panels(view, stem, number, layers, mine, "step", curve.axis)
            _curve_range(next(iter(panels.values())), curve, low, high)
            for r, table in mine:
                _draw_curve(sheet, panels[r.layer or 0], view, r, table, curve)
        caption = [
            _page(number, groups),
            "Measured on the training batches, not held out.",
            _thinning(mine),
            f"Values below {curve.floor} lie under the axis." if curve.floor is not None and low < curve.floor else "",
            say.missing(records, [r for r, _ in drawn], "its history") if number == 0 else "",
            say.looks(view),
            say.which([r for r, _ in mine]),
        ]
        data = pd.concat([table.assign(**r.identity(view.swept), artifact=r.label) for r, table in mine])
        data = data[["layer", *view.swept, "step", curve.column, "artifact"]]
        alt = f"{curve.title}, one panel for each of the layers {ranges(layers)}, {plural(len(mine), 'SAE')}"
        figures.append(
            sheet.finish(title=_title(curve.title, number, groups), caption=say.join(caption), alt=alt, data=data)
        )
    return figures


def _panels(
    view: View, stem: str, number: int, layers: Sequence[int], mine: Sequence[tuple[Record, Any]], x: str, y: str
) -> tuple[Sheet, dict[int, Axes]]:
    series = sorted({r.series for r, _ in mine}, key=view.looks.rank)
    name = stem if number == 0 else f"{stem}-{number + 1}"
    return multiples(name, view.looks, series, layers, x, y)


def _thinned(record: Record, column: str) -> pd.DataFrame | None:
    """The finite part of a history column, at most CURVE_POINTS evenly spaced rows of it, the last included."""
    if record.history is None or column not in record.history:
        return None
    finite = np.isfinite(record.history[["step", column]].to_numpy(float)).all(axis=1)
    table = record.history.loc[finite, ["step", column]].sort_values(by="step", kind="stable")
    if table.empty:
        return None
    picked = np.unique(np.linspace(0, len(table) - 1, min(len(table), CURVE_POINTS)).round().astype(int))
    return table.iloc[picked]


def _thinning(mine: Sequence[tuple[Record, pd.DataFrame]]) -> str:
    if all(r.history is not None and len(r.history) <= CURVE_POINTS for r, _ in mine):
        return "Every logged step."
    return f"{CURVE_POINTS} evenly spaced steps of each history; all of them are in the artifact's history.parquet."


def _title(title: str, number: int, groups: Sequence[Sequence[int]]) -> str:
    return title if len(groups) == 1 else f"{title}, layers {ranges(groups[number])}"


def _page(number: int, groups: Sequence[Sequence[int]]) -> str:
    if len(groups) == 1:
        return ""
    return f"Figure {number + 1} of {len(groups)}, at most {PANELS} layers each, on the same axes."


def _curve_range(axes: Axes, curve: Curve, low: float, high: float) -> None:
    if curve.floor is None and low > 0 and high / low > 10:
        log_y(axes, low, high)
        return
    bottom = low if curve.floor is None else max(low, curve.floor)
    room = 0.06 * (high - bottom) or 0.05 * (abs(high) or 1.0)
    axes.set_ylim(bottom - room, high + room)


def _draw_curve(sheet: Sheet, axes: Axes, view: View, record: Record, table: pd.DataFrame, curve: Curve) -> None:
    look = view.looks[record.series]
    axes.plot(table["step"], table[curve.column], **stroke(look))
    low, high = axes.get_ylim()
    inside = table[table[curve.column].between(low, high)]
    if inside.empty:
        return
    spots = inside.iloc[np.unique(np.linspace(0, len(inside) - 1, min(len(inside), HOVER_POINTS)).round().astype(int))]
    # Invisible marks to point at: a line an eye can see is too thin for a mouse to hit.
    (marks,) = axes.plot(
        spots["step"], spots[curve.column], "o", color=look.color, markersize=7, alpha=0, clip_on=False
    )
    who = say.who(record)
    sheet.tell(marks, [f"{who}\nstep {whole(s)}: {curve.axis} {short(v)}" for s, v in spots.itertuples(index=False)])


def density_figures(view: View, records: Sequence[Record]) -> list[Figure]:
    """How often features fire, one panel per layer, one outline per series."""
    drawn = [(r, r.density) for r in records if r.layer is not None and r.density is not None]
    if not drawn:
        return []
    groups = pages(r.layer for r, _ in drawn if r.layer is not None)
    high = max(float(d.counts.max()) for _, d in drawn)
    left, right = min(float(d.edges[0]) for _, d in drawn), max(float(d.edges[-1]) for _, d in drawn)
    figures = []
    for number, layers in enumerate(groups):
        mine = [(r, d) for r, d in drawn if r.layer in layers]
        with drawing():
            sheet, panels = _panels(view, "sae-density", number, layers, mine, "firing rate (log scale)", "features")
            first = next(iter(panels.values()))
            first.set_xlim(left, right)
            first.set_ylim(0, 1.08 * (high or 1.0))
            first.xaxis.set_major_locator(FixedLocator(_decades(left, right)))
            first.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
            shade = 0.12 if len(view.looks.series) < 3 else 0.0  # more shades than two are one grey
            for r, d in mine:
                look, panel = view.looks[r.series], panels[r.layer or 0]
                area = panel.stairs(d.counts, d.edges, fill=True, color=look.color, alpha=shade)
                panel.stairs(d.counts, d.edges, color=look.color, linestyle=look.dash, linewidth=1.1)
                fired = f"{whole(d.counts.sum())} features fired, {whole(d.never)} never"
                sheet.tell(area, f"{say.who(r)}: {fired}\n{r.label}")
        caption = [
            _page(number, groups),
            "Number of features by the share of held-out rows they fire on.",
            f"Not in the histogram: features that never fired there, {counts([d.never for _, d in mine])} per SAE.",
            say.sample([r for r, _ in mine]),
            say.missing(records, [r for r, _ in drawn], "its density") if number == 0 else "",
            say.looks(view),
            say.which([r for r, _ in mine]),
        ]
        data = pd.concat([_density_table(view, r) for r, _ in mine])
        alt = f"Feature density, one panel for each of the layers {ranges(layers)}, {plural(len(mine), 'SAE')}"
        figures.append(
            sheet.finish(title=_title("Feature density", number, groups), caption=say.join(caption), alt=alt, data=data)
        )
    return figures


def _decades(left: float, right: float) -> list[int]:
    """Whole exponents, thinned to five ticks."""
    exponents = range(int(np.ceil(left)), int(np.floor(right)) + 1)
    return list(exponents[:: max(1, -(-len(exponents) // 5))])


def _density_table(view: View, record: Record) -> pd.DataFrame:
    density = record.density
    if density is None:
        return pd.DataFrame()
    table = pd.DataFrame(
        {
            "log10_rate_low": [*density.edges[:-1], np.nan],
            "log10_rate_high": [*density.edges[1:], np.nan],
            "features": [*density.counts, density.never],
        }
    )
    bins = table.assign(bin=["fired"] * len(density.counts) + ["never"])
    named = bins.assign(**record.identity(view.swept), artifact=record.label)
    return named[["layer", *view.swept, "bin", "log10_rate_low", "log10_rate_high", "features", "artifact"]]
