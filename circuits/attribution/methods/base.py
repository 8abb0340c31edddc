"""What a method is: a way to score every edge of a batch of rows. A new one is one file with a ``METHOD``; its name is the file's.

Every score approximates what putting the other run's value into one edge changes in the metric: positive favours the target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from circuits.attribution.anatomy import Anatomy
from circuits.attribution.pairs import Batch
from circuits.attribution.passes import Gradients, Run, gradients, run
from circuits.attribution.rules import PLAIN, Rules
from circuits.attribution.scores import Slopes, changes
from circuits.models.hooks import Edit


@dataclass
class Task:
    """One batch, and what its methods share: the run that is edited, the run whose values are put in, and what each writer changes.

    Attributes:
        anatomy: the model.
        batch: the rows.
        steps: points of a path, where a method integrates.
        by_position: keep scores by position.
    """

    anatomy: Anatomy
    batch: Batch
    steps: int = 5
    by_position: bool = False
    _runs: dict[str, Run] = field(default_factory=dict)

    @property
    def base(self) -> Run:
        """The run that is edited, without a graph."""
        if "base" not in self._runs:
            self._runs["base"] = run(self.anatomy, self.batch.base, self.batch.answers)
        return self._runs["base"]

    @property
    def other(self) -> Run:
        """The run whose values are put in."""
        if "other" not in self._runs:
            self._runs["other"] = run(self.anatomy, self.batch.other, self.batch.others)
        return self._runs["other"]

    def metrics(self) -> tuple[Tensor, Tensor]:
        """The metric of each row in both runs, which every method has made by then."""
        mine, theirs = self.base.metric, self.other.metric
        if mine is None or theirs is None:
            raise ValueError("a run of this batch has no metric")
        return mine, theirs

    def based(self, done: Run) -> Run:
        """`done` is the run that is edited: no second one is made."""
        self._runs["base"] = done
        return done

    def changes(self, base: Run | None = None, other: Run | None = None) -> Tensor:
        """What each writer changes, where it counts."""
        found = changes(self.anatomy, base or self.base, other or self.other, self.batch.at if other is None else None)
        return found if self.batch.counts is None else found * self.batch.counts[:, None, :, None]

    def with_graph(self, start: Tensor | None = None, edits: Sequence[Edit] = (), rules: Rules = PLAIN) -> Run:
        """A run with what a backward pass needs."""
        return run(self.anatomy, self.batch.base, self.batch.answers, graph=True, start=start, edits=edits, rules=rules)

    def slopes(self, delta: Tensor, frozen: bool = False, first: int = 0) -> Slopes:
        """An accumulator of gradients; `first` is the number of `delta`'s first writer."""
        return Slopes(self.anatomy, delta, frozen, self.by_position, first)

    def gradients(self, done: Run) -> Gradients:
        """One backward pass of a run with a graph."""
        return gradients(self.anatomy, done, self.batch.answers)

    def add(self, slopes: Slopes, done: Run, weight: float = 1.0) -> None:
        """The gradients of a run with a graph."""
        slopes.add(done, self.gradients(done), weight)


class Method(ABC):
    """Scores edges."""

    title: ClassVar[str]
    paper: ClassVar[str] = ""
    integrates: ClassVar[bool] = False
    """Whether it reads ``steps``."""

    @abstractmethod
    def scores(self, task: Task) -> Float[Tensor, "n writers readers"]:
        """The score of every edge of each row (``[n, pos, writers, readers]`` by position)."""


class OneBackward(Method):
    """Methods of one backward pass at the run that is edited, under their own rules."""

    rules: ClassVar[Rules] = PLAIN

    def scores(self, task: Task) -> Tensor:
        """One pass, one backward pass."""
        done = task.based(task.with_graph(rules=self.rules))
        slopes = task.slopes(task.changes(done), frozen=self.rules.norms)
        task.add(slopes, done)
        return slopes.scores()
