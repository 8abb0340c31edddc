"""Early stopping: validate now and then, keep a copy of the best weights, stop when nothing has improved for a while.

The best weights are deep copies: what is kept must not follow the training that goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from circuits.sae.modules import Weights


class Best:
    """The best weights so far by validation loss."""

    def __init__(self, patience: int, min_delta: float) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.loss: float | None = None
        self.step, self.waited = 0, 0
        self._copies: dict[str, Tensor] = {}

    @property
    def exhausted(self) -> bool:
        """Whether the patience is at its end."""
        return self.waited >= self.patience

    def see(self, loss: float, step: int, weights: Weights, state: Mapping[str, Tensor]) -> None:
        """A validation loss (a share of the variance) after `step` steps."""
        if self.loss is not None and not loss < self.loss - self.min_delta:
            self.waited += 1
            return
        self.loss, self.step, self.waited = loss, step, 0
        for name, value in {**weights, **{f"state.{name}": value for name, value in state.items()}}.items():
            if name in self._copies:
                self._copies[name].copy_(value.detach())
            else:
                self._copies[name] = value.detach().clone()

    @torch.no_grad()
    def restore(self, weights: Weights, state: Mapping[str, Tensor]) -> None:
        """Put the best weights back, where there are any; the copies go."""
        for name, value in self._copies.items():
            (state[name.removeprefix("state.")] if name.startswith("state.") else weights[name]).copy_(value)
        self._copies = {}

    def tensors(self) -> dict[str, Tensor]:
        """The copies, for a checkpoint."""
        return {f"best.{name}": value for name, value in self._copies.items()}

    def facts(self) -> dict[str, Any]:
        """The rest of the state, JSON-able."""
        return {"loss": self.loss, "step": self.step, "waited": self.waited}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], device: torch.device) -> None:
        """Take over what `tensors` and `facts` gave."""
        self.loss, self.step, self.waited = facts["loss"], int(facts["step"]), int(facts["waited"])
        found = {name: value for name, value in tensors.items() if name.startswith("best.")}
        self._copies = {name.removeprefix("best."): value.to(device) for name, value in found.items()}
