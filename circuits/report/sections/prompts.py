"""The section of prompt sets: how many, how balanced, how long, what the lint found, and what they look like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from circuits.report.content import Answer, Block, Cell, Column, Listing, Note, Part, Table
from circuits.report.registry import Entry, View, either, section
from circuits.report.saved import load_json, part
from circuits.report.sections import pictures
from circuits.report.sections.pictures import is_pictures
from circuits.report.words import ABSENT, percent, plural, visible, whole

EXAMPLES = 6  # prompts shown of a set


@section("prompts", order=10)
def prompts(view: View) -> Part:
    """Show every prompt set of the sweep, and every set of pictures."""
    return either(view, is_pictures, pictures.sets, _texts)


def _texts(view: View) -> Part:
    """Read every prompt set and show it."""
    problems: list[str] = []
    lints = [(entry, load_json(entry.ref, "lint.json", problems)) for entry in view.entries]
    found = [(entry, line) for entry, lint in lints for line in lint.get("findings", [])]
    blocks: list[Block] = [_examples(entry, problems) for entry, _ in lints]
    blocks += [_left_out(entry, lint) for entry, lint in lints if lint.get("left_out", {}).get("n")]
    sets, total = plural(len(lints), "prompt set"), sum(int(lint.get("n", 0)) for _, lint in lints)
    clean = "the lint found nothing" if not found else plural(len(found), "finding") + " of the lint"
    first: list[Block] = [_table(lints)]
    if found:
        first.append(Note("; ".join(f"{name(entry)}: {line}" for entry, line in found) + "."))
    return Part(
        title="Prompts",
        lead=f"{sets}, {total:,} prompts.",
        blocks=tuple(blocks),
        answer=Answer(f"{sets} of {total:,} prompts in all; {clean}.", tuple(first)),
        problems=tuple(problems),
    )


def name(entry: Entry) -> str:
    """``ioi-gpt2``: the artifact's label without its kind and its key."""
    return entry.ref.label.split("/", 1)[-1].rsplit("-", 1)[0]


def _table(lints: list[tuple[Entry, dict[str, Any]]]) -> Table:
    columns = (
        Column("prompts of"),
        Column("train", True),
        Column("test", True),
        Column("groups", True, "no group is in train and in test"),
        Column("distinct", True, "different clean prompts"),
        Column("answers", True, "different targets"),
        Column("commonest target", True, "share of the prompts that it is the target of"),
        Column("imbalance", True, "largest |times target − times foil| of an answer, as a share of the prompts"),
        Column("tokens", True, "fewest – most, of the clean prompts"),
        Column("unequal", True, "pairs whose clean and corrupt prompts differ in length"),
        Column("left out", True, "rows that did not fit the tokenizer"),
        Column("findings", True),
        Column("artifact"),
    )
    rows = []
    for entry, lint in lints:
        splits, answers, lengths = (part(lint, key) for key in ("splits", "answers", "lengths"))
        numbers: list[tuple[str, Any]] = [
            (whole(splits.get("train", 0)), splits.get("train", 0)),
            (whole(splits.get("test", 0)), splits.get("test", 0)),
            *((whole(v), v) for v in (sum(part(lint, "groups").values()), lint.get("distinct_prompts"))),
            (whole(answers.get("distinct")), answers.get("distinct")),
            (percent(answers.get("largest_share")), answers.get("largest_share")),
            (percent(answers.get("bias")), answers.get("bias")),
            (f"{lengths.get('min', ABSENT)}–{lengths.get('max', ABSENT)}", lengths.get("max")),
            (whole(part(lint, "unequal_lengths").get("n")), part(lint, "unequal_lengths").get("n")),
            (whole(part(lint, "left_out").get("n")), part(lint, "left_out").get("n")),
            (whole(len(lint.get("findings", []))), len(lint.get("findings", []))),
        ]
        cells = [Cell(text, sort) for text, sort in numbers]
        rows.append((Cell(name(entry)), *cells, Cell(entry.ref.label, code=True)))
    return Table("Prompt sets", columns, tuple(rows))


def _examples(entry: Entry, problems: list[str]) -> Table:
    columns = tuple(Column(title) for title in ("id", "clean", "target", "corrupt", "foil", "group"))
    rows = []
    try:
        with (entry.ref.path / "prompts.jsonl").open(encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        for r in [*records[: EXAMPLES // 2], *records[-EXAMPLES // 2 :]]:
            texts = (r["id"], r["prompt"], r["target"], r["corrupt"] or ABSENT, r["foil"], r["group"])
            rows.append(tuple(Cell(visible(str(text)), code=i in (2, 4)) for i, text in enumerate(texts)))
    except (OSError, ValueError, KeyError) as e:
        problems.append(f"{entry.ref.label}: prompts.jsonl cannot be read ({type(e).__name__})")
    return Table(f"Examples of {name(entry)}", columns, tuple(rows), "The first and the last prompts.", folded=True)


def _left_out(entry: Entry, lint: Mapping[str, Any]) -> Listing:
    left = part(lint, "left_out")
    lines = [f"{reason}: {n}" for reason, n in part(left, "reasons").items()]
    lines += [f"answers of several tokens: {' '.join(left['answers'])}"] if left.get("answers") else []
    lines += [
        f"{row['prompt']} |{row['target']} |{row['foil']}   {', '.join(row['faults'])}" for row in left.get("rows", [])
    ]
    lines = [visible(line) for line in lines]
    return Listing(f"Left out of {name(entry)}: {left['n']}", tuple(lines))
