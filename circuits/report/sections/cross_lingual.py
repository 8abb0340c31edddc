"""The section of two languages compared: shared features, lists, profiles and probes, each beside what chance gives."""

from __future__ import annotations

from typing import Any

import pandas as pd

from circuits.drawing.style import Looks
from circuits.report.charts import Point, by_layer
from circuits.report.content import Answer, Block, Cell, Column, Figure, Part, Table
from circuits.report.registry import Entry, View, section
from circuits.report.saved import load_metrics
from circuits.report.words import decimal, percent, plural

NEEDED = ("by_layer", "languages", "shared_share", "n_pictures")


@section("cross_lingual", order=52)
def cross_lingual(view: View) -> Part:
    """Read every comparison of the sweep and show it."""
    problems: list[str] = []
    first: list[Block] = []
    told = []
    for i, entry in enumerate(view.entries):
        metrics = load_metrics(entry.ref, NEEDED, problems)
        if metrics is None:
            continue
        told.append(_sentence(metrics))
        first += [_figure(f"cross-lingual-{i}", entry, metrics), _table(entry, metrics), _probes(entry, metrics)]
    answer = Answer(" ".join(told) or "No comparison of languages could be read.", tuple(first[:2]))
    return Part("Two languages", f"{plural(len(told), 'comparison')}.", tuple(first[2:]), answer, tuple(problems))


def _sentence(m: dict[str, Any]) -> str:
    a, b = m["languages"]
    carried = (
        ""
        if m.get("transfer") is None
        else f" A probe of gender fitted on {a} is right on {b} in {percent(m['transfer'])}"
    )
    carried += f" (larger class {percent(m.get('majority'))})." if carried else ""
    return (
        f"{percent(m['shared_share'])} of the active features do the same in {a} and {b} (by chance "
        f"{percent(m['shared_by_chance'])}), picture by picture over the training pictures; lists of gender features overlap by "
        f"{decimal(m.get('jaccard'), 2)} (Jaccard; random lists {decimal(m.get('jaccard_random'), 2)}).{carried}"
    )


def _figure(name: str, entry: Entry, metrics: dict[str, Any]) -> Figure:
    rows = metrics["by_layer"]
    series = "shared features"
    points = [Point(one["layer"], series, one["shared_share"] or 0.0, None,
                    f"layer {one['layer']}: {one['shared']} of {one['features']}") for one in rows]  # fmt: skip
    control = [Point(one["layer"], series, one["shared_by_chance"], None,
                     f"layer {one['layer']}: pictures permuted") for one in rows]  # fmt: skip
    sheet, _ = by_layer(name, Looks([series]), points, "features correlated over pictures", control=control,
                        names=("pictures permuted", series), fractions=True)  # fmt: skip
    data = pd.DataFrame(
        [{k: one[k] for k in ("layer", "features", "shared", "shared_share", "shared_by_chance")} for one in rows]
    )
    caption = f"Share of features with r over pictures above the bound and q < 0.05. From {entry.ref.label}."
    return sheet.finish(
        title="Shared features, by layer", caption=caption, alt="Share of shared features by layer", data=data
    )


def _table(entry: Entry, metrics: dict[str, Any]) -> Table:
    columns = (
        Column("layer", True), Column("features", True, "active in either language"), Column("shared", True),
        Column("by chance", True, "pictures of one language permuted"),
        Column("means: r", True), Column("random 95%", True, "features permuted"),
        Column("differentials: cosine", True), Column("random 95%", True, "features permuted"),
        Column("male lists", True, "Jaccard of both languages' lists"), Column("female lists", True),
        Column("random lists", True), Column("significant in both", True), Column("same sign", True),
    )  # fmt: skip
    rows = []
    for one in metrics["by_layer"]:
        means, moved, lists = one["mean_activation"], one["differential"], one["lists"]
        numbers = [
            (str(one["layer"]), one["layer"]), (f"{one['features']:,}", one["features"]),
            (percent(one["shared_share"]), one["shared_share"]), (percent(one["shared_by_chance"]), one["shared_by_chance"]),
            (decimal(means["pearson"], 2), means["pearson"]), (decimal(means["pearson_random_95"], 2), None),
            (decimal(moved["cosine"], 2), moved["cosine"]), (decimal(moved["cosine_random_95"], 2), None),
            (decimal(lists["male"]["jaccard"], 2), lists["male"]["jaccard"]),
            (decimal(lists["female"]["jaccard"], 2), lists["female"]["jaccard"]),
            (decimal(lists["male"]["jaccard_random"], 2), None),
            (str(one["significant_in_both"]), one["significant_in_both"]),
            (percent(one["same_sign_in_both"]), one["same_sign_in_both"]),
        ]  # fmt: skip
        rows.append(tuple(Cell(text, value) for text, value in numbers))
    return Table("Layer by layer, beside chance", columns, tuple(rows), f"From {entry.ref.label}.")


def _probes(entry: Entry, metrics: dict[str, Any]) -> Table:
    columns = (
        Column("layer", True),
        Column("fitted on"),
        Column("tested on"),
        Column("right [95%]", True),
        Column("larger class", True),
    )
    rows = []
    for one in metrics["by_layer"]:
        for probe in one["probes"]:
            between = f" [{percent(probe['ci'][0])}, {percent(probe['ci'][1])}]" if probe["ci"] else ""
            rows.append(
                (Cell(str(one["layer"]), one["layer"]), Cell(probe["fitted"]), Cell(probe["tested"]),
                 Cell(percent(probe["accuracy"]) + between, probe["accuracy"]), Cell(percent(probe["majority"]), probe["majority"]))
            )  # fmt: skip
    return Table("Gender probes, grouped folds", columns, tuple(rows), f"From {entry.ref.label}.", folded=True)
