"""What the sections of prompts and baselines show of pictures: labels and captions, agreement, both directions, controls."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from circuits import tables
from circuits.report.content import Answer, Block, Cell, Column, Gallery, Note, Part, Table, Tile
from circuits.report.registry import Entry, View
from circuits.report.saved import load_json, load_metrics, whole_table
from circuits.report.sections.pictures_planted import planted
from circuits.report.words import ABSENT, decimal, percent, plural

SHOWN = 12
LABELS = ("male", "female", "mixed", "unknown")
LANG = {"english": "en", "arabic": "ar"}


def is_pictures(entry: Entry) -> bool:
    """Whether an artifact of prompts is a set of pictures."""
    return (entry.ref.path / "pictures.parquet").exists()


def of_pictures(entry: Entry) -> bool:
    """Whether a baseline is one of pictures."""
    return load_json(entry.ref, "metrics.json", []).get("metric") == "pictures"


def sets(view: View) -> Part:
    """Sets of pictures: labels by language, agreement, what was left out, a few pictures."""
    problems: list[str] = []
    rows: list[tuple[Cell, ...]] = []
    blocks: list[Block] = []
    told = []
    for entry in view.entries:
        m = load_metrics(entry.ref, ("n_train", "n_test", "labels"), problems)
        if m is None:
            continue
        agrees = m.get("agreement")
        kappa = (
            ""
            if agrees is None
            else f"; both languages' labels are equal in {percent(agrees['equal'])} (κ = {agrees['kappa']:.2f})"
        )
        told.append(
            f"{m['n_train']:,} training and {m['n_test']:,} test pictures in {plural(m['n_groups'], 'group')}{kappa}."
        )
        for language, labels in {"both": m["labels"], **m.get("labels_by_language", {})}.items():
            counts = [labels.get(name, 0) for name in LABELS]
            rows.append((Cell(language), *(Cell(f"{n:,}", n) for n in counts), Cell(entry.ref.label, code=True)))
        lint = load_json(entry.ref, "lint.json", problems)
        blocks += [Note(line + ".") for line in lint.get("findings", [])]
        if gallery := _gallery(entry, problems):
            blocks.append(gallery)
    columns = (Column("captions in"), *(Column(name, True) for name in LABELS), Column("artifact"))
    table = Table(
        "What the captions say of gender", columns, tuple(rows), "Pictures by the vote of their captions, whole words."
    )
    return Part(
        "Pictures",
        "Each picture is one sample, however many captions it has.",
        tuple(blocks),
        Answer(" ".join(told) or "No pictures could be read.", (table,)),
        tuple(problems),
    )


def _gallery(entry: Entry, problems: list[str]) -> Gallery | None:
    """The first pictures of drawn sets; pictures in files stay where they are."""
    from PIL import Image

    path = entry.ref.path / "images.npy"
    if not path.exists():
        return None
    rows = whole_table(entry.ref, "pictures.parquet", problems)
    if rows is None:
        return None
    rows = rows.head(SHOWN)
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as e:
        problems.append(f"{entry.ref.label}: {path.name} is damaged ({tables.reason(e, path)})")
        return None
    import json

    tiles = []
    for i, row in enumerate(rows.to_dict("records")):
        out = io.BytesIO()
        Image.fromarray(np.asarray(images[i])).save(out, "PNG")
        captions = json.loads(row["captions"])
        lines = tuple((LANG.get(name, name), texts[0]) for name, texts in captions.items() if texts)
        seen = json.loads(row["factors"]).get("seen")
        heading = f"{row['label']}{f' (shown: {seen})' if seen else ''}"
        tiles.append(Tile(base64.b64encode(out.getvalue()).decode(), heading, lines))
    return Gallery(
        f"The first {len(tiles)} pictures",
        tuple(tiles),
        f"Each with its label and first captions. From {entry.ref.label}.",
    )


def baselines(view: View) -> Part:
    """What the model says of pictures: agreement, both directions apart, controls of the stimulus."""
    problems: list[str] = []
    directions: list[tuple[Cell, ...]] = []
    controls: list[tuple[Cell, ...]] = []
    notes: list[Block] = []
    measured = []
    told = []
    for entry in view.entries:
        m = load_metrics(entry.ref, ("agreement", "context_to_gender", "gender_to_words", "controls"), problems)
        if m is None:
            continue
        told.append(_sentence(m))
        measured.append((entry, m))
        for name, title in (("context_to_gender", "context → gender"), ("gender_to_words", "gender → words")):
            one = m[name]
            if one is None:
                notes.append(Note(f"{title}: not known of these pictures ({entry.ref.label})."))
                continue
            directions.append(
                (Cell(title), _value(one), _value(one.get("captions")), _value(one.get("amplification")),
                 Cell(" / ".join(map(str, one["n"]))), Cell(entry.ref.label, code=True))
            )  # fmt: skip
        for control, one in {"(the picture)": m, **m["controls"]}.items():
            between = (
                f" [{percent(one['agreement_ci'][0])}, {percent(one['agreement_ci'][1])}]"
                if one.get("agreement_ci")
                else ""
            )
            controls.append(
                (Cell(control), Cell(percent(one["agreement"]) + between, one["agreement"]), _value(one["context_to_gender"]),
                 Cell(entry.ref.label, code=True))
            )  # fmt: skip
    first = Table(
        "Two directions of bias, each by itself",
        (Column("direction"), Column("model [95%]", True), Column("captions [95%]", True, "the same of the pictures' own captions"),
         Column("amplification [95%]", True, "model − captions"), Column("pictures", True), Column("artifact")),
        tuple(directions),
        "Differences of mean probabilities; intervals draw whole groups of pictures.",
    )  # fmt: skip
    second = Table(
        "Controls of the stimulus",
        (
            Column("shown"),
            Column("agreement with the picture [95%]", True),
            Column("context → gender [95%]", True),
            Column("artifact"),
        ),
        tuple(controls),
        "blank: the prompt alone; masked: the person taken out; swapped: at a place that suggests no gender.",
    )
    return Part(
        "What the model says",
        "",
        (second, *notes),
        Answer(_told(told), (*planted(measured), first)),
        tuple(problems),
    )


def _told(sentences: list[str]) -> str:
    """The sentence of one baseline; of several, how many there are."""
    if len(sentences) > 1:
        return f"{plural(len(sentences), 'baseline')} of pictures; both directions of each stand in the table."
    return sentences[0] if sentences else "No baseline could be read."


def _value(one: Any) -> Cell:
    if not one:
        return Cell(ABSENT)
    return Cell(f"{decimal(one['value'], 2)} [{decimal(one['ci'][0], 2)}, {decimal(one['ci'][1], 2)}]", one["value"])


def _sentence(m: dict[str, Any]) -> str:
    parts = []
    if m["agreement"] is not None:
        parts.append(
            f"where the gender is seen, it is said rightly in {percent(m['agreement'])} (n = {m['n_seen']} pictures)"
        )
    if one := m["context_to_gender"]:
        parts.append(f"context → gender {_value(one).text}")
    if one := m["gender_to_words"]:
        parts.append(f"gender → words {_value(one).text}")
    text = m.get("text_only")
    if text is not None:
        flagged = "FLAGGED: the prompt alone answers" if text["flagged"] else "the prompt alone does not answer"
        parts.append(f"{flagged} ({percent(max(0.0, text['share']))} of the leaning is there without the picture)")
    said = "; ".join(parts)
    return f"{said[:1].upper()}{said[1:]}." if said else "Nothing was said of gender."
