"""Documents in plain text and JSONL files, read line by line in bounded memory; every fault is named by file and place.

A text file holds documents separated by blank lines; when there is no blank line between its first lines (20 MB of
them), each line is a document of its own. A JSONL file holds one object a line. Line ends may be ``\\n`` or ``\\r\\n``
and a byte-order mark at the start is not part of the text: a copy made on another system has the same documents and
the same canonical hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from circuits.errors import UserError, suggest

SCAN_BYTES = 20_000_000
"""How far a text file is searched for the blank line that tells how its documents are separated."""
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Line(NamedTuple):
    """One line without its end."""

    number: int
    """From 1, as editors count."""
    text: str


def lines(path: Path, limit: int | None = None) -> Iterator[Line]:
    """The lines of a UTF-8 file; `limit` ends after the line that crosses so many bytes."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            body = raw.removeprefix(_BOM) if number == 1 else raw
            try:
                text = body.decode("utf-8")
            except UnicodeDecodeError as e:
                raise UserError(_not_utf8(path, number, offset + len(raw) - len(body) + e.start, raw)) from e
            yield Line(number, text.removesuffix("\n").removesuffix("\r"))
            offset += len(raw)
            if limit is not None and offset >= limit:
                return


def text_documents(path: Path, limit: int | None = None) -> Iterator[str]:
    """Documents of a text file in order; those without a visible character are left out."""
    if not _has_blank_line(path, SCAN_BYTES if limit is None else min(limit, SCAN_BYTES)):
        yield from (line.text for line in lines(path, limit) if line.text.strip())
        return
    paragraph: list[str] = []
    for line in lines(path, limit):
        if line.text.strip():
            paragraph.append(line.text)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def jsonl_documents(path: Path, field: str, limit: int | None = None) -> Iterator[str]:
    """The strings under `field` in order; those without a visible character are left out."""
    for number, record in jsonl_records(path, limit):
        text = _text_of(record, field, f"{path}, line {number}")
        if text.strip():
            yield text


def jsonl_records(path: Path, limit: int | None = None) -> Iterator[tuple[int, dict[str, object]]]:
    """``(line number, object)`` of every line that is not blank."""
    for line in lines(path, limit):
        if not line.text.strip():
            continue
        try:
            record = json.loads(line.text)
        except json.JSONDecodeError as e:
            raise UserError(f"{path}, line {line.number}: not JSON ({e.msg} at column {e.colno})") from e
        except (RecursionError, ValueError) as e:  # nested or with a number longer than Python reads
            raise UserError(f"{path}, line {line.number}: not JSON that can be read ({e})") from e
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {line.number}: {_kind(record)}, expected an object {{…}}")
        yield line.number, record


def hash_text(path: Path) -> str:
    """SHA-256 of a text file's bytes with ``\\r\\n`` read as ``\\n`` and without a byte-order mark."""
    digest = hashlib.sha256()
    held = b""  # a chunk may end between \r and \n
    with path.open("rb") as file:
        chunk = file.read(1 << 20).removeprefix(_BOM)
        while chunk:
            chunk = held + chunk
            held = b"\r" if chunk.endswith(b"\r") else b""
            digest.update(chunk[: len(chunk) - len(held)].replace(b"\r\n", b"\n"))
            chunk = file.read(1 << 20)
    digest.update(held)
    return digest.hexdigest()


def hash_jsonl(path: Path) -> str:
    """SHA-256 of canonical records: parsed, keys sorted, no spaces, one ``\\n`` each, ASCII escapes (hence UTF-8)."""
    digest = hashlib.sha256()
    for _, record in jsonl_records(path):
        digest.update(json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def _has_blank_line(path: Path, limit: int) -> bool:
    """Whether a blank line stands between two lines that are not blank, in the first `limit` bytes."""
    text_seen = blank_seen = False
    for line in lines(path, limit):
        blank = not line.text.strip()
        if not blank and blank_seen:
            return True
        text_seen = text_seen or not blank
        blank_seen = blank_seen or (blank and text_seen)
    return False


def _text_of(record: dict[str, object], field: str, place: str) -> str:
    if field not in record:
        fields = suggest(field, record, "fields")
        raise UserError(f"{place}: no field {field!r}{fields}; name the one with the text by data.field=NAME")
    text = record[field]
    if not isinstance(text, str):
        raise UserError(f"{place}: field {field!r} is {_kind(text)}, expected a string")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(
            f"{place}: field {field!r} holds half of a surrogate pair (\\ud800-\\udfff), which is no character"
        )
    return text


def _kind(value: object) -> str:
    """What a parsed JSON value is, in JSON's own words."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")


def _not_utf8(path: Path, number: int, offset: int, raw: bytes) -> str:
    encoding = "utf-16" if number == 1 and raw.startswith(_UTF16) else "latin1"
    mend = f"convert it, for example: iconv -f {encoding} -t utf-8 {path.name} > utf8-{path.name}"
    return f"{path}: not UTF-8 at byte {offset} (line {number}); {mend}"
