"""Deleting what :mod:`circuits.launch.keeping.policy` lets go: under a lease, and renamed aside first: nobody reads half of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from circuits.launch.keeping import using
from circuits.launch.keeping.policy import LEFTOVERS, RUNS, Asked, Thing, outside
from circuits.launch.sweep import Sweep
from circuits.store.leases import Lease, Note


def delete(asked: Asked, things: Iterable[Thing]) -> list[tuple[Thing, str]]:
    """Delete these; what could not be, each with the reason."""
    left = []
    for thing in things:
        try:
            why = outside(thing.path, asked) or _delete(thing)
        except FileNotFoundError:
            continue  # somebody was faster
        except OSError as e:
            why = e.strerror or str(e)
        if why is not None:
            left.append((thing, why))
    return left


def _delete(thing: Thing) -> str | None:
    """Delete one thing; why not, where it cannot be."""
    if thing.path.suffix in using.NOTES:
        note = Note(thing.path)
        if using.holds(note):
            return "somebody holds it again"
        thing.path.unlink()
        return None
    if thing.what == RUNS or thing.path.name.startswith("."):
        _remove(thing.path)
        return None
    artifact = thing.path.with_suffix("") if thing.what == LEFTOVERS else thing.path
    if any(using.holds(Note(path)) for path in _notes(artifact)):
        return "somebody has begun to make it"
    lease = Lease(
        artifact.with_name(f"{artifact.name}.lease"), key=f"{artifact.parent.name}/{artifact.name}", by="task=clean"
    )
    if not lease.acquire():
        return "somebody has begun to make it"
    try:
        _remove(thing.path)
    finally:
        lease.release()
    return None


def _notes(artifact: Path) -> list[Path]:
    """The leases and claims of an artifact, of all its shares."""
    names = sorted(os.listdir(artifact.parent))  # noqa: PTH208 (names with brackets are no patterns)
    mine = [name for name in names if name.startswith(f"{artifact.name}.") and name.endswith(using.NOTES)]
    return [artifact.parent / name for name in mine]


def _remove(path: Path) -> None:
    """Rename aside, then remove. What is left by a kill between the two has the name of a leftover."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
    path.rename(aside)
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink()


def empty_days(sweeps: Sequence[Sweep]) -> None:
    """Remove the directories of days on which no run is left."""
    for one in sweeps:
        with contextlib.suppress(OSError):
            one.path.parent.rmdir()
