"""Records of a file in order: JSON lines, one JSON array of objects, CSV or TSV with a header; packed or not.

A name that ends in ``.csv`` or ``.tsv`` says so; of JSON the first character tells lines from an array, whatever the name.
Memory is bounded by one record, also of an array that stands in one line.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from circuits.data.lines import lines
from circuits.data.opening import ending, opened
from circuits.errors import UserError, suggest

_CHUNK = 1 << 20
_LARGEST_CELL = 1 << 30


class Row(NamedTuple):
    """One record."""

    number: int
    """Of its line, or of the item of an array, from 1."""
    place: str
    """File and line or item, for errors."""
    fields: dict[str, Any]


def rows(path: Path, limit: int | None = None) -> Iterator[Row]:
    """Every record; `limit` ends after about so many bytes of text.

    Raises:
        UserError: naming file and place.
    """
    if ending(path) in (".csv", ".tsv"):
        return _table(path, limit)
    return _array(path, limit) if _begins_with_bracket(path) else _lines(path, limit)


def field_documents(path: Path, field: str, limit: int | None = None) -> Iterator[str]:
    """The strings under `field` in order; a null, as pandas writes what is missing, and blank ones are left out."""
    for row in rows(path, limit):
        text = _text_of(row.fields, field, row.place)
        if text.strip():
            yield text


def hash_records(path: Path, *, nulls: bool = True) -> str:
    """SHA-256 of canonical records: parsed, keys sorted, no spaces, one ``\\n`` each, ASCII escapes (hence UTF-8).

    Without `nulls` a field that is null is as one that is not there.
    """
    digest = hashlib.sha256()
    for row in rows(path):
        fields = row.fields if nulls else {name: value for name, value in row.fields.items() if not absent(value)}
        digest.update(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def absent(value: Any) -> bool:
    """Whether a value is null, or the NaN that pandas writes for one."""
    return value is None or (isinstance(value, float) and value != value)


def half_a_pair(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which JSON can write and no encoding can."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def kind_of(value: object) -> str:
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


def _begins_with_bracket(path: Path) -> bool:
    with opened(path) as file:
        for line in file:
            if start := line.removeprefix(b"\xef\xbb\xbf").strip():
                return start.startswith(b"[")
    return False


def _lines(path: Path, limit: int | None) -> Iterator[Row]:
    for line in lines(path, limit):
        if line.text.strip():
            place = f"{path}, line {line.number}"
            yield Row(line.number, place, _object(_parsed(line.text, place, path), place))


def _parsed(text: str, place: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        form = "; a file is one object a line, or one array of objects" if ending(path) == ".json" else ""
        raise UserError(f"{place}: not JSON ({e.msg} at column {e.colno}){form}") from e
    except (RecursionError, ValueError) as e:  # nested or with a number longer than Python reads
        raise UserError(f"{place}: not JSON that can be read ({e})") from e


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{place}: {kind_of(value)}, expected an object {{…}}")
    return value


def _array(path: Path, limit: int | None) -> Iterator[Row]:
    """The items of an array, as they are read: an item that does not parse yet needs more of the file."""
    decoder, number, ask, consumed = json.JSONDecoder(), 0, _CHUNK, 0
    with opened(path) as file:
        read = _decoded(file, path)
        text = read(ask).lstrip("\ufeff \t\r\n").removeprefix("[")
        while True:
            text = text.lstrip(" \t\r\n")
            if text.startswith(",") and number:
                text = text[1:].lstrip(" \t\r\n")
            if text.startswith("]"):
                return
            place = f"{path}, item {number + 1}"
            try:
                value, end = decoder.raw_decode(text)
            except (ValueError, RecursionError) as e:
                more = read(ask)
                if not more:
                    raise UserError(f"{place}: not JSON ({str(e).splitlines()[0]})") from e
                text, ask = (
                    text + more,
                    2 * ask,
                )  # doubled, so that a long item is not parsed from its start for each chunk
                continue
            number, ask, text, consumed = number + 1, _CHUNK, text[end:], consumed + end
            yield Row(number, place, _object(value, place))
            if limit is not None and consumed >= limit:
                return


def _decoded(file: IO[bytes], path: Path) -> Any:
    """A function that reads more of a UTF-8 text; characters on the border of two chunks stay whole."""
    decoder = codecs.getincrementaldecoder("utf-8")()

    def read(size: int) -> str:
        while chunk := file.read(size):
            try:
                if text := decoder.decode(chunk):
                    return text
            except UnicodeDecodeError as e:
                raise UserError(f"{path}: not UTF-8 ({e.reason})") from e
        return ""

    return read


def _table(path: Path, limit: int | None) -> Iterator[Row]:
    """The rows of a CSV or TSV file under its header; a cell may hold line ends, an empty one is a null."""
    csv.field_size_limit(_LARGEST_CELL)
    texts = (f"{line.text}\n" for line in lines(path, limit))
    header = next(texts, "")
    semicolons = ";" in header and "," not in header
    delimiter = "\t" if ending(path) == ".tsv" else ";" if semicolons else ","
    names = next(csv.reader([header], delimiter=delimiter), [])
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    first = 2
    while True:
        place = f"{path}, line {first}"
        try:
            cells = next(reader, None)
        except csv.Error as e:
            if limit is not None:  # cut within a cell
                return
            raise UserError(f"{place}: not a table ({e})") from e
        if cells is None:
            return
        if len(cells) > len(names):
            raise UserError(f"{place}: {len(cells)} cells, the header names {len(names)}")
        if cells:
            said = [cell or None for cell in cells]
            yield Row(first, place, dict(zip(names, [*said, *[None] * len(names)], strict=False)))
        first = reader.line_num + 2


def _text_of(record: dict[str, Any], field: str, place: str) -> str:
    if field not in record:
        fields = suggest(field, record, "fields")
        raise UserError(f"{place}: no field {field!r}{fields}; name the one with the text by data.field=NAME")
    text = record[field]
    if absent(text):
        return ""
    if not isinstance(text, str):
        raise UserError(f"{place}: field {field!r} is {kind_of(text)}, expected a string")
    if half_a_pair(text):
        raise UserError(
            f"{place}: field {field!r} holds half of a surrogate pair (\\ud800-\\udfff), which is no character"
        )
    return text
