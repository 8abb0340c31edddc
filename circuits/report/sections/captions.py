"""What the section of interventions shows of captions under edits: distance to parity, place and picture, beside controls."""

from __future__ import annotations

from typing import Any

import pandas as pd

from circuits.drawing.style import Looks
from circuits.report.charts import Point, by_layer
from circuits.report.content import Answer, Block, Cell, Column, Figure, Note, Part, Table
from circuits.report.registry import Entry, View
from circuits.report.saved import load_metrics, load_table, whole_table
from circuits.report.words import ABSENT, decimal, percent

NUMBERS = ("factor", "base_parity", "parity", "reduction", "control_reduction", "control_reduction_95", "q", "p",
           "p_controls", "agreement", "base_agreement", "control_agreement", "says_seen", "gender_rate", "base_gender_rate",
           "caption_nll", "base_caption_nll", "n_open", "controls", "parity_change", "parity_low", "parity_high")  # fmt: skip
OPTIONAL = (
    "base_context",
    "context",
    "context_reduction",
    "control_context_reduction",
    "control_context_reduction_95",
    "recon_share",
    "words_change",
    "words_low",
    "words_high",
    "control_words_change",
    "control_words_std",
)
TEXTS = ("condition", "layers", "which", "kind")
EXAMPLES = 8


def is_captions(entry: Entry) -> bool:
    """Whether a study of interventions is one of captions."""
    return (entry.ref.path / "captions.parquet").exists()


def captions(view: View) -> Part:
    """Every study of captions: the figure by layer, all conditions, a few captions."""
    problems: list[str] = []
    first: list[Block] = []
    blocks: list[Block] = []
    told = []
    for i, entry in enumerate(view.entries):
        metrics = load_metrics(entry.ref, ("n", "controls"), problems)
        table = load_table(entry.ref, "summary.parquet", NUMBERS, problems, (*TEXTS, *OPTIONAL))
        if metrics is None or table is None or not len(table):
            continue
        told.append(_sentence(entry, metrics, table))
        where = first if not first else blocks
        where += [*_figure(f"captions-{i}", entry, table), _table(entry, table)]
        blocks += _examples(entry, problems)
    sentence = " ".join(told) or "No study of captions could be read."
    return Part("Captions under edits", "", tuple(blocks), Answer(sentence, tuple(first)), tuple(problems))


def _best(table: pd.DataFrame) -> Any:
    by = (
        "context_reduction"
        if "context_reduction" in table and table["context_reduction"].notna().any()
        else "reduction"
    )
    known = table[
        table[by].notna() & (table["agreement"].isna() | (table["agreement"] >= table["base_agreement"] - 0.02))
    ]
    return (known if len(known) else table).sort_values(by, ascending=False).iloc[0]


def _sentence(entry: Entry, m: dict[str, Any], table: pd.DataFrame) -> str:
    row = _best(table)
    place = ""
    if row.get("context_reduction") is not None and row.get("context_reduction") == row.get("context_reduction"):
        place = (
            f"the place decides {decimal(row['context'], 2)} instead of {decimal(row['base_context'], 2)} "
            f"(−{percent(row['context_reduction'])}; matched random features −{percent(row['control_context_reduction'])}), "
        )
    parity = f"{decimal(row['base_parity'], 2)} → {decimal(row['parity'], 2)}"
    agreement = f"{percent(row['base_agreement'])} → {percent(row['agreement'])}"
    return (
        f"{row['condition']}: {place}distance to parity of open pictures {parity} (random features "
        f"{percent(row['control_reduction'])} less, q = {_q(row['q'])}, p among them = {_q(row['p_controls'])}), agreement with "
        f"seen pictures {agreement} "
        f"(n = {m['n']} test pictures, {m['controls']} controls; {entry.ref.label})."
    )


def _q(value: float) -> str:
    return ABSENT if value != value else f"{value:.3f}"


def _figure(name: str, entry: Entry, table: pd.DataFrame) -> list[Figure]:
    """The loss of the place's say by layer, one series an edit, controls beside it."""
    value, control = (
        ("context_reduction", "control_context_reduction")
        if "context_reduction" in table and table["context_reduction"].notna().any()
        else ("reduction", "control_reduction")
    )
    single = table[~table["layers"].str.contains(r"\+", regex=True) & table[value].notna()]
    if not len(single):
        return []
    label = {"scale": "×{:g}", "project": "projected"}
    rows = single.assign(series=[f"{r['which']} {label[r['kind']].format(r['factor'])}" for _, r in single.iterrows()])
    looks = Looks(dict.fromkeys(rows["series"]))
    points = [
        Point(int(r["layers"]), r["series"], r[value], None, f"{r['condition']}: {r[value]:.1%}")
        for _, r in rows.iterrows()
    ]
    beside = [
        Point(int(r["layers"]), r["series"], r[control], None, f"{r['condition']}, random features: {r[control]:.1%}")
        for _, r in rows.iterrows()
        if r[control] == r[control]
    ]
    what = "context → gender taken away" if value == "context_reduction" else "distance to parity taken away"
    sheet, below = by_layer(
        name, looks, points, what, control=beside, names=("matched random features", ""), floor=-1.0, fractions=True
    )
    caption = f"{what[0].upper()}{what[1:]} by each edit, by layer; 100% leaves nothing. From {entry.ref.label}."
    caption += f" {below} below −100% stand on the floor." if below else ""
    return [sheet.finish(title="What edits take away, by layer", caption=caption, alt=f"{what} by layer", data=rows)]


def _table(entry: Entry, table: pd.DataFrame) -> Table:
    columns = (
        Column("edit"), Column("distance to parity", True, "mean |P(male) − ½| of open pictures: before → under the edit"),
        Column("less [change, 95%]", True), Column("random less (95%)", True, "matched random features: mean (95th percentile)"),
        Column("place decides", True, "P(male) at places coded male − female: before → under the edit"),
        Column("random", True, "the same taken away by matched random features"),
        Column("q", True, "of a change over pictures (Wilcoxon, paired), Benjamini-Hochberg over the edits"),
        Column("p among random", True, "share of random sets that do as much: (1 + hits) / (R + 1)"),
        Column("agreement", True, "of seen pictures: before → under the edit"), Column("gender words a token", True),
        Column("words a caption", True, "gender words: change under the edit [95%], and (of random features)"),
        Column("nats a token", True, "of the captions, under the model without edits"), Column("share of the stream", True),
    )  # fmt: skip
    rows = []
    for _, r in table.iterrows():
        context = ABSENT
        if "context" in r and r["context"] == r["context"]:
            context = f"{decimal(r['base_context'], 2)} → {decimal(r['context'], 2)}"
        rows.append(
            (
                Cell(r["condition"]), Cell(f"{decimal(r['base_parity'], 3)} → {decimal(r['parity'], 3)}", r["parity"]),
                Cell(f"{percent(r['reduction'])} [{decimal(r['parity_low'], 3)}, {decimal(r['parity_high'], 3)}]", r["reduction"]),
                Cell(f"{percent(r['control_reduction'])} ({percent(r['control_reduction_95'])})", r["control_reduction"]),
                Cell(context, r.get("context_reduction")),
                Cell(_share(r.get("control_context_reduction"))),
                Cell(_q(r["q"]), r["q"]),
                Cell(_q(r["p_controls"]), r["p_controls"]),
                Cell(f"{percent(r['base_agreement'])} → {percent(r['agreement'])}", r["agreement"]),
                Cell(f"{decimal(r['base_gender_rate'], 3)} → {decimal(r['gender_rate'], 3)}", r["gender_rate"]),
                _words(r),
                Cell(f"{decimal(r['base_caption_nll'], 2)} → {decimal(r['caption_nll'], 2)}", r["caption_nll"]),
                Cell(_share(r.get("recon_share")), r.get("recon_share")),
            )
        )  # fmt: skip
    return Table(
        "Edits of gender-biased features, beside matched random ones", columns, tuple(rows), f"From {entry.ref.label}."
    )


def _words(row: pd.Series) -> Cell:
    """``−0.49 [−0.57, −0.41] (−0.09 ± 0.04)``."""
    change = row.get("words_change")
    if change is None or change != change:
        return Cell(ABSENT)
    text = f"{change:+.2f} [{row['words_low']:+.2f}, {row['words_high']:+.2f}]"
    beside, spread = row.get("control_words_change"), row.get("control_words_std")
    if beside is not None and beside == beside:
        text += f" ({beside:+.2f}" + (f" ± {spread:.2f})" if spread == spread else ")")
    return Cell(text.replace("-", "−"), float(change))


def _share(value: Any) -> str:
    return ABSENT if value is None or value != value else percent(value)


def _examples(entry: Entry, problems: list[str]) -> list[Block]:
    """A few captions that an edit changed."""
    texts = whole_table(entry.ref, "captions.parquet", problems)
    if texts is None:
        return []
    plain = texts[texts["condition"] == "none"].set_index(["language", "picture"])["caption"]
    edited = texts[(texts["condition"] != "none") & (texts["control"] == 0)].copy()
    edited["before"] = [plain.get((r["language"], r["picture"]), "") for _, r in edited.iterrows()]
    changed = edited[edited["before"] != edited["caption"]]
    if not len(changed):
        return [Note(f"No caption was changed by any edit ({entry.ref.label}).")]
    shown = changed.groupby(["condition", "language"], sort=False).head(1).head(EXAMPLES)
    rows = tuple(
        (Cell(r["condition"]), Cell(r["language"]), Cell(str(r["picture"])), Cell(r["before"]), Cell(r["caption"]))
        for _, r in shown.iterrows()
    )
    columns = (Column("edit"), Column("language"), Column("picture"), Column("without"), Column("under the edit"))
    caption = f"{len(changed):,} of {len(edited):,} captions changed. From {entry.ref.label}."
    return [Table("Captions that an edit changed", columns, rows, caption, folded=True)]
