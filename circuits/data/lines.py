"""Documents in plain text, read line by line in bounded memory; every fault is named by file and place.

A text file holds documents separated by blank lines; when there is no blank line between its first lines (20 MB of
them), each line is a document of its own. Line ends may be ``\\n`` or ``\\r\\n`` and a byte-order mark at the start is not part of
the text: a copy made on another system, packed or unpacked, has the same documents and the same canonical hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from circuits.data.opening import opened, packing, recode
from circuits.errors import UserError

SCAN_BYTES = 20_000_000
"""How far a text file is searched for the blank line that tells how its documents are separated."""
_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """One line without its end."""

    number: int
    """From 1, as editors count."""
    text: str


def lines(path: Path, limit: int | None = None) -> Iterator[Line]:
    """The lines of a UTF-8 file; `limit` ends after the line that crosses so many bytes (of the unpacked text)."""
    offset = 0
    with opened(path) as file:
        for number, raw in enumerate(file, start=1):
            body = raw.removeprefix(_BOM) if number == 1 else raw
            try:
                text = body.decode("utf-8")
            except UnicodeDecodeError as e:
                raise UserError(_not_utf8(path, number, offset + len(raw) - len(body) + e.start, body)) from e
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


def hash_text(path: Path) -> str:
    """SHA-256 of a text file's bytes, unpacked, with ``\\r\\n`` read as ``\\n`` and without a byte-order mark."""
    digest = hashlib.sha256()
    held = b""  # a chunk may end between \r and \n
    with opened(path) as file:
        chunk = file.read(1 << 20).removeprefix(_BOM)
        while chunk:
            chunk = held + chunk
            held = b"\r" if chunk.endswith(b"\r") else b""
            digest.update(chunk[: len(chunk) - len(held)].replace(b"\r\n", b"\n"))
            chunk = file.read(1 << 20)
    digest.update(held)
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


def _not_utf8(path: Path, number: int, offset: int, line: bytes) -> str:
    # Windows' own letters stand where Latin-1 has control characters.
    encoding = "cp1252" if any(0x80 <= byte <= 0x9F for byte in line) else "latin1"
    inside = packing(path)
    where = f"the {inside} text's byte" if inside else "byte"
    return f"{path}: not UTF-8 at {where} {offset} (line {number}); {recode(encoding, path)}"
