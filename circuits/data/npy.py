"""``.npy`` files written row by row, and opened memory-mapped with their damage named.

A ``.npy`` header holds the shape, which is known only at the end: room for it is kept at the start of the file (the
format pads its header with spaces, so any length is valid) and filled in last.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, version 1.0.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuits.errors import Damaged
from circuits.files import disk_errors, fsync_dir

HEADER = 128  # bytes before the first row, in every file written here


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The header of `shape`, padded to `HEADER` bytes."""
    text = f"{{'descr': {np.lib.format.dtype_to_descr(dtype)!r}, 'fortran_order': False, 'shape': {shape}, }}"
    body = text.encode("latin1").ljust(HEADER - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


class NpyWriter:
    """Appends rows of one shape to a temporary file beside `path`; `close` gives it its name."""

    def __init__(self, path: Path, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.row_shape, self.rows = path, dtype, row_shape, 0
        self._temporary = path.with_name(f".{path.name}.tmp")
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb")
            self._file.write(bytes(HEADER))

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows ``[n, *row_shape]``."""
        if rows.shape[1:] != self.row_shape:
            raise ValueError(f"rows of shape {rows.shape[1:]} do not belong into {self.path.name} of {self.row_shape}")
        with disk_errors(self.path):
            self._file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.rows += len(rows)

    def close(self, publish: bool = True) -> None:
        """Write the header and rename into place, durably; or with ``publish=False`` leave nothing behind."""
        with disk_errors(self.path), self._file:
            if not publish:
                self._temporary.unlink(missing_ok=True)
                return
            self._file.seek(0)
            self._file.write(npy_header(self.dtype, (self.rows, *self.row_shape)))
            self._file.flush()
            os.fsync(self._file.fileno())
        self._temporary.replace(self.path)
        fsync_dir(self.path.parent)


def open_npy(path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """Map a ``.npy`` file into memory, read-only; `Damaged` when it is absent, truncated or of another shape."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as e:
        raise Damaged(f"{path}: missing") from e
    except (ValueError, EOFError, SyntaxError) as e:
        raise Damaged(f"{path}: truncated or altered ({str(e).splitlines()[0]})") from e
    if array.shape != shape:
        raise Damaged(f"{path}: holds {array.shape}, its facts say {shape}")
    return array


class GrowingNpy:
    """A ``.npy`` file of rows that survives a kill: it keeps its name while it grows, and is cut back to what counts.

    The header says 0 rows until :meth:`finish`; how many rows really count is its owner's knowledge (a journal).
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], row_shape: tuple[int, ...], rows: int = 0) -> None:
        self.path, self.dtype, self.row_shape, self.rows = path, dtype, row_shape, rows
        row_bytes = dtype.itemsize * math.prod(row_shape)
        size = HEADER + rows * row_bytes
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if path.exists() else "w+b")
            found = self._file.seek(0, os.SEEK_END)
            if rows and found < size:
                self._file.close()
                raise Damaged(f"{path}: {found} bytes, {size} were written")
            self._file.truncate(size)
            self._file.seek(0)
            self._file.write(npy_header(dtype, (0, *row_shape)))
            self._file.seek(size)

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows ``[n, *row_shape]`` of the file's own type."""
        if rows.shape[1:] != self.row_shape or rows.dtype != self.dtype:
            raise ValueError(f"{rows.dtype} rows of {rows.shape[1:]} do not belong into {self.path.name}")
        with disk_errors(self.path):
            self._file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def sync(self) -> None:
        """Force what was appended to the disk."""
        with disk_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Write the header with the number of rows and close; the file can then be opened by anyone."""
        with disk_errors(self.path), self._file:
            self._file.seek(0)
            self._file.write(npy_header(self.dtype, (self.rows, *self.row_shape)))
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close as it is."""
        self._file.close()
