"""Corpora: what ``data.path`` names, checked before anything starts, hashed canonically, read as documents.

Three kinds. `text`: .txt files. `jsonl`: records with the text under a field: JSON lines, one JSON array, CSV, TSV. `datasets`:
what the `datasets` library writes, parquet or arrow files, or a name on the hub. Files of the first two may be packed
(gzip, bzip2, xz, LZMA, Zstandard, LZ4). A path is a file, a directory, a pattern (``corpus/*.txt``) or a list of these; files are
read in sorted order. A known ending decides the kind; a given kind is for other names, and for directories that hold several.
Everything here is torch-free, so that a wrong file is one line of error before a job exists.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from circuits.data import hub
from circuits.data.fielded import field_documents, hash_records
from circuits.data.lines import hash_text, lines, text_documents
from circuits.data.opening import PACKED, RECORDS, ending, packing
from circuits.errors import UserError, nearest, suggest
from circuits.files import sha256_file

KINDS = ("text", "jsonl", "datasets")
CHECKED_WHOLE = 200_000_000
"""A corpus up to this many bytes is checked to its last line before a start, in a few seconds."""
CHECKED_START = 20_000_000
"""Of a larger corpus, so many bytes of each file are checked, until `CHECKED_WHOLE` is used up."""
_SUFFIXES = {**dict.fromkeys(RECORDS, "jsonl"), ".parquet": "datasets", ".arrow": "datasets"}
_UNPACKED = 8
"""About how much larger packed text is when it is read."""
_FEW, _LINES = 10, 20
"""So few documents, of so many lines each: a stray blank line may have made them."""

PathLike = str | Path
Paths = PathLike | Sequence[PathLike]


@dataclass(frozen=True)
class Corpus:
    """What a path turned out to be."""

    kind: str
    """One of `KINDS`."""
    files: tuple[Path, ...]
    """In reading order; empty when it is a name on the hub."""
    hub: str | None = None
    """``owner/name`` or ``owner/name:subset``."""


@dataclass(frozen=True)
class CorpusFacts:
    """What the check saw."""

    kind: str
    files: int
    bytes: int
    documents: int
    """Documents seen; all of them only when `complete`."""
    complete: bool
    remarks: tuple[str, ...] = ()
    """What a person should know of how it was read."""


def find_corpus(kind: str | None, path: Paths, split: str | None = None) -> Corpus:
    """Resolve `path`; without a `kind` it is inferred from the files' names."""
    if kind is not None and kind not in KINDS:
        raise UserError(f"data.source={kind}{suggest(kind, KINDS)}")
    given = [path] if isinstance(path, str | Path) else list(path)
    if not given:
        raise UserError("data.path is an empty list; give a file, a directory or a dataset's name")
    if len(given) == 1 and (name := _hub_name(kind, str(given[0]))):
        return Corpus("datasets", (), name)
    found = [_resolve(kind, str(item), split) for item in given]
    kinds = sorted({each for each, _ in found})
    if len(kinds) > 1:
        raise UserError(f"data.path: files of different kinds ({' and '.join(kinds)}); give files of one kind")
    if kinds[0] != "datasets" and split not in (None, "train"):
        raise UserError(f"data.split={split}: {given[0]} is {kinds[0]}, which has no splits but train")
    return Corpus(kinds[0], tuple(file for _, files in found for file in files))


def documents(
    kind: str | None,
    path: Paths,
    field: str = "text",
    split: str | None = None,
    limit: int | None = None,
    revision: str | None = None,
) -> Iterator[str]:
    """The documents in order, at most `limit`; fewer than two are an error, for one of them has to be held out."""
    if limit is not None and limit < 2:
        raise UserError(f"at most {limit} documents asked for, at least 2 needed (one is held out)")
    corpus = find_corpus(kind, path, split)
    count = 0
    for document in _read(corpus, field, split, revision):
        yield document
        count += 1
        if count == limit:
            return
    _require_two(count, path)


def problems(kind: str, path: str, field: str = "text", split: str | None = None) -> tuple[str, ...]:
    """What `check_corpus` finds; read once for all elements of a sweep."""
    found = _checked(kind, path, field, split)
    return found if isinstance(found, tuple) else ()


def remarks(kind: str, path: str, field: str = "text", split: str | None = None) -> tuple[str, ...]:
    """What a person should know of how a corpus is read."""
    found = _checked(kind, path, field, split)
    return () if isinstance(found, tuple) else found.remarks


@lru_cache
def _checked(kind: str, path: str, field: str, split: str | None) -> CorpusFacts | tuple[str, ...]:
    try:
        return check_corpus(kind, path, field, split)
    except UserError as e:
        return tuple(e.messages)


def check_corpus(kind: str | None, path: Paths, field: str = "text", split: str | None = None) -> CorpusFacts:
    """Raise in one line what is wrong with a corpus, in seconds: existence, encoding, form, two documents at least.

    A local one is read whole up to `CHECKED_WHOLE` bytes; of datasets the columns are checked and the first documents
    read; of a name on the hub, that it can be reached.
    """
    corpus = find_corpus(kind, path, split)
    if corpus.hub is not None:
        hub.hub_commit(corpus.hub)
        return CorpusFacts(corpus.kind, 0, 0, 0, False)
    sizes = [_size(file) for file in corpus.files]
    total = sum(sizes)
    if corpus.kind == "datasets":
        for file in corpus.files:
            hub.check_field(file, field)
        seen = sum(1 for _ in _first_two(corpus, field))
        _require_two(seen, path)
        return CorpusFacts(corpus.kind, len(sizes), total, seen, False)
    whole, left, count, length = total <= CHECKED_WHOLE, CHECKED_WHOLE, 0, 0
    for file, size in zip(corpus.files, sizes, strict=True):
        part = None if whole else min(size, CHECKED_START)
        if left > 0:
            if corpus.kind == "text":
                _refuse_records(file, field)
            for document in _file_documents(corpus.kind, file, field, part):
                count, length = count + 1, length + document.count("\n") + 1
        left -= size if part is None else part
    if whole or count == 0:
        _require_two(count, path)
    told = [f"{file}: HTML, whose markup is read as text" for file in corpus.files[:1] if _is_html(corpus.kind, file)]
    if corpus.kind == "text" and count <= _FEW and length >= _LINES * count:
        told.append(
            f"{_named(path)}: {count} documents of {length:,} lines together, since blank lines separate documents; "
            "where each line is a document, take the blank lines out"
        )
    return CorpusFacts(corpus.kind, len(sizes), total, count, whole, tuple(told))


def _refuse_records(file: Path, field: str) -> None:
    """JSON lines or a table under another name would be read as text, markup and all."""
    start = [line.text for line, _ in zip(lines(file, CHECKED_START), range(3), strict=False) if line.text.strip()]
    for separator, ending_of_it in ((",", ".csv"), (";", ".csv"), ("\t", ".tsv")):
        if _is_table(start, separator, field):
            raise UserError(
                f"{file}: a table with a column {field!r}, which data=text would read as text, separators and all; "
                f"let its name end in {ending_of_it}"
            )
    try:
        found = [json.loads(text) for text in start]
    except (ValueError, RecursionError):
        return
    if found and all(isinstance(record, dict) and isinstance(record.get(field), str) for record in found):
        raise UserError(
            f"{file}: JSON lines, which data=text would read as text, markup and all; data=jsonl reads them"
        )


def _is_table(start: Sequence[str], separator: str, field: str) -> bool:
    """Whether lines are a header that names `field` and rows of as many cells."""
    try:
        head, *body = csv.reader(start, delimiter=separator)
    except (ValueError, csv.Error):  # no line; a cell of more than 128 KB
        return False
    return field in head and len(head) > 1 and len(body) > 0 and all(len(row) == len(head) for row in body)


def _is_html(kind: str, file: Path) -> bool:
    """Whether a text file begins as a page of the web does."""
    if kind != "text":
        return False
    start = next((line.text.lstrip().lower() for line in lines(file, CHECKED_START) if line.text.strip()), "")
    return start.startswith(("<!doctype html", "<html"))


def content_hash(kind: str | None, path: Paths, split: str | None = None, revision: str | None = None) -> str:
    """The canonical hash of a corpus: line ends, spaces inside JSON and the files' names do not enter, the text does.

    Text: the bytes with ``\\r\\n`` as ``\\n``. JSONL: canonical records. Datasets: the bytes of the data files. Several
    files: the hash of their hashes in order. A name on the hub: ``name@commit``.
    """
    corpus = find_corpus(kind, path, split)
    if corpus.hub is not None:
        return f"{corpus.hub}@{hub.hub_commit(corpus.hub, revision)}"
    of_file = {"text": hash_text, "jsonl": hash_records, "datasets": sha256_file}[corpus.kind]
    digests = [of_file(file) for file in corpus.files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _read(corpus: Corpus, field: str, split: str | None, revision: str | None) -> Iterator[str]:
    if corpus.hub is not None:
        yield from hub.hub_documents(corpus.hub, field, split, revision)
    for file in corpus.files:
        yield from _file_documents(corpus.kind, file, field, None)


def _file_documents(kind: str, file: Path, field: str, part: int | None) -> Iterator[str]:
    if kind == "text":
        return text_documents(file, part)
    return field_documents(file, field, part) if kind == "jsonl" else hub.file_documents(file, field)


def _first_two(corpus: Corpus, field: str) -> Iterator[str]:
    return (text for _, text in zip(range(2), _read(corpus, field, None, None), strict=False))


def _resolve(kind: str | None, item: str, split: str | None) -> tuple[str, list[Path]]:
    """The kind and files of one given path."""
    path = Path(item).expanduser()
    if path.is_dir():
        return _resolve_directory(kind, path, split)
    if path.is_file():
        kind = _SUFFIXES.get(ending(path), kind or "text")
        return kind, hub.split_files(path, split) if kind == "datasets" else [_readable(path)]
    matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if set(item) & set("*?[") else []
    files = [_readable(match) for match in matches if match.is_file()]
    if not files:
        raise UserError(_no_such_file(path))
    kinds = {_SUFFIXES.get(ending(file), kind or "text") for file in files}
    if len(kinds) > 1:
        raise UserError(f"{item}: files of different kinds ({' and '.join(sorted(kinds))}); give files of one kind")
    return kinds.pop(), files


def _resolve_directory(kind: str | None, path: Path, split: str | None) -> tuple[str, list[Path]]:
    if hub.is_saved(path) and kind in (None, "datasets"):
        return "datasets", hub.split_files(path, split)
    suffixes = {"text": {".txt"}, "jsonl": {".jsonl", ".ndjson"}, "datasets": {".parquet", ".arrow"}}
    if kind == "jsonl":
        suffixes["jsonl"] = set(RECORDS)
    files = sorted(file for file in path.rglob("[!.]*") if file.is_file())
    present = [name for name in KINDS if any(ending(file) in suffixes[name] for file in files)]
    if kind is None and len(present) > 1:
        raise UserError(f"{path}: holds files of different kinds ({' and '.join(present)}); choose with data=KIND")
    kind = present[0] if len(present) == 1 else kind
    if kind is None or kind not in present:
        wanted = " or ".join(sorted(suffixes[kind] if kind else set().union(*suffixes.values())))
        raise UserError(f"{path}: no {wanted} file in this directory")
    if kind == "datasets":
        return kind, hub.split_files(path, split)
    return kind, [_readable(file) for file in files if ending(file) in suffixes[kind]]


def _hub_name(kind: str | None, item: str) -> str | None:
    """`item` when it can only be a dataset's name on the hub: nothing here is called so, nor its first folder."""
    if kind in ("text", "jsonl") or not hub.HUB_NAME.fullmatch(item):
        return None
    here = Path(item)
    looks_like_file = here.suffix.lower() in PACKED or ending(here) in {".txt", *_SUFFIXES}
    return None if here.exists() or here.parent.exists() or looks_like_file else item


def _no_such_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path}: no such file, and no folder {path.parent}"
    names = [entry.name for entry in path.parent.iterdir()]
    near = nearest(path.name, names)
    return f"{path}: no such file{f'; did you mean {path.parent / near}?' if near else f' in {path.parent.resolve()}'}"


def _readable(path: Path) -> Path:
    try:
        with path.open("rb"):
            return path
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e


def _size(path: Path) -> int:
    """Bytes to be read, about."""
    return path.stat().st_size * (_UNPACKED if ending(path) not in (".parquet", ".arrow") and packing(path) else 1)


def _require_two(count: int, path: Paths) -> None:
    if count < 2:
        what = "empty" if count == 0 else "only 1 document"
        raise UserError(
            f"{_named(path)}: {what}, at least 2 needed (one is held out); "
            "documents are separated by blank lines, or one a line"
        )


def _named(path: Paths) -> str:
    return str(path) if isinstance(path, str | Path) else ", ".join(str(item) for item in path)
