"""The section of crosscoders: what each block is explained by, and whose the features are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from circuits.drawing.style import Looks
from circuits.report.charts import Point, by_layer
from circuits.report.content import Answer, Block, Cell, Column, Figure, Part, Table
from circuits.report.registry import Entry, View, section
from circuits.report.saved import load_metrics, load_table
from circuits.report.words import decimal, percent, plural, plus_minus

NEEDED = ("explained_variance", "explained_variance_by_block", "blocks", "l0", "shared_fraction", "exclusive", "n_rows")
COLUMNS = ("feature", "firing_rate", "largest_share")
TWO = ("relative_norm", "nu_error", "nu_reconstruction", "seems_exclusive", "exclusive")
SHOWN = 30
EDGES = np.linspace(0, 1, 11)


@section("crosscoder", order=32)
def crosscoder(view: View) -> Part:
    """Read every crosscoder of the sweep and show it."""
    problems: list[str] = []
    blocks: list[Block] = []
    told = []
    for i, entry in enumerate(view.entries):
        metrics = load_metrics(entry.ref, NEEDED, problems)
        if metrics is None:
            continue
        features = load_table(entry.ref, "features.parquet", COLUMNS + TWO * ("exclusive_a" in metrics), problems)
        told.append(_sentence(metrics))
        several = len({block["layer"] for block in metrics["blocks"]}) > 1
        blocks += [_figure(f"crosscoder-{i}", entry, metrics)] if several else []
        blocks.append(_by_block(entry, metrics))
        if features is not None:
            blocks += _features(entry, metrics, features)
    answer = Answer(" ".join(told) or "No crosscoder could be read.", tuple(blocks[:2]))
    return Part("Crosscoders", f"{plural(len(told), 'crosscoder')}.", tuple(blocks[2:]), answer, tuple(problems))


def _sentence(m: dict[str, Any]) -> str:
    two = "exclusive_a" in m
    whose = "both models" if two else "several layers"
    text = (
        f"Explained variance {plus_minus(m['explained_variance'], m.get('explained_variance_ci'))} in the mean of "
        f"{plural(len(m['blocks']), 'block')}, with {decimal(m['l0'], 1)} active features a row; "
        f"{percent(m['shared_fraction'])} of the active features are of {whose}."
    )
    if two:
        text += (
            f" {plural(m['seemingly_exclusive'], 'feature')} seem one model's by their norms, {m['exclusive']} of them also after "
            f"latent scaling ({m['exclusive_a']} of A, {m['exclusive_b']} of B)."
        )
    frozen = m.get("baselines") or {}
    if frozen:
        reached = ", ".join(f"{n.replace('_', ' ')} {decimal(b['explained_variance'])}" for n, b in frozen.items())
        text += f" Frozen baselines: {reached}."
    return text


def _figure(name: str, entry: Entry, m: dict[str, Any]) -> Figure:
    models = list(dict.fromkeys(block["model"] for block in m["blocks"]))
    series = [f"model {model}" for model in models] if len(models) > 1 else ["crosscoder"]
    frozen = (m.get("baselines") or {}).get("frozen_decoder", {}).get("explained_variance_by_block")
    points, control = [], []
    for n, block in enumerate(m["blocks"]):
        of = series[models.index(block["model"])]
        value = m["explained_variance_by_block"][n]
        points.append(Point(block["layer"], of, value, None, f"{of}, layer {block['layer']}: {decimal(value)}"))
        if frozen:
            control.append(Point(block["layer"], of, frozen[n], None, f"{of}, layer {block['layer']}: frozen decoder"))
    sheet, _ = by_layer(
        name, Looks(series), points, "explained variance", control=control, names=("frozen decoder", "trained")
    )
    data = pd.DataFrame(m["blocks"]).assign(explained_variance=m["explained_variance_by_block"])
    caption = (
        f"n\u00a0=\u00a0{m['n_rows']:,} held-out rows. Every block counts alike in training. From {entry.ref.label}."
    )
    return sheet.finish(
        title="Explained variance, block by block", caption=caption, alt="Explained variance by layer", data=data
    )


def _by_block(entry: Entry, m: dict[str, Any]) -> Table:
    columns = (
        Column("model"),
        Column("layer", True),
        Column("explained variance", True),
        Column("scale", True, "of this block's rows in training"),
    )
    rows = tuple(
        (
            Cell(block["model"]),
            Cell(str(block["layer"]), block["layer"]),
            Cell(decimal(value), value),
            Cell(f"{block['scale']:.3g}", block["scale"]),
        )
        for block, value in zip(m["blocks"], m["explained_variance_by_block"], strict=True)
    )
    return Table("Blocks", columns, rows, f"From {entry.ref.label}.")


def _features(entry: Entry, m: dict[str, Any], features: pd.DataFrame) -> list[Block]:
    alive = features[features["firing_rate"] > 0]
    two = "relative_norm" in alive
    value = alive["relative_norm" if two else "largest_share"]
    what = "relative norm" if two else "largest block's share of the norm"
    counts, _ = np.histogram(value.dropna(), bins=EDGES)
    spread = Table(
        f"Features by {what}",
        (Column(what), Column("features", True)),
        tuple(
            (Cell(f"{low:.1f}-{high:.1f}"), Cell(f"{n:,}", int(n)))
            for low, high, n in zip(EDGES[:-1], EDGES[1:], counts, strict=True)
        ),
        ("0: model A's alone, 1: model B's alone. " if two else "1: one layer's alone. ") + f"From {entry.ref.label}.",
    )
    if not two:
        return [spread]
    chosen = alive[alive["seems_exclusive"].astype(bool)].sort_values("firing_rate", ascending=False).head(SHOWN)
    columns = (
        Column("feature", True),
        Column("relative norm", True),
        Column("ν error", True, "below 0.2: the other model's error does not hold it"),
        Column("ν reconstruction", True, "below 0.5: the other model's features do not write it"),
        Column("fires on", True, "share of held-out rows"),
        Column("exclusive"),
    )
    rows = []
    for _, r in chosen.iterrows():
        numbers = [float(r[name]) for name in ("relative_norm", "nu_error", "nu_reconstruction")]
        rate, feature = float(r["firing_rate"]), int(r["feature"])
        rows.append(
            (
                Cell(str(feature), feature),
                *(Cell(decimal(number, 2), number) for number in numbers),
                Cell(percent(rate), rate),
                Cell("yes" if r["exclusive"] else "no"),
            )
        )
    table = Table("Features that seem one model's", columns, tuple(rows), f"From {entry.ref.label}.")
    return [spread, table] if rows else [spread]
