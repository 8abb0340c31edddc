"""What of a store is in use: what live runs make, are made from and hold; and which artifacts stand on which. No torch."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from circuits.errors import CircuitsError, UserError
from circuits.launch import states
from circuits.launch.keeping import holdings
from circuits.launch.keeping.holdings import Holding, Ref
from circuits.launch.sweep import Sweep
from circuits.prose import put
from circuits.state import State, state_of
from circuits.store.keys import HASH_CHARACTERS
from circuits.store.leases import Note, elsewhere, settle

NOTES = (".lease", ".claim")
_HASH = re.compile(rf"-([0-9a-f]{{{HASH_CHARACTERS}}})(?:\.[\w-]+)?\.(?:lease|claim|partial)$")


@dataclass
class Use:
    """What must not be touched now.

    Attributes:
        held: what live runs make or stand on, with whose it is.
        live: the state of something live in each sweep that has it.
        stranger: a run that works in this store and whose record is not here: nobody can tell what it stands on.
    """

    held: dict[Ref, str] = field(default_factory=dict)
    live: dict[str, State] = field(default_factory=dict)
    stranger: str | None = None


def of(store: Path, sweeps: Sequence[Sweep], known: Mapping[Ref, Holding]) -> Use:
    """What is in use of `store`, by the records of `sweeps` and by the leases and claims in it.

    Raises:
        UserError: what a live sweep stands on cannot be told.
    """
    use = Use()
    states.look_twice(sweeps, put)
    for sweep in sweeps:
        found = [state for facts in states.facts_of(sweep).values() if (state := state_of(facts)).live]
        if not found:
            continue
        use.live[sweep.id] = found[0]
        try:
            asked = holdings.asked_by(sweep, store)
        except (CircuitsError, OSError, ValueError) as e:
            told = str(e).splitlines()[0]
            raise UserError(f"{sweep.id} is at work, and what it stands on cannot be told ({told}); wait for it") from e
        for ref in holdings.closure(asked | holdings.made_by(sweep), known):
            use.held.setdefault(ref, sweep.id)
    for note in live_notes(store):
        facts = note.read() or {}
        who = str(facts.get("by") or facts.get("sweep") or f"pid {facts.get('pid')} on {facts.get('host')}")
        if (ref := artifact_of(note.path)) not in use.held:
            use.held[ref] = use.stranger = who
    return use


def notes(store: Path) -> list[Note]:
    """All leases and claims of a store."""
    return [Note(path) for suffix in NOTES for path in sorted(store.glob(f"[!.]*/[!.]*{suffix}"))]


def live_notes(store: Path) -> list[Note]:
    """Those whose owner lives; looked at until that is known."""
    found = notes(store)

    def tell(note: Note, facts: Mapping[str, object], alive: bool | None) -> None:
        if alive is None:
            put(f"{note.path.name}: waiting for a sign of life from pid {facts.get('pid')} on {facts.get('host')}")

    settle(found, tell, lambda: None)
    return [note for note in found if holds(note)]


def holds(note: Note) -> bool:
    """Whether its owner lives, or may: of a job in a queue that cannot be asked from here nobody can say that it is gone."""
    facts = note.read()
    return facts is not None and (("job" in facts and elsewhere(facts)) or note.live() is not None)


def artifact_of(note: Path) -> Ref:
    """Whose lease, claim or unfinished work it is: ``tiny-L0-9c41d2a81f3e.shard-1-of-4.lease`` is of ``9c41d2a81f3e``."""
    found = _HASH.search(note.name)
    return note.parent.name, found[1] if found else note.name


def dependents(known: Iterable[Holding]) -> dict[Ref, list[Holding]]:
    """What was made from each artifact."""
    found: dict[Ref, list[Holding]] = defaultdict(list)
    for one in known:
        for ref in one.inputs:
            found[ref].append(one)
    return found
