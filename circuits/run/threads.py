"""How many threads unfinished work was begun with, kept beside it: it goes on with as many."""

from __future__ import annotations

from pathlib import Path

from circuits.errors import Damaged
from circuits.files import read_json, write_json

THREADS = "threads.json"  # in the directory of unfinished work


def note(unfinished: Path, threads: int | None) -> None:
    """Write down beside unfinished work how many threads it is made with."""
    if threads is not None and noted(unfinished) != threads:
        write_json(unfinished / THREADS, threads)


def noted(unfinished: Path) -> int | None:
    """What :func:`note` wrote."""
    try:
        found = read_json(unfinished / THREADS)
    except (OSError, ValueError, Damaged):
        return None
    return found if isinstance(found, int) and found > 0 else None
