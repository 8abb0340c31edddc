"""What a long pass over batches has found so far, kept on disk: now and then, and before the pass ends at a stop.

A pass (SAEs are measured, examples are collected, prompts are scored) feeds batches in a fixed order to one accumulator or to
several, one for each layer. The accumulators of a cut pass may have been saved at different places: it goes on at the earliest one,
and those that are ahead wait. So it is the same in one go and in pieces::

    found = keeper.begin(facts)                       # what each accumulator had, where it was of the same facts
    for batch in batches_from(keeper.start):
        for name in keeper.behind(done):
            accumulators[name].add(batch)
        done += len(batch)
        keeper.step(done, total, lambda name: accumulators[name].state())
    keeper.end(done, state)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from circuits.data import tensorfile
from circuits.errors import Damaged

KEEP_S = 60.0
"""Seconds between two savings."""
WORTH_S = 2.0
"""Work of fewer seconds is not saved at the end of a pass, where nothing else is said: it is soon done again."""

Name = TypeVar("Name", bound=Hashable)
State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors, and JSON-able values."""


class Keeper(Generic[Name]):
    """Saves the accumulators of a pass, one file each; without files it only asks whether to stop.

    Args:
        paths: the file of each accumulator.
        stopping: whether a stop was asked for; then all is saved, and `stop` is called.
        stop: raises what ends the pass.
        tell: told (done, total) at every step.
        say: told in a line what was found or is damaged.
        cutting: a context in which a stop ends the work where it stands: for what follows the pass and is soon done again.
        every_s: seconds between two savings.
        worth_s: work of fewer seconds is not saved at the end of a pass.
    """

    def __init__(
        self,
        paths: Mapping[Name, Path] | None = None,
        *,
        stopping: Callable[[], bool] = lambda: False,
        stop: Callable[[], None] = lambda: None,
        tell: Callable[[int, int], None] = lambda done, total: None,
        say: Callable[[str], None] = lambda text: None,
        cutting: Callable[[], AbstractContextManager[None]] = nullcontext,
        every_s: float = KEEP_S,
        worth_s: float = WORTH_S,
    ) -> None:
        self.paths, self._every_s, self._worth_s = dict(paths or {}), every_s, worth_s
        self.cutting = cutting
        self._stopping, self._stop, self._tell, self._say = stopping, stop, tell, say
        self._done: dict[Name, int] = {}
        self._facts: dict[Name, dict[str, Any]] = {}
        self._saved = time.monotonic()

    def begin(self, facts: Mapping[Name, Mapping[str, Any]]) -> dict[Name, State]:
        """What each accumulator had found, where it was saved of equal `facts` (JSON-able: what its numbers are a function of)."""
        self._facts = {name: dict(mine) for name, mine in facts.items()}
        found = {name: state for name in facts if (state := self._read(name)) is not None}
        self._done = {name: found[name][1]["done"] if name in found else 0 for name in facts}
        if self.start:
            self._say(f"goes on at {self.start:,} of what was saved in {next(iter(self.paths.values())).name}")
        self._saved = time.monotonic()
        return found

    def _read(self, name: Name) -> State | None:
        path = self.paths.get(name)
        if path is None:
            return None
        try:
            tensors, meta = tensorfile.load(path)
        except FileNotFoundError:
            return None
        except Damaged as e:
            self._say(f"damaged: {e}; its part of the pass is done again")
            path.unlink(missing_ok=True)
            return None
        return (tensors, meta) if meta.get("facts") == self._facts[name] else None

    def forget(self, name: Name) -> None:
        """What was kept of `name` cannot be used: it begins anew."""
        self._done[name] = 0

    @property
    def start(self) -> int:
        """Where the pass goes on."""
        return min(self._done.values(), default=0)

    def behind(self, done: int) -> list[Name]:
        """The accumulators that have not yet seen what comes after `done`."""
        return [name for name, mine in self._done.items() if mine <= done]

    def step(self, done: int, total: int, state: Callable[[Name], State]) -> None:
        """A safe point after `done` of `total`.

        Raises:
            BaseException: what `stop` raises, once all is saved.
        """
        moved = self.behind(done)
        self._done.update(dict.fromkeys(moved, done))
        if (stopping := self._stopping()) or time.monotonic() - self._saved >= self._every_s:
            self._save(moved, state)
        self._tell(done, total)
        if stopping:
            self._stop()

    def ask(self) -> None:
        """A safe point at which nothing is new.

        Raises:
            BaseException: what `stop` raises, where a stop was asked for.
        """
        if self._stopping():
            self._stop()

    def end(self, done: int, state: Callable[[Name], State]) -> None:
        """The pass is over: what follows (publishing) may still be cut, and would begin with it again."""
        if time.monotonic() - self._saved >= self._worth_s:
            self._save(self.behind(done), state)

    def _save(self, names: list[Name], state: Callable[[Name], State]) -> None:
        for name in names:
            if name in self.paths:
                tensors, values = state(name)
                meta = {**values, "facts": self._facts[name], "done": self._done[name]}
                tensorfile.save(self.paths[name], tensors, meta)
        self._saved = time.monotonic()
