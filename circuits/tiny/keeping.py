"""How a training of an embedded model is kept and taken up, and saved without a progress bar of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.utils import logging as hf_logging


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
