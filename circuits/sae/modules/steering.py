"""A penalty that steers itself to a wanted L0.

With e = log(L0 / target), of a moving average of the batches' L0, the penalty of the next step is

    λ = λ₀ · exp(GAIN · e + (GAIN / T) Σ e)          T = a share of the training's steps, |e| ≤ LARGEST

a proportional-integral controller on log λ, since L0 answers to ratios of λ. The sum finds the λ that holds the target, whatever
the model, layer and width; the first term damps it, and keeps it from running away where L0 falls by itself.
All of it is tensors on the device: a step waits for nothing, and a checkpoint has the whole of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuits.sae.spec import TrainSpec

GAIN = 1.0
SHARE = 0.03
"""T as a share of the training's steps."""
MEMORY = 0.1
"""Weight of a batch in the moving average of log L0."""
LARGEST = 2.0


def begin() -> dict[str, Tensor]:
    """The state of a controller before the first step."""
    return {"steer.error": torch.zeros(()), "steer.sum": torch.zeros(())}


def factor(state: dict[str, Tensor]) -> Tensor:
    """λ / λ₀ of the next step."""
    return torch.exp(GAIN * state["steer.error"] + state["steer.sum"])


def follow(state: dict[str, Tensor], spec: TrainSpec, active: Tensor, step: int, risen: bool) -> None:
    """After a step with `active` features in its batch, summed over its rows. While the penalty rises it is only ever lowered."""
    now = (active.clamp(min=1.0) / (spec.batch_size * (spec.target_l0 or 1.0))).log().clamp(-LARGEST, LARGEST)
    error = state["steer.error"]
    error.add_(now - error, alpha=MEMORY if step else 1.0)  # the average begins with the first batch
    state["steer.sum"].add_(error if risen else error.clamp(max=0.0), alpha=GAIN / max(1.0, SHARE * spec.steps))
