"""Figures of a judged circuit: faithfulness over shares of edges, prompt by prompt, and edge by edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from circuits.drawing.style import INK, MUTED, Looks
from circuits.report.content import Figure
from circuits.report.sections.attribution_records import signed
from circuits.report.sections.faithfulness_records import NULL_WORDS, Record, between, plain, share
from circuits.report.sections.interventions_forests import rows_sheet
from circuits.report.sections.interventions_records import chance
from circuits.report.sheet import Sheet, drawing, identity, joined, label_axes, marks, reference
from circuits.report.words import plural

CIRCUIT = "circuit"
SEEN = (-1.5, 2.5)  # f that an axis shows at most
ROWS = 30  # edges of the chart of minimality
FALLS, RISES = "in the circuit: without it the metric falls", "in the circuit: without it the metric rises"
DECADES = 4  # of changes that are drawn
SERIES = ("the circuit alone", "without the circuit")  # in this order, so that the circuit is blue as in the curve


def curve(name: str, r: Record) -> Figure | None:
    """f over shares of edges, with its interval, between random circuits of equal size."""
    own = r.rows(CIRCUIT)
    if not len(own):
        return None
    nulls = [null for null in NULL_WORDS if len(r.rows(null))]
    looks = Looks([CIRCUIT])
    with drawing():
        sheet = Sheet(name, looks, [CIRCUIT], height=3.3, control=[NULL_WORDS[null] for null in nulls])
        axes = _axes(sheet, own)
        for null in nulls:
            _null(sheet, r, null)
        axes.fill_between(
            own["share"], own["low"], own["high"], color=looks[CIRCUIT].color, alpha=0.22, linewidth=0, zorder=3
        )
        (artist,) = axes.plot(own["share"], own["f"], **joined(looks[CIRCUIT]), zorder=4)
        sheet.tell(artist, [_told(row) for row in own.to_dict("records")])
        for row in r.rows("chosen").to_dict("records"):
            look: dict[str, Any] = {**marks(looks[CIRCUIT]), "marker": "*", "markersize": 11, "markeredgecolor": INK}
            axes.vlines(row["share"], row["low"], row["high"], color=INK, linewidth=1.0, zorder=5)
            (artist,) = axes.plot([row["share"]], [row["f"]], **look, zorder=6)
            sheet.tell(artist, [f"the chosen circuit: {_told(row)}"])
        drawn = r.curve[r.curve["circuit"].isin([CIRCUIT, *nulls, "chosen"])]
        outside = _reach(axes, drawn[["f", "low", "high"]].to_numpy().ravel(), drawn["f"].to_numpy())
    title = f"Faithfulness over shares of edges: {r.condition}"
    draws = int(r.rows(nulls[0])["number"].max()) + 1 if nulls else 0
    beside = (
        f"Controls: {plural(draws, 'random circuit')} of each size, and as many in which each reader keeps its number of edges; "
        "lines: their means, bands: from the smallest to the largest. "
        if nulls
        else "No random circuit was run beside it. "
    )
    caption = (
        f"f: how much of what the model does over no edge at all is left when the circuit is alone and {r.put}; 1: as the whole "
        f"model, 0: as no edge. Edges enter by rank ({r.rank}). Blue band and bars: 95% interval over prompts; ★: the chosen "
        f"circuit. {beside}{outside}{r.source}"
    )
    alt = (
        f"{title}: f from {plain(own['f'].iloc[0])} at {share(own['share'].iloc[0])} to {plain(own['f'].iloc[-1])} at "
    )
    alt += share(own["share"].iloc[-1])
    return sheet.finish(
        title=title, caption=caption, alt=alt, data=r.curve[~r.curve["circuit"].isin(["with", "without"])]
    )


def curves(name: str, records: Sequence[Record]) -> Figure | None:
    """The curves of all measurements, and the means of their random circuits."""
    found = {r.condition: r for r in records if len(r.rows(CIRCUIT))}
    if len(found) < 2:
        return None
    looks = Looks(found)
    every = pd.concat([r.rows(CIRCUIT).assign(measurement=c, cmd=r.value("cmd")) for c, r in found.items()])
    with drawing():
        controlled = any(len(r.rows("random")) for r in found.values())
        sheet = Sheet(name, looks, looks.series, height=3.5, control="random circuits, mean" if controlled else "")
        axes = _axes(sheet, every)
        seen: set[tuple[Any, ...]] = set()
        for r in found.values():
            mean = r.rows("random").groupby("share")["f"].mean()
            if len(mean) and (key := (r.study, *np.round(mean.to_numpy(), 3))) not in seen:
                seen.add(key)
                hover = [
                    f"random circuits, {share(at)}: f {plain(f)}\nbeside {r.condition}"
                    for at, f in zip(mean.index, mean, strict=True)
                ]
                sheet.control(axes, mean.index, mean, hover=hover, joined=True)
        for condition, r in found.items():
            own, look = r.rows(CIRCUIT), looks[condition]
            axes.vlines(own["share"], own["low"], own["high"], color=look.color, linewidth=0.9, alpha=0.5, zorder=3)
            (artist,) = axes.plot(own["share"], own["f"], **joined(look), zorder=4)
            sheet.tell(artist, [f"{condition}\n{_told(row)}" for row in own.to_dict("records")])
        outside = _reach(axes, every[["f", "low", "high"]].to_numpy().ravel(), every["f"].to_numpy())
    title = f"Faithfulness over shares of edges: {plural(len(found), 'measurement')}"
    repeats = " Beyond 28 measurements looks repeat." if looks.repeats else ""
    ns = sorted({r.n for r in found.values()})
    caption = (
        f"f of the best-ranked edges alone; 1: as the whole model, 0: as no edge. Bars: 95% intervals over prompts "
        f"(n = {ns[0]:,}{f' to {ns[-1]:,}' if len(ns) > 1 else ''}). Control: the mean of random circuits of each size, once where "
        f"they agree. {outside}{repeats}From {plural(len(found), 'artifact')}, named in the table."
    )
    alt = f"{title}, f from {plain(every['f'].min())} to {plain(every['f'].max())}"
    data = every[["measurement", "cmd", "share", "edges", "f", "low", "high"]]
    return sheet.finish(title=title, caption=caption, alt=alt, data=data)


def _axes(sheet: Sheet, rows: pd.DataFrame) -> Axes:
    """Shares of edges from left to right, decades where they span them; lines at 0 and 1."""
    axes = sheet.axes
    low, high = float(rows["share"].min()), float(rows["share"].max())
    if 0 < low < 0.2 * high:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 5000 else (1.0, 2.0, 5.0), numticks=30))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(low / 1.12, high * 1.12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: share(value)))
    for level in (0, 1):
        reference(axes, y=level)
    label_axes(axes, "edges of the circuit, share of all", "faithfulness f")
    return axes


def _reach(axes: Axes, values: np.ndarray, points: np.ndarray) -> str:
    """The y axis shows 0, 1 and the values; those far beyond are said instead."""
    known = values[np.isfinite(values)]
    low, high = max(min(0.0, known.min(initial=0)), SEEN[0]), min(max(1.0, known.max(initial=1)), SEEN[1])
    axes.set_ylim(low - 0.06, high + 0.06)
    beyond = int(((points < SEEN[0]) | (points > SEEN[1])).sum())
    return f"{plural(beyond, 'value')} beyond the axis, in the CSV. " if beyond else ""


def _null(sheet: Sheet, r: Record, null: str) -> None:
    """Random circuits: their mean, and from the smallest to the largest."""
    groups = r.rows(null).groupby("share")
    table = groups["f"].agg(["mean", "min", "max", "size"]).join(groups["edges"].first())
    hover = [
        f"{NULL_WORDS[null]}, {share(at)} ({plural(int(row['edges']), 'edge')}): mean f {plain(row['mean'])}, "
        f"{plain(row['min'])} to {plain(row['max'])} of {int(row['size'])}"
        for at, row in zip(table.index, table.to_dict("records"), strict=True)
    ]
    band = (table["min"], table["max"])
    sheet.control(sheet.axes, table.index, table["mean"], name=NULL_WORDS[null], hover=hover, joined=True, over_y=band)


def _told(row: dict[Any, Any]) -> str:
    ends = (row["low"], row["high"]) if math.isfinite(row["low"]) and math.isfinite(row["high"]) else None
    known = f" (95% {between(ends)})" if ends else ""
    return f"{share(row['share'])}, {plural(int(row['edges']), 'edge')}: f {plain(row['f'])}{known}"


def scatter(name: str, r: Record) -> Figure | None:
    """The circuit's metric beside the model's, a dot a prompt."""
    table = r.prompts()
    if not len(table):
        return None
    looks = Looks(SERIES)
    named = zip(SERIES, ("chosen", "complement"), strict=True)
    columns = [(series, column) for series, column in named if table[column].notna().any()]
    with drawing():
        sheet = Sheet(name, looks, [series for series, _ in columns], height=3.6, width=6.4, shown="marks")
        axes = sheet.axes
        values = table[["model", *(column for _, column in columns)]].to_numpy()
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        room = 0.05 * (high - low or 1.0)
        identity(axes, low - room, high + room)
        reference(axes, x=0, y=0)
        for series, column in columns[::-1]:
            mine = table[table[column].notna()]
            (artist,) = axes.plot(mine["model"], mine[column], **marks(looks[series]), zorder=3)
            sheet.tell(artist, [
                f"{row['sample']}: model {signed(row['model'])}, {series} {signed(row[column])} {r.unit}"
                for row in mine.to_dict("records")
            ])  # fmt: skip
        axes.set_xlim(table["model"].min() - room, table["model"].max() + room)
        axes.set_ylim(low - room, high + room)
        label_axes(axes, f"the whole model ({r.compared})", f"what is left ({r.compared})")
    title = f"Prompt by prompt: {r.condition}"
    caption = (
        "One dot a prompt: the metric with all edges, and with what is left. On the grey line the circuit answers as the model "
        "does; above 0 the target is preferred to the foil. Control: the same prompts with all edges but the circuit's, which show "
        f"nothing of the behaviour where the circuit is complete. {r.source}"
    )
    better = float((table["chosen"] > table["model"]).mean())
    alt = f"{title}: {plural(len(table), 'prompt')}, the circuit above the model on {share(better)} of them"
    return sheet.finish(title=title, caption=caption, alt=alt, data=table)


def minimality(name: str, r: Record) -> Figure | None:
    """How far the metric moves when one edge is taken out, and when a random one is added."""
    table = r.minimality.assign(size=r.minimality["change"].abs())
    inside, added = table[table["in_circuit"] > 0], table[table["in_circuit"] == 0]
    if not len(inside) or not table["size"].max() > 0:
        return None
    shown = inside.sort_values("size", ascending=False, kind="stable").head(ROWS)
    floor = float(table["size"].max()) * 10**-DECADES
    looks = Looks([FALLS, RISES])
    labels = [str(edge) for edge in shown["edge"]] + (["random edges, added"] if len(added) else [])
    with drawing():
        both = [series for series, side in ((FALLS, shown["change"] <= 0), (RISES, shown["change"] > 0)) if side.any()]
        sheet = rows_sheet(name, looks, both, labels, control="a random edge added" if len(added) else "")
        axes = sheet.axes
        axes.set_xlim(floor / 1.3, float(table["size"].max()) * 1.6)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        if len(added):
            most = max(float(added["size"].max()), floor)
            reference(axes, x=most, dashed=True)
            sheet.control(axes, added["size"].clip(lower=floor), [0] * len(added), hover=_hovers(added, r), zorder=4)
        ys = np.arange(len(labels) - 1, len(labels) - 1 - len(shown), -1)
        axes.hlines(ys, floor / 1.3, shown["size"].clip(lower=floor), color=MUTED, linewidth=0.5, alpha=0.6, zorder=1)
        for series, side in ((FALLS, shown["change"] <= 0), (RISES, shown["change"] > 0)):
            if side.any():
                mine = shown[side]
                (artist,) = axes.plot(
                    mine["size"].clip(lower=floor), ys[side.to_numpy()], **marks(looks[series]), zorder=4
                )
                sheet.tell(artist, _hovers(mine, r))
        label_axes(axes, f"|change of the metric| ({r.compared})", "")
    title = f"Edge by edge: {r.condition}"
    more = f" The {len(shown)} with the largest change of {len(inside)} tested." if len(inside) > len(shown) else ""
    under = int((table["size"] < floor).sum())
    small = f" {plural(under, 'change')} below {float(f'{floor:.1g}'):g} at the left end." if under else ""
    control = (
        f" Control: {plural(len(added), 'random edge')} put into the circuit one at a time (◇; dashed: the largest change)."
        if len(added) else ""
    )  # fmt: skip
    caption = (
        f"One row an edge of the chosen circuit: how far the mean metric moves when this edge alone is taken out.{more}{small}"
        f"{control} {r.source}"
    )
    alt = f"{title}: {shown['edge'].iloc[0]} changes the metric most, by {signed(float(shown['change'].iloc[0]))} {r.unit}"
    return sheet.finish(title=title, caption=caption, alt=alt, data=table[["edge", "in_circuit", "change", "p", "q"]])


def _hovers(rows: pd.DataFrame, r: Record) -> list[str]:
    """What is said of each edge of the chart of minimality."""
    told = []
    for row in rows.to_dict("records"):
        known = f", p {chance(row['p'])}, q {chance(row['q'])}" if math.isfinite(row["p"]) else ""
        told.append(
            f"{row['edge']} {'taken out' if row['in_circuit'] else 'added'}: {signed(row['change'])} {r.unit}{known}"
        )
    return told
