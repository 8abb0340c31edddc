"""Figures of single studies: maps of heads and positions, sites by layer, and what of each answers first."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from circuits.drawing.style import Looks
from circuits.report.charts import Point, by_layer
from circuits.report.content import Figure
from circuits.report.saved import number
from circuits.report.sections import interventions_records as say
from circuits.report.sections.interventions_forests import forest
from circuits.report.sections.interventions_maps import Axis, Panel, heatmap
from circuits.report.sections.interventions_records import Record
from circuits.report.sheet import reference
from circuits.report.words import plural

Cells = tuple[Record, pd.DataFrame, str]
PANELS = 20  # maps of a figure
NARROW = 20  # columns of a map that stands beside four others
SPARSE = 0.25  # of a grid's cells: fewer units are a forest


def looks_of(records: Sequence[Record]) -> Looks:
    """One look for each edit of the section."""
    return Looks(edit for r in records for edit in r.edits)


def figures(records: Sequence[Record], number_: int) -> list[Figure]:
    """How the studies of one kind are drawn, what answers first."""
    kind, name = records[0].kind, f"interventions-{number_}"
    if kind == "sites":
        return [f for key in ("effect", "recovery") if (f := _sites(name, records, key))]
    mapped = [r for r in records if kind in ("heads", "positions") and _dense(r)]
    found: list[Figure] = _maps(name, mapped, "effect") if mapped else []
    if kind == "positions" and mapped:
        found += _maps(f"{name}-recovery", mapped, "recovery")
    rest = sorted(
        (r for r in records if r not in mapped and len(r.ranked)), key=lambda r: -abs(r.ranked["effect"].iloc[0])
    )
    looks = looks_of(records)
    return found + [forest(f"{name}-forest-{i}", looks, r) for i, r in enumerate(rest)]


# -- maps --------------------------------------------------------------------------------------------------------


def _grid(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Studied rows with their cell: layer, and head or position."""
    across = rows["item"] if kind == "heads" else rows["positions"].map(_position)
    found = rows.assign(x=pd.to_numeric(across, errors="coerce"))
    return found[found["layer"].notna() & found["x"].notna()] if "layer" in found else found[:0]


def _position(text: str) -> float:
    match = re.fullmatch(r"\(?(-?\d+),?\)?", text.strip())
    return float(match[1]) if match else float("nan")


def _dense(r: Record) -> bool:
    if not {"layer", "item"} <= set(r.studied):
        return False
    cells = _grid(r.studied, r.kind)
    area = (np.ptp(cells["layer"]) + 1) * (np.ptp(cells["x"]) + 1) if len(cells) else np.inf
    return len(cells.drop_duplicates(["layer", "x"])) >= SPARSE * area


def _maps(name: str, records: Sequence[Record], key: str) -> list[Figure]:
    """Layer by head or position: all in one figure where they fit, else one of the strongest edit and then one a study."""
    cells = [_grid(r.studied, r.kind) for r in records]
    cells = [c if key in c else c.assign(**{key: np.nan}) for c in cells]
    if not any(c[key].notna().any() for c in cells):
        return []
    every = pd.concat(cells)
    layers, xs = ([*range(int(every[c].min()), int(every[c].max()) + 1)] for c in ("layer", "x"))
    chosen = [(r, c, edit) for r, c in zip(records, cells, strict=True) for edit in r.edits]
    narrow, several = len(xs) <= NARROW, len(records) > 1
    at_most = max(len(r.edits) for r in records)
    if len(chosen) > (PANELS if narrow or not several else 6) and several and at_most > 1:
        known = [r.ranked for r in records if len(r.ranked)]
        edit = max(known, key=lambda table: abs(table["effect"].iloc[0]))["edit"].iloc[0]
        groups = [[one for one in chosen if one[2] == edit]] + [[one for one in chosen if one[0] is r] for r in records]
    else:
        groups = [chosen]
    parts = [group[i : i + PANELS] for group in groups for i in range(0, len(group), PANELS)]
    fit = 5 if narrow else 3
    ways = [len({one[2] for one in part}) for part in parts]
    return [
        _map(f"{name}-{i}" if i else name, part, layers, xs, key, way if 1 < way <= fit else fit)
        for i, (part, way) in enumerate(zip(parts, ways, strict=True))
    ]


def _map(
    name: str, chosen: Sequence[Cells], layers: list[int], xs: list[int], key: str, across: int
) -> Figure:  # fmt: skip
    records = list(dict.fromkeys(r for r, _, _ in chosen))
    edits = list(dict.fromkeys(edit for _, _, edit in chosen))
    first = records[0]
    panels = []
    for r, cells, edit in chosen:
        title = edit if len(records) == 1 else r.condition if len(edits) == 1 else f"{r.condition} · {edit}"
        panels.append(_panel(r, cells[cells["edit"] == edit], title, layers, xs, key))
    what = f"mean {key} ({first.unit})" if key == "effect" else "mean recovery (1: the other prompt's difference)"
    alpha = first.alpha if key == "effect" else None
    heads = first.kind == "heads"
    who = "head" if heads else "position"
    title = f"{key.capitalize()} by layer and {who}" + (
        f", {edits[0]}" if len(edits) == 1 else f": {first.condition}" if len(records) == 1 else ""
    )
    each = "an edit" if len(records) == 1 else "a condition" if len(edits) == 1 else "a condition and edit"
    caption = f"Mean {key} of editing one {who} at one layer, a map {each}. {say.SIGN if alpha else RECOVERY}"
    caption += "" if heads else f" {FROM_END}"
    caption += f" Dots: q < {alpha:g} (Benjamini-Hochberg within an edit)." if alpha else ""
    caption += f" {say.sample(records, control=True)} {say.sources(records)}"
    best = max((r.ranked for r in records if len(r.ranked)), key=lambda t: abs(t["effect"].iloc[0]), default=None)
    strongest = f", strongest {best['unit'].iloc[0]} at {best['effect'].iloc[0]:+.2f}" if best is not None else ""
    alt = f"{title}: {plural(len(panels), 'map')} of {len(layers)} layers by {len(xs)} {who}s{strongest}"
    data = say.table_of(records, "layer", "item" if heads else "positions", *([key] if key != "effect" else []))
    return heatmap(
        name, panels, Axis("layer", layers), Axis(who if heads else "position from the end", xs), what,
        alpha=alpha, title=title, caption=caption, alt=alt, across=across,
        data=data[data["edit"].isin(edits)],
    )  # fmt: skip


FROM_END = "Positions are counted from the prompt's end (−1: the last token); shorter prompts lack the first."
RECOVERY = (
    "0: the edited prompt's difference as it was; 1: all the way to that of the pair's other prompt; undefined where the "
    "two hardly differ."
)


def _panel(r: Record, cells: pd.DataFrame, title: str, layers: list[int], xs: list[int], key: str) -> Panel:
    values = np.full((len(layers), len(xs)), np.nan)
    dots = np.zeros(values.shape, dtype=bool)
    told: dict[tuple[int, int], str] = {}
    for row in cells.to_dict("records"):
        at = int(row["layer"]) - layers[0], int(row["x"]) - xs[0]
        values[at] = row[key]
        dots[at] = key == "effect" and row["q"] < r.alpha
        told[at] = say.tell(r, row) + (f"\nrecovery {row[key]:.3f}" if key == "recovery" else "")
    return Panel(title, values, dots, lambda i, j: told.get((i, j), ""))


# -- by layer ----------------------------------------------------------------------------------------------------


def _sites(name: str, records: Sequence[Record], key: str) -> Figure | None:
    """The effect, or the recovery, of editing a whole site, by layer."""
    several, edits = len(records) > 1, {edit for r in records for edit in r.edits}
    points, seen = [], []
    for r in records:
        for row in r.studied.to_dict("records"):
            value, layer = number(row, key), number(row, "layer")
            if value is None or layer is None:
                continue
            parts = ([r.condition] if several else []) + ([str(row["edit"])] if len(edits) > 1 else [])
            ends = say.interval(row) if key == "effect" else say.interval(row, "recovery_low", "recovery_high")
            text = say.tell(r, row) + (f"\nrecovery {value:.3f}" if key == "recovery" else "")
            points.append(Point(int(layer), " · ".join(parts), value, ends, text))
            seen.append(r)
    if not points:
        return None
    looks = Looks(p.series for p in points)
    first = records[0]
    what = "mean effect (" + first.unit + ")" if key == "effect" else "recovery"
    sheet, _ = by_layer(f"{name}-{key}", looks, points, what, across_label="" if len(looks.series) > 1 else None)
    reference(sheet.axes, y=0)
    if key == "recovery":
        reference(sheet.axes, y=1, dashed=True)
    site = str(first.option("site", "the site"))
    title = f"{key.capitalize()} of {site} by layer"
    bars = any(p.interval for p in points)
    caption = (
        f"Mean {key} of editing {site} of one layer. {say.SIGN if key == 'effect' else RECOVERY}"
        f"{'' if bars else ' No interval was saved.'} {say.sample(records, control=True)} {say.sources(list(dict.fromkeys(seen)))}"
    )
    values = [p.value for p in points]
    alt = f"{title}: {plural(len(points), 'value')} from {min(values):+.2f} to {max(values):+.2f}"
    return sheet.finish(title=title, caption=caption, alt=alt, data=say.table_of(records, "layer", "recovery"))
