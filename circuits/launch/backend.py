"""Who runs a plan: this machine, or a cluster. What a launcher asks of either."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from circuits.launch.plan import Element, Plan
from circuits.launch.sweep import Sweep
from circuits.store.keys import Key
from circuits.store.store import Store


class Backend(Protocol):
    """Who runs a plan's elements: this machine (:mod:`circuits.launch.local`) or Slurm (:mod:`circuits.launch.slurm.launcher`)."""

    def refuse(self, elements: Sequence[Element]) -> None:
        """Refuse what can be refused of these elements, whatever of them is there already.

        Raises:
            UserError: with all findings.
        """

    def alone(self, store: Store, say: Callable[[str], None]) -> AbstractContextManager[None]:
        """Held while a plan is made and started, where only one may be at a time."""

    def settle(self, store: Store, keys: Iterable[Key]) -> None:
        """Learn of those who hold these keys whether they live, where one look is not enough."""

    def job_of(self, holder: Mapping[str, Any]) -> str | None:
        """The job of a maker that the queue can wait for; None: the run itself waits."""

    def requests(self, elements: Sequence[Element]) -> Mapping[int, Any]:
        """What each element asks of a scheduler, by its number."""

    def packs(self, elements: Sequence[Element], store: Store) -> list[list[Element]]:
        """The elements by the process that runs them."""

    def start(self, plan: Plan, sweep: Callable[[], Sweep]) -> Callable[[], int]:
        """Start what is to run, in the directory that `sweep` makes. What is returned waits for the end and gives the exit code.

        Raises:
            UserError: it does not fit (memory, disk, pack); no directory was made.
        """
