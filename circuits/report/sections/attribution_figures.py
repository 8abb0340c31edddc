"""Figures of a circuit besides its graph: nodes by layer and head, scores beside exact effects, edges by stretch of the pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from circuits.drawing.style import INK, Look, Looks
from circuits.report.content import Figure
from circuits.report.saved import number, part
from circuits.report.sections.attribution_records import Record, signed
from circuits.report.sections.interventions_maps import Axis, Panel, arrange, heatmap
from circuits.report.sheet import LEFT, WIDTH, Sheet, drawing, identity, label_axes, marks
from circuits.report.words import percent, plural

ROWS = 25  # edges of the map of pieces
KINDS = ("largest edges", "random others")
CLOSE = 0.9  # share of edges in the close-up


def node_map(name: str, r: Record) -> Figure | None:
    """Scores of writers: a row a layer, a column a head, then the MLP and the input."""
    model = part(r.metrics, "model")
    layers, heads = (int(number(model, key) or 0) for key in ("layers", "heads"))
    if not len(r.nodes) or layers < 1 or heads < 1:
        return None
    values = np.full((layers, heads + 2), np.nan)
    told: dict[tuple[int, int], str] = {}
    for row in r.nodes.to_dict("records"):
        node, layer, head = str(row["node"]), row["layer"], row["head"]
        at = (0, heads + 1) if node == "input" else (int(layer), heads if head < 0 else int(head))
        if not (0 <= at[0] < layers and 0 <= at[1] < heads + 2):
            continue
        values[at] = row["score"]
        told[at] = (
            f"{node}: {signed(number(row, 'score'))} {r.unit}, {plural(int(row['edges_in_circuit']), 'edge')} in the circuit, "
            f"in {percent(number(row, 'inclusion'))} of resamplings"
        )
    title = f"Node scores by layer and head: {r.condition}"
    caption = (
        f"A node's score is the sum of its edges' scores: the estimated effect of putting the other run's value into all of them; "
        f"above 0 towards the target, below 0 towards the foil. The input has one value, drawn beside layer 0. {r.sample} "
        f"Control: the run as it is, where every effect is 0. {r.source}"
    )
    best = r.nodes.loc[r.nodes["score"].abs().sort_values(ascending=False, kind="stable").index[0]]
    alt = f"{title}: {layers} layers by {plural(heads, 'head')}, MLP and input; the largest is {best['node']} at "
    alt += signed(number(best.to_dict(), "score"))
    columns = [*(f"h{head}" for head in range(heads)), "MLP", "input"]
    panel = Panel("", values, np.zeros(values.shape, dtype=bool), lambda i, j: told.get((i, j), ""))
    return heatmap(
        name, [panel], Axis("layer", [*range(layers)]), Axis("", columns), f"node score ({r.compared})", alpha=None, title=title,
        caption=caption, alt=alt, data=r.nodes[["node", "layer", "head", "score", "size", "edges_in_circuit", "inclusion"]],
        hatched="hatched: no such part",
    )  # fmt: skip


def scatter(name: str, r: Record) -> Figure | None:
    """Scores beside exact effects on the same prompts, all edges and a close-up of the small ones."""
    table = _by_edge(r)
    if not len(table):
        return None
    slope = number(r.verified, "slope")
    looks = Looks(KINDS)
    kinds = [kind for kind in KINDS if (table["kind"] == kind).any()]
    with drawing():
        sheet = Sheet(name, looks, kinds, height=3.9, shown="marks", titled=True)
        arrange(sheet, right=0.475)
        place = sheet.axes.get_position()
        close: Axes = sheet.canvas.add_axes(
            (0.5 + LEFT / WIDTH, place.y0, place.width, place.height)
        )  # of its own range, so not a panel of the sheet
        sizes = np.sort(table[["score", "exact"]].abs().max(axis=1).to_numpy())
        reach = float(sizes[-1]) or 1.0
        near = float(sizes[int(CLOSE * (len(sizes) - 1))]) or reach
        for axes, limit, what in ((sheet.axes, reach, "all"), (close, near, f"close-up to ±{float(f'{near:.2g}'):,g}")):
            _points(sheet, axes, table, looks, kinds, limit, slope, r)
            axes.set_title(what, loc="left", pad=3, color=INK, fontweight="bold")
            label_axes(axes, f"score ({r.compared})", f"exact effect ({r.compared})")
    hidden = (
        "" if slope is None else f" Dashed: exact effects = {slope:.2f} × scores, the line through 0 that fits best."
    )
    agree = number(r.verified, "pearson")
    told = f", r = {agree:.3f}" if agree is not None else ""
    samples = plural(int(r.exact["sample"].nunique()), "prompt")
    title = f"Scores beside exact patching: {r.condition}"
    caption = (
        f"One dot an edge: its score and the effect of patching it, means over the same {samples}; bars: ± one standard error of "
        f"the exact effect. {plural(len(table), 'edge')}{told}. Grey: score = exact effect.{hidden} On the right the same, near 0. "
        f"Control: exact patching itself. {r.source}"
    )
    alt = f"{title}: {plural(len(table), 'edge')}{told}"
    return sheet.finish(title=title, caption=caption, alt=alt, data=table)


def _by_edge(r: Record) -> pd.DataFrame:
    """Means over prompts of each edge that was patched."""
    known = r.exact[np.isfinite(r.exact["exact"]) & np.isfinite(r.exact["score"])]
    if not len(known):
        return pd.DataFrame()
    groups = known.groupby("edge", sort=False)
    table = groups[["score", "exact"]].mean()
    table["standard_error"] = groups["exact"].sem()
    table["kind"] = np.where(groups["random"].first() > 0, KINDS[1], KINDS[0])
    table["n"] = groups.size()
    return table.reset_index()


def _points(
    sheet: Sheet, axes: Axes, table: pd.DataFrame, looks: Looks, kinds: list[str], limit: float, slope: float | None, r: Record
) -> None:  # fmt: skip
    end = 1.06 * limit
    identity(axes, -end, end)
    if slope is not None:
        axes.plot([-end, end], [-slope * end, slope * end], color=INK, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
    axes.set_xlim(-end, end)
    axes.set_ylim(-end, end)
    for kind in kinds:
        mine = table[(table["kind"] == kind) & (table[["score", "exact"]].abs().max(axis=1) <= end)]
        if not len(mine):
            continue
        look: Look = looks[kind]
        barred = mine[mine["standard_error"].notna()]
        low, high = (barred["exact"] + side * barred["standard_error"] for side in (-1, 1))
        axes.vlines(barred["score"], low, high, color=look.color, linewidth=0.8, alpha=0.5, zorder=2)
        (artist,) = axes.plot(mine["score"], mine["exact"], **marks(look), zorder=3)
        sheet.tell(artist, [_told(row, r) for row in mine.to_dict("records")])


def _told(row: dict[Any, Any], r: Record) -> str:
    return f"{row['edge']}: score {signed(row['score'])}, exact {signed(row['exact'])} {r.unit}\n{row['kind']}, n {row['n']}"


def pieces(name: str, r: Record) -> Figure | None:
    """The largest edges by the stretch of the pair in which they carry what they carry; nothing unless positions are spans."""
    if not len(r.pieces):
        return None
    stretches = list(dict.fromkeys(r.pieces["piece"]))
    edges = list(dict.fromkeys(r.pieces["edge"]))[:ROWS]
    table = r.pieces.drop_duplicates(["edge", "piece"]).pivot(index="edge", columns="piece", values="score")
    values = table.reindex(index=edges, columns=stretches).to_numpy(float)
    panel = Panel(
        "", values, np.zeros(values.shape, dtype=bool),
        lambda i, j: f"{edges[i]}, {stretches[j]}: {signed(float(values[i, j]))} {r.unit}",
    )  # fmt: skip
    title = f"Edges by stretch of the pair: {r.condition}"
    of = r.pieces["edge"].nunique()
    more = f" The {len(edges)} largest of {of:,}; pieces.parquet has them." if of > len(edges) else ""
    caption = (
        f"Each edge's score, split by where in the prompt the other run's value is put in: a row's cells sum to its score.{more} "
        f"{r.patched} {r.sample} Control: the run as it is, where every effect is 0. {r.source}"
    )
    alt = f"{title}: {plural(len(edges), 'edge')} by {plural(len(stretches), 'stretch')}".replace(
        "stretchs", "stretches"
    )
    return heatmap(
        name, [panel], Axis("", edges), Axis("", stretches), f"score ({r.compared})", alpha=None, title=title, caption=caption,
        alt=alt, data=r.pieces,
    )  # fmt: skip
