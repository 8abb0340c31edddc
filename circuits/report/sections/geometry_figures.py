"""What zeroing heads changes, metric by metric, among what random sets of other heads change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from circuits.drawing.style import INK, PAPER, Looks
from circuits.geometry.names import TITLES, UNITS
from circuits.report.content import Figure
from circuits.report.sections.geometry_records import Record, sample
from circuits.report.sheet import Sheet, drawing, marks, reference
from circuits.report.words import decimal, listed, plural, short

COLUMNS = 5  # panels side by side
SPREAD = 0.2  # of the dots of one series, up and down


def null(looks: Looks, layer: int, records: Sequence[Record]) -> Figure:
    """A panel a metric: each series' controls and its own change."""
    metrics = [name for name in TITLES if any(name in r.tests for r in records)]
    rows = -(-len(metrics) // COLUMNS)
    data = []
    with drawing():
        sheet = Sheet(
            f"geometry-null-L{layer}",
            looks,
            [r.series for r in records],
            height=rows * (0.16 * len(records) + 1.0) + 0.3,
            grid=(rows, COLUMNS),
            titled=True,
            control="random sets",
            plain="studied heads",
            shown="marks",
            own_x=True,
        )
        for axes, metric in zip(sheet.panels.flat, metrics, strict=False):
            for i, r in enumerate(records):
                if metric in r.tests:
                    data += _strip(sheet, axes, looks, r, metric, len(records) - 1 - i)
            _dress(axes, metric, len(records))
        for axes in sheet.panels.flat[len(metrics) :]:
            axes.set_visible(False)
    table = pd.DataFrame(data, columns=["series", "metric", "role", "heads", "delta", "artifact"])
    caption = (
        f"Ablated − baseline at layer {layer}, one panel a metric, one strip a series. Filled markers: "
        f"{listed(sorted({r.heads for r in records}), 3, 'choice')}. Diamonds (the control): random sets of as many other heads of "
        f"the same layer. Dashed: no change. {sample(records)}; every point is one deterministic measurement. "
        f"From {listed([r.entry.ref.label for r in records])}."
    )
    alt = f"Changes of {len(metrics)} geometric metrics at layer {layer} beside random head sets, {plural(len(records), 'series')}"
    return sheet.finish(title=f"Beside random heads, layer {layer}", caption=caption, alt=alt, data=table)


def _strip(sheet: Sheet, axes: Axes, looks: Looks, r: Record, metric: str, y: int) -> list[tuple[Any, ...]]:
    """One series in one panel; the rows of its data."""
    test, observed = r.tests[metric], r.metrics["deltas"].get(metric)
    drawn = np.array([np.nan if v is None else v for v in test["values"]], dtype=float)
    jitter = np.random.default_rng(0).uniform(-SPREAD, SPREAD, len(drawn))
    sheet.control(axes, drawn, y + jitter, small=True)
    sets = [" ".join(map(str, heads)) for heads in r.metrics["random_control"].get("sets", [])]
    rows: list[tuple[Any, ...]] = [
        (r.series, metric, "control", heads, value, r.entry.ref.label)
        for heads, value in zip(sets, drawn, strict=False)
    ]
    if observed is not None:
        (artist,) = axes.plot(
            [observed], [y], **{**marks(looks[r.series]), "markersize": 6.5, "markeredgecolor": PAPER, "zorder": 5}
        )
        sheet.tell(artist, [f"{r.series}: {short(observed)}, two-sided p {decimal(test.get('p_two_sided'))}"])
    return [(r.series, metric, "studied", " ".join(map(str, r.metrics["heads"])), observed, r.entry.ref.label), *rows]


def _dress(axes: Axes, metric: str, n: int) -> None:
    unit = f" ({UNITS[metric]})" if metric in UNITS else ""
    axes.set_title(TITLES[metric] + unit, fontsize=7.5, color=INK)
    reference(axes, x=0, dashed=True)
    axes.set_yticks([])
    axes.set_ylim(-0.5, n - 0.5)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(3))
