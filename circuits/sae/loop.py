"""The loop that trains several SAEs on one stream of activations, resumable bit by bit.

What is trained together is named by the caller: layers of one run, or (element, layer) of a pack. Each has its own trainer,
generators and checkpoints; what they share is the stream. A run that was cut between the checkpoints of two SAEs is continued at
the earlier one, and the SAE that was ahead waits until the stream has come to it. So each ends up the same whether it was trained
alone or beside others, in one go or in pieces. With early stopping, or fewer steps, an SAE ends before the others do.

On a CPU the SAEs take turns of several batches, so that the weights of each stay in the cache for a while. A turn ends wherever
something is to be logged, measured or saved.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, TypeVar

import torch

from circuits.activations.stream import Batch, Position, Stream
from circuits.errors import NonFinite, UserError
from circuits.sae.spec import TrainSpec
from circuits.sae.training import Trainer
from circuits.transfer import sent

FIRST_ROWS = 4096  # by which an SAE's input normalisation is set
TURN_BATCHES, TURN_SECONDS = 8, 2.0  # at most, of all SAEs together: a run that is told to stop does so after a turn

Name = TypeVar("Name", bound=Hashable)
"""What the caller calls one SAE."""


@dataclass(frozen=True)
class Hooks(Generic[Name]):
    """What the caller wants to hear and decide.

    Attributes:
        log: (name, step, metrics) every `log_every` steps.
        save: (name, step, tensors, meta) to write a checkpoint; the tensors are the caller's own.
        stopping: whether to stop at the next safe point, also while the stream fills a block; everything is saved first.
        failed: told of an SAE whose loss is no number, the others go on; None: the first one ends the training of all.
        log_every: steps.
        save_every: steps between checkpoints; None: only by time.
        save_minutes: minutes between checkpoints; None: only by steps.
    """

    log: Callable[[Name, int, dict[str, float]], None]
    save: Callable[[Name, int, dict[str, torch.Tensor], dict[str, Any]], None]
    stopping: Callable[[], bool]
    failed: Callable[[Name, NonFinite], None] | None = None
    log_every: int = 20
    save_every: int | None = None
    save_minutes: float | None = None


def train(
    stream: Stream,
    specs: Mapping[Name, TrainSpec],
    resumed: Mapping[Name, tuple[Trainer, Position]],
    hooks: Hooks[Name],
    until: Mapping[Name, int],
    validation: Mapping[int, torch.Tensor] | None = None,
) -> dict[Name, Trainer] | None:
    """Train every SAE of `specs`; None when it was stopped (and saved) before that.

    Args:
        stream: the activations of at least the layers of the specs.
        specs: by name; ``spec.layer`` says whose rows it is trained on.
        resumed: those that continue, and where in the stream; the others start anew.
        hooks: see :class:`Hooks`.
        until: steps after which each stops; the schedules are by ``spec.steps``.
        validation: rows by layer for early stopping (:func:`validation_rows`), where the specs have a patience.

    Returns:
        The trainers at their end (:meth:`Trainer.finish`): to be exported, not to be trained further.

    Raises:
        NonFinite: a loss is not a number, and `hooks` do not take such; the message names the last good checkpoint.
    """
    return _Training(stream, specs, resumed, hooks, until, validation or {}).run()


class _Training(Generic[Name]):
    """One call of :func:`train`."""

    def __init__(
        self,
        stream: Stream,
        specs: Mapping[Name, TrainSpec],
        resumed: Mapping[Name, tuple[Trainer, Position]],
        hooks: Hooks[Name],
        until: Mapping[Name, int],
        validation: Mapping[int, torch.Tensor],
    ) -> None:
        self.stream, self.specs, self.hooks = stream, specs, hooks
        self.until, self.validation = until, validation
        self.trainers = {name: trainer for name, (trainer, _) in resumed.items()}
        self.places = {name: place for name, (_, place) in resumed.items()}
        self.good = {name: trainer.step for name, trainer in self.trainers.items()}
        """By name the step of its newest checkpoint."""
        self.following = Position(0, 0, 0)  # where the stream stands after the latest batch

    def run(self) -> dict[Name, Trainer] | None:
        """Train to the end."""
        start = self._start()
        if start is not None and not self._through(start):
            return None
        for trainer in self.trainers.values():
            trainer.finish()
        return self.trainers

    def _going(self, name: Name) -> bool:
        trainer = self.trainers[name]
        return trainer.step < self.until[name] and not trainer.finished

    def _start(self) -> Position | None:
        """The earliest place that any SAE has to continue from; None when all have come to their end."""
        if any(name not in self.places for name in self.specs):
            return Position(0, 0, 0)
        going = (self.places[name] for name in self.specs if self._going(name))
        return min(going, key=lambda position: position.step, default=None)

    def _through(self, start: Position) -> bool:
        """Go through the stream from `start`; whether the end was reached. Where it was not, all is saved."""
        batches = self.stream.batches(start, self.hooks.stopping)
        if len(self.trainers) < len(self.specs):
            whole = self._begin(batches)
            if whole is None:  # asked to stop before the first step
                return False
            batches = whole
        hooks, clock = self.hooks, time.monotonic()
        for turn in self._turns(batches):
            done = turn[-1].position.step + 1
            moved = [name for name in self.trainers if self._take(name, turn)]
            self._each(moved, self._validate, done)
            moved = [name for name in moved if name in self.trainers]
            ended = [name for name in moved if not self._going(name)]
            self._each(moved if done % hooks.log_every == 0 else ended, self._log, done)
            self.following = turn[-1].following
            others = any(map(self._going, self.trainers))
            due = bool(hooks.save_every) and done % (hooks.save_every or 1) == 0
            due = due or (hooks.save_minutes is not None and time.monotonic() - clock >= hooks.save_minutes * 60)
            if others and due:
                self._each(moved, self._save, done)
                clock = time.monotonic()
            else:  # what follows the training (others' steps, the measurement) may be cut, and goes on from here
                self._each(ended, self._save, done)
            if not others:
                return True
            if hooks.stopping():
                break
        self._each(
            [name for name, trainer in self.trainers.items() if trainer.step > self.good.get(name, 0)], self._save, 0
        )
        return False  # the stream is endless: it ends when a stop is asked for

    def _turns(self, batches: Iterator[Batch]) -> Iterator[list[Batch]]:
        """Batches that one SAE takes in a row before the next one does: of one block, whose rows are then still there."""
        specs, hooks = self.specs.values(), self.hooks
        periods = {hooks.log_every, *(spec.validate_every for spec in specs if spec.patience is not None)}
        periods |= {hooks.save_every} if hooks.save_every else set()
        ends, on_cpu, turn, most = set(self.until.values()), self.stream.lm.device.type == "cpu", [], 1
        for batch in batches:
            turn.append(batch)
            done, last = batch.following.step, batch.following.block != batch.position.block
            if len(turn) >= most or last or done in ends or any(done % period == 0 for period in periods):
                began = time.monotonic()
                yield turn
                if on_cpu:
                    each = (time.monotonic() - began) / len(turn)
                    most = min(TURN_BATCHES, max(1, int(TURN_SECONDS / max(each, 1e-9))))
                turn = []

    def _take(self, name: Name, turn: list[Batch]) -> bool:
        """Train one SAE on a turn's batches; whether there was one for it. One that is ahead waits for the others: what it logged
        and saved at these steps it did before."""
        trainer, layer, moved = self.trainers[name], self.specs[name].layer, False
        for batch in turn:
            if trainer.step == batch.position.step and self._going(name):
                trainer.train_step(batch.rows[layer])
                moved = True
        return moved

    def _begin(self, batches: Iterator[Batch]) -> Iterator[Batch] | None:
        """Make the trainers that start anew from the stream's first rows; the stream is handed back whole.

        None when it ended before that: a stop was asked for.
        """
        count = math.ceil(FIRST_ROWS / next(iter(self.specs.values())).batch_size)
        # A batch may be a view that the stream fills anew with its next block, so that what is kept is copied.
        found = itertools.islice(batches, count)
        first = [replace(batch, rows={i: rows.clone() for i, rows in batch.rows.items()}) for batch in found]
        if len(first) < count:
            return None
        rows: dict[int, torch.Tensor] = {}
        for name, spec in self.specs.items():
            if name not in self.trainers:
                if spec.layer not in rows:
                    rows[spec.layer] = torch.cat([batch.rows[spec.layer] for batch in first])
                self.trainers[name] = Trainer(spec, self.stream.lm.device, rows[spec.layer])
        return itertools.chain(first, batches)

    def _each(self, names: list[Name], act: Callable[[Name, int], None], done: int) -> None:
        """`act` on each; one whose loss is no number leaves the training where the caller takes that."""
        for name in names:
            if name not in self.trainers:
                continue
            try:
                act(name, done)
            except NonFinite as e:
                last = f"step {self.good[name]}" if name in self.good else "none yet"
                failure = NonFinite(f"{e} (last good checkpoint: {last})")
                if self.hooks.failed is None:
                    raise failure from e
                del self.trainers[name]
                self.hooks.failed(name, failure)

    def _validate(self, name: Name, done: int) -> None:
        trainer, rows = self.trainers[name], self.validation.get(self.specs[name].layer)
        due = done % trainer.spec.validate_every == 0 or done == self.until[name]
        if due and trainer.best is not None and rows is not None:
            trainer.validate(rows)

    def _log(self, name: Name, done: int) -> None:
        self.hooks.log(name, done, self.trainers[name].metrics())

    def _save(self, name: Name, _: int) -> None:
        """A checkpoint. One whose loss is not a number is never saved."""
        trainer = self.trainers[name]
        done = trainer.step
        if "loss" in trainer.sums and not math.isfinite(float(trainer.sums["loss"])):
            trainer.metrics()  # raises
        tensors, meta = trainer.state()
        self.hooks.save(name, done, tensors, {**meta, "position": asdict(self.following)})
        self.good[name] = done


def validation_rows(stream: Stream, skip: int, n_sequences: int) -> dict[int, torch.Tensor]:
    """Rows by layer of the `n_sequences` held-out sequences after the first `skip`, which the final measurement uses.

    Raises:
        UserError: the corpus does not hold out so many.
    """
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in stream.layers}
    seen = 0
    for chunk in stream.heldout(skip + n_sequences):
        later = torch.arange(seen, seen + len(chunk.tokens)) >= skip
        seen += len(chunk.tokens)
        at = sent((chunk.keep & later[:, None]).flatten().nonzero().squeeze(1), stream.lm.device)
        for layer, values in chunk.sites.items():
            found[layer].append(values.flatten(0, 1).index_select(0, at))
    if seen < skip + n_sequences:
        raise UserError(
            f"sae.patience: {skip + n_sequences} held-out sequences are needed (sae.heldout_sequences={skip} and "
            f"sae.validation_sequences={n_sequences}), the corpus holds out {seen}; raise data.heldout or lower one of them"
        )
    return {layer: torch.cat(parts) for layer, parts in found.items()}
