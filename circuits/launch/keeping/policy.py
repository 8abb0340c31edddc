"""What ``task=clean`` may delete, and why it leaves the rest. It plans; :mod:`circuits.launch.keeping.deleting` deletes.

An artifact goes when its kind was chosen, nobody alive holds it, nothing is a link, and its kind's policy lets it go:
``regenerable`` kinds as they are; any kind when an archive holds the very same files and nothing that stays was made from it.
"""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from circuits.errors import UserError, suggest
from circuits.files import sha256_file
from circuits.launch.keeping import holdings, using
from circuits.launch.keeping.archive import place_of, policy
from circuits.launch.keeping.holdings import Holding, Ref
from circuits.launch.keeping.restore import MARK
from circuits.launch.keeping.tar import Listing
from circuits.launch.sweep import Sweep
from circuits.store import registry
from circuits.store.store import MANIFEST

LEFTOVERS, RUNS = "leftovers", "runs"
DEFAULT = ("activations", LEFTOVERS)
SETTLED_S = 24 * 3600.0  # after which a temporary directory is nobody's
UNITS = {"h": 3600.0, "d": 24 * 3600.0, "w": 7 * 24 * 3600.0}


@dataclass
class Thing:
    """Something that may be deleted."""

    what: str  # its kind, or leftovers, or runs
    name: str  # as it is shown
    path: Path
    bytes: int
    policy: str
    born: float = 0.0  # seconds since 1970
    ref: Ref | None = None
    stays: str | None = None  # why it is not deleted
    under: list[str] = field(default_factory=list)  # what was made from it, or passed its gate
    by: str = ""  # the sweep that made it


@dataclass(frozen=True)
class Asked:
    """What is to be deleted, and where: see the options of task=clean."""

    outputs: Path
    multirun: Path
    kinds: Sequence[str] = ()
    older_than_s: float = 0.0
    of: Sweep | None = None
    archive: Listing | None = None

    @property
    def store(self) -> Path:
        """Where artifacts are."""
        return self.outputs / "artifacts"

    @property
    def chosen(self) -> tuple[str, ...]:
        """The kinds that were named, else the default ones."""
        if self.kinds:
            return tuple(self.kinds)
        if self.archive is None:
            return DEFAULT
        return (*(name for name, kind in registry.kinds().items() if kind.keep != "keep"),)


def seconds(text: str | None) -> float:
    """``30d``, ``12h``, ``2w`` in seconds.

    Raises:
        UserError: it is none of them.
    """
    if text is None:
        return 0.0
    if (found := re.fullmatch(r"(\d+)([hdw])", text.strip())) is None:
        raise UserError(f"clean.older_than={text}: hours, days or weeks, such as 12h, 30d or 2w")
    return int(found[1]) * UNITS[found[2]]


def check(kinds: Sequence[str], archived: bool) -> None:
    """Refuse kinds that do not exist, and those that only an archive frees.

    Raises:
        UserError: with each of them.
    """
    known = [*registry.kinds(), LEFTOVERS, RUNS]
    errors = []
    for name in kinds:
        if name not in known:
            errors.append(f"clean.kinds: {name}: no such kind" + suggest(name, known, "kinds"))
        elif not archived and (name == RUNS or (name != LEFTOVERS and policy(name) != "regenerable")):
            errors.append(
                f"clean.kinds: {name}: kept; clean.archived=true clean.archive=FILE deletes of it what stands in that archive"
            )
    if errors:
        raise UserError(errors)


def plan(asked: Asked, sweeps: Sequence[Sweep]) -> list[Thing]:
    """Everything in the store and the runs, each with the reason why it stays, where it does.

    Raises:
        UserError: what a live sweep stands on cannot be told.
    """
    known = holdings.every(asked.store)
    use = using.of(asked.store, sweeps, known)
    things = [
        *_artifacts(asked, known, use, _gated(asked, sweeps)),
        *_leftovers(asked, use),
        *_runs(asked, sweeps, use),
    ]
    for thing in things:
        if thing.stays is None:
            thing.stays = _general(asked, thing)
    for thing in things:  # hashing is the slowest look, and only worth it for what goes
        if thing.stays is None and asked.archive is not None and thing.what != LEFTOVERS:
            thing.stays = _unlike(asked.archive, thing, sweeps)
    _keep_what_others_stand_on(things)
    return things


def _artifacts(
    asked: Asked, known: Mapping[Ref, Holding], use: using.Use, gated: Mapping[Ref, Sequence[str]]
) -> Iterator[Thing]:
    made_from = using.dependents(known.values())
    own = holdings.made_by(asked.of) if asked.of is not None else None
    for ref, one in known.items():
        thing = Thing(one.kind, one.id, one.path, one.bytes, policy(one.kind), _born(one), ref)
        thing.under = list(dict.fromkeys([*(other.id for other in made_from.get(ref, ())), *gated.get(ref, ())]))
        thing.by = str(one.manifest.get("by", "")).partition("/")[0]
        if ref in use.held:
            thing.stays = f"in use by {use.held[ref]}"
        elif use.stranger is not None:
            thing.stays = f"{use.stranger}, whose record is not below multirun, is at work in this store"
        elif own is not None and ref not in own:
            thing.stays = f"not of {asked.of.id if asked.of else ''}"
        yield thing


def _gated(asked: Asked, sweeps: Iterable[Sweep]) -> dict[Ref, list[str]]:
    """What passed the gate of each measurement; asked for only where measurements may go."""
    found: dict[Ref, list[str]] = {}
    for one in sweeps if asked.archive is not None else ():
        for ref, made in holdings.gated(one, asked.store).items():
            found.setdefault(ref, []).extend(made)
    return found


def _born(one: Holding) -> float:
    try:
        return dt.datetime.fromisoformat(str(one.manifest["created"])).timestamp()
    except (KeyError, ValueError):
        return (one.path / MANIFEST).stat().st_mtime


def _leftovers(asked: Asked, use: using.Use) -> Iterator[Thing]:
    """Unfinished work of nobody alive, notes of the dead, and what was left by writers that died."""
    own = holdings.made_by(asked.of) if asked.of is not None else None
    for path in sorted(asked.store.glob("[!.]*/[!.]*.partial")):
        ref = using.artifact_of(path)
        thing = _leftover(asked, path, "unfinished work")
        if ref in use.held:
            thing.stays = f"in use by {use.held[ref]}"
        elif own is not None and ref not in own:
            thing.stays = f"not of {asked.of.id if asked.of else ''}"
        yield thing
    if asked.of is not None:
        return
    for note in using.notes(asked.store):
        thing = _leftover(asked, note.path, "a note of somebody who is gone")
        if (ref := using.artifact_of(note.path)) in use.held:
            thing.stays = f"in use by {use.held[ref]}"
        yield thing
    hidden = [path for path in asked.store.glob("[!.]*/.*") if path.suffix in (".tmp", ".old", ".damaged")]
    roots = (asked.store, asked.outputs / "runs", asked.multirun)
    for path in sorted([*hidden, *(found for root in roots for found in root.glob(f"{MARK}*"))]):
        thing = _leftover(asked, path, "of a writer that died")
        if time.time() - thing.born < SETTLED_S:
            thing.stays = "written within a day"
        yield thing


def _leftover(asked: Asked, path: Path, policy: str) -> Thing:
    link = path.is_symlink()
    size = 0 if link else path.lstat().st_size if path.is_file() else holdings.bytes_below(path)
    top = asked.outputs if path.is_relative_to(asked.outputs) else asked.multirun
    return Thing(LEFTOVERS, path.relative_to(top).as_posix(), path, size, policy, _touched(path))


def _touched(path: Path) -> float:
    """When something below a path was last written."""
    times = [path.lstat().st_mtime]
    if path.is_dir() and not path.is_symlink():
        times += [one.stat().st_mtime for one in holdings.files_below(path)[0].values() if one.exists()]
    return max(times)


def _runs(asked: Asked, sweeps: Iterable[Sweep], use: using.Use) -> Iterator[Thing]:
    for one in sweeps:
        thing = Thing(RUNS, one.id, one.path, holdings.bytes_below(one.path), "keep", _time(one.record["created"]))
        if one.id in use.live:
            thing.stays = str(use.live[one.id])
        elif asked.of is not None and one.id != asked.of.id:
            thing.stays = f"not of {asked.of.id}"
        yield thing


def _time(text: str) -> float:
    return dt.datetime.fromisoformat(text).timestamp()


def _general(asked: Asked, thing: Thing) -> str | None:
    """Why something stays whatever it is."""
    if thing.what not in asked.chosen:
        return "kept" if thing.policy in ("keep", "archive") else "not among clean.kinds"
    if (why := outside(thing.path, asked)) is not None:
        return why
    if asked.older_than_s and time.time() - thing.born < asked.older_than_s:
        return "younger"
    return None


def outside(path: Path, asked: Asked) -> str | None:
    """Why a path is not to be touched: it is a link, or one leads it out of ``outputs`` and ``multirun``."""
    top = asked.outputs if path.is_relative_to(asked.outputs) else asked.multirun
    if not path.is_relative_to(top) or path == top:
        return "outside outputs and multirun"
    if path.is_symlink():
        return "a link"
    if path.resolve() != top.resolve() / path.relative_to(top):
        return "behind a link"
    return None


def _unlike(archive: Listing, thing: Thing, sweeps: Iterable[Sweep]) -> str | None:
    """Why an archive does not stand for what is here: every file's hash is compared."""
    if thing.what == RUNS:
        unit = next(place_of(one) for one in sweeps if one.path == thing.path)
    else:
        unit = f"outputs/artifacts/{thing.name}"
    listed = archive.within(unit)
    if not listed:
        return "not in the archive"
    files, _ = holdings.files_below(thing.path)
    for name, path in files.items():
        if name not in listed or path.stat().st_size != listed[name].bytes or sha256_file(path) != listed[name].sha256:
            return f"{name} is not as in the archive"
    return None


def _keep_what_others_stand_on(things: Sequence[Thing]) -> None:
    """Of what is not regenerable nothing goes while something that was made from it, or passed its gate, stays."""
    changed = True
    while changed:
        changed = False
        stay = {thing.name for thing in things if thing.stays is not None}
        for thing in things:
            first = next((name for name in thing.under if name in stay), None)
            if first is not None and thing.stays is None and thing.policy != "regenerable":
                thing.stays, changed = f"{first} stands on it", True
