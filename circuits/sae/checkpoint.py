"""Checkpoints: one tensor file each (:mod:`circuits.data.tensorfile`), the newest ones kept.

A crash leaves the old checkpoints as they were. A file that was cut or altered on disk is told by its digest: `latest` moves it
aside as ``*.damaged`` and goes back to the one before.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from circuits.data.tensorfile import digest, load, save
from circuits.errors import Damaged
from circuits.host import free_memory

__all__ = ["Checkpoint", "Writer", "clear", "digest", "latest", "load", "path_for", "paths", "prune", "save"]

PATTERN = "step-*.safetensors"
LEFT_S = 600.0
"""Seconds after which an unfinished file that does not grow is a leftover."""
WAITING_SHARE = 1 / 8
"""Of the free memory, for checkpoints that wait to be written; one may always wait, whatever its size."""


class Checkpoint(NamedTuple):
    """What `latest` found."""

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


class Writer:
    """Writes checkpoints in a thread of its own, in order, so that training goes on meanwhile.

    A write that failed is raised by the next call, and at the end; the context manager ends when all are written.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._waiting: deque[tuple[Future[None], int]] = deque()

    def __enter__(self) -> Writer:
        return self

    def submit(self, write: Callable[[], None], nbytes: int) -> None:
        """`write()` soon; waits while too many bytes are waiting. `nbytes`: how much it holds until then."""
        room = WAITING_SHARE * free_memory()
        while self._waiting and (self._waiting[0][0].done() or sum(size for _, size in self._waiting) + nbytes > room):
            self._waiting.popleft()[0].result()
        self._waiting.append((self._pool.submit(write), nbytes))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True)
        failures = [e for future, _ in self._waiting if (e := future.exception()) is not None]
        if failures and kind is None:
            raise failures[0]


def path_for(directory: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies; names sort by step."""
    return directory / f"step-{step:09d}.safetensors"


def paths(directory: Path) -> list[Path]:
    """The checkpoints of a directory, oldest first."""
    return sorted(directory.glob(PATTERN))


def prune(directory: Path, keep: int) -> list[Path]:
    """Delete all but the newest `keep` checkpoints, and what interrupted writes left; the deleted paths.

    An unfinished file that has not grown for a while is taken for a leftover; a writer that only stood still writes it again.
    """
    found = paths(directory)
    gone = found[: max(0, len(found) - keep)] + [file for file in directory.glob(f".{PATTERN}.*.tmp") if _left(file)]
    for path in gone:
        path.unlink(missing_ok=True)
    return gone


def clear(directory: Path) -> None:
    """Delete all checkpoints."""
    for path in paths(directory):
        path.unlink(missing_ok=True)


def _left(file: Path) -> bool:
    """Whether nobody has written to an unfinished file for a while."""
    try:
        return time.time() - file.stat().st_mtime > LEFT_S
    except FileNotFoundError:
        return False


def latest(directory: Path, on_damaged: Callable[[Path, str], None] | None = None) -> Checkpoint | None:
    """The newest checkpoint that is whole. Damaged ones are moved aside as ``*.damaged`` and reported."""
    for path in reversed(paths(directory)):
        try:
            return Checkpoint(path, *load(path))
        except FileNotFoundError:  # another process writes here, too, and is further on
            continue
        except Damaged as e:
            aside = path.with_name(path.name + ".damaged")
            with contextlib.suppress(FileNotFoundError):
                path.replace(aside)
            if on_damaged is not None:
                on_damaged(aside, str(e))
    return None
