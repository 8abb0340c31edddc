"""From a behaviour or a file to a prompt set: draw or read, tokenise, leave out what does not fit, split, select, lint.

Rows that do not fit the tokenizer (answers of several tokens, clean and corrupt of different lengths, …) are replaced by other
draws where a generator makes the prompts, and are errors by file and line where the prompts are the user's own. What was
left out is listed in ``lint.json`` either way. No torch.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from circuits.data import prompt_records as records
from circuits.data import splits as split_files
from circuits.data.behaviours import BEHAVIOURS
from circuits.data.behaviours.base import Behaviour, Wording
from circuits.data.prompt_lint import lint
from circuits.data.prompt_records import Record
from circuits.data.prompt_tokens import SAYS, Encoded, Encoder
from circuits.data.prompts import Prompt
from circuits.errors import UserError, suggest

POOL = 8  # draws per prompt asked for: room for balancing, and for what does not fit
LEAST_POOL = 400
MOST_DRAWS = 10  # times that, after which no more is drawn: nearly nothing fits this tokenizer
BLOCK = 512  # texts tokenised together
SHOWN = 8  # examples in an error, rows in a list


@dataclass(frozen=True)
class Wanted:
    """What is asked of a prompt set."""

    n_train: int | None
    n_test: int | None
    seed: int
    multi_token: Literal["fail", "drop", "keep"] = "fail"
    allow_small: bool = False
    drop_unusable: bool = False
    """Leave out a file's rows that no study can use, instead of refusing the file."""


@dataclass(frozen=True)
class Built:
    """A prompt set, what the lint says of it, and the numbers of ``metrics.json``."""

    prompts: tuple[Prompt, ...]
    lint: dict[str, Any]
    metrics: dict[str, Any]


def from_behaviour(name: str, wording: Wording, encoder: Encoder, wanted: Wanted) -> Built:
    """Prompts that a behaviour's generator draws.

    Raises:
        UserError: no such behaviour, or too few different prompts that fit the tokenizer.
    """
    if name not in BEHAVIOURS:
        raise UserError(f"behaviour={name}: no such behaviour" + suggest(name, BEHAVIOURS, "behaviours"))
    behaviour = BEHAVIOURS[name]
    fit, left_out = _drawn(behaviour, wording, encoder, wanted)
    notes = []
    if not fit and wording == "natural" and behaviour.digits is not None:
        fit, left_out = _drawn(behaviour, "digits", encoder, wanted)
        notes.append(
            "numbers are of several tokens under this tokenizer: sums below ten are asked, and prompts end with the space"
        )
    multi = [row for row in left_out if "multi_token" in row.faults]
    if not fit and any(row.faults == ("multi_token",) for row in multi):  # keep would take these
        raise UserError(_multi_token_error(f"behaviour={name}", multi, len(left_out), some_fit=False))
    if not fit:
        raise UserError(f"behaviour={name}: of {len(left_out)} prompts none fits this tokenizer: {_reasons(left_out)}")
    rows = {row.record.prompt: row for row in fit}
    chosen = records.select(
        [row.record for row in fit], wanted.n_train or 0, wanted.n_test or 0, wanted.seed, wanted.allow_small
    )
    if multi:
        notes.append(
            f"{len(multi):,} of {len(fit) + len(left_out):,} draws were left out: "
            f"an answer is of several tokens under this tokenizer ({_listed(multi)})"
        )
    return _built([(record, rows[record.prompt]) for record in chosen], left_out, encoder.chat, notes)


def _drawn(
    behaviour: Behaviour, wording: Wording, encoder: Encoder, wanted: Wanted
) -> tuple[list[Encoded], list[Encoded]]:
    """Draws that fit the tokenizer, several times as many as are wanted, and those that were left out on the way."""
    enough = max(LEAST_POOL, POOL * ((wanted.n_train or 0) + (wanted.n_test or 0)))
    drawn = itertools.islice(records.draws(behaviour, wording, wanted.seed), MOST_DRAWS * enough)
    fit: list[Encoded] = []
    left_out: list[Encoded] = []
    while len(fit) < enough and (block := list(itertools.islice(drawn, BLOCK))):
        for row in encoder.encode(block, aligned=behaviour.aligned):
            (left_out if _unfit(row, wanted) else fit).append(row)
    return fit, left_out


def from_file(path: Path, encoder: Encoder, wanted: Wanted, splits: split_files.Given | None = None) -> Built:
    """The prompts of a file of records, split as a split file says where there is one.

    Raises:
        UserError: with every line that cannot be used.
    """
    found = records.read_file(path)
    notes: list[str] = []
    if splits is not None:
        found, notes = split_files.assigned(found, path, splits)
    rows = encoder.encode(found)
    wrong = [row for row in rows if set(row.faults) - {"multi_token"}]
    errors = []
    if wrong and wanted.drop_unusable:
        notes.append(f"{len(wrong)} of {len(rows)} rows cannot be used and were left out: {_faults(wrong)}")
    elif wrong:
        said = [f"{row.record.place}: {SAYS[fault]}" for row in wrong for fault in row.faults if fault != "multi_token"]
        errors = said[:SHOWN] + ([f"{path}: {len(said) - SHOWN} more"] if len(said) > SHOWN else [])
        errors.append(
            f"{path}: {len(wrong)} of {len(rows)} rows cannot be used; behaviour.unusable=drop leaves them out and says which"
        )
    multi = [row for row in rows if "multi_token" in row.faults]
    if wanted.multi_token == "fail" and multi:
        errors.append(_multi_token_error(str(path), multi, len(rows), len(multi) < len(rows)))
    if errors:
        raise UserError(errors)
    fit = [row for row in rows if not _unfit(row, wanted)]
    if not fit:
        why = f"all {len(multi)} have answers of several tokens" if len(multi) == len(rows) else _reasons(rows)
        raise UserError(f"{path}: no prompt is left; {why}")
    by_id = {row.record.id: row for row in fit}
    chosen = records.take_from_file(
        [row.record for row in fit], wanted.n_train, wanted.n_test, wanted.seed, wanted.allow_small
    )
    left_out = [row for row in rows if row.record.id not in by_id]
    return _built([(r, by_id[r.id]) for r in chosen], left_out, encoder.chat, notes)


def _faults(rows: Sequence[Encoded]) -> str:
    """What is wrong with rows of a file, and where."""
    at: dict[str, list[str]] = {}
    for row in rows:
        for fault in row.faults:
            if fault != "multi_token":
                at.setdefault(SAYS[fault], []).append(row.record.place.rpartition("line ")[2])
    return "; ".join(
        f"{what} (line {', '.join(lines[:SHOWN])}{f' and {len(lines) - SHOWN} more' if len(lines) > SHOWN else ''})"
        for what, lines in at.items()
    )


def _unfit(row: Encoded, wanted: Wanted) -> bool:
    return any(fault != "multi_token" or wanted.multi_token != "keep" for fault in row.faults)


def _built(
    chosen: Sequence[tuple[Record, Encoded]], left_out: Sequence[Encoded], chat: bool, notes: Sequence[str] = ()
) -> Built:
    prompts = tuple(_prompt(record, row) for record, row in chosen)
    found = lint(prompts, chat=chat)
    found["findings"] += notes
    unknown = sum(row.unknown > 0 for _, row in chosen)
    if unknown:
        found["findings"].append(f"{unknown} prompts have words that the tokenizer does not know")
    found["unknown_words"] = unknown
    found["left_out"] = {
        "n": len(left_out),
        "reasons": _counted(left_out),
        "rows": [_row(row) for row in left_out[:SHOWN]],
        "answers": sorted({text for row in left_out for text in _long_answers(row)})[:50],
    }
    metrics = {
        "n": len(prompts),
        "n_train": found["splits"].get("train", 0),
        "n_test": found["splits"].get("test", 0),
        "n_groups": len({p.group for p in prompts}),
        "n_distinct": found["distinct_prompts"],
        "left_out": len(left_out),
        "findings": len(found["findings"]),
        "tokens_median": found["lengths"]["median"],
        "tokens_max": found["lengths"]["max"],
        "unequal_lengths": found["unequal_lengths"]["n"],
        "multi_token": found["multi_token"]["n"],
        "largest_share": found["answers"]["largest_share"],
        "bias": found["answers"]["bias"],
    }
    return Built(prompts, found, metrics)


def _prompt(record: Record, row: Encoded) -> Prompt:
    text = {
        name: getattr(record, name)
        for name in ("id", "prompt", "corrupt", "target", "foil", "behaviour", "group", "factors")
    }
    return Prompt(
        **text,
        split=record.split or "train",
        ids=row.ids,
        corrupt_ids=row.corrupt_ids,
        target_ids=row.target_ids,
        foil_ids=row.foil_ids,
    )


def _row(row: Encoded) -> dict[str, Any]:
    r = row.record
    return {"prompt": r.prompt, "target": r.target, "foil": r.foil, "faults": list(row.faults), "place": r.place}


def _counted(rows: Sequence[Encoded]) -> dict[str, int]:
    return dict(sorted(Counter(fault for row in rows for fault in row.faults).items()))


def _reasons(rows: Sequence[Encoded]) -> str:
    return "; ".join(f"{SAYS[fault]} ({n})" for fault, n in _counted(rows).items())


def _long_answers(row: Encoded) -> list[str]:
    answers = ((row.record.target, row.target_ids), (row.record.foil, row.foil_ids))
    return [f"{text!r} ({len(ids)})" for text, ids in answers if len(ids) > 1]


def _listed(rows: Sequence[Encoded]) -> str:
    """Their answers of several tokens, the first few."""
    answers = list(dict.fromkeys(text for row in rows for text in _long_answers(row)))
    return ", ".join(answers[:SHOWN]) + (f" and {len(answers) - SHOWN} more" if len(answers) > SHOWN else "")


def _multi_token_error(what: str, rows: Sequence[Encoded], total: int, some_fit: bool) -> str:
    drop = "behaviour.multi_token=drop leaves them out, " if some_fit else ""
    return (
        f"{what}: {len(rows)} of {total} prompts have an answer of several tokens under this tokenizer: "
        f"{_listed(rows)}; {drop}behaviour.multi_token=keep studies whole answers (for a baseline with "
        "baseline.metric=full_target)"
    )
