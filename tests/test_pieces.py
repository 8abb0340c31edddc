"""Pieces of a capture: several writers at once, late ones and dead ones, never cost or alter a published row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from circuits.activations.pieces import Entry, Piece, Pieces, take_over

FP32 = np.dtype(np.float32)
SHARE = "shard-0-of-1"


def rows(sample: int) -> NDArray[np.float32]:
    """Two rows of a sample, told by its number."""
    return np.full((2, 3), sample, np.float32)


def append(piece: Piece, *samples: int) -> None:
    """Add samples as a capture does, and make them durable."""
    for sample in samples:
        values = rows(sample)
        piece.append(Entry([sample], [f"s{sample}"], [2], {}), values, np.linalg.norm(values, axis=1))
    piece.sync()


def begun(partial: Path, writer: str, gone: bool) -> Piece:
    """The piece of a writer that comes while others' are there, who are known to be gone or not."""
    partial.mkdir(exist_ok=True)
    take_over(partial, SHARE, f"{SHARE}.{writer}", {"who": writer}, lambda facts: gone)
    return Piece(partial / f"{SHARE}.{writer}", FP32, 3)


def written(partial: Path, out: Path, own: str) -> NDArray[Any]:
    """What is published from the pieces."""
    out.mkdir()
    pieces = Pieces(partial, FP32, 3)
    assert pieces.missing(4) == 0
    pieces.write(out, own=f"{SHARE}.{own}")
    return np.load(out / "values.npy")


def whole() -> NDArray[np.float32]:
    return np.concatenate([rows(sample) for sample in range(4)])


def test_two_writers_at_once_have_files_of_their_own(tmp_path: Path) -> None:
    first = begun(tmp_path / "p", "a", gone=False)
    append(first, 0)
    second = begun(tmp_path / "p", "b", gone=False)
    append(second, 1, 2, 3)
    append(first, 1, 2)  # it did not know of the other
    second.close()
    assert (written(tmp_path / "p", tmp_path / "out", "b") == whole()).all()
    first.close()


@pytest.mark.parametrize("samples", [(0, 1, 2, 3), (0, 1)])
def test_a_late_writer_cannot_reach_into_what_was_published(tmp_path: Path, samples: tuple[int, ...]) -> None:
    late = begun(tmp_path / "p", "a", gone=False)
    append(late, *samples)
    mine = begun(tmp_path / "p", "b", gone=False)
    append(mine, *(sample for sample in range(4) if sample not in samples))
    mine.close()
    written(tmp_path / "p", tmp_path / "out", "b")
    late.values._file.seek(0)
    late.values._file.write(b"\xff" * 4096)
    late.values.sync()
    late.close()
    assert (np.load(tmp_path / "out" / "values.npy") == whole()).all()


def test_the_work_of_the_dead_is_continued_without_a_copy(tmp_path: Path) -> None:
    dead = begun(tmp_path / "p", "a", gone=False)
    append(dead, 0, 1)
    dead.close()
    mine = begun(tmp_path / "p", "b", gone=True)
    assert sorted(mine.done) == [0, 1]
    append(mine, 2, 3)
    mine.close()
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [f"{SHARE}.b", f"{SHARE}.b.json"]
    assert (written(tmp_path / "p", tmp_path / "out", "b") == whole()).all()
    piece, published = tmp_path / "p" / f"{SHARE}.b" / "values.npy", tmp_path / "out" / "values.npy"
    assert piece.stat().st_ino == published.stat().st_ino


def test_unfinished_work_of_earlier_versions_is_read(tmp_path: Path) -> None:
    old = Piece(tmp_path / "p" / SHARE, FP32, 3)
    append(old, 0, 1)
    old.close()
    mine = begun(tmp_path / "p", "b", gone=True)
    append(mine, 2, 3)
    mine.close()
    assert (written(tmp_path / "p", tmp_path / "out", "b") == whole()).all()
