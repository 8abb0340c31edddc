"""The section of captured activations: how large they are by layer and position, what was left out, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from circuits.drawing.style import Looks
from circuits.report.charts import Point, by_layer, multiples, pages
from circuits.report.content import Answer, Block, Cell, Column, Figure, Part, Table
from circuits.report.registry import Entry, View, section
from circuits.report.saved import load_json, load_metrics
from circuits.report.sheet import drawing, stroke
from circuits.report.words import (
    ABSENT,
    counts,
    decimal,
    listed,
    number,
    plural,
    plus_minus,
    ranges,
    short,
    size,
    span,
    whole,
)

UNTOLD = ("layer", "activations.shard", "activations.site")  # columns of their own, or nothing that changes a store
NEEDED = ("rows", "samples", "dropped", "gigabytes", "site", "layer", "width", "dtype", "norm", "norm_by_position")


@dataclass(frozen=True, eq=False)
class Record:
    """One store of activations."""

    entry: Entry
    metrics: Mapping[str, Any]
    series: str
    swept: Mapping[str, str]
    """What tells stores of one layer and site apart."""

    @property
    def label(self) -> str:
        return self.entry.ref.label

    @property
    def layer(self) -> int:
        return int(self.metrics["layer"])

    @property
    def norm_interval(self) -> tuple[float, float] | None:
        found = self.metrics.get("norm_ci")
        return (found[0], found[1]) if found else None


@section("activations", order=30)
def activations(view: View) -> Part:
    """Read the metrics of every store of the sweep and show them."""
    problems: list[str] = []
    records = _read(view, problems)
    looks = Looks(r.series for r in records)
    drawn = [r for r in records if r.metrics["norm"] is not None]
    first: list[Block] = [_norms(looks, drawn)] if drawn else []
    first.append(_table(records))
    blocks: list[Block] = [figure for by in ("position", "from_end") for figure in _positions(looks, drawn, by)]
    if dropped := [r for r in records if r.metrics["dropped"]]:
        blocks.append(_dropped(dropped, problems))
    sites = listed(sorted({str(r.metrics["site"]) for r in records}), 8, "site")
    lead = " · ".join(filter(None, [plural(len(records), "store"), _layers(records), f"at {sites}" if records else ""]))
    return Part("Activations", f"{lead}.", tuple(blocks), Answer(_sentence(records), tuple(first)), tuple(problems))


def _read(view: View, problems: list[str]) -> list[Record]:
    found: list[tuple[Entry, dict[str, Any]]] = []
    for entry in view.entries:
        if (metrics := load_metrics(entry.ref, NEEDED, problems)) is not None:
            found.append((entry, metrics))
    several = len({metrics["site"] for _, metrics in found}) > 1
    records = []
    for entry, metrics in found:
        # What tells stores of one layer apart: swept values (a shard is none: shards make one store), and the site.
        swept = {k: v for k, v in entry.element.swept.items() if k not in UNTOLD}
        names = [*([metrics["site"]] if several else []), *(f"{k}={v}" for k, v in swept.items())]
        records.append(Record(entry, metrics, ", ".join(names), swept))
    return sorted(records, key=lambda r: (r.layer, r.series))


def _layers(records: Sequence[Record]) -> str:
    found = {r.layer for r in records}
    return f"layer{'s' if len(found) > 1 else ''} {ranges(found)}" if found else ""


def _who(record: Record) -> str:
    return f"layer {record.layer}" + (f", {record.series}" if record.series else "")


def _sentence(records: Sequence[Record]) -> str:
    """The answer in words."""
    if not records:
        return "No store of activations could be read."
    rows, samples = ([float(r.metrics[name]) for r in records] for name in ("rows", "samples"))
    gigabytes = sum(float(r.metrics["gigabytes"]) for r in records)
    text = f"{plural(len(records), 'store')} of {counts(rows)} rows from {counts(samples)} samples, "
    text += f"{size(1e9 * gigabytes)} together"
    norms = [float(r.metrics["norm"]) for r in records if r.metrics["norm"] is not None]
    if norms:
        text += f"; mean norm {span(norms, 2)}"
    dropped = max(int(r.metrics["dropped"]) for r in records)
    return f"{text}. " + (
        f"Up to {plural(dropped, 'sample')} left out as non-finite." if dropped else "No value was non-finite."
    )


def _norms(looks: Looks, records: Sequence[Record]) -> Figure:
    """The mean norm by layer."""
    points = [
        Point(r.layer, r.series, float(r.metrics["norm"]), r.norm_interval,
              f"{_who(r)}: mean norm {plus_minus(r.metrics['norm'], r.norm_interval, 2)}\n{r.label}")
        for r in records
    ]  # fmt: skip
    sheet, _ = by_layer("activations-norm", looks, points, "mean norm of a row")
    values = [p.value for p in points]
    data = pd.DataFrame(
        {
            "layer": r.layer,
            "site": r.metrics["site"],
            "series": r.series,
            "norm": r.metrics["norm"],
            "low": r.norm_interval[0] if r.norm_interval else None,
            "high": r.norm_interval[1] if r.norm_interval else None,
            "artifact": r.label,
        }
        for r in records
    )
    caption = (
        "Mean Euclidean norm of the stored rows. Bars: 95% intervals with whole samples as the unit (where none is seen, it is "
        f"smaller than the marker). n = {counts([float(r.metrics['rows']) for r in records])} rows from "
        f"{counts([float(r.metrics['samples']) for r in records])} samples. From {listed([r.label for r in records])}."
    )
    alt = f"Mean norm by layer, {_layers(records)}, from {decimal(min(values), 2)} to {decimal(max(values), 2)}"
    return sheet.finish(title="Norm by layer", caption=caption, alt=alt, data=data)


def _positions(looks: Looks, records: Sequence[Record], by: str) -> list[Figure]:
    """The mean norm by position, one panel a layer: where in a sequence activations are large.

    `by`: which stores, those of whole samples (``position``) or of their last tokens (``from_end``): zero is another place in each.
    """
    having = [
        r
        for r in records
        if r.metrics["norm_by_position"]["by"] == by and len(r.metrics["norm_by_position"]["positions"]) > 1
    ]
    figures, high = [], max((max(_places(r)[1]) for r in having), default=1.0) or 1.0
    for place, layers in enumerate(pages(sorted(r.layer for r in having)) if having else []):
        mine = [r for r in having if r.layer in layers]
        series = sorted({r.series for r in mine}, key=looks.rank)
        ends = by == "from_end"
        with drawing():
            name = f"activations-positions{'-from-end' if ends else ''}" + (f"-{place + 1}" if place else "")
            x = "position from the end" if ends else "position"
            sheet, panels = multiples(name, looks, series, layers, x, "mean norm")
            next(iter(panels.values())).set_ylim(0, 1.06 * high)  # all panels share their axes
            for r in mine:
                _draw(sheet, panels[r.layer], looks, r)
        caption = (
            "Mean norm of the rows at each position"
            + (", counted from the last token (0)." if ends else " (the first 64 that occur).")
            + f" n of every point and its value are in the CSV. From {listed([r.label for r in mine])}."
        )
        alt = f"Mean norm by position, one panel for each of the layers {ranges(layers)}"
        title = f"Norm by position{' from the end' if ends else ''}" + (
            f", layers {ranges(layers)}" if place or len(layers) < len({r.layer for r in having}) else ""
        )
        data = pd.concat([_position_table(r) for r in mine])
        figures.append(sheet.finish(title=title, caption=caption, alt=alt, data=data))
    return figures


def _places(record: Record) -> tuple[list[int], list[float]]:
    found = record.metrics["norm_by_position"]
    sign = -1 if found["by"] == "from_end" else 1
    pairs = sorted(zip((sign * p for p in found["positions"]), found["mean"], strict=True))
    return [p for p, _ in pairs], [m for _, m in pairs]


def _draw(sheet: Any, axes: Any, looks: Looks, record: Record) -> None:
    places, means = _places(record)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.plot(places, means, **stroke(looks[record.series]))
    (marks,) = axes.plot(places, means, "o", color=looks[record.series].color, markersize=6, alpha=0, clip_on=False)
    sheet.tell(marks, [f"{_who(record)}\nposition {p}: {short(m)}" for p, m in zip(places, means, strict=True)])


def _position_table(record: Record) -> pd.DataFrame:
    found = record.metrics["norm_by_position"]
    table = pd.DataFrame({found["by"]: found["positions"], "norm": found["mean"], "rows": found["rows"]})
    return table.assign(layer=record.layer, site=record.metrics["site"], series=record.series, artifact=record.label)


def _table(records: Sequence[Record]) -> Table:
    swept = list(dict.fromkeys(key for r in records for key in r.swept))
    columns = (
        Column("layer", True), Column("site"), *(Column(key) for key in swept), Column("rows", True), Column("samples", True),
        Column("dropped", True, "samples left out as non-finite"), Column("width", True), Column("stored as"), Column("size", True),
        Column("mean norm", True, "± the larger arm of the 95% interval, samples as the unit"),
        Column("rows/s", True, "while they were captured, all layers and sites of the run beside one another"),
        Column("peak memory", True), Column("artifact"),
    )  # fmt: skip
    rows = []
    for r in records:
        m = r.metrics
        rows.append(
            (
                Cell(str(r.layer), r.layer),
                Cell(str(m["site"])),
                *(Cell(r.swept.get(key, ABSENT)) for key in swept),
                *(Cell(whole(m[name]), m[name]) for name in ("rows", "samples", "dropped", "width")),
                Cell(str(m["dtype"])),
                Cell(size(1e9 * m["gigabytes"]), m["gigabytes"]),
                Cell(plus_minus(m["norm"], r.norm_interval, 2), m["norm"]),
                Cell(whole(m.get("rows_per_s")), m.get("rows_per_s")),
                Cell(number(m.get("peak_gigabytes"), "size"), m.get("peak_gigabytes")),
                Cell(r.label, code=True, hint=f"key {r.entry.ref.key}"),
            )
        )
    return Table("Stores", columns, tuple(rows))


def _dropped(records: Sequence[Record], problems: list[str]) -> Table:
    """Which samples are not in the stores, and at which layers they were non-finite."""
    rows: dict[tuple[str, str], Cell] = {}
    for r in records:
        for one in load_json(r.entry.ref, "meta.json", problems).get("dropped", []):
            rows[str(r.metrics["site"]), str(one["name"])] = Cell(ranges(one["layers"]))
    cells = tuple((Cell(site), Cell(name), at) for (site, name), at in sorted(rows.items(), key=lambda item: item[0]))
    columns = (Column("site"), Column("sample"), Column("non-finite at layers"))
    return Table(
        "Samples left out", columns, cells, "Left out of every layer's store of that site.", folded=len(cells) > 20
    )
