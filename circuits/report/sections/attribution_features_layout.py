"""Where the nodes of a feature graph stand: layers go up, the prompt's tokens across, as many columns as have a node.

Features of one layer and position stand side by side, and in several rows where they are many; a token's node is at the bottom of
its column, what the model answers on top, from the right edge leftwards. Numbers are CSS pixels, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from circuits.report.sections.attribution_features_records import FeatureRecord, answer, shown_token

NODES = 300  # that are drawn of a prompt
LINKS = 1200  # that the page can draw of a prompt
SIDE, RIGHT, TOP = 58.0, 14.0, 8.0
STEP = 17.0  # from node to node
ACROSS = 5  # nodes side by side in one column
SMALL, LARGE = 3.2, 8.0  # radius
LEVEL = 15.0  # the least height of a layer
GAP = 13.0  # between layers
LETTER = 5.6
LEAST = 560.0  # the narrowest graph
Cells = dict[tuple[int, int], list[dict[str, object]]]
TURNED = 1.02 * LETTER  # height of a letter of a token that stands upright


@dataclass(frozen=True)
class Node:
    """A node and its place; `wide` is a box's width, 0 of round ones."""

    row: dict[str, object]
    x: float
    y: float
    radius: float
    wide: float = 0.0

    @property
    def half(self) -> float:
        """From the middle to where links start and end."""
        return 8.0 if self.wide else self.radius


@dataclass(frozen=True)
class Scene:
    """One prompt, laid out; links hold indices of nodes, the largest first; `left_out` are nodes beyond those drawn."""

    sample: str
    text: str
    size: tuple[float, float]
    nodes: list[Node]
    links: list[tuple[int, int, float]]
    levels: list[tuple[str, float]]
    columns: list[tuple[str, float]]
    foot: float
    """Where the tokens below the columns begin."""
    left_out: int
    total_links: int


def scene(r: FeatureRecord, sample: str) -> Scene:
    """Lay out one prompt's graph."""
    mine = r.nodes[r.nodes["sample"] == sample].drop_duplicates("node")
    kept = mine[mine["kept"] > 0] if (mine["kept"] > 0).any() else mine
    # What the model answers is where all paths end: it comes before nodes of little influence.
    order = (
        kept.assign(end=kept["kind"] == "logit")
        .sort_values(["end", "influence"], ascending=False, kind="stable")
        .head(NODES)
    )
    cells = _cells(order[order["kind"] != "logit"])
    tokens, text = r.prompt(sample)
    positions = sorted({int(p) for p in order["position"]})
    columns, width = _columns(cells, positions)
    below = [(_shown(tokens, p, order), columns[p]) for p in positions]
    boxes, rise = _boxes(order[order["kind"] == "logit"], width)
    middles, ground = _levels(cells, sorted({*r.layers, *(level for level, _ in cells if level >= 0)}), TOP + rise + 8)
    largest = max((abs(float(v)) for v in order["effect"] if math.isfinite(v)), default=0.0) or 1.0
    nodes = [
        node for (level, at), rows in cells.items() for node in _cell(rows, columns[at], middles[level], largest)
    ] + boxes
    links, total = _links(r, sample, {str(node.row["node"]): i for i, node in enumerate(nodes)})
    height = ground + 22 + TURNED * max((len(token) for token, _ in below), default=0)
    named = [("logits", TOP + 10), *((f"layer {i}", y) for i, y in middles.items() if i >= 0), ("tokens", ground)]
    return Scene(sample, text, (width, height), nodes, links, named, below, ground + 14, len(kept) - len(order), total)


def _cells(nodes: pd.DataFrame) -> Cells:
    """Nodes by layer and position, the most influential first."""
    found: Cells = {}
    order = nodes.sort_values(["layer", "position", "influence"], ascending=[True, True, False], kind="stable")
    for row in order.to_dict("records"):
        level = -1 if row["kind"] == "embedding" else int(row["layer"])
        found.setdefault((level, int(row["position"])), []).append({str(k): v for k, v in row.items()})
    return found


def _most(cells: Cells, axis: int, at: int) -> int:
    """The most nodes that one cell of a layer (0) or a column (1) has."""
    return max((len(rows) for key, rows in cells.items() if key[axis] == at), default=0)


def _levels(cells: Cells, levels: Sequence[int], top: float) -> tuple[dict[int, float], float]:
    """The middle of each layer, from the last on top to the tokens at -1; and the latter's."""
    heights = [LEVEL + STEP * (max(1, -(-_most(cells, 0, level) // ACROSS)) - 1) + GAP for level in levels]
    y = top + sum(heights)
    ground = y + LEVEL / 2 + 8
    middles = {-1: ground}
    for level, tall in zip(levels, heights, strict=True):
        middles[level] = y - tall / 2
        y -= tall
    return middles, ground


def _shown(tokens: Sequence[str], position: int, nodes: pd.DataFrame) -> str:
    """The token below a column: the prompt's, or what its nodes say."""
    if 0 <= position < len(tokens):
        return shown_token(tokens[position])
    here = nodes[(nodes["position"] == position) & (nodes["kind"] != "logit")]["token"]
    return shown_token(str(here.iloc[0])) if len(here) else ""


def _columns(cells: Cells, positions: Sequence[int]) -> tuple[dict[int, float], float]:
    """The middle of each column, and the width of all."""
    wide = [STEP * min(max(_most(cells, 1, p), 1), ACROSS) + 9 for p in positions]
    spare = max(0.0, LEAST - SIDE - RIGHT - sum(wide)) / max(len(wide), 1)
    places, x = {}, SIDE
    for position, own in zip(positions, wide, strict=True):
        room = own + min(spare, 60.0)
        places[position] = x + room / 2
        x += room
    return places, max(x + RIGHT, 320.0)


def _cell(rows: list[dict[str, object]], x: float, y: float, largest: float) -> list[Node]:
    """Nodes of one layer and position around its middle, the most influential first."""
    lines = [rows[i : i + ACROSS] for i in range(0, len(rows), ACROSS)]
    made = []
    for j, line in enumerate(lines):
        for i, row in enumerate(line):
            place = x + STEP * (i - (len(line) - 1) / 2), y + STEP * (j - (len(lines) - 1) / 2)
            made.append(Node(row, *place, _radius(row, largest)))
    return made


def _radius(row: dict[str, object], largest: float) -> float:
    """So that the area grows with |effect|."""
    effect = float(row["effect"])  # type: ignore[arg-type]
    return SMALL + (LARGE - SMALL) * math.sqrt(abs(effect) / largest) if math.isfinite(effect) else SMALL


def _boxes(logits: pd.DataFrame, width: float) -> tuple[list[Node], float]:
    """The answers on top as boxes with their tokens, from the right edge leftwards; and the height that they take."""
    found: list[Node] = []
    x, y = width - RIGHT, TOP + 10
    for row in logits.to_dict("records"):
        wide = 14 + LETTER * 1.1 * len(answer(row))
        if x - wide < SIDE and found:
            x, y = width - RIGHT, y + 21
        found.append(Node({str(k): v for k, v in row.items()}, x - wide / 2, y, 8.0, wide))
        x -= wide + 8
    return found, y - TOP + 12


def _links(r: FeatureRecord, sample: str, at: dict[str, int]) -> tuple[list[tuple[int, int, float]], int]:
    """Direct effects between nodes that are drawn, the largest first, and how many there are."""
    mine = r.links[(r.links["sample"] == sample) & r.links["source"].isin(list(at)) & r.links["target"].isin(list(at))]
    mine = mine[mine["weight"].map(math.isfinite) & (mine["weight"] != 0) & (mine["source"] != mine["target"])]
    order = mine["weight"].abs().sort_values(ascending=False, kind="stable").index[:LINKS]
    best = mine.loc[order]
    found = zip(best["source"], best["target"], best["weight"], strict=True)
    return [(at[source], at[target], float(weight)) for source, target, weight in found], len(mine)
