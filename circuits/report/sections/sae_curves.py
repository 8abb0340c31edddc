"""Figures with one panel per layer: training curves and feature density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from circuits.report.charts import PANELS, ends_inward, keys_of, log_y, multiples, pages, power, values_of
from circuits.report.content import Figure
from circuits.report.registry import View
from circuits.report.sections import sae_words as say
from circuits.report.sections.sae_figures import EV_FLOOR
from circuits.report.sections.sae_records import Density, Record
from circuits.report.sheet import Sheet, drawing, stroke
from circuits.report.words import counts, plural, ranges, short, span, whole

CURVE_POINTS = 120
HOVER_POINTS = 8
OVERLAID = 7  # series in one panel at most, where all are of one layer


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


@dataclass(frozen=True)
class Grid:
    """How SAEs are spread over panels: one for each layer; one for each series where all are of one layer and they are many."""

    groups: Sequence[Sequence[int | str]]
    by_series: bool

    @staticmethod
    def of(view: View, records: Sequence[Record]) -> Grid:
        """The panels of these SAEs, in figures of at most `PANELS`."""
        series = sorted({r.series for r in records}, key=view.looks.rank)
        by_series = len({r.layer for r in records}) == 1 and len(series) > OVERLAID
        places: Sequence[int | str] = series if by_series else sorted({r.layer for r in records if r.layer is not None})
        return Grid(pages(places), by_series)

    def panel(self, record: Record) -> int | str:
        """The panel of an SAE."""
        return record.series if self.by_series else record.layer or 0

    def sheet(
        self, view: View, stem: str, number: int, records: Sequence[Record], x: str, y: str
    ) -> tuple[Sheet, dict[int | str, Axes]]:
        """The figure with panels `number`."""
        name = stem if number == 0 else f"{stem}-{number + 1}"
        places = self.groups[number]
        if self.by_series:
            return multiples(name, view.looks, [""], places, x, y, title=lambda series: values_of(str(series)))
        series = sorted({r.series for r in records}, key=view.looks.rank)
        return multiples(name, view.looks, series, places, x, y)

    def title(self, title: str, number: int) -> str:
        """A figure's title, and its part of the panels where they are many."""
        if len(self.groups) == 1:
            return title
        part = f"part {number + 1} of {len(self.groups)}" if self.by_series else f"layers {self._layers(number)}"
        return f"{title}, {part}"

    def says(self, number: int) -> str:
        """What a caption says of the panels."""
        what = "series" if self.by_series else "layers"
        page = f"Figure {number + 1} of {len(self.groups)}, at most {PANELS} {what} each, on the same axes."
        titles = f"One panel for each value of {keys_of(str(self.groups[0][0]))}." if self.by_series else ""
        return say.join([page if len(self.groups) > 1 else "", titles])

    def alt(self, number: int) -> str:
        """What alternative text says of the panels."""
        if self.by_series:
            return f"one panel for each of {len(self.groups[number])} series"
        return f"one panel for each of the layers {self._layers(number)}"

    def _layers(self, number: int) -> str:
        return ranges(int(layer) for layer in self.groups[number])


def training_figures(view: View, records: Sequence[Record], curve: Curve) -> list[Figure]:
    """`curve` against the step, at most 18 panels to a figure; a curve that stays where it begins is not drawn."""
    found = [(r, table) for r in records if r.layer is not None and (table := _thinned(r, curve.column)) is not None]
    drawn = [(r, table) for r, table in found if _moves(table[curve.column])]
    if not drawn:
        return []
    low = min(float(t[curve.column].min()) for _, t in drawn)
    high = max(float(t[curve.column].max()) for _, t in drawn)
    grid = Grid.of(view, [r for r, _ in drawn])
    still = [r for r, table in found if not _moves(table[curve.column])]
    figures = []
    for number, places in enumerate(grid.groups):
        mine = [(r, table) for r, table in drawn if grid.panel(r) in places]
        with drawing():
            stem = f"sae-train-{curve.column.replace('_', '-')}"
            sheet, panels = grid.sheet(view, stem, number, [r for r, _ in mine], "step", curve.axis)
            _curve_range(next(iter(panels.values())), curve, low, high)
            for r, table in mine:
                _draw_curve(sheet, panels[grid.panel(r)], view, r, table, curve)
        caption = [
            grid.says(number),
            "Measured on the training batches, not held out.",
            _thinning(mine),
            f"Values below {curve.floor} lie under the axis." if curve.floor is not None and low < curve.floor else "",
            f"Not drawn: {plural(len(still), 'SAE')} in which it does not vary." if still and number == 0 else "",
            say.missing(records, [r for r, _ in found], "its history") if number == 0 else "",
            say.looks(view),
            say.which([r for r, _ in mine]),
        ]
        data = pd.concat([table.assign(**r.identity(view.swept), artifact=r.label) for r, table in mine])
        data = data[["layer", *view.swept, "step", curve.column, "artifact"]]
        alt = f"{curve.title}, {grid.alt(number)}, {plural(len(mine), 'SAE')}"
        figures.append(
            sheet.finish(title=grid.title(curve.title, number), caption=say.join(caption), alt=alt, data=data)
        )
    return figures


def untold(records: Sequence[Record]) -> str:
    """Which training curves are not drawn because they cannot tell anything."""
    parts = []
    for curve in CURVES:
        tables = [table for r in records if (table := _thinned(r, curve.column)) is not None]
        if tables and not any(_moves(table[curve.column]) for table in tables):
            parts.append(f"{curve.axis} ({span([float(table[curve.column].iloc[-1]) for table in tables], 1)})")
    few = sum(r.history is not None and len(r.history) < 2 for r in records)
    said = [f"Not drawn over training, because it does not vary: {', '.join(parts)}." if parts else ""]
    said.append(f"No training curve of {plural(few, 'SAE')}: one logged step (sae.log_every)." if few else "")
    return say.join(said)


def _moves(values: pd.Series) -> bool:
    """Whether a curve varies by more than rounding."""
    return bool(values.max() - values.min() > 1e-6 * max(abs(values.max()), abs(values.min())))


@lru_cache(maxsize=1 << 12)
def _thinned(record: Record, column: str) -> pd.DataFrame | None:
    """The finite part of a history column, at most CURVE_POINTS evenly spaced rows, the last included; a point is no curve."""
    if record.history is None or column not in record.history:
        return None
    steps, values = (record.history[name].to_numpy() for name in ("step", column))
    finite = np.flatnonzero(np.isfinite(steps.astype(float)) & np.isfinite(values.astype(float)))
    if len(finite) < 2:
        return None
    order = finite[np.argsort(steps[finite], kind="stable")]
    picked = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), CURVE_POINTS)).round().astype(int))]
    return pd.DataFrame({"step": steps[picked], column: values[picked]})


def _thinning(mine: Sequence[tuple[Record, pd.DataFrame]]) -> str:
    if all(r.history is not None and len(r.history) <= CURVE_POINTS for r, _ in mine):
        return "Every logged step."
    return f"{CURVE_POINTS} evenly spaced steps of each history; all of them are in the artifact's history.parquet."


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
    grid = Grid.of(view, [r for r, _ in drawn])
    high = max(float(d.counts.max()) for _, d in drawn)
    left, right = min(_lowest(d) for _, d in drawn), max(float(d.edges[-1]) for _, d in drawn)
    figures = []
    for number, places in enumerate(grid.groups):
        mine = [(r, d) for r, d in drawn if grid.panel(r) in places]
        with drawing():
            own = [r for r, _ in mine]
            sheet, panels = grid.sheet(view, "sae-density", number, own, "firing rate (log scale)", "features")
            first = next(iter(panels.values()))
            first.set_xlim(left, right)
            first.set_ylim(0, 1.08 * (high or 1.0))
            first.xaxis.set_major_locator(FixedLocator(_decades(left, right)))
            first.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
            for axes in panels.values():
                ends_inward(axes)
            # More shades than two over one another are one grey.
            shade = 0.12 if grid.by_series or len(view.looks.series) < 3 else 0.0
            for r, d in mine:
                look, panel = view.looks[r.series], panels[grid.panel(r)]
                area = panel.stairs(d.counts, d.edges, fill=True, color=look.color, alpha=shade)
                panel.stairs(d.counts, d.edges, color=look.color, linestyle=look.dash, linewidth=1.1)
                fired = f"{whole(d.counts.sum())} features fired, {whole(d.never)} never"
                sheet.tell(area, f"{say.who(r)}: {fired}\n{r.label}")
        caption = [
            grid.says(number),
            "Number of features by the share of held-out rows they fire on.",
            f"Not in the histogram: features that never fired there, {counts([d.never for _, d in mine])} per SAE.",
            say.sample([r for r, _ in mine]),
            say.missing(records, [r for r, _ in drawn], "its density") if number == 0 else "",
            say.looks(view),
            say.which([r for r, _ in mine]),
        ]
        data = _density_table(view, mine)
        alt = f"Feature density, {grid.alt(number)}, {plural(len(mine), 'SAE')}"
        title = grid.title("Feature density", number)
        figures.append(sheet.finish(title=title, caption=say.join(caption), alt=alt, data=data))
    return figures


def _lowest(density: Density) -> float:
    """The decade in which the first features are."""
    filled = np.flatnonzero(density.counts)
    return float(np.floor(density.edges[filled[0]])) if len(filled) else float(density.edges[0])


def _decades(left: float, right: float) -> list[int]:
    """Whole exponents, thinned to five ticks."""
    exponents = range(int(np.ceil(left)), int(np.floor(right)) + 1)
    return list(exponents[:: max(1, -(-len(exponents) // 5))])


def _density_table(view: View, mine: Sequence[tuple[Record, Density]]) -> pd.DataFrame:
    """A line for each bin of each SAE, and one for its features that never fired."""
    rows = [
        {
            **record.identity(view.swept),
            "bin": kind,
            "log10_rate_low": low,
            "log10_rate_high": high,
            "features": features,
            "artifact": record.label,
        }
        for record, d in mine
        for kind, low, high, features in (
            *(("fired", *bin) for bin in zip(d.edges[:-1], d.edges[1:], d.counts, strict=True)),
            ("never", np.nan, np.nan, float(d.never)),
        )
    ]
    return pd.DataFrame(rows)
