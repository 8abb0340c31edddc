"""How an element of a sweep fares. One word each, one place for what the words mean together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """An element's state, in the order in which counts are told."""

    done = "done"
    cached = "cached"  # everything that it would make was there
    gate = "gate"  # measured and kept, and a gate said no
    failed = "failed"
    killed = "killed"  # it is gone and left no word
    interrupted = "interrupted"  # asked to stop; it saved its work
    cancelled = "cancelled"  # by scancel
    never_started = "never started"  # whoever was to start it is gone
    running = "running"
    starting = "starting"  # its job runs, its code has not said so yet
    pending = "pending"  # in a scheduler's queue
    adopted = "adopted"  # another job or process is making what it would make
    waiting = "waiting"  # for its turn

    @property
    def live(self) -> bool:
        """Whether it may still change by itself."""
        return self in _LIVE

    @property
    def well(self) -> bool:
        """Whether it ended with all that it was asked for."""
        return self in _WELL

    @property
    def measured(self) -> bool:
        """Whether it ended with its artifacts kept: a gate that said no has measured."""
        return self.well or self is State.gate

    @property
    def badly(self) -> bool:
        """Whether it ended without what it was asked for, so that running it again may help."""
        return not self.live and not self.measured


_LIVE = {State.running, State.starting, State.pending, State.adopted, State.waiting}
_WELL = {State.done, State.cached}


def state_of(facts: Mapping[str, Any]) -> State:
    """The state in an element's status; one that has none yet waits.

    Raises:
        ValueError: a word that is no state (a file of another version of this program).
    """
    return State(facts.get("state", State.waiting))


def counts(states: Iterable[State]) -> dict[State, int]:
    """How many elements are in each state that occurs; the numbers add up to all of them."""
    found = list(states)
    return {state: found.count(state) for state in State if state in found}
