"""A long row of steps of unlike size and shape, each kept by its name: what is there is not done again.

Where a pass goes over one kind of batch, a :class:`Keeper` and its accumulators are enough. A study that writes captions, reads
preferences under a thousand edits and scores what was written has many passes, each of them short::

    said = journal.step("english/said/0", lambda: captions_of(batch))   # a tensor, made at most once over all runs of the study
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from circuits.data.keeper import Keeper, State


class Journal:
    """Results by name, kept by one keeper; without one, for as long as this lives.

    Args:
        keeper: where they are kept, and whether to stop.
        facts: JSON-able: what the results are a function of, beside what is in the study's key.
        total: about how many steps there are, to show how far they are.
    """

    def __init__(
        self, keeper: Keeper[str] | None = None, facts: Mapping[str, Any] | None = None, total: int = 0
    ) -> None:
        self._keeper, self._total = keeper or Keeper(), total
        self._found: dict[str, Tensor] = {}
        for tensors, _ in self._keeper.begin({"effects": dict(facts or {})}).values():
            self._found = dict(tensors)

    def step(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, or gave; a safe point comes after each that is made.

        Raises:
            BaseException: what ends a run that was asked to stop.
        """
        if name not in self._found:
            self._found[name] = make().cpu()
            self._keeper.step(len(self._found), max(self._total, len(self._found)), self._state)
        return self._found[name]

    def end(self) -> None:
        """All steps are done: what follows may still be cut."""
        self._keeper.end(len(self._found), self._state)

    def _state(self, _: str) -> State:
        return self._found, {}
