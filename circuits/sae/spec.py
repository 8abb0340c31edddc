"""The settings of one SAE's training as plain values, and the two schedules that follow from them. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from circuits.errors import UserError


@dataclass(frozen=True)
class TrainSpec:
    """Everything that decides what comes out of training, except the rows themselves."""

    architecture: str
    d_in: int
    d_sae: int
    lr: float
    batch_size: int
    """Rows of one step."""
    steps: int
    k: int | None = None
    """TopK: features kept for each row."""
    l1: float | None = None
    """ReLU: coefficient of the L1 penalty, for rows scaled to ‖x − mean‖² = 1 on average."""
    l1_warmup: int = 0
    """ReLU: steps over which λ rises from 0."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    decay: float = 0.0
    """Fraction of the steps, at the end, over which the learning rate falls linearly to 0."""
    clip: float = 1.0
    """Largest global norm of the gradient."""
    dead_after: int = 25_600
    """A feature that was not active on this many rows in a row is dead."""
    aux: float = 1 / 32
    """TopK: coefficient of the auxiliary loss on dead features; 0 turns it off."""
    resample_every: int = 250
    """ReLU: steps between resamplings of dead features; 0 turns it off."""
    seed: int = 0
    layer: int = 0
    """Enters the derivation of the generators, and the messages."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Options of an architecture that has more than the above."""

    def problems(self) -> list[str]:
        """What is wrong with the values that every architecture has, one line each."""
        positive = ("d_in", "d_sae", "lr", "batch_size", "steps", "clip", "dead_after")
        wrong = [f"{n} = {getattr(self, n)} must be above 0" for n in positive if not getattr(self, n) > 0]
        not_negative = ("warmup", "l1_warmup", "aux", "resample_every")
        wrong += [f"{n} = {getattr(self, n)} must not be negative" for n in not_negative if not getattr(self, n) >= 0]
        if not 0 <= self.decay <= 1:
            wrong.append(f"decay = {self.decay} is a fraction of the steps, between 0 and 1")
        return wrong

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, …: linear warm-up, constant, linear decay."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        tail = math.floor(self.decay * self.steps)
        fall = min(1.0, (self.steps - step) / tail) if tail else 1.0
        return self.lr * rise * max(0.0, fall)

    def resamples_at(self, done: int) -> bool:
        """Whether dead features are resampled after `done` steps: never in the decay, where they could not recover."""
        if not self.resample_every or done % self.resample_every:
            return False
        return done + self.resample_every <= self.steps - math.floor(self.decay * self.steps)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "extra": dict(self.extra)}

    def require_equal(self, saved: Mapping[str, Any]) -> None:
        """Refuse to continue a training that had other settings; a field it did not know had its default."""
        defaults = {f.name: f.default for f in fields(self) if f.name != "extra"} | {"extra": {}}
        mine = self.as_dict()
        for name, value in mine.items():
            before = saved.get(name, defaults[name])
            if before != value:
                raise UserError(
                    f"the checkpoint was made with {name} = {before}, now {name} = {value}: "
                    f"continue with {name} = {before}, or start anew without the checkpoint"
                )
