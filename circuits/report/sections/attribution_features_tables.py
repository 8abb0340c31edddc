"""Tables of feature graphs, and their predictions beside what edits measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from circuits.drawing.style import INK, Looks
from circuits.report.content import Cell, Column, Figure, Table
from circuits.report.saved import number
from circuits.report.sections.attribution_features_records import FeatureRecord
from circuits.report.sections.attribution_records import signed, with_error
from circuits.report.sheet import Sheet, drawing, identity, label_axes, marks, reference
from circuits.report.words import decimal, percent, plural, ranges, visible, whole

STRONGEST = 25
SERIES = ("one feature taken out", "the strongest ones together")


def strongest(r: FeatureRecord) -> Table | None:
    """Features with the largest mean effect over prompts."""
    if not len(r.features):
        return None
    labelled = bool((r.features["label"] != "").any())
    columns = (
        Column("feature", False, "layer/feature"), *((Column("label"),) if labelled else ()),
        Column("effect", True, f"total effect on the metric, mean over prompts, ± one standard error ({r.unit})"),
        Column("frequency", True, "share of the prompts in whose graph it is"), Column("prompts", True),
        Column("activation", True, "mean where it is active"),
    )  # fmt: skip
    order = (
        r.features["effect_mean"]
        .abs()
        .sort_values(ascending=False, kind="stable", na_position="last")
        .index[:STRONGEST]
    )
    rows = []
    for row in r.features.loc[order].to_dict("records"):
        effect, error, frequency, seen, activation = (
            number(row, key) for key in ("effect_mean", "effect_se", "frequency", "prompts", "activation_mean")
        )
        layer, feature = int(row["layer"]), int(row["feature"])
        cells = [Cell(f"L{layer}/{feature}", layer + feature / 1e9, code=True)]
        cells += [Cell(str(row["label"]))] if labelled else []
        cells += [Cell(with_error(effect, error), effect), Cell(percent(frequency), frequency), Cell(whole(seen), seen)]
        rows.append((*cells, Cell(signed(activation).lstrip("+"), activation)))
    more = f" Of {len(r.features):,}; features.parquet has them all." if len(r.features) > len(rows) else ""
    caption = f"By |effect|. Above 0 towards the target, below 0 towards the foil.{more} {r.source}"
    return Table(f"Strongest features over prompts: {r.condition}", columns, tuple(rows), caption)


def comparison(records: Sequence[FeatureRecord]) -> Table:
    """A row a measurement."""
    columns = (
        Column("measurement"), Column("features at"), Column("replacement", True, "influence that ends in tokens, not in errors"),
        Column("completeness", True, "of what flows into nodes"), Column("errors", True, "share of effects"),
        Column("attention", True, "share of effects through attention patterns"),
        Column("slope", True, "of measured effects on predicted ones"), Column("R²", True, "of measured effects"),
        Column("n", True, "prompts"), Column("graphs", True), Column("artifact"),
    )  # fmt: skip
    rows = []
    for r in records:
        cells = [Cell(r.condition), Cell(f"{r.site}, layers {ranges(r.layers)}" if r.layers else r.site)]
        for key in ("replacement", "completeness", "error_share", "attention_share"):
            cells.append(Cell(percent(r.value(key)), r.value(key)))
        cells += [Cell(decimal(r.value(key), 2), r.value(key)) for key in ("slope", "r2")]
        cells += [Cell(whole(r.n), r.n), Cell(whole(r.graphs), r.graphs)]
        rows.append((*cells, Cell(r.label, code=True, hint=f"key {r.entry.ref.key}")))
    caption = "Slope and R²: taking features out (the control) beside what was predicted."
    return Table("Feature graphs compared", columns, tuple(rows), caption)


def trust(r: FeatureRecord) -> Table | None:
    """How much of the model the graphs explain."""
    given = r.metrics.get("reference")
    reference = (
        [("reference", visible(given), "what effects are measured from")] if isinstance(given, str) and given else []
    )
    rows = [*reference, *((name, percent(r.value(key)), words) for name, key, words in (
        ("replacement", "replacement", "share of the answer's influence that ends in tokens and not in errors"),
        ("completeness", "completeness", "share of what flows into nodes that is no error, weighted by their influence"),
        ("kept mass", "kept_mass", "share of all influence that the nodes kept hold"),
        ("errors", "error_share", "share of effects through what the features do not reconstruct"),
        ("attention", "attention_share", "share of effects through attention patterns, which the graph holds fixed"),
    ) if r.value(key) is not None)]  # fmt: skip
    rows += [
        (name, decimal(r.value(key), 3), words)
        for name, key, words in (
            ("slope", "slope", "of measured effects on predicted ones: 1 where edits do what the graph says"),
            ("R²", "r2", "of measured effects, by the predicted ones"),
            ("slope, together", "joint_slope", "the same of the strongest features taken out together"),
            ("R², together", "joint_r2", "the same of the strongest features taken out together"),
        )
        if r.value(key) is not None
    ]
    if not rows:
        return None
    columns = (Column("measure"), Column("value", True), Column("what it is"))
    cells = tuple((Cell(name), Cell(value), Cell(words)) for name, value, words in rows)
    return Table(
        f"How far the graphs can be trusted: {r.condition}",
        columns,
        cells,
        f"Replacement, completeness and kept mass: means over {plural(r.graphs, 'graph')}. {r.source}",
    )


def checks(name: str, r: FeatureRecord) -> Figure | None:
    """What the graph predicts of taking out features, beside what edits measured."""
    table = r.checks
    if not len(table):
        return None
    slope, fit = r.value("slope"), r.value("r2")
    looks = Looks(SERIES)
    kinds = [
        (s, side) for s, side in zip(SERIES, (table["together"] <= 1, table["together"] > 1), strict=True) if side.any()
    ]
    with drawing():
        sheet = Sheet(name, looks, [kind for kind, _ in kinds], height=3.5, width=6.4, shown="marks")
        axes = sheet.axes
        values = table[["predicted", "measured"]].to_numpy()
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        room = 0.06 * (high - low or 1.0)
        ends = np.array([low - room, high + room])
        identity(axes, *ends)
        if slope is not None and math.isfinite(slope):
            axes.plot(ends, slope * ends, color=INK, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
        reference(axes, x=0, y=0)
        for kind, side in kinds[::-1]:
            (artist,) = axes.plot(
                table.loc[side, "predicted"], table.loc[side, "measured"], **marks(looks[kind]), zorder=3
            )
            sheet.tell(artist, [_told(row, r) for row in table[side].to_dict("records")])
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        label_axes(axes, f"predicted ({r.unit})", f"measured ({r.unit})")
    said = [
        text for text, value in ((f"slope {decimal(slope)}", slope), (f"R² {decimal(fit)}", fit)) if value is not None
    ]
    title = f"Predicted and measured effects: {r.condition}"
    dashed = " Dashed: measured = slope × predicted, of single features." if slope is not None else ""
    caption = (
        f"One dot a feature of a prompt: the change of the metric that is predicted for taking it out everywhere, and the change "
        f"that taking it out makes (the control). Grey: predicted = measured.{dashed} {plural(len(table), 'edit')} on "
        f"{plural(table['sample'].nunique(), 'prompt')}{''.join(f', {text}' for text in said)}. {r.source}"
    )
    alt = f"{title}: {plural(len(table), 'edit')}{''.join(f', {text}' for text in said)}"
    return sheet.finish(title=title, caption=caption, alt=alt, data=pd.DataFrame(table))


def _told(row: dict[Any, Any], r: FeatureRecord) -> str:
    where = f"L{int(row['layer'])}/{int(row['feature'])}, {visible(str(row['sample']))}"
    where += f" and {int(row['together']) - 1} more at once" if row["together"] > 1 else ""
    return f"{where}\npredicted {signed(row['predicted'])}, measured {signed(row['measured'])} {r.unit}"
