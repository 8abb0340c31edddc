"""A circuit as a graph: layers go up, the embedding at the bottom, the logits on top; drawn once here, and by the page's script.

Heads have a column each and MLPs one between them, so that a part stands at the same place in every circuit of a model. A key or
value that a group of heads shares is read by all of them: its edge forks to each. The drawing is what a reader without scripts
sees; ``templates/graph.js`` draws the same from `live` and lets a reader choose, point and group.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from circuits.drawing.style import GRID, INK, MUTED, PAPER, Looks
from circuits.report.content import Figure
from circuits.report.saved import number, part
from circuits.report.sections.attribution_records import Record, signed, with_error
from circuits.report.sections.interventions_maps import ABOVE, BELOW, arrange
from circuits.report.sheet import Sheet, drawing
from circuits.report.words import percent, plural

DRAWN = 40  # edges at first
MOST = 2000  # edges that the page can draw
WIDTH, SIDE, TOP = 740.0, 52.0, 22.0  # CSS pixels
COLUMN = (34.0, 110.0)  # the narrowest and the widest
FULL = 47.0  # the narrowest column with room for `a29.h8`
HEIGHT, ROW = 900.0, (17.0, 50.0)
NODE = 15.0  # height of a node
INCH = 112.3  # CSS pixels: a figure stands on the page at 1.56 pixels a point
THIN, THICK = 0.9, 6.5  # pixels of a link
PART_SHIFT = {"q": -7.0, "k": 0.0, "v": 7.0}  # so that what one writer sends to one head stands apart
DASH: Any = (0, (4, 2))

_WRITER = re.compile(r"a(\d+)\.h(\d+)|m(\d+)|input")
_READER = re.compile(r"a(\d+)\.([hg])(\d+)<([qkv])>|m(\d+)|logits")


@dataclass(frozen=True)
class Layout:
    """Where parts of a model stand, in CSS pixels, y downwards."""

    layers: int
    heads: int
    kv_heads: int

    @property
    def group(self) -> int:
        """Heads that share a key and a value."""
        return self.heads // self.kv_heads

    @property
    def middle(self) -> int:
        """The column of MLPs: between two groups of heads, as near the middle as can be; behind them where there is one group."""
        return self.group * (self.kv_heads // 2) if self.kv_heads > 1 else self.heads

    @property
    def column(self) -> float:
        """Pixels of a column."""
        return min(max((WIDTH - SIDE - 20) / (self.heads + 1), COLUMN[0]), COLUMN[1])

    @property
    def row(self) -> float:
        """Pixels from the heads of a layer to its MLP, and on to the next layer's heads."""
        return min(max(HEIGHT / (2 * self.layers + 2), ROW[0]), ROW[1])

    @property
    def tine(self) -> float:
        """Pixels of a fork."""
        return min(0.5 * self.row, 18.0)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        return SIDE + self.column * (self.heads + 1) + 20, 2 * TOP + self.row * (2 * self.layers + 1)

    @property
    def node(self) -> float:
        """The width of a node."""
        return 44.0 if self.column >= FULL else 29.0

    def shown(self, name: str) -> str:
        """What is written on a node: its whole name where there is room."""
        return name if self.column >= FULL or "." not in name else name.partition(".")[2]

    def place(self, name: str) -> tuple[float, float]:
        """The middle of a node."""
        found = re.fullmatch(r"a(\d+)\.h(\d+)", name)
        if found:
            head = int(found[2])
            column, row = head + (head >= self.middle), 1 + 2 * int(found[1])
        else:
            column = self.middle
            row = 0 if name == "input" else 2 * self.layers + 1 if name == "logits" else 2 + 2 * int(name[1:])
        return SIDE + self.column * (column + 0.5), self.size[1] - TOP - self.row * row

    def feeds(self, reader: str) -> tuple[list[str], str]:
        """The nodes that a reader belongs to, and which part of them it is."""
        found = re.fullmatch(r"a(\d+)\.([hg])(\d+)<([qkv])>", reader)
        if not found:
            return [reader], ""
        layer, item = found[1], int(found[3])
        heads = range(item * self.group, (item + 1) * self.group) if found[2] == "g" else [item]
        return [f"a{layer}.h{head}" for head in heads], found[4]

    def has(self, row: dict[Any, Any]) -> bool:
        """Whether an edge is one of this model's."""
        w, r = _WRITER.fullmatch(str(row["writer"])), _READER.fullmatch(str(row["reader"]))
        if not w or not r:
            return False
        layers = [int(layer) for layer in (w[1], w[3], r[1], r[5]) if layer]
        items = [int(w[2] or 0) < self.heads, int(r[3] or 0) < (self.kv_heads if r[2] == "g" else self.heads)]
        return all(layer < self.layers for layer in layers) and all(items)


def graph(name: str, r: Record, problems: list[str]) -> Figure | None:
    """The circuit, or nothing where it has no edge."""
    model = part(r.metrics, "model")
    layers, heads = (int(number(model, key) or 0) for key in ("layers", "heads"))
    kv_heads = int(number(model, "kv_heads") or heads)
    if not len(r.circuit) or layers < 1 or heads < 1 or heads % kv_heads:
        return None
    layout = Layout(layers, heads, kv_heads)
    every = r.circuit.to_dict("records")
    edges = [row for row in every if layout.has(row) and math.isfinite(row["score"])]
    if len(edges) < len(every):
        problems.append(
            f"{r.label}: {plural(len(every) - len(edges), 'edge')} of the circuit not drawn: the model has no such parts"
        )
    if not edges:
        return None
    title = f"The circuit: {r.condition}"
    most = f"; up to the {MOST:,} largest can be" if len(edges) > MOST else ""
    first = f"at first the {DRAWN} largest are drawn{most}" if len(edges) > DRAWN else "all are drawn"
    caption = (
        f"{plural(len(edges), 'edge')}, {first}. Information runs upwards, from the embedding (input) to the logits; a line is "
        f"as wide as its |score|, up to {signed(edges[0]['score'])} {r.unit}. {r.patched} A key or value that heads share (g) "
        f"forks to all of them. Control: exact patching, where an edge was patched. {r.sample} {r.source}"
    )
    strongest = "; ".join(f"{row['edge']} {signed(row['score'])}" for row in edges[:3])
    alt = f"{title}: {plural(len(edges), 'edge')}, the largest {strongest} {r.unit}"
    still = _drawn(name, layout, edges[:DRAWN], r, title=title, caption=caption, alt=alt)
    return replace(still, live=json.dumps(_live(layout, edges[:MOST], r, len(edges)), separators=(",", ":")))


# -- for the page's script ---------------------------------------------------------------------------------------------


def _live(layout: Layout, edges: list[dict[Any, Any]], r: Record, total: int) -> dict[str, Any]:
    """Everything the script needs; edges as ``[writer, reader, score, error, exact, inclusion, leads to the logits]``."""
    readers = list(dict.fromkeys(str(row["reader"]) for row in edges))
    fed = {reader: layout.feeds(reader) for reader in readers}
    names = dict.fromkeys(str(row["writer"]) for row in edges)
    names |= dict.fromkeys(name for feeds, _ in fed.values() for name in feeds)
    known = {row["node"]: row for row in r.nodes.to_dict("records")}
    nodes, at = [], {node: i for i, node in enumerate(names)}
    for node in names:
        row = known.get(node, {})
        told = [_short(number(row, key)) for key in ("score", "inclusion", "edges_in_circuit")]
        nodes.append([node, layout.shown(node), *(round(v, 1) for v in layout.place(node)), *told])
    rows = [
        [at[str(row["writer"])], readers.index(str(row["reader"]))]
        + [_short(number(row, key)) for key in ("score", "standard_error", "exact", "inclusion")]
        + [int(row["connected"] > 0)]
        for row in edges
    ]
    width, height = layout.size
    return {
        "title": r.condition, "unit": r.unit, "drawn": DRAWN, "total": total,
        "size": [round(width), round(height), layout.node, NODE], "row": layout.row,
        "widths": [THIN, THICK], "shift": PART_SHIFT, "tine": layout.tine, "layers": _levels(layout),
        "nodes": nodes, "readers": [[reader, fed[reader][1], [at[n] for n in fed[reader][0]]] for reader in readers],
        "edges": rows,
    }  # fmt: skip


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _levels(layout: Layout) -> list[tuple[str, float]]:
    """Names and heights of the layers, at the level of their heads."""
    return [(f"layer {i}", round(layout.place(f"a{i}.h0")[1], 1)) for i in range(layout.layers)]


# -- for readers without scripts, and as a file ------------------------------------------------------------------------


def _drawn(
    name: str, layout: Layout, edges: list[dict[Any, Any]], r: Record, *, title: str, caption: str, alt: str
) -> Figure:
    width, height = layout.size
    legend = 24.0
    largest = max(abs(row["score"]) for row in edges) or 1.0
    used: dict[str, None] = {}
    with drawing():
        sheet = Sheet(name, Looks([""]), [""], height=(height + legend) / INCH, width=width / INCH)
        arrange(sheet, left=0, right=1, bottom=0, top=1 - legend / (height + legend))
        axes = sheet.axes
        axes.set_axis_off()
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        for label, y in _levels(layout):
            axes.plot([SIDE, width - 8], [y, y], color=GRID, linewidth=0.6, zorder=0.5)
            axes.text(4, y, label, fontsize=6.2, color=MUTED, va="center")
        for row in reversed(edges):
            feeds, which = layout.feeds(str(row["reader"]))
            used |= dict.fromkeys([str(row["writer"]), *feeds])
            path = _path(layout, layout.place(str(row["writer"])), [layout.place(node) for node in feeds], which)
            thick = (THIN + (THICK - THIN) * abs(row["score"]) / largest) / 1.56
            style: dict[str, Any] = {"linestyle": DASH if row["score"] > 0 else "-", "linewidth": thick}
            color = ABOVE if row["score"] > 0 else BELOW
            link = PathPatch(path, facecolor="none", edgecolor=color, alpha=0.75, capstyle="butt", zorder=2, **style)
            sheet.tell(axes.add_artist(link), told(r, row))
        for node in used:
            _node(sheet, layout, node)
        signs: list[dict[str, Any]] = [
            {"color": BELOW, "linestyle": "-", "label": f"below 0 ({r.unit})"},
            {"color": ABOVE, "linestyle": DASH, "label": f"above 0 ({r.unit})"},
        ]
        handles = [Line2D([], [], linewidth=2, **sign) for sign in signs]
        sheet.canvas.legend(handles=handles, loc="upper left", ncols=2, frameon=False, borderpad=0.2, handlelength=2.6)
    columns = ["edge", "writer", "reader", "score", "standard_error", "exact", "inclusion", "connected", "verified"]
    data: pd.DataFrame = r.circuit[columns]
    return sheet.finish(title=title, caption=caption, alt=alt, data=data)


def _node(sheet: Sheet, layout: Layout, node: str) -> None:
    x, y = layout.place(node)
    corner = x - layout.node / 2, y - NODE / 2
    style = "round,pad=0,rounding_size=4"
    box = FancyBboxPatch(
        corner, layout.node, NODE, boxstyle=style, facecolor=PAPER, edgecolor=MUTED, linewidth=0.8, zorder=3
    )
    sheet.axes.add_artist(box)
    sheet.axes.text(
        x, y + 0.5, layout.shown(node), fontsize=6.2, color=INK, ha="center", va="center_baseline", zorder=4
    )


def _path(layout: Layout, start: tuple[float, float], ends: list[tuple[float, float]], which: str) -> Path:
    """A link from the top of its writer to the bottom of its reader, bent so that it passes beside nodes; as in `graph.js`."""
    half = NODE / 2
    xs, ys = np.array(ends).T
    x0, y0 = start[0], start[1] - half
    x1, y1 = float(xs.mean()), float(ys.max()) + half + (layout.tine if len(ends) > 1 else 0)
    dx, dy = x1 - x0, y1 - y0
    far = math.hypot(dx, dy) or 1.0
    if abs(dx) < layout.node and abs(dy) > 2.5 * layout.row:
        bend = (layout.node + 14 + min(0.1 * far, 34)) * (1 if round(abs(dy) / (2 * layout.row)) % 2 else -1)
    else:
        bend = 0.1 * far * (1 if dx >= 0 else -1)
    bend += PART_SHIFT.get(which, 0.0)
    middle = (x0 + x1) / 2 + bend * dy / far, (y0 + y1) / 2 - bend * dx / far
    points = [(x0, y0), middle, (x1, y1)]
    codes = [Path.MOVETO, Path.CURVE3, Path.CURVE3]
    for x, y in ends if len(ends) > 1 else []:
        points += [(x1, y1), (x, y + half)]
        codes += [Path.MOVETO, Path.LINETO]
    return Path(points, codes)


def told(r: Record, row: dict[Any, Any]) -> str:
    """What is shown when a reader points at an edge."""
    text = f"{row['edge']}: {with_error(number(row, 'score'), number(row, 'standard_error'))} {r.unit}"
    if (exact := number(row, "exact")) is not None:
        text += f", exact {signed(exact)}"
    if (inclusion := number(row, "inclusion")) is not None:
        text += f", in {percent(inclusion)} of resamplings"
    return text
