"""Split files: which rows of a corpus are for training, validation and testing, written once for a corpus that must not change.

The layout is that of the Tiny Ablation Lab::

    {"seed": 123, "data_hash": "80da…", "train": [0, 2, 3], "val": [1], "test": [4]}

An entry is a row's number (from 0, blank lines not counted), the ``id`` of a record, or the SHA-256 of a record in canonical form
(keys sorted, no spaces, ASCII escapes). ``data_hash`` (or ``hash``) is that of the corpus: of its canonical records, which is the
same for a copy with other line ends or spacing, or, as the lab wrote it, of the file's bytes, under whichever line ends. No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from circuits.data.fielded import hash_records, kind_of, rows
from circuits.data.opening import opened
from circuits.data.prompt_records import Record, overlap
from circuits.errors import UserError, nearest
from circuits.files import sha256_text

Entry = int | str
Validation = Literal["test", "train", "drop", "only"]
SIDES = {"train": ("train",), "val": ("val", "validation", "dev"), "test": ("test",)}
"""A side and what it may be called in a file."""
HASHES = ("data_hash", "hash")
SHOWN = 10  # errors


@dataclass(frozen=True)
class Splits:
    """A split file: its entries by side, and the hash of the corpus that it was made for, if it says one."""

    path: Path
    sides: Mapping[str, tuple[Entry, ...]]
    data_hash: str | None = None


@dataclass(frozen=True)
class Given:
    """What is asked of a split file.

    `validation`: what its rows for validation are: for testing, for training, left out, or the only ones for testing.
    `rehash`: go on although the corpus is not the one that it was made for.
    """

    path: Path
    validation: Validation = "test"
    rehash: bool = False


def read(path: Path) -> Splits:
    """A split file.

    Raises:
        UserError: it is no such file, or an entry is neither a number nor a text.
    """
    document = _document(path)
    sides: dict[str, tuple[Entry, ...]] = {}
    errors = []
    for side, names in SIDES.items():
        found = [name for name in names if name in document]
        entries = document[found[0]] if found else []
        if not isinstance(entries, list):
            errors.append(f"{path}: {found[0]} is {kind_of(entries)}, a list of row numbers or ids is expected")
            continue
        errors += [
            f"{path}: {found[0]}[{i}] is {entry!r}, a row number or an id is expected"
            for i, entry in enumerate(entries)
            if isinstance(entry, bool) or not isinstance(entry, (int, str))
        ]
        sides[side] = tuple(entries)
    if not errors and not sides["train"]:
        errors.append(f'{path}: names no row for training; it is {{"train": [0, 2, …], "val": […], "test": […]}}')
    if errors:
        raise UserError(_first(errors, path))
    data_hash = next((str(document[name]) for name in HASHES if document.get(name)), None)
    return Splits(path, sides, data_hash.removeprefix("sha256:").lower() if data_hash else None)


def identity(path: Path) -> str:
    """What of a split file decides a result: its sides. Its seed, its hash and its spacing do not."""
    return sha256_text(json.dumps({side: list(entries) for side, entries in read(path).sides.items()}))


def assigned(records: Sequence[Record], corpus: Path, given: Given) -> tuple[list[Record], list[str]]:
    """The records that a split file names, each with its side, in the corpus's order; and what there is to say of it.

    Raises:
        UserError: another corpus, a row or an id that it has not, a row or a clean prompt on two sides.
    """
    splits = read(given.path)
    if own := next((r for r in records if r.split is not None), None):
        raise UserError(f"{own.place}: has a field 'split', and {given.path} splits it, too; take one of them out")
    notes = _hash_notes(splits, corpus, given.rehash)
    side_of: dict[int, str] = {}
    errors = []
    for side, entry, row in _rows(splits, records, corpus):
        if isinstance(row, str):
            errors.append(f"{given.path}: {side} names {row}")
        elif row in side_of:
            where = f"{side_of[row]} and in {side}" if side_of[row] != side else f"{side} twice"
            errors.append(f"{given.path}: {entry!r} ({records[row].place}) is in {where}")
        else:
            side_of[row] = side
    if errors:
        raise UserError(_first(errors, given.path))
    becomes = _becomes(given.validation)
    kept = [
        replace(record, split=becomes[side_of[i]])
        for i, record in enumerate(records)
        if i in side_of and becomes[side_of[i]] is not None
    ]
    mend = "leave the split file out (then the corpus is split by group), or move them to one side"
    if errors := overlap(given.path, kept, mend):
        raise UserError(errors)
    if left := len(records) - len(side_of):
        notes.append(f"{left} of {len(records)} rows are on no side of {given.path.name} and are left out")
    if given.validation == "drop" and (dropped := sum(side == "val" for side in side_of.values())):
        notes.append(f"{dropped} rows for validation are left out")
    if given.validation == "only" and (dropped := sum(side == "test" for side in side_of.values())):
        notes.append(f"{dropped} rows for testing are left out: those for validation are taken instead")
    return kept, notes


def _becomes(validation: Validation) -> dict[str, str | None]:
    """Which of our two sides each side of a file is; None where it is left out."""
    val = {"test": "test", "train": "train", "drop": None, "only": "test"}[validation]
    return {"train": "train", "val": val, "test": None if validation == "only" else "test"}


def _rows(splits: Splits, records: Sequence[Record], corpus: Path) -> Iterator[tuple[str, Entry, int | str]]:
    """Side, entry and row of every entry; where there is no such row, why."""
    entries = [(side, entry) for side, entries in splits.sides.items() for entry in entries]
    ids = {record.id: i for i, record in enumerate(records)}
    named = [entry for _, entry in entries if isinstance(entry, str)]
    hashes = row_hashes(corpus) if any(entry not in ids for entry in named) else {}
    for side, entry in entries:
        if isinstance(entry, int):
            known = 0 <= entry < len(records)
            yield side, entry, entry if known else f"row {entry}; {corpus} has rows 0-{len(records) - 1}"
        elif entry in ids:
            yield side, entry, ids[entry]
        else:
            near = nearest(entry, ids)
            missing = f"{entry!r}, which is no id and no row's hash in {corpus}"
            yield side, entry, hashes.get(entry.lower(), f"{missing}; did you mean {near!r}?" if near else missing)


def row_hashes(corpus: Path) -> dict[str, int]:
    """The row of each record by the SHA-256 of its canonical form."""
    found: dict[str, int] = {}
    for i, row in enumerate(rows(corpus)):
        found.setdefault(sha256_text(json.dumps(row.fields, sort_keys=True, separators=(",", ":"))), i)
    return found


def corpus_hashes(corpus: Path) -> list[str]:
    """The hashes that a corpus may be known by: of its canonical records first, then of its bytes: as is, with LF, with CRLF."""
    with opened(corpus) as file:
        as_is = file.read()
    line_feeds = as_is.replace(b"\r\n", b"\n")
    texts = (as_is, line_feeds, line_feeds.replace(b"\n", b"\r\n"))
    return [
        hash_records(corpus),
        hash_records(corpus, nulls=False),
        *(hashlib.sha256(text).hexdigest() for text in texts),
    ]


def _hash_notes(splits: Splits, corpus: Path, rehash: bool) -> list[str]:
    """Whether the corpus is the one that a file was made for.

    Raises:
        UserError: it is another one, and nobody said to go on.
    """
    if splits.data_hash is None:
        return [f"{splits.path.name} names no hash of its corpus: whether it was made for {corpus.name} is not known"]
    known = corpus_hashes(corpus)
    if splits.data_hash in known:
        return []
    told = f"{splits.path} was made for a corpus of hash {splits.data_hash}, {corpus} is {known[0]}"
    if not rehash:
        raise UserError(f"{told}; behaviour.rehash=true takes the rows that it names nevertheless")
    return [f"{told}; taken nevertheless"]


def _document(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with opened(path) as file:
        data = file.read()
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 ({e.reason})") from e
    except json.JSONDecodeError as e:
        raise UserError(f"{path}, line {e.lineno}: not JSON ({e.msg} at column {e.colno})") from e
    except (RecursionError, ValueError) as e:
        raise UserError(f"{path}: not JSON that can be read ({e})") from e
    if not isinstance(found, dict):
        raise UserError(f"{path}: {kind_of(found)}, expected an object of lists: train, val, test")
    return found


def _first(errors: list[str], path: Path) -> list[str]:
    more = len(errors) - SHOWN
    return [*errors[:SHOWN], f"{path}: {more} more entries of this kind"] if more > 0 else errors
