"""The loop that trains an embedded model, how it is kept and taken up, and saved without a progress bar of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.utils import logging as hf_logging

from circuits.data.keeper import Keeper, State

Progress = Callable[[int, int, dict[str, float]], None]
"""Told (steps done, steps in all, numbers of the step)."""


def adam_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and moments, by the parameter's name; :func:`take_up` takes them."""
    tensors: dict[str, Tensor] = {f"weights.{name}": p for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        tensors |= {f"{what}.{name}": value for what, value in optimizer.state[p].items()}
    return tensors


@torch.no_grad()
def take_up(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put a saved :func:`adam_state` into place, bit by bit."""
    for name, p in model.named_parameters():
        p.copy_(tensors[f"weights.{name}"])
        kept = {what: tensors[f"{what}.{name}"] for what in ("step", "exp_avg", "exp_avg_sq")}
        optimizer.state[p] = {what: value.clone() for what, value in kept.items()}


@contextmanager
def quiet_saving() -> Iterator[None]:
    """Keep transformers from drawing a progress bar while a single small file is written."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


class Training(Protocol):
    """A training that can be taken up at any step."""

    model: Any
    taken: int

    @property
    def end(self) -> int:
        """Steps in all, as it stands now."""

    def step(self) -> dict[str, float]:
        """One step; its numbers."""

    def state(self) -> State:
        """What :meth:`load` takes."""

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`, bit by bit."""


def run(training: Training, facts: Mapping[str, Any], progress: Progress | None, keeper: Keeper[str]) -> None:
    """Train to the end, kept as ``training`` where it was begun under equal `facts`."""
    for found in keeper.begin({"training": facts}).values():
        training.load(*found)
    training.model.train()
    while training.taken < training.end:
        metrics = training.step()
        if progress is not None:
            progress(training.taken, training.end, metrics)
        keeper.step(training.taken, training.end, lambda _: training.state())
    keeper.end(training.taken, lambda _: training.state())
    training.model.eval()
