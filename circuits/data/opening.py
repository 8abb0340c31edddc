"""A text file as bytes, whatever it is packed with; and what a file is that is no text, told by its first bytes.

gzip, bzip2, xz, LZMA, Zstandard and LZ4 are recognised by content, never by name, so that a copy that was packed or unpacked has
the same text and the same canonical hash.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote
from typing import IO, Any

from circuits.errors import UserError

RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
"""Endings of files that hold records with named fields."""
PACKED = (".gz", ".bz2", ".xz", ".lzma", ".zst", ".lz4")
_HEAD = 4096
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x5d\x00\x00": "lzma",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive (or an Office document); unpack it",
    b"%PDF": "a PDF; extract its text",
    b"PAR1": "a parquet file; let its name end in .parquet",
    b"ARROW1": "an arrow file; let its name end in .arrow",
    b"\x93NUMPY": "a NumPy array, no text",
    b"SQLite format 3": "an SQLite database; export its text",
    b"Rar!": "a RAR archive; unpack it",
    b"\x1f\x9d": "packed by compress; unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive; unpack it",
}


def ending(name: str | Path) -> str:
    """``.jsonl`` of ``corpus.jsonl.gz``: the ending that says what is in a file, in lower case."""
    path = Path(name)
    while path.suffix.lower() in PACKED:
        path = path.with_suffix("")
    return path.suffix.lower()


def stem(name: str | Path) -> str:
    """``prompts.v2`` of ``/home/me/prompts.v2.jsonl.gz``: what a file is called by."""
    path = Path(Path(name).name)
    while path.suffix.lower() in PACKED:
        path = path.with_suffix("")
    return path.stem


def packing(path: Path) -> str | None:
    """What a file is packed with, or None."""
    with path.open("rb") as file:
        head = file.read(8)
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's text, unpacked on the way.

    Raises:
        UserError: it is damaged, or no text at all.
    """
    packed = packing(path)
    try:
        with _UNPACK[packed](path) as file, io.BufferedReader(file, 1 << 20) as text:  # type: ignore[type-var]
            if problem := _no_text(text.peek(_HEAD)[:_HEAD], path):
                raise UserError(f"{path}{f' ({packed})' if packed else ''}: {problem}")
            yield text  # type: ignore[misc]
    except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as e:
        if packed is None:
            raise
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise UserError(f"{path}: its {packed} is damaged ({reason}); copy or download it again") from e


def _no_text(head: bytes, path: Path) -> str | None:
    """What bytes are that are no UTF-8 text, and what to do; None for text (whose encoding is checked line by line)."""
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it"
    if packed := next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None):
        return f"packed twice (with {packed} inside); unpack it once"
    for mark, encoding in ((b"\xff\xfe\x00\x00", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if head.startswith(mark):
            return f"{encoding.upper()}, not UTF-8; {recode(encoding, path)}"
    for parity, encoding in ((1, "utf-16le"), (0, "utf-16be")):
        every, other = head[parity::2], head[1 - parity :: 2]
        if len(head) > 8 and every.count(0) > len(every) / 2 and other.count(0) < len(other) / 50:
            return f"it looks like {encoding.upper()} without a mark, not UTF-8; {recode(encoding, path)}"
    return None


def recode(encoding: str, path: Path) -> str:
    """The command that makes UTF-8 of a file, unpacked first where it is packed."""
    name = path.name
    while Path(name).suffix.lower() in PACKED:
        name = Path(name).stem
    before = "unpack it, then " if name != path.name else ""
    return f"{before}convert it, for example: iconv -f {encoding} -t utf-8 {quote(name)} > {quote(f'utf8-{name}')}"


def _by_arrow(codec: str) -> Callable[[Path], Any]:
    def unpack(path: Path) -> Any:
        import pyarrow as pa

        return pa.input_stream(str(path), compression=codec)

    return unpack


_UNPACK: dict[str | None, Callable[[Path], Any]] = {
    None: lambda path: path.open("rb", buffering=0),
    "gzip": gzip.open,
    "bz2": bz2.open,
    "xz": lzma.open,
    "lzma": lzma.open,
    "zstd": _by_arrow("zstd"),
    "lz4": _by_arrow("lz4"),
}
