"""Activations while they are being captured: growing files that survive a kill, and their merge in sample order.

Beside an artifact, in ``<key>.partial/``, every process that works on it has a directory of its own, a *piece*
(``shard-1-of-4.<writer>/``), so that no two write one file; beside it, ``….json`` says who that is. A piece whose writer is known
to be gone is renamed and continued (:func:`take_over`); of any other one only what its journal counts is read::

    values.npy      [rows, width], grows at its end          norms.npy      the Euclidean norm of every row
    journal.jsonl   one line a window of samples: their numbers and names, rows of each, those dropped

Values are forced to the disk before the journal line that counts them, so after a kill the journal says what is whole and
the rest is cut off. Which samples are done is read from the journals' sample numbers, of all pieces, whatever `world_size`
they were made under. Within a piece samples ascend; a piece of one's own that holds them all is the result itself (a hard link),
several, or another's, which may still be written to, are copied sample by sample. Either way the result is the same bytes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuits.data.npy import HEADER, GrowingNpy, NpyWriter
from circuits.errors import Damaged
from circuits.files import disk_errors, fsync_dir, read_json, write_json

VALUES, NORMS, JOURNAL = "values.npy", "norms.npy", "journal.jsonl"
FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class Entry:
    """What a piece holds of one window of samples."""

    samples: list[int]
    """Their places in the order of all samples, ascending."""
    names: list[str]
    rows: list[int]
    """Rows of each; 0 for a dropped one."""
    dropped: dict[str, list[int]]
    """Samples left out as non-finite, by the layers at which they were."""


@dataclass(frozen=True)
class Held:
    """Where a sample's rows stand."""

    piece: Path
    start: int
    rows: int


def take_over(
    partial: Path, share: str, own: str, writer: Mapping[str, Any], gone: Callable[[Mapping[str, Any]], bool]
) -> None:
    """Continue, as the piece `own` of `writer`, a piece of the same share whose writer is gone, where there is one.

    `gone` has to be sure: a writer that is only silent might still write into the files that it has open.
    """
    with disk_errors(partial):
        # First: from the rename on the piece is of somebody who lives.
        write_json(partial / f"{own}.json", dict(writer), make=True)
        for note in sorted(partial.glob(f"{share}.*.json")):
            piece = note.with_suffix("")
            try:
                if note.stem == own or not gone(read_json(note)):
                    continue
                piece.rename(partial / own)
            except (OSError, ValueError):  # without a piece, or another process was first
                continue
            note.unlink(missing_ok=True)
            return


class Piece:
    """One process's share of one (site, layer), continued where a kill left it."""

    def __init__(self, directory: Path, dtype: np.dtype[Any], width: int) -> None:
        self.directory = directory
        with disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
        entries, size = read_journal(directory)
        rows = sum(sum(entry.rows) for entry in entries)
        try:
            self.values = GrowingNpy(directory / VALUES, dtype, (width,), rows)
            self.norms = GrowingNpy(directory / NORMS, FLOAT, (), rows)
        except Damaged:  # the journal was kept and its values were not: nothing here can be used
            shutil.rmtree(directory)
            directory.mkdir()
            entries, size = [], 0
            self.values = GrowingNpy(directory / VALUES, dtype, (width,))
            self.norms = GrowingNpy(directory / NORMS, FLOAT, ())
        fsync_dir(directory)
        self.done = {sample: name for entry in entries for sample, name in zip(entry.samples, entry.names, strict=True)}
        self._waiting: list[Entry] = []
        with disk_errors(directory):
            self._journal = (directory / JOURNAL).open("ab")
            self._journal.truncate(size)

    def append(self, entry: Entry, values: NDArray[Any], norms: NDArray[np.float32]) -> None:
        """Add the rows of one window's samples, in their order."""
        self.values.append(values)
        self.norms.append(norms)
        self._waiting.append(entry)
        self.done.update(zip(entry.samples, entry.names, strict=True))

    @property
    def unsaved(self) -> int:
        """Samples that a kill would cost now."""
        return sum(len(entry.samples) for entry in self._waiting)

    def sync(self) -> None:
        """Make everything appended durable: values first, then the journal that counts them."""
        if not self._waiting:
            return
        self.values.sync()
        self.norms.sync()
        lines = "".join(json.dumps(asdict(entry), separators=(",", ":")) + "\n" for entry in self._waiting)
        with disk_errors(self.directory):
            self._journal.write(lines.encode())
            self._journal.flush()
            os.fsync(self._journal.fileno())
        self._waiting = []

    def close(self) -> None:
        """Close the files as they are."""
        for file in (self.values, self.norms, self._journal):
            file.close()


def read_journal(directory: Path) -> tuple[list[Entry], int]:
    """The whole lines of a journal, and how many bytes they are; a torn last line does not count."""
    try:
        content = (directory / JOURNAL).read_bytes()
    except FileNotFoundError:
        return [], 0
    size = content.rfind(b"\n") + 1
    try:
        return [Entry(**json.loads(line)) for line in content[:size].splitlines()], size
    except (ValueError, TypeError) as e:
        raise Damaged(
            f"{directory / JOURNAL}: not a journal ({e}); remove {directory} and run the same command again"
        ) from e


class Pieces:
    """All that was captured of one (site, layer), by whoever did it."""

    def __init__(self, partial: Path, dtype: np.dtype[Any], width: int) -> None:
        self.partial, self.dtype, self.width = partial, dtype, width
        self.held: dict[int, Held] = {}
        self.names: dict[int, str] = {}
        self.dropped: dict[int, list[int]] = {}
        self._rows_of: dict[Path, int] = {}
        for directory in sorted(path for path in partial.glob("shard-*") if path.is_dir()):
            self._read(directory)

    def _read(self, directory: Path) -> None:
        entries, _ = read_journal(directory)
        rows, start = sum(sum(entry.rows) for entry in entries), 0
        if not _holds(directory / VALUES, rows, self.dtype.itemsize * self.width) or not _holds(
            directory / NORMS, rows, 4
        ):
            return  # its values are gone: they are captured again
        for entry in entries:
            for sample, name, rows in zip(entry.samples, entry.names, entry.rows, strict=True):
                self.held.setdefault(sample, Held(directory, start, rows))
                self.names[sample] = name
                start += rows
            self.dropped |= {int(sample): layers for sample, layers in entry.dropped.items()}
        self._rows_of[directory] = start

    def missing(self, n: int) -> int:
        """How many of samples 0 … n - 1 nobody has captured yet."""
        return n - len(self.held)

    @property
    def rows(self) -> int:
        """Rows of all samples together."""
        return sum(held.rows for held in self.held.values())

    def write(self, out: Path, own: str | None = None) -> None:
        """``values.npy`` and ``norms.npy`` of all samples, in sample order, into the directory `out`.

        `own` is the name of a piece that nobody but the caller writes to, and the caller no more.
        """
        runs = list(self._runs())
        for name, kind, shape in ((VALUES, self.dtype, (self.width,)), (NORMS, FLOAT, ())):
            if len(runs) == 1 and runs[0][0].name == own and runs[0][1:] == (0, self._rows_of[runs[0][0]]):
                _link(runs[0][0] / name, kind, shape, runs[0][2], out / name)
            else:
                _merge(name, kind, shape, runs, out / name)

    def _runs(self) -> Iterator[tuple[Path, int, int]]:
        """Stretches of rows that follow one another in a piece and in the result."""
        piece, start, stop = Path(), 0, 0
        for _, held in sorted(self.held.items()):
            if held.piece == piece and held.start == stop:
                stop += held.rows
                continue
            if stop > start:
                yield piece, start, stop
            piece, start, stop = held.piece, held.start, held.start + held.rows
        if stop > start:
            yield piece, start, stop


def _holds(file: Path, rows: int, row_bytes: int) -> bool:
    """Whether a file is long enough for what its journal says."""
    return file.exists() and file.stat().st_size >= HEADER + rows * row_bytes


def _link(file: Path, dtype: np.dtype[Any], shape: tuple[int, ...], rows: int, out: Path) -> None:
    """One piece is the whole: its file under another name, without another byte written."""
    GrowingNpy(file, dtype, shape, rows).finish()
    try:
        os.link(file, out)
    except OSError:  # a file system without hard links
        with disk_errors(out):
            shutil.copyfile(file, out)


def _merge(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], runs: Sequence[tuple[Path, int, int]], out: Path
) -> None:
    """Copy stretches of pieces, one after the other."""
    sources = {piece: np.memmap(piece / name, np.uint8, "r") for piece in {run[0] for run in runs}}
    row_bytes = dtype.itemsize * math.prod(shape)
    writer = NpyWriter(out, dtype, shape)
    complete = False
    try:
        for piece, start, stop in runs:
            taken = sources[piece][HEADER + start * row_bytes : HEADER + stop * row_bytes]
            writer.append(taken.view(dtype).reshape(stop - start, *shape))
        complete = True
    finally:
        writer.close(complete)
