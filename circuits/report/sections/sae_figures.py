"""Figures with one point per SAE: a measure by layer, and explained variance against L0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from circuits.drawing.style import INK, MUTED, Look, Looks
from circuits.report.charts import Point, by_layer
from circuits.report.content import Figure
from circuits.report.registry import View
from circuits.report.sections import sae_words as say
from circuits.report.sections.sae_records import Record
from circuits.report.sheet import Sheet, drawing, label_axes, marks
from circuits.report.words import decimal, percent, plural, short

EV_FLOOR = -0.1  # far below it a reconstruction is much worse than the mean, and its value would flatten all others
LABELLED_POINTS = 40
SAME_L0 = 0.01  # as a share
SPARSITY = (
    "layer",
    "sae",
    "sae.architecture",
    "sae.k",
    "sae.sparsity",
    "sae.l1",
    "sae.l0_coefficient",
    "sae.target_l0",
    "sae.threshold",
)
"""What a curve of SAEs at one layer goes along; whatever else is swept makes a further curve."""
LABEL_HEIGHT = 7.5  # points


@dataclass(frozen=True)
class Measure:
    """A number of an SAE that is drawn by layer."""

    name: str
    title: str
    axis: str
    says: str
    floor: float | None = None
    fractions: bool = False

    def text(self, value: float | None) -> str:
        """The value as a person reads it."""
        return percent(value) if self.fractions else decimal(value)


EXPLAINED = Measure(
    "explained_variance",
    "Explained variance",
    "explained variance",
    "Explained variance 1 − Σ‖x − x̂‖² / Σ‖x − mean‖² on held-out rows.",
    floor=EV_FLOOR,
)
DEAD = Measure(
    "dead_fraction",
    "Dead features",
    "dead features",
    "Share of an SAE's features that count as dead.",
    fractions=True,
)
CE_SCORE = Measure(
    "ce_score",
    "Cross-entropy score",
    "CE score",
    "(zero − spliced) / (zero − clean) in next-token cross-entropy: 1 where the model predicts with the reconstruction "
    "spliced in as well as untouched, 0 where it does no better than with the site set to zero.",
    floor=EV_FLOOR,
)


def measure_figure(view: View, records: Sequence[Record], measure: Measure, *, control: bool = False) -> Figure | None:
    """`measure` by layer, with intervals and, when asked for and measured, the untrained control.

    None where it would show no more than the table: of one SAE, or of a measure without intervals that is the same in all.
    """
    drawn = [r for r in records if r.layer is not None and r.get(measure.name) is not None]
    exact = {r.get(measure.name) for r in drawn if measure.name not in r.intervals}
    if len(drawn) < 2 or (len(exact) == 1 and not any(measure.name in r.intervals for r in drawn)):
        return None
    points, controls = _points(drawn, measure), _controls(drawn) if control else []
    name = f"sae-{measure.name.replace('_', '-')}"
    sheet, below = by_layer(
        name,
        view.looks,
        points,
        measure.axis,
        control=controls,
        names=("untrained SAE", "trained SAE"),
        floor=measure.floor,
        fractions=measure.fractions,
        height=2.4 if control else 2.2,
    )
    caption = [
        measure.says,
        "" if measure.fractions else say.bars(drawn, measure.name),
        say.sample(drawn),
        say.control(drawn) if control else "",
        say.below(below, measure.floor),
        say.missing(records, drawn),
        say.looks(view),
        say.which(drawn),
    ]
    values = [point.value for point in points]
    single = len({r.layer for r in drawn}) == 1
    title = f"{measure.title} {f'at {say.layers(drawn)}' if single else 'by layer'}"
    alt = (
        f"{title}: {plural(len(drawn), 'SAE')}, {say.layers(drawn)}, "
        f"from {measure.text(min(values))} to {measure.text(max(values))}"
    )
    data = pd.DataFrame(_row(view, r, (measure.name,), control) for r in drawn)
    return sheet.finish(title=title, caption=say.join(caption), alt=alt, data=data)


def _points(records: Sequence[Record], measure: Measure) -> list[Point]:
    points = []
    for r in records:
        value, interval = r.numbers[measure.name], r.intervals.get(measure.name)
        exact = f" [{measure.text(interval[0])}, {measure.text(interval[1])}]" if interval else ""
        hover = f"{say.who(r)}: {measure.axis} {measure.text(value)}{exact}\n{r.label}"
        points.append(Point(r.layer or 0, r.series, value, interval, hover))
    return points


def _controls(records: Sequence[Record]) -> list[Point]:
    return [
        Point(r.layer or 0, r.series, r.control, None, f"{say.who(r)}: untrained SAE {decimal(r.control)}")
        for r in records
        if r.control is not None
    ]


def _row(view: View, record: Record, names: Sequence[str], control: bool = False) -> dict[str, Any]:
    """One line of a figure's CSV."""
    row = record.identity(view.swept)
    for name in names:
        low, high = record.intervals.get(name, (None, None))
        row |= {name: record.get(name), f"{name}_ci_low": low, f"{name}_ci_high": high}
    if control:
        row["explained_variance_untrained"] = record.control
    sizes = {"n_rows": record.get("n_rows"), "n_sequences": record.get("n_sequences")}
    return row | sizes | {"artifact": record.label}


def frontier(view: View, records: Sequence[Record]) -> Figure | None:
    """Explained variance against L0: what SAEs of different sparsity are compared by; None where all are as sparse."""
    drawn = [r for r in records if r.get("l0") is not None and r.get("explained_variance") is not None]
    sparsities = [r.numbers["l0"] for r in drawn]
    if not drawn or max(sparsities) - min(sparsities) <= SAME_L0 * max(sparsities):
        return None
    by_architecture = len({r.architecture for r in drawn}) > 1
    groups = {r.label: r.architecture if by_architecture else r.series for r in drawn}
    looks = Looks(groups.values()) if by_architecture else view.looks
    series = sorted(set(groups.values()), key=looks.rank)
    xs = np.array([r.numbers["l0"] for r in drawn])
    ys = np.array([max(r.numbers["explained_variance"], EV_FLOOR) for r in drawn])
    logarithmic = bool(xs.min() > 0 and xs.max() / xs.min() > 3)
    labelled = len(drawn) <= LABELLED_POINTS and len({r.layer for r in drawn}) > 1
    with drawing():
        sheet = Sheet("sae-frontier", looks, series, height=3.1, shown="marks")
        axes = sheet.axes
        _frontier_axes(axes, xs, ys, logarithmic)
        if not by_architecture:
            _join(axes, list(zip(drawn, ys, strict=True)), color=MUTED, linewidth=0.6, alpha=0.5)
        for label in series:
            mine = [(r, y) for r, y in zip(drawn, ys, strict=True) if groups[r.label] == label]
            if by_architecture:
                _join(axes, mine, color=looks[label].color, linewidth=1.0, alpha=0.7)
            _frontier_series(sheet, looks[label], mine)
        if labelled:
            ends = np.array([r.intervals.get("l0", (0, r.numbers["l0"]))[1] for r in drawn])
            labelled = _label_points(axes, ends, ys, ["" if r.layer is None else str(r.layer) for r in drawn])
    sunk = int(sum(r.numbers["explained_variance"] < EV_FLOOR for r in drawn))
    caption = [
        f"One point per SAE{', its layer beside it' if labelled else ''}; hover names it.",
        _joined(by_architecture, series),
        "Bars: 95% intervals over sequences, in both directions where saved.",
        say.sample(drawn),
        say.below(sunk, EV_FLOOR),
        say.missing(records, drawn),
        "" if by_architecture else say.looks(view),
        say.which(drawn),
    ]
    rows = [_row(view, r, ("l0", "explained_variance")) | {"architecture": r.architecture} for r in drawn]
    data = pd.DataFrame(rows)
    alt = f"Explained variance against L0, {plural(len(drawn), 'SAE')}, L0 from {short(xs.min())} to {short(xs.max())}"
    return sheet.finish(title="Explained variance against L0", caption=say.join(caption), alt=alt, data=data)


def _joined(by_architecture: bool, series: Sequence[str]) -> str:
    """What the lines join."""
    if by_architecture:
        return "One colour per architecture; lines join SAEs that differ only in their sparsity. Higher and further left is better."
    return "Grey lines join SAEs that differ only in their sparsity." if len(series) > 1 else ""


def _join(axes: Axes, mine: Sequence[tuple[Record, float]], **style: Any) -> None:
    """A line through the SAEs that differ only in how sparse they are."""
    curves: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for r, y in mine:
        others = tuple((k, v) for k, v in r.entry.element.swept.items() if k not in SPARSITY)
        curves.setdefault((r.layer, others), []).append((r.numbers["l0"], y))
    for path in map(sorted, curves.values()):
        if len(path) > 1:
            axes.plot([x for x, _ in path], [y for _, y in path], zorder=1, **style)


def _frontier_axes(axes: Axes, xs: np.ndarray, ys: np.ndarray, logarithmic: bool) -> None:
    if logarithmic:
        axes.set_xscale("log")
        narrow = xs.max() / xs.min() < 12
        axes.xaxis.set_major_locator(
            LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0) if narrow else (1.0, 2.0, 5.0))
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(xs.min() / 1.25, xs.max() * 1.25)
    else:
        room = 0.15 * (xs.max() - xs.min()) or 0.1 * max(xs.max(), 1.0)
        axes.set_xlim(xs.min() - room, xs.max() + room)
    room = 0.1 * (ys.max() - ys.min()) or 0.02
    axes.set_ylim(ys.min() - room, ys.max() + room)
    scale = " (log scale)" if logarithmic else ""
    label_axes(axes, f"L0: features that fire on a row{scale}", "explained variance")


def _frontier_series(sheet: Sheet, look: Look, mine: Sequence[tuple[Record, float]]) -> None:
    axes = sheet.axes
    across = [(y, *r.intervals["l0"]) for r, y in mine if "l0" in r.intervals]
    up = [
        (r.numbers["l0"], *r.intervals["explained_variance"])
        for r, y in mine
        if y > EV_FLOOR and "explained_variance" in r.intervals
    ]
    for bars, draw in ((up, axes.vlines), (across, axes.hlines)):
        if bars:
            draw(*zip(*bars, strict=True), color=look.color, linewidth=0.9)
    style: dict[str, Any] = {**marks(look), "markersize": 5, "clip_on": False}
    (artist,) = axes.plot([r.numbers["l0"] for r, _ in mine], [y for _, y in mine], **style)
    sheet.tell(
        artist,
        [
            f"{say.who(r)}: L0 {say.value_with_interval(r, 'l0')}, "
            f"explained variance {say.value_with_interval(r, 'explained_variance')}\n{r.label}"
            for r, _ in mine
        ],
    )


def _label_points(axes: Axes, xs: np.ndarray, ys: np.ndarray, labels: Sequence[str]) -> bool:
    """Write each label right of its point; labels above one another are moved apart just enough to be read.

    Whether it was done: where labels would have to move away from their points, nobody could tell whose they are.
    """
    at = axes.transData.transform(np.column_stack([xs, ys])) * 72 / axes.figure.dpi
    column = np.round(at[:, 0] / 12)
    shifts = np.zeros(len(at))
    for c in np.unique(column):
        members = np.flatnonzero(column == c)
        members = members[np.argsort(at[members, 1], kind="stable")]
        shifts[members] = _apart(at[members, 1], LABEL_HEIGHT) - at[members, 1]
    if np.abs(shifts).max(initial=0.0) > LABEL_HEIGHT:
        return False
    for label, x, y, shift in zip(labels, xs, ys, shifts, strict=True):
        style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 7, "color": INK}
        axes.annotate(label, (x, y), (6, shift), **style)
    return True


def _apart(sorted_values: np.ndarray, gap: float) -> np.ndarray:
    """The nearest ascending values (least squares) at least `gap` apart: pool-adjacent-violators on value − i·gap."""
    offsets = gap * np.arange(len(sorted_values))
    blocks: list[tuple[float, int]] = []
    for value in sorted_values - offsets:
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (b, m), (a, n) = blocks.pop(), blocks.pop()
            blocks.append(((a * n + b * m) / (n + m), n + m))
    return np.concatenate([np.full(n, value) for value, n in blocks]) + offsets
