"""Archives: a sweep's directory and the artifacts that its elements made or stand on, in one tar with a hash of every file.

What is written is read back before the archive gets its name. Artifacts of kinds that are made again by a command (activations,
tokenised text, the embedded model) stay out unless they are named.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from circuits.errors import UserError, suggest
from circuits.files import fsync_dir, sha256_file, write_atomic
from circuits.launch import states
from circuits.launch.keeping import holdings, tar
from circuits.launch.keeping.holdings import Holding
from circuits.launch.sweep import Sweep
from circuits.prose import put
from circuits.run.status import now
from circuits.space import space
from circuits.state import counts, state_of
from circuits.store import registry
from circuits.words import size

HEADERS = 2048  # bytes of the tar for each file, beside its content


@dataclass(frozen=True)
class Chosen:
    """What goes into an archive, and what stays out."""

    files: Mapping[str, Path]  # by their names in the archive
    expected: Mapping[str, str]  # SHA-256 that artifacts' manifests state
    taken: Sequence[Holding]
    left: Sequence[Holding]
    absent: Sequence[str]  # that the sweep's elements made, and that are not in the store
    links: int

    @property
    def bytes(self) -> int:
        """Of the files, and of the tar around them."""
        return sum(path.stat().st_size + HEADERS for path in self.files.values())


@dataclass(frozen=True)
class Made:
    """A finished archive."""

    path: Path
    bytes: int
    sha256: str
    files: int


def refuse_live(sweep: Sweep, what: str) -> None:
    """Look whether anything of a sweep runs or waits.

    Raises:
        UserError: it does.
    """
    states.look_twice([sweep], put)
    found = counts(state for facts in states.facts_of(sweep).values() if (state := state_of(facts)).live)
    if found:
        told = ", ".join(f"{count} {state}" for state, count in found.items())
        raise UserError(
            f"of={sweep.id}: {told}; {what} what has ended (python launch.py task=status of={sweep.id} says when)"
        )


def choose(sweep: Sweep, store: Path, kinds: Sequence[str]) -> Chosen:
    """The files of a sweep, and of the artifacts of these kinds (none named: all but regenerable ones) that it stands on.

    Raises:
        UserError: no such kind.
    """
    if unknown := [name for name in kinds if name not in registry.kinds()]:
        raise UserError(f"archive.kinds: {unknown[0]}: no such kind" + suggest(unknown[0], registry.kinds(), "kinds"))
    known = holdings.every(store)
    refs = holdings.closure(holdings.made_by(sweep) | holdings.stands_on(sweep, store), known)
    there = sorted((known[ref] for ref in refs if ref in known), key=lambda one: one.id)
    taken = [one for one in there if (one.kind in kinds if kinds else policy(one.kind) != "regenerable")]
    files, links = holdings.files_below(sweep.path)
    named = {f"{place_of(sweep)}/{name}": path for name, path in files.items() if not _passing(name)}
    expected: dict[str, str] = {}
    for one in taken:
        inside, others = holdings.files_below(one.path)
        links += others
        named |= {f"outputs/artifacts/{one.id}/{name}": path for name, path in inside.items()}
        expected |= {
            f"outputs/artifacts/{one.id}/{name}": facts["sha256"] for name, facts in one.manifest["files"].items()
        }
    absent = sorted(
        {
            artifact
            for item, facts in _facts(sweep)
            if state_of(facts).measured
            for artifact in item["artifacts"].values()
            if holdings.ref_of(artifact) not in known
        }
    )
    left = [one for one in there if one not in taken]
    return Chosen(named, expected, taken, left, absent, links)


def policy(kind: str) -> str:
    """The policy of a kind; what no kind of this program is called is kept."""
    return registry.kinds()[kind].keep if kind in registry.kinds() else "keep"


def place_of(sweep: Sweep) -> str:
    """Where a sweep's directory stands in an archive."""
    top = "outputs/runs" if sweep.path.parents[1].name == "runs" else "multirun"
    return f"{top}/{sweep.path.parent.name}/{sweep.path.name}"


def _passing(name: str) -> bool:
    """Whether a file is one that is being written, or holds a place."""
    return name.endswith((".tmp", ".lease", ".claim", ".break"))


def _facts(sweep: Sweep) -> Iterator[tuple[Mapping[str, Mapping[str, str]], Mapping[str, object]]]:
    known = states.facts_of(sweep)
    return ((item, known[item["index"]]) for item in sweep.record["elements"])


def target_of(given: str, sweep: Sweep) -> Path:
    """``DIR/sae-3f2a.tar``, or the file that was named.

    Raises:
        UserError: it is there, or would lie in what is archived.
    """
    place = Path(given).expanduser()
    target = place if place.suffix == ".tar" else place / f"{sweep.id}.tar"
    if os.path.lexists(target):
        raise UserError(f"archive.path={target}: it is there; choose another place, or move it away")
    if target.absolute().resolve().is_relative_to(sweep.path.resolve()):
        raise UserError(f"archive.path={target}: inside the sweep that is archived; choose another place")
    return target


def make(sweep: Sweep, chosen: Chosen, target: Path) -> Made:
    """Write the archive, read it back, and put it in its place.

    Raises:
        UserError: no room, no permission, or an artifact is not what its manifest says.
    """
    existing = next(parent for parent in target.absolute().parents if parent.is_dir())
    needed, there = chosen.bytes, space(existing)
    if needed > there.bytes:
        raise UserError(
            f"archive.path={target}: about {size(needed)} are needed and there is {there}; choose another place"
        )
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        written = tar.write(beside, chosen.files.items(), about(sweep, chosen))
        for name in _altered(chosen.expected, written):
            raise UserError(
                f"{name.removeprefix('outputs/artifacts/')}: its content is not what was written; nothing was archived; "
                "python launch.py task=status status.verify=true names all that is damaged"
            )
        if tar.read(beside).files != written:
            raise tar.Unfit("what was read back is not what was written")
        made = Made(target, beside.stat().st_size, sha256_file(beside), len(written))
        _named(beside, target)
        write_atomic(target.with_name(f"{target.name}.sha256"), f"{made.sha256}  {target.name}\n".encode())
        fsync_dir(target.parent)
        return made
    except tar.Unfit as e:
        raise UserError(
            f"archive.path={target}: {e}; the disk does not keep what is written; nothing was archived"
        ) from e
    except FileExistsError as e:
        raise UserError(f"archive.path={target}: it is there; choose another place, or move it away") from e
    except OSError as e:
        raise UserError(
            f"archive.path={target}: {e.strerror or e} ({e.filename or target}); nothing was archived"
        ) from e
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def _named(beside: Path, target: Path) -> None:
    """Give a finished file its name, and replace nothing."""
    try:
        os.link(beside, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        beside.rename(target)


def about(sweep: Sweep, chosen: Chosen) -> dict[str, object]:
    """What an archive says of itself."""
    return {
        "sweep": sweep.id,
        "task": sweep.record["task"],
        "command": sweep.record["command"],
        "archived": now(),
        "artifacts": [one.id for one in chosen.taken],
        "left_out": [one.id for one in chosen.left],
    }


def _altered(expected: Mapping[str, str], written: Mapping[str, tar.Facts]) -> list[str]:
    return [name for name, digest in expected.items() if name not in written or written[name].sha256 != digest]


def by_kind(found: Iterable[Holding]) -> list[tuple[str, int, int]]:
    """How many artifacts there are of each kind, and their bytes."""
    listed = list(found)
    count = Counter(one.kind for one in listed)
    return [(kind, count[kind], sum(one.bytes for one in listed if one.kind == kind)) for kind in sorted(count)]
