"""Graphs of features on the page: one prompt drawn for readers without scripts, and what the page's script shows of each.

``templates/graph.js`` draws the same from `live`: a reader picks a prompt, how many links are drawn, and a node for its neighbours.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from circuits.drawing.style import GRID, INK, MUTED, PAPER, Looks
from circuits.report.content import Figure
from circuits.report.sections.attribution_features_layout import LINKS, NODES, RIGHT, SIDE, STEP, Node, Scene, scene
from circuits.report.sections.attribution_features_records import FeatureRecord, answer, called, effect, told
from circuits.report.sections.attribution_graph import DASH, INCH
from circuits.report.sections.attribution_records import signed
from circuits.report.sections.interventions_maps import ABOVE, BELOW, arrange
from circuits.report.sheet import Sheet, drawing
from circuits.report.words import plural

DRAWN = 80  # links at first
PROMPTS = 24  # that the page can show
BYTES = 4_000_000  # of all graphs on the page
THIN, THICK = 0.6, 5.0  # pixels of a link
SHAPES = {"feature": "o", "embedding": "s", "error": "D", "logit": "box"}
POINT = 1.56  # CSS pixels of a point of the drawing
LEGEND = 24.0


def graph(name: str, r: FeatureRecord) -> Figure | None:
    """The graphs of a measurement, the first one drawn; nothing where it has none."""
    samples = r.samples
    if not samples:
        return None
    scenes: list[tuple[Scene, dict[str, Any]]] = []
    used = 0
    for sample in samples[:PROMPTS]:
        found = scene(r, sample)
        made = _live(found)
        used += len(json.dumps(made))
        if scenes and used > BYTES:
            break
        scenes.append((found, made))
    first = scenes[0][0]
    title = f"Feature graphs: {r.condition}"
    caption = (
        f"{_counted(first)} Information runs upwards, from the tokens to the logits; columns are positions, those without a node "
        f"are left out. A node is as large as its |effect| on the metric ({r.unit}); a link is as wide as the |direct effect| of "
        f"its source on its target. {_limits(samples, len(scenes), first)} Control: effects measured by edits, below. "
        f"{r.source}"
    )
    nodes = r.nodes[r.nodes["sample"] == first.sample]
    alt = f"{title}: {first.sample}, {plural(len(first.nodes), 'node')} and {plural(first.total_links, 'link')}"
    still = _drawn(name, first, r)
    figure = still.finish(title=title, caption=caption, alt=alt, data=nodes)
    data = {
        "title": r.condition, "unit": "direct effect", "metric": r.unit, "drawn": DRAWN, "widths": [THIN, THICK], "step": STEP,
        "graphs": [made for _, made in scenes],
    }  # fmt: skip
    return replace(figure, live=json.dumps(data, separators=(",", ":")))


def _counted(found: Scene) -> str:
    more = f"; {plural(found.left_out, 'kept node')} of less influence not" if found.left_out else ""
    return f"At first {found.sample}: {plural(len(found.nodes), 'node')} drawn{more}."


def _limits(samples: list[str], shown: int, first: Scene) -> str:
    """What the page does not show."""
    most = f"The {DRAWN} largest links are drawn." if len(first.links) > DRAWN else "All links are drawn."
    prompts = (
        f" {shown} of {len(samples)} prompts can be picked; nodes.parquet and links.parquet have all."
        if shown < len(samples)
        else ""
    )
    return f"{most} Of a prompt at most the {NODES} most influential nodes and the {LINKS:,} largest links.{prompts}"


# -- for the page's script ---------------------------------------------------------------------------------------------


def _live(found: Scene) -> dict[str, Any]:
    """One prompt; nodes as ``[name, text, x, y, effect, influence, activation, shape, radius, width, label]``."""
    nodes = [
        [
            called(node.row), answer(node.row) if node.wide else "", round(node.x, 1), round(node.y, 1),
            *(_short(value) for value in (effect(node.row), node.row["influence"], node.row["activation"])),
            SHAPES[str(node.row["kind"])], round(node.radius, 1), round(node.wide, 1), node.row["label"],
        ]
        for node in found.nodes
    ]  # fmt: skip
    return {
        "sample": found.sample, "text": found.text, "size": [round(v) for v in found.size], "total": found.total_links,
        "left": found.left_out, "layers": [[text, round(y, 1)] for text, y in found.levels],
        "columns": [[text, round(x, 1)] for text, x in found.columns], "foot": round(found.foot, 1), "nodes": nodes,
        "links": [[source, target, _short(weight)] for source, target, weight in found.links],
    }  # fmt: skip


def _short(value: Any) -> float | None:
    number = math.nan if value is None else float(value)
    return float(f"{number:.4g}") if math.isfinite(number) else None


# -- for readers without scripts, and as a file ------------------------------------------------------------------------


def _drawn(name: str, found: Scene, r: FeatureRecord) -> Sheet:
    width, height = found.size
    with drawing():
        sheet = Sheet(name, Looks([""]), [""], height=(height + LEGEND) / INCH, width=width / INCH)
        arrange(sheet, left=0, right=1, bottom=0, top=1 - LEGEND / (height + LEGEND))
        axes = sheet.axes
        axes.set_axis_off()
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        for label, y in found.levels:
            axes.plot([SIDE - 4, width - RIGHT + 6], [y, y], color=GRID, linewidth=0.6, zorder=0.5)
            axes.text(4, y, label, fontsize=6.2, color=MUTED, va="center")
        for text, x in found.columns:
            axes.text(x, found.foot, text, fontsize=6.2, color=INK, rotation=90, ha="center", va="top")
        _paths(sheet, found)
        for node in found.nodes:
            _mark(sheet, node, SHAPES[str(node.row["kind"])], told(node.row, r.unit))
        _legend(sheet, r.unit)
    return sheet


def _color(node: Node) -> str:
    value = effect(node.row) or 0.0
    return ABOVE if value > 0 else BELOW if value < 0 else MUTED


def _paths(sheet: Sheet, found: Scene) -> None:
    links = found.links[:DRAWN]
    largest = max((abs(weight) for *_, weight in links), default=0.0) or 1.0
    for source, target, weight in reversed(links):
        start, end = found.nodes[source], found.nodes[target]
        style: dict[str, Any] = {"linestyle": DASH if weight > 0 else "-", "edgecolor": ABOVE if weight > 0 else BELOW}
        thick = (THIN + (THICK - THIN) * abs(weight) / largest) / POINT
        link = PathPatch(
            _path(start, end), facecolor="none", alpha=0.65, capstyle="butt", linewidth=thick, zorder=2, **style
        )
        text = f"{called(start.row)} → {called(end.row)}\n{signed(weight)} direct effect"
        sheet.tell(sheet.axes.add_artist(link), text)


def _path(start: Node, end: Node) -> Path:
    """From the top of the source to the bottom of the target, bent a little; as in `graph.js`."""
    up = end.y < start.y
    x0, y0 = start.x, start.y + (-start.half if up else start.half)
    x1, y1 = end.x, end.y + (end.half if up else -end.half)
    dx, dy = x1 - x0, y1 - y0
    far = math.hypot(dx, dy) or 1.0
    bend = STEP if abs(dx) < STEP / 2 and abs(dy) > 2.5 * STEP else 0.08 * far * (1 if dx >= 0 else -1)
    middle = (x0 + x1) / 2 + bend * dy / far, (y0 + y1) / 2 - bend * dx / far
    return Path(np.array([(x0, y0), middle, (x1, y1)]), [Path.MOVETO, Path.CURVE3, Path.CURVE3])


def _mark(sheet: Sheet, node: Node, shape: str, text: str) -> None:
    color = _color(node)
    if shape == "box":
        corner = node.x - node.wide / 2, node.y - node.half
        box = FancyBboxPatch(
            corner, node.wide, 2 * node.half, boxstyle="round,pad=0,rounding_size=4", facecolor=PAPER, edgecolor=color,
            linewidth=0.9, zorder=3,
        )  # fmt: skip
        sheet.tell(sheet.axes.add_artist(box), text)
        sheet.axes.text(
            node.x, node.y + 0.5, answer(node.row), fontsize=6.2, color=INK, ha="center", va="center_baseline", zorder=4
        )
        return
    size = 2 * node.radius / POINT * (0.8 if shape == "D" else 1)
    (artist,) = sheet.axes.plot(
        [node.x], [node.y], linestyle="none", marker=shape, markersize=size, markeredgecolor=color, markeredgewidth=1.0,
        color=color if color == ABOVE else PAPER, zorder=3, clip_on=False,
    )  # fmt: skip
    sheet.tell(artist, [text])


def _legend(sheet: Sheet, unit: str) -> None:
    lines: list[dict[str, Any]] = [
        {"color": BELOW, "linestyle": "-", "label": "link below 0"},
        {"color": ABOVE, "linestyle": DASH, "label": "link above 0"},
    ]
    dots: list[dict[str, Any]] = [
        {"marker": "o", "color": PAPER, "markeredgecolor": BELOW, "label": f"effect below 0 ({unit})"},
        {"marker": "o", "color": ABOVE, "markeredgecolor": ABOVE, "label": f"above 0 ({unit})"},
        {"marker": "s", "color": PAPER, "markeredgecolor": MUTED, "label": "token"},
        {"marker": "D", "color": PAPER, "markeredgecolor": MUTED, "label": "error"},
    ]
    handles = [Line2D([], [], linewidth=2, **line) for line in lines]
    handles += [Line2D([], [], linestyle="none", markersize=5, **dot) for dot in dots]
    sheet.canvas.legend(
        handles=handles, loc="upper left", ncols=6, frameon=False, borderpad=0.2, handlelength=2.2, fontsize=7
    )
