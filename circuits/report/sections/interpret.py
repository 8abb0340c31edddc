"""The section of interpreted features: what they fire on, what they promote, which factors of the behaviour they tell apart."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from circuits.drawing.style import Looks
from circuits.errors import UserError
from circuits.features import labels as label_files
from circuits.report.cards import Card, Cards, Example, Patch, Token, Words, histogram
from circuits.report.charts import Point, by_layer
from circuits.report.content import Answer, Block, Cell, Column, Figure, Note, Part, Table
from circuits.report.registry import Entry, View, section
from circuits.report.saved import load_json, load_metrics, whole_table
from circuits.report.words import ABSENT, counts, decimal, listed, percent, plural, ranges, short, visible, whole

SHOWN = 120  # features on a page, over all its layers: about 5 kB each
A_LAYER = 12  # at most
EXAMPLES = 6  # of a feature; the rest is in examples.parquet
TESTS = 40  # rows of a layer's table of associations
NEEDED = ("layer", "site", "n_features", "n_rows", "n_sequences", "n_train", "tested", "significant")


@dataclass(frozen=True, eq=False)
class Record:
    """One layer's interpretation."""

    entry: Entry
    metrics: Mapping[str, Any]
    meta: Mapping[str, Any]
    features: pd.DataFrame
    examples: pd.DataFrame
    associations: pd.DataFrame
    labels: Mapping[int, str] = field(default_factory=dict)

    @property
    def layer(self) -> int:
        return int(self.metrics["layer"])

    @property
    def label(self) -> str:
        return self.entry.ref.label

    @property
    def who(self) -> str:
        """``layer 3, sae.k=32``."""
        return f"layer {self.layer}" + (f", {self.entry.element.series}" if self.entry.element.series else "")

    @property
    def found(self) -> pd.DataFrame:
        """The significant associations: of each feature and factor the level with the largest difference, surest first."""
        table = self.associations[self.associations["significant"].astype(bool)]
        table = table.assign(size=table["difference"].astype(float).abs())
        best = table.sort_values("size", ascending=False, kind="stable").drop_duplicates(["feature", "factor"])
        return best.sort_values(["q", "size"], ascending=[True, False], kind="stable")

    @property
    def untested(self) -> str:
        """Which factors were not tested, and why; empty where all were."""
        if self.meta.get("pool") is None:
            return "none asked for (interpret.associate=false)"
        left: Mapping[str, str] = self.meta.get("left_out") or {}
        if left:
            return "; ".join(f"{name}: {why}" for name, why in left.items())
        return "" if self.metrics["tested"] else "the prompts have no factor"


@section("interpret", order=50)
def interpret(view: View) -> Part:
    """Read every interpretation of the sweep and show it."""
    problems: list[str] = []
    records = sorted(
        filter(None, (_read(entry, problems) for entry in view.entries)),
        key=lambda r: (r.layer, view.looks.rank(r.entry.element.series)),
    )
    each = max(1, min(A_LAYER, SHOWN // max(1, len(records))))
    shown = records[:SHOWN]
    blocks: list[Block] = [
        _cards(record, each, folded=number > 0, problems=problems) for number, record in enumerate(shown)
    ]
    if len(shown) < len(records):
        blocks.append(
            Note(f"Features of the first {SHOWN} artifacts are shown; of {len(records) - SHOWN} more, only numbers.")
        )
    blocks += [_associations(record) for record in shown if len(record.found)]
    blocks += [Note(text) for text in _untested(records)]
    tested = [r for r in records if r.metrics["tested"]]
    first: list[Block] = [_shares(view.looks, tested)] if tested else []
    first.append(_table(records))
    layers = f", layers {ranges(r.layer for r in records)}" if records else ""
    lead = f"{plural(len(records), 'SAE')}{layers}."
    return Part("Features", lead, tuple(blocks), Answer(_sentence(records), tuple(first)), tuple(problems))


def _read(entry: Entry, problems: list[str]) -> Record | None:
    metrics, meta = load_metrics(entry.ref, NEEDED, problems), load_json(entry.ref, "meta.json", problems)
    if metrics is None or not meta:
        return None
    features, examples, associations = (
        whole_table(entry.ref, f"{name}.parquet", problems) for name in ("features", "examples", "associations")
    )
    if features is None or examples is None or associations is None:
        return None
    given = _labels(entry, int(metrics["layer"]), problems)
    return Record(entry, metrics, meta, features, examples, associations, given)


def _labels(entry: Entry, layer: int, problems: list[str]) -> dict[int, str]:
    """People's labels, from the file that the run was given."""
    given = (entry.element.config.get("interpret") or {}).get("labels")
    if not given:
        return {}
    try:
        return label_files.read(Path(given), layer)
    except UserError as e:
        problems += [f"interpret.labels: {message}" for message in e.messages]
        return {}


def _sentence(records: list[Record]) -> str:
    """The answer in words."""
    if not records:
        return "No description of features could be read."
    n = sum(int(r.metrics["n_features"]) for r in records)
    text = f"{plural(n, 'feature')} described"
    tested = sum(int(r.metrics["tested"]) for r in records)
    if not tested:
        return f"{text}. Not tested on a behaviour's factors: {' · '.join(dict.fromkeys(r.untested for r in records))}."
    hits, features = (sum(int(r.metrics[name]) for r in records) for name in ("significant", "significant_features"))
    control = sum(float(r.metrics["shuffled_share"] or 0) * int(r.metrics["tested"]) for r in records) / tested
    return (
        f"{text}; {features:,} tell a factor of the prompts apart: {percent(hits / tested)} of {tested:,} tests have "
        f"q < {records[0].metrics['fdr']:g}, {100 * control:.2f}% with shuffled labels."
    )


def _untested(records: list[Record]) -> list[str]:
    """Of what some factors were not tested although others were, and why: a reason once, with the layers that it is of."""
    reasons: dict[str, list[int]] = {}
    for r in records:
        if r.metrics["tested"] and r.untested:
            reasons.setdefault(r.untested, []).append(r.layer)
    return [f"Not tested at layer{'s' * (len(at) > 1)} {ranges(at)}: {why}." for why, at in reasons.items()]


def _shares(looks: Looks, records: list[Record]) -> Figure:
    """Share of significant tests by layer beside that under shuffled labels."""
    points, control = [], []
    for r in records:
        m, series = r.metrics, r.entry.element.series
        told = f"{r.who}: {m['significant']:,} of {m['tested']:,} tests"
        points.append(Point(r.layer, series, float(m["significant_share"]), None, f"{told}\n{r.label}"))
        if m["shuffled_share"] is not None:
            control.append(
                Point(
                    r.layer,
                    series,
                    float(m["shuffled_share"]),
                    None,
                    f"{r.who}: {m['shuffles']} shuffles of the labels",
                )
            )
    sheet, _ = by_layer(
        "interpret-associations",
        looks,
        points,
        "tests with q below the limit",
        control=control,
        names=("labels shuffled", "labels as they are"),
        fractions=True,
    )
    columns = ("layer", "tested", "significant", "significant_share", "shuffled_share", "shuffled_any", "replicated")
    data = pd.DataFrame({**{name: r.metrics.get(name) for name in columns}, "artifact": r.label} for r in records)
    caption = (
        f"Share of feature × factor tests (Kruskal-Wallis over n = {counts([float(r.metrics['n_train']) for r in records])} "
        f"training prompts, feature pooled by {records[0].meta.get('pool')}) with Benjamini-Hochberg q < "
        f"{records[0].metrics['fdr']:g}. Control: the same with the labels shuffled, mean of {records[0].metrics['shuffles']}. "
        f"From {listed([r.label for r in records])}."
    )
    alt = "Share of significant tests by layer, with shuffled labels as the control"
    return sheet.finish(title="Association with the behaviour's factors", caption=caption, alt=alt, data=data)


def _table(records: list[Record]) -> Table:
    columns = (
        Column("layer", True), Column("site"), Column("features", True, "described of those alive"), Column("alive", True),
        Column("tokens read", True), Column("one token", True, "share whose examples all peak on the same token"),
        Column("associated", True, "features with an association"),
        Column("tests", True, "features × factors"), Column("q < limit", True),
        Column("shuffled", True, "the same with shuffled labels"),
        Column("any in a shuffle", True, "share of shuffles in which anything was found"),
        Column("same sign", True, "share of associations with the same sign on the test prompts"), Column("artifact"),
    )  # fmt: skip
    rows = []
    for r in records:
        m = r.metrics
        plain = [(whole(m.get(name)), m.get(name)) for name in ("n_features", "n_alive", "n_rows")]
        tested = [(whole(m.get(name)), m.get(name)) for name in ("significant_features", "tested")]
        measured = ("significant_share", "shuffled_share", "shuffled_any", "replicated")
        shares = [(percent(m.get(name)), m.get(name)) for name in measured]
        cells = [*plain, (percent(m.get("single_token")), m.get("single_token")), *tested, *shares]
        rows.append(
            (
                Cell(str(r.layer), r.layer),
                Cell(str(m["site"])),
                *(Cell(text, sort) for text, sort in cells),
                Cell(r.label, code=True, hint=f"key {r.entry.ref.key}"),
            )
        )
    return Table("Features", columns, tuple(rows))


def _cards(record: Record, n: int, folded: bool, problems: list[str]) -> Cards:
    """Labelled features first, then the surest associations of each factor, then the most often active."""
    # The factors take turns, each with its surest feature first: one strong factor would otherwise fill the page.
    turns = record.found.assign(turn=record.found.groupby("factor").cumcount()).sort_values("turn", kind="stable")
    features = record.features.assign(
        rank=record.features["feature"].map({f: i for i, f in enumerate(turns["feature"].drop_duplicates())}),
        labelled=[int(f) not in record.labels for f in record.features["feature"]],
    )
    order = features.sort_values(["labelled", "rank", "density"], ascending=[True, True, False], kind="stable").head(n)
    examples = record.examples[record.examples["feature"].isin(order["feature"])]
    associations = record.found[record.found["feature"].isin(order["feature"])]
    cards = tuple(
        _card(record, row, examples[examples["feature"] == row["feature"]], associations[associations["feature"] == row["feature"]])
        for row in order.to_dict("records")
    )  # fmt: skip
    none = record.meta.get("no_token_effects")
    caption = (
        f"{len(cards)} of {plural(len(features), 'feature')}: labelled ones, then each factor's surest associations, then the most "
        f"often active; up to {EXAMPLES} of {record.metrics['top_k']} examples, each from another sequence. A token's background "
        "is its activation as a share of the feature's largest (hover for the value); the peak is underlined, in a picture framed. "
        "Promoted tokens: "
        "decoder row through the final norm's scale and the unembedding, less the vocabulary's mean, direct path only. "
        "Associations: the level's difference to the other training prompts, and the same on the test prompts."
        + (f" No promoted tokens here: {none}." if none else "")
        + f" All features: features.parquet and examples.parquet of {record.label}."
    )
    return Cards(f"Features of {record.who}", caption, cards, folded)


def _card(record: Record, row: Mapping[Any, Any], examples: pd.DataFrame, associations: pd.DataFrame) -> Card:
    feature, largest = int(row["feature"]), float(row["maximum"]) or 1.0
    pictures = record.entry.ref.path / "pictures"
    label = record.labels.get(feature, "")
    facts = (
        f"active on {percent(row['density'])} of tokens, {percent(row['sequence_share'])} of sequences · mean "
        f"{short(row['mean'])} · largest {short(row['maximum'])}"
    )
    words = [
        Words(
            side,
            tuple(
                (visible(str(text)), f"{effect:+.3g}")
                for text, effect in zip(row[side], row[f"{side}_effect"], strict=True)
            ),
        )
        for side in ("promoted", "suppressed")
        if len(row[side])
    ]
    lines = [
        f"{a['factor']}: {visible(str(a['level']))} {float(a['difference']):+.3g} "
        f"(AUC {float(a['auc']):.2f}, q {float(a['q']):.1e}, test {_signed(a['difference_test'])})"
        for a in associations.head(4).to_dict("records")
    ]
    return Card(
        title=f"L{record.layer} · {feature}",
        label=label or (f"suggested: {row['suggestion']}" if row["suggestion"] else ""),
        facts=facts,
        examples=tuple(_example(one, largest, pictures) for one in examples.head(EXAMPLES).to_dict("records")),
        histogram=histogram(record.meta["edges"], [int(n) for n in row["histogram"]]),
        words=tuple(words),
        associations=tuple(lines),
    )


def _signed(value: Any) -> str:
    return ABSENT if pd.isna(value) else f"{float(value):+.3g}"


def _example(row: Mapping[Any, Any], largest: float, pictures: Path) -> Example:
    tokens = tuple(
        Token(
            visible(str(text)),
            round(min(1.0, float(a) / largest), 2),
            f"{float(a):.3g}" if a > 0 else "",
            i == row["peak"],
        )
        for i, (text, a) in enumerate(zip(row["tokens"], row["activations"], strict=True))
    )
    hint = f"sample {row['sample']}, position {row['position']}"
    png, patches, peak = _picture(row, largest, pictures)
    cut = int(row["first"]) > 0
    return Example(decimal(float(row["activation"]), 2), hint, tokens, cut, png, patches, peak)


def _picture(row: Mapping[Any, Any], largest: float, folder: Path) -> tuple[str, tuple[Patch, ...], Patch | None]:
    """The picture that an example is from, where in it the feature is active, and where it peaks; nothing of text."""
    path = folder / f"{row['sample']}.png"
    if not path.exists():
        return "", (), None
    png = base64.b64encode(path.read_bytes()).decode()
    values = [float(value) for value in row.get("map", ())]  # artifacts that were made before maps were have none
    side = math.isqrt(len(values))
    if side == 0 or side * side != len(values):  # no square of tokens: nobody can tell where each stands
        return png, (), None
    size = 100 / side
    squares = [
        Patch(
            round(i % side * size, 2),
            round(i // side * size, 2),
            round(size, 2),
            round(min(1.0, value / largest), 2),
            f"{value:.3g}",
        )
        for i, value in enumerate(values)
    ]
    at = int(row["patch"])
    active = tuple(square for square, value in zip(squares, values, strict=True) if value > 0)
    return png, active, squares[at] if at >= 0 else None


def _associations(record: Record) -> Table:
    """The surest associations of a layer."""
    columns = (
        Column("feature", True), Column("label"), Column("factor"), Column("level"), Column("prompts", True),
        Column("difference", True, "mean of the level's prompts minus that of the others"), Column("AUC", True),
        Column("q", True), Column("on test", True, "the difference on the test prompts"),
    )  # fmt: skip
    suggestions = dict(zip(record.features["feature"], record.features["suggestion"], strict=True))
    rows = tuple(
        (
            Cell(str(a["feature"]), int(a["feature"])),
            Cell(record.labels.get(int(a["feature"])) or str(suggestions.get(a["feature"], ""))),
            Cell(str(a["factor"])),
            Cell(visible(str(a["level"]))),
            Cell(whole(a["n"]), float(a["n"])),
            Cell(f"{float(a['difference']):+.3g}", float(a["difference"])),
            Cell(f"{float(a['auc']):.2f}", float(a["auc"])),
            Cell(f"{float(a['q']):.1e}", float(a["q"])),
            Cell(_signed(a["difference_test"]), None if pd.isna(a["difference_test"]) else float(a["difference_test"])),
        )
        for a in record.found.head(TESTS).to_dict("records")
    )
    caption = f"The {len(rows)} surest of {plural(len(record.found), 'association')}; all: associations.parquet."
    return Table(f"Associations at {record.who}", columns, rows, caption, folded=True)
