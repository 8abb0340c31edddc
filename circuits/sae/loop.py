"""The loop that trains SAEs of one or several layers on one stream of activations, resumable bit by bit.

Each layer has its own trainer, generators and checkpoints; what they share is the stream. A run that was cut between the
checkpoints of two layers is continued at the earlier one, and the layer that was ahead waits until the stream has come to it. So
a layer ends up the same whether it was trained alone or in a set, in one go or in pieces. With early stopping each layer stops by
its own validations, and the stream goes on for the others.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from circuits.data.stream import ActivationStream, Batch, Position
from circuits.errors import NonFinite, UserError
from circuits.sae.spec import TrainSpec
from circuits.sae.training import Trainer

FIRST_ROWS = 4096  # by which an SAE's input normalisation is set


@dataclass(frozen=True)
class Hooks:
    """What the caller wants to hear and decide.

    Attributes:
        log: (layer, step, metrics) every `log_every` steps.
        save: (layer, step, tensors, meta) to write a checkpoint.
        stopping: whether to stop at the next safe point; everything is saved first.
        log_every: steps.
        save_every: steps between checkpoints; None: only by time.
        save_minutes: minutes between checkpoints; None: only by steps.
    """

    log: Callable[[int, int, dict[str, float]], None]
    save: Callable[[int, int, dict[str, torch.Tensor], dict[str, Any]], None]
    stopping: Callable[[], bool]
    log_every: int = 20
    save_every: int | None = None
    save_minutes: float | None = None


def train(
    stream: ActivationStream,
    specs: Mapping[int, TrainSpec],
    saved: Mapping[int, tuple[dict[str, torch.Tensor], dict[str, Any]]],
    hooks: Hooks,
    steps: int,
    validation: Mapping[int, torch.Tensor] | None = None,
) -> dict[int, Trainer] | None:
    """Train every layer of `specs` up to `steps`; None when it was stopped (and saved) before that.

    Args:
        stream: the activations of at least these layers.
        specs: by layer.
        saved: checkpoints to continue from, by layer; a layer without one starts anew.
        hooks: see :class:`Hooks`.
        steps: where to stop; the schedules are by ``spec.steps``.
        validation: rows by layer for early stopping (:func:`validation_rows`), where the specs have a patience.

    Raises:
        NonFinite: a loss is not a number; the message names the last good checkpoint.
    """
    device, validation = stream.lm.device, validation or {}
    trainers = {layer: Trainer.resume(specs[layer], *saved[layer], device=device) for layer in specs if layer in saved}
    good = {layer: trainer.step for layer, trainer in trainers.items()}
    start = _start(specs, saved, trainers)
    if start is None or start.step >= steps:
        return _done(trainers)
    batches: Iterator[Batch] = stream.batches(start)
    if len(trainers) < len(specs):
        batches = _begin(batches, specs, trainers, device)
    clock = time.monotonic()
    for batch in batches:
        # A layer that is ahead waits for the others; what it logged and saved at these steps it did before.
        moved = {
            layer: trainer
            for layer, trainer in trainers.items()
            if trainer.step == batch.position.step and not trainer.finished
        }
        for layer, trainer in moved.items():
            trainer.train_step(batch.rows[layer])
        done = batch.position.step + 1
        stopped = {layer: t for layer, t in moved.items() if _validated(t, validation.get(layer), done, steps)}
        if done % hooks.log_every == 0 or done == steps or stopped:
            _log(moved if done % hooks.log_every == 0 or done == steps else stopped, done, good, hooks)
        due = bool(hooks.save_every) and done % (hooks.save_every or 1) == 0
        due = due or (hooks.save_minutes is not None and time.monotonic() - clock >= hooks.save_minutes * 60)
        stopping = done < steps and hooks.stopping()
        if (due and done < steps) or stopping:
            _save(moved, done, batch.following, good, hooks)
            clock = time.monotonic()
        elif stopped and done < steps:
            _save(stopped, done, batch.following, good, hooks)
        if stopping:
            return None
        if done == steps or all(trainer.finished for trainer in trainers.values()):
            break
    return _done(trainers)


def validation_rows(stream: ActivationStream, skip: int, n_sequences: int) -> dict[int, torch.Tensor]:
    """Rows by layer of the `n_sequences` held-out sequences after the first `skip`, which the final measurement uses.

    Raises:
        UserError: the corpus does not hold out so many.
    """
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in stream.layers}
    seen = 0
    for chunk in stream.heldout(skip + n_sequences):
        later = torch.arange(seen, seen + len(chunk.tokens), device=chunk.keep.device) >= skip
        seen += len(chunk.tokens)
        for layer, values in chunk.sites.items():
            found[layer].append(values[chunk.keep & later[:, None]])
    if seen < skip + n_sequences:
        raise UserError(
            f"sae.patience: {skip + n_sequences} held-out sequences are needed (sae.heldout_sequences={skip} and "
            f"sae.validation_sequences={n_sequences}), the corpus holds out {seen}; raise data.heldout or lower one of them"
        )
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def _validated(trainer: Trainer, rows: torch.Tensor | None, done: int, steps: int) -> bool:
    """Validate where it is due; whether the trainer stops now."""
    if trainer.best is None or rows is None or not (done % trainer.spec.validate_every == 0 or done == steps):
        return False
    return trainer.validate(rows)


def _done(trainers: dict[int, Trainer]) -> dict[int, Trainer]:
    for trainer in trainers.values():
        trainer.take_best()
    return trainers


def _start(
    specs: Mapping[int, TrainSpec], saved: Mapping[int, tuple[Any, dict[str, Any]]], trainers: Mapping[int, Trainer]
) -> Position | None:
    """The earliest place that any layer has to continue from; None when all have stopped early."""
    if any(layer not in saved for layer in specs):
        return Position(0, 0, 0)
    going = [layer for layer in specs if not trainers[layer].finished]
    positions = (Position(**saved[layer][1]["position"]) for layer in going)
    return min(positions, key=lambda position: position.step, default=None)


def _begin(
    batches: Iterator[Batch], specs: Mapping[int, TrainSpec], trainers: dict[int, Trainer], device: torch.device
) -> Iterator[Batch]:
    """Make the trainers that start anew from the stream's first rows; the stream is handed back whole."""
    batch_size = next(iter(specs.values())).batch_size
    first = list(itertools.islice(batches, math.ceil(FIRST_ROWS / batch_size)))
    for layer, spec in specs.items():
        if layer not in trainers:
            trainers[layer] = Trainer(spec, device, torch.cat([batch.rows[layer] for batch in first]))
    return itertools.chain(first, batches)


def _log(trainers: Mapping[int, Trainer], done: int, good: Mapping[int, int], hooks: Hooks) -> None:
    for layer, trainer in trainers.items():
        hooks.log(layer, done, _checked(trainer, layer, good))


def _checked(trainer: Trainer, layer: int, good: Mapping[int, int]) -> dict[str, float]:
    try:
        return trainer.metrics()
    except NonFinite as e:
        last = f"step {good[layer]}" if layer in good else "none yet"
        raise NonFinite(f"{e} (last good checkpoint: {last})") from e


def _save(trainers: Mapping[int, Trainer], done: int, position: Position, good: dict[int, int], hooks: Hooks) -> None:
    """A checkpoint of each of these layers. One whose loss is not a number is never saved."""
    for layer, trainer in trainers.items():
        if "loss" in trainer.sums and not math.isfinite(float(trainer.sums["loss"])):
            _checked(trainer, layer, good)
        tensors, meta = trainer.state()
        place = {"step": position.step, "block": position.block, "offset": position.offset}
        hooks.save(layer, done, tensors, {**meta, "position": place})
        good[layer] = done
