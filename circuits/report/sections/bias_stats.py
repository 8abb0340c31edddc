"""The section of group statistics of pictures: how many features carry gender at each layer, which ones, on which pictures."""

from __future__ import annotations

import base64
from typing import Any

import pandas as pd

from circuits.drawing.style import Looks
from circuits.report.charts import Point, by_layer
from circuits.report.content import Answer, Block, Cell, Column, Figure, Gallery, Note, Part, Table, Tile
from circuits.report.registry import Entry, View, section
from circuits.report.saved import load_json, load_metrics, load_table
from circuits.report.words import ABSENT, decimal, percent, plural, whole

NEEDED = ("tested", "significant", "by_layer", "n_pictures")
TOP = 10
GALLERIES = 8
LANG = {"english": "en", "arabic": "ar"}
NUMBERS = ("layer", "feature", "male_mean", "female_mean", "differential", "cohens_d", "q_value", "twin_q", "ci_low", "ci_high",
           "permutation_p", "test_d", "male_rank", "female_rank", "significant")  # fmt: skip


@section("bias_stats", order=50)
def bias_stats(view: View) -> Part:
    """Read every set of statistics of the sweep and show it."""
    problems: list[str] = []
    blocks: list[Block] = []
    first: list[Block] = []
    told = []
    for i, entry in enumerate(view.entries):
        metrics = load_metrics(entry.ref, NEEDED, problems)
        if metrics is None:
            continue
        told.append(_sentence(metrics))
        where = first if not first else blocks
        where += [_figure(f"bias-stats-{i}", entry, metrics, view.looks)]
        table = load_table(entry.ref, "statistics.parquet", NUMBERS, problems, ("language",))
        if table is not None:
            where.append(_top(entry, table))
        blocks += _galleries(entry, problems)
        blocks.append(_quality(entry, metrics))
    return Part(
        "Features that carry gender",
        f"{plural(len(told), 'set')} of group statistics; the unit is the picture.",
        tuple(blocks),
        Answer(" ".join(told) or "No group statistics could be read.", tuple(first)),
        tuple(problems),
    )


def _sentence(m: dict[str, Any]) -> str:
    again = "" if m.get("confirmed") is None else f", {percent(m['confirmed'])} of them confirmed on other pictures"
    null = "" if m.get("shuffled_hits") is None else f"; with shuffled labels {m['shuffled_hits']:.1f}"
    return (
        f"{m['significant']:,} of {m['tested']:,} features × layers × languages tell male from female pictures (n = "
        f"{_compared(m)}, q < 0.05 by {m.get('primary', 'groups')}{again}{null}); a single test of groups of this size finds "
        f"effects from d = {decimal(m.get('detectable_d'), 2)}."
    )


def _compared(m: dict[str, Any]) -> str:
    """How many pictures were compared, of all."""
    if "n_male" not in m:
        return f"{m['n_pictures']:,} pictures"
    twins = f", {m['n_twins']:,} twins" if m["n_twins"] else ""
    return f"{m['n_male']:,} male and {m['n_female']:,} female training pictures{twins}"


def _figure(name: str, entry: Entry, metrics: dict[str, Any], looks: Looks) -> Figure:
    rows = metrics["by_layer"]
    own = Looks(dict.fromkeys(row["language"] for row in rows))
    points = [
        Point(row["layer"], row["language"], row["significant"] / max(1, row["tested"]), None,
              f"layer {row['layer']}, {row['language']}: {row['significant']} of {row['tested']}")
        for row in rows
    ]  # fmt: skip
    sheet, _ = by_layer(name, own, points, "features with q < 0.05 and |d| above the bound", fractions=True)
    caption = f"Share of the tested features that carry gender, by layer and language. From {entry.ref.label}."
    return sheet.finish(title="Features that carry gender, by layer", caption=caption,
                        alt=f"Share of significant features at {plural(len(rows), 'layer and language')}",
                        data=pd.DataFrame(rows))  # fmt: skip


def _top(entry: Entry, table: pd.DataFrame) -> Table:
    columns = (
        Column("layer", True), Column("language"), Column("side"), Column("feature", True),
        Column("d", True, "Cohen's d of training pictures, male − female"),
        Column("male", True, "mean activation"), Column("female", True, "mean activation"),
        Column("difference [95%]", True, "bootstrap over groups of pictures"),
        Column("q", True, "Benjamini-Hochberg over features × layers × languages"),
        Column("q of twins", True, "Wilcoxon within twins"), Column("permutation p", True),
        Column("d on test pictures", True), Column("significant"),
    )  # fmt: skip
    rows = []
    for side in ("male", "female"):
        mine = table[(table[f"{side}_rank"] > 0) & (table[f"{side}_rank"] <= TOP)]
        for _, row in mine.sort_values(["layer", "language", f"{side}_rank"]).iterrows():
            between = f" [{decimal(row['ci_low'], 2)}, {decimal(row['ci_high'], 2)}]"
            rows.append(
                (
                    Cell(whole(row["layer"]), row["layer"]), Cell(str(row["language"])), Cell(side),
                    Cell(whole(row["feature"]), row["feature"]), Cell(decimal(row["cohens_d"], 2), row["cohens_d"]),
                    Cell(decimal(row["male_mean"], 2), row["male_mean"]), Cell(decimal(row["female_mean"], 2), row["female_mean"]),
                    Cell(decimal(row["differential"], 2) + between, row["differential"]),
                    Cell(_small(row["q_value"]), row["q_value"]), Cell(_small(row["twin_q"]), row["twin_q"]),
                    Cell(_small(row["permutation_p"]), row["permutation_p"]), Cell(decimal(row["test_d"], 2), row["test_d"]),
                    Cell("yes" if row["significant"] else "no"),
                )
            )  # fmt: skip
    return Table(
        f"The first {TOP} features of each side", columns, tuple(rows), f"From {entry.ref.label}.", folded=True
    )


def _small(value: float) -> str:
    return ABSENT if value != value else f"{value:.1e}" if value < 0.001 else f"{value:.3f}"


def _galleries(entry: Entry, problems: list[str]) -> list[Block]:
    """The pictures on which the strongest reported features are most active."""
    found = load_json(entry.ref, "examples.json", problems).get("examples", [])
    if not found:
        return []
    strongest = sorted(found, key=lambda one: -abs(one["cohens_d"]))
    chosen: dict[tuple[str, str], list[Any]] = {}
    for one in strongest:
        chosen.setdefault((one["language"], one["side"]), []).append(one)
    shown = [one for group in chosen.values() for one in group[: max(1, GALLERIES // max(1, len(chosen)))]]
    blocks: list[Block] = []
    for one in shown:
        tiles = []
        for picture in one["pictures"]:
            try:
                png = base64.b64encode(
                    (entry.ref.path / "examples" / f"{picture['picture']}.png").read_bytes()
                ).decode()
            except OSError as e:
                problems.append(f"{entry.ref.label}: examples/{picture['picture']}.png cannot be read ({e.strerror})")
                continue
            lines = tuple((LANG.get(name, name), texts[0]) for name, texts in picture["captions"].items() if texts)
            tiles.append(Tile(png, f"{picture['label']} · {picture['value']:.2f}", lines))
        title = f"Layer {one['layer']}, feature {one['feature']} ({one['side']}, {one['language']}): d = {one['cohens_d']:.2f}"
        caption = (
            "Pictures by largest activation, each with its label, activation and first captions. " if not blocks else ""
        )
        themes = ", ".join(f"{name} {n}" for name, n in (one.get("themes") or {}).items() if n)
        caption += f"Themes of these captions, by whole words: {themes}." if themes else ""
        blocks.append(Gallery(title, tuple(tiles), caption))
    return blocks


def _quality(entry: Entry, metrics: dict[str, Any]) -> Block:
    quality = metrics.get("quality", {})
    if not quality:
        return Note("How well the SAEs read these activations is not known.")
    types = list(dict.fromkeys(name for one in quality.values() for name in one))
    columns = (Column("layer and language"), *(Column(f"{name} tokens", True) for name in types))
    rows = tuple(
        (Cell(place), *(Cell(decimal(one.get(name), 3), one.get(name)) for name in types))
        for place, one in quality.items()
    )
    return Table("Explained variance of these activations", columns, rows, f"From {entry.ref.label}.", folded=True)
