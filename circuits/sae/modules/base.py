"""What every sparse autoencoder has: four tensors, an encoder, a linear decoder, and the seam for its training rule.

    f  = act((x − b_dec) W_enc + b_enc)          x̂ = f W_dec + b_dec

An architecture is one file in this package. It gives an :class:`SAE` (what is saved and used), an :class:`Objective`
(how its parameters get their gradients) and joins them in a module-level ``ARCHITECTURE``; the training loop, the
checkpoints, the metrics and the formats never ask which one it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuits.sae.spec import TrainSpec

Weights = dict[str, nn.Parameter]
"""Parameters under training by name. `W_enc` is kept feature-major, [d_sae, d_in], like `W_dec`: row i is what feature
i reads, so that both gradients are sums of input rows per feature. An :class:`SAE` holds it as [d_in, d_sae]."""


@dataclass(frozen=True)
class SAEConfig:
    """The shape of an SAE, and what its activation function needs."""

    d_in: int
    d_sae: int
    k: int | None = None
    """Features kept for each row; only for TopK."""


class SAE(nn.Module, ABC):
    """A trained sparse autoencoder: activations in their own units go in, their reconstruction comes out."""

    architecture: ClassVar[str]

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_enc = nn.Parameter(torch.zeros(cfg.d_in, cfg.d_sae), requires_grad=False)
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae), requires_grad=False)
        self.W_dec = nn.Parameter(torch.zeros(cfg.d_sae, cfg.d_in), requires_grad=False)
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in), requires_grad=False)

    @abstractmethod
    def activate(self, pre: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
        """Feature activations from pre-activations."""

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Feature activations f ≥ 0 of x."""
        return self.activate((x.to(self.W_enc.dtype) - self.b_dec) @ self.W_enc + self.b_enc)

    def decode(self, f: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_in"]:
        """The reconstruction x̂ from feature activations."""
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """x̂ of x."""
        return self.decode(self.encode(x))


@dataclass
class Outcome:
    """What one training step found out besides the gradients; tensors on the device, read only when someone asks."""

    error: Float[Tensor, "batch d_in"]
    """x̂ − x in the trainer's normalised units."""
    fired: Float[Tensor, " d_sae"]
    """For each feature, on how many rows of the batch it was active."""
    parts: dict[str, Float[Tensor, ""]]
    """Terms of the loss beside the reconstruction, each already a mean over the batch."""


class Objective(ABC):
    """The training rule of one architecture. It sees rows x that the trainer has centred and scaled."""

    resamples: ClassVar[bool] = False
    """Whether `revive` does anything."""

    def __init__(self, spec: TrainSpec) -> None:
        self.spec = spec

    @staticmethod
    def problems(spec: TrainSpec) -> list[str]:
        """What is wrong with the architecture's own options, one line each."""
        return []

    def encoder_scale(self) -> float:
        """Norm of the encoder rows at the start, where they are parallel to the decoder's unit rows."""
        return 1.0

    def init(self, generator: torch.Generator) -> Weights:
        """Random unit decoder rows, a tied encoder, zero biases, on the CPU so that every device starts alike."""
        rows = F.normalize(torch.randn(self.spec.d_sae, self.spec.d_in, generator=generator), dim=1)
        return {
            "W_enc": nn.Parameter(rows * self.encoder_scale()),
            "b_enc": nn.Parameter(torch.zeros(self.spec.d_sae)),
            "W_dec": nn.Parameter(rows),
            "b_dec": nn.Parameter(torch.zeros(self.spec.d_in)),
        }

    @abstractmethod
    def gradients(
        self, w: Weights, x: Float[Tensor, "batch d_in"], step: int, dead: Int[Tensor, " n_dead"] | None
    ) -> Outcome:
        """Write the loss's gradient into every ``.grad``. `dead`: features not active for `dead_after` rows."""

    @abstractmethod
    def loss(
        self, w: Weights, x: Float[Tensor, "batch d_in"], step: int, dead: Int[Tensor, " n_dead"] | None
    ) -> Float[Tensor, ""]:
        """The same loss in plain autograd: slow, obvious, and what `gradients` is tested against."""

    def revive(
        self,
        w: Weights,
        x: Float[Tensor, "batch d_in"],
        error: Float[Tensor, "batch d_in"],
        dead: Bool[Tensor, " d_sae"],
        noise: Float[Tensor, " batch"],
    ) -> Bool[Tensor, " d_sae"]:
        """Give dead features new weights; True for those that got them (their optimiser moments are then zeroed)."""
        return torch.zeros_like(dead)

    @torch.no_grad()
    def export(self, sae: SAE, w: Weights, mean: Float[Tensor, " d_in"], scale: float) -> None:
        """Fold the input normalisation x' = s(x − μ) into `sae`, so that it reads raw x and W_dec rows keep unit norm.

        With f' = act((s(x − μ) − b_dec') W_enc + b_enc') and x̂ = (f' W_dec + b_dec')/s + μ, the SAE on raw x has
        b_dec = μ + b_dec'/s, b_enc = b_enc'/s and f = f'/s, because act is positively homogeneous.
        """
        sae.W_enc.copy_(w["W_enc"].T)
        sae.b_enc.copy_(w["b_enc"] / scale)
        sae.W_dec.copy_(w["W_dec"])
        sae.b_dec.copy_(mean + w["b_dec"] / scale)


@dataclass(frozen=True)
class Architecture:
    """One entry of the registry."""

    name: str
    saelens: str
    """The same architecture's name in a SAELens ``cfg.json``."""
    sae: type[SAE]
    objective: type[Objective]
