"""The settings of one SAE's training as plain values, and the two schedules that follow from them. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from circuits.errors import UserError

K_START = 4  # with k_anneal, times k features are kept at the first step
GRADUAL = 0.6
"""Share of the steps over which sparsity comes, where nobody says otherwise: features find their directions while many are on."""
RISING = ("l1_warmup", "l0_warmup", "k_anneal")
"""What that is the default of."""
TURN = {"relu": 0.11}
"""How far a unit row may turn in a step (rate × √width), where it is not the usual 0.045: ReLU's sizes are what it shrinks."""
NORMALIZE = ("standard", "rms", "none")


def rate(architecture: str, width: int) -> float:
    """The learning rate where nobody gives one. Adam moves each of `width` numbers by about the rate, so that rows of norm 1 turn
    by rate × √width: equally far at every width."""
    return TURN.get(architecture, 0.045) / width**0.5


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
    """TopK family: features kept for each row; in a batch on average."""
    l1: float | None = None
    """ReLU, gated: coefficient of the L1 penalty, for rows scaled to ‖x − mean‖² = 1 on average."""
    l1_warmup: int = 0
    """ReLU, gated: steps over which λ rises from 0."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    decay: float = 0.0
    """Fraction of the steps, at the end, over which the learning rate falls linearly to 0."""
    clip: float = 1.0
    """Largest global norm of the gradient."""
    dead_after: int = 25_600
    """A feature that was not active on this many rows in a row is dead. (The task's default grows with the training.)"""
    aux: float = 1 / 32
    """TopK family: coefficient of the auxiliary loss on dead features; 0 turns it off."""
    resample_every: int = 250
    """ReLU, gated, JumpReLU: steps between resamplings of dead features; 0 turns it off."""
    seed: int = 0
    layer: int = 0
    """Enters the derivation of the generators, and the messages."""
    d_out: int | None = None
    """Width of another site to reconstruct (a transcoder); None: the input is reconstructed."""
    skip: bool = False
    """A transcoder's linear path beside its features (Paulo et al. 2025, arXiv:2501.18823)."""
    k_anneal: int = 0
    """TopK family: steps over which k falls linearly from `K_START` times its value."""
    threshold_rate: float = 0.01
    """BatchTopK, Matryoshka: weight of a batch in the moving average of the inference threshold."""
    threshold_warmup: int = 0
    """BatchTopK, Matryoshka: steps before the moving average begins."""
    groups: int = 1
    """Matryoshka: nested dictionaries, each twice as large as the one before."""
    l0_coefficient: float | None = None
    """JumpReLU: coefficient of the L0 penalty, for rows scaled to ‖x − mean‖² = 1 on average."""
    l0_warmup: int = 0
    """JumpReLU: steps over which the penalty rises from 0."""
    threshold: float = 0.5
    """JumpReLU: thresholds at the start, in standard deviations of a random direction."""
    target_l0: float | None = None
    """ReLU, gated, JumpReLU: the penalty steers itself to so many active features a row."""
    bandwidth: float = 0.5
    """JumpReLU: width of the kernel by which thresholds get a gradient, in the same units."""
    sparsity_decay: float = 0.0
    """ReLU, gated, JumpReLU: fraction of the steps, at the end, over which the penalty falls linearly to 0."""
    normalize: str = "standard"
    """Units of training: standard, rms or none (``circuits.sae.normalise``)."""
    accumulate: int = 1
    """Parts that a batch is processed in, for less memory."""
    patience: int | None = None
    """Stop after so many validations in a row without an improvement, and take the best weights; None: never."""
    min_delta: float = 0.0
    """What counts as an improvement: a validation loss lower by more than this share of the variance."""
    validate_every: int = 250
    """Steps between validations, where there is patience."""
    massive: float | None = None
    """Times the median norm beyond which rows are left out, where they dominate (:mod:`circuits.sae.massive`); None: never."""
    blocks: int = 1
    """Parts of a row that are normalised by themselves: a crosscoder's layers."""
    band: int | None = None
    """A cross-layer transcoder: layers that a feature writes to at most, its own the first; None: all later ones."""
    baselines: bool = False
    """Train frozen baselines beside it (``circuits.sae.baselines``)."""
    frozen: str | None = None
    """For a baseline: which one it is."""
    compile: bool = False
    """Fuse the optimiser's passes over the decoder by ``torch.compile``; equal but for rounding."""

    def problems(self) -> list[str]:
        """What is wrong with the values that every architecture has, one line each."""
        positive = ("d_in", "d_sae", "lr", "batch_size", "steps", "clip", "dead_after", "accumulate", "validate_every")
        wrong = [f"{n} = {getattr(self, n)} must be above 0" for n in positive if not getattr(self, n) > 0]
        not_negative = (
            "warmup", "l1_warmup", "l0_warmup", "aux", "resample_every", "k_anneal", "threshold", "threshold_warmup", "min_delta",
        )  # fmt: skip
        wrong += [f"{n} = {getattr(self, n)} must not be negative" for n in not_negative if not getattr(self, n) >= 0]
        for name in ("decay", "sparsity_decay"):
            if not 0 <= getattr(self, name) <= 1:
                wrong.append(f"{name} = {getattr(self, name)} is a fraction of the steps, between 0 and 1")
        if not 0 < self.threshold_rate <= 1:
            wrong.append(f"threshold_rate = {self.threshold_rate} is the weight of one batch, above 0 and at most 1")
        if self.normalize not in NORMALIZE:
            wrong.append(f"normalize = {self.normalize}; choices: {' '.join(NORMALIZE)}")
        if self.accumulate > 0 and self.batch_size % self.accumulate:
            wrong.append(f"accumulate = {self.accumulate}: batch_size = {self.batch_size} is not divisible by it")
        if self.skip and self.d_out is None:
            wrong.append("skip = True: an SAE would copy its input; a skip connection is for a transcoder, with d_out")
        if self.target_l0 is not None and not 1 <= self.target_l0 <= self.d_sae:
            wrong.append(f"target_l0 = {self.target_l0:g} must be between 1 and d_sae = {self.d_sae}")
        if self.target_l0 is not None and self.sparsity_decay:
            wrong.append(f"target_l0 = {self.target_l0:g}: a penalty that steers itself has no sparsity_decay")
        if self.patience is not None and self.patience < 1:
            wrong.append(f"patience = {self.patience}: at least 1 validation, or null for none")
        return wrong

    @property
    def width_out(self) -> int:
        """Width of what is reconstructed."""
        return self.d_in if self.d_out is None else self.d_out

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, …: linear warm-up, constant, linear decay."""
        return self.lr * self._shape(step, self.warmup, self.decay)

    def sparsity_at(self, step: int, warmup: int) -> float:
        """Factor of the sparsity penalty at a step: linear warm-up, 1, linear decay."""
        return self._shape(step, warmup, self.sparsity_decay)

    def _shape(self, step: int, warmup: int, decay: float) -> float:
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        tail = math.floor(decay * self.steps)
        fall = min(1.0, (self.steps - step) / tail) if tail else 1.0
        return rise * max(0.0, fall)

    def k_at(self, step: int) -> int:
        """k of a step: falling from `K_START` times its value over the first `k_anneal` steps."""
        k = self.k or 0
        left = max(0.0, 1 - step / self.k_anneal) if self.k_anneal else 0.0
        return min(self.d_sae, k + round((K_START - 1) * k * left))

    def resamples_at(self, done: int) -> bool:
        """Whether dead features are resampled after `done` steps: never in the decay, where they could not recover."""
        if not self.resample_every or done % self.resample_every:
            return False
        return done + self.resample_every <= self.steps - math.floor(self.decay * self.steps)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def require_equal(self, saved: Mapping[str, Any]) -> None:
        """Refuse to continue a training that had other settings, all of them named; a field it did not know had its default."""
        defaults = {f.name: f.default for f in fields(self)}
        before = {name: saved.get(name, defaults[name]) for name in defaults}
        other = {name: value for name, value in self.as_dict().items() if before[name] != value}
        if other:
            made = ", ".join(f"{name} = {before[name]}" for name in other)
            now = ", ".join(f"{name} = {value}" for name, value in other.items())
            raise UserError(
                f"the checkpoint was made with {made}, now {now}: "
                f"continue with {made}, or start anew without the checkpoint"
            )
