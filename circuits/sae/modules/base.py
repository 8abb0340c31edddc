"""What every sparse autoencoder has: an encoder, a linear decoder, and the seam for its training rule.

    f  = act((x − b_dec) W_enc + b_enc)          x̂ = f W_dec + b_dec

A transcoder (Dunefsky et al. 2024, arXiv:2406.11944) reads one site and reconstructs another: f = act(x W_enc + b_enc), and
f W_dec + b_dec is an estimate of the other site's y; with a skip connection (Paulo et al. 2025, arXiv:2501.18823) plus W_skip x.
That starts at zero and is trained beside the features: they are left what no linear map of x explains.

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

from circuits.sae.massive import Massive
from circuits.sae.modules import steering
from circuits.sae.modules.gradients import Weights
from circuits.sae.normalise import Units, of_rows
from circuits.sae.spec import TrainSpec


@dataclass(frozen=True)
class SAEConfig:
    """The shape of an SAE, and what its activation function needs."""

    d_in: int
    d_sae: int
    k: int | None = None
    """Features kept for each row; only for TopK."""
    d_out: int | None = None
    """Width of the site that a transcoder reconstructs; None: an SAE, which reconstructs its input."""
    normalize: str = "none"
    """What is done to each row before the encoder, and undone after an SAE's decoder (:func:`circuits.sae.normalise.of_rows`).
    Ours are trained on rows as they are; SAEs from elsewhere may have it."""
    skip: bool = False
    """A transcoder with a linear path beside the features."""
    blocks: int = 1
    """Layers (or models) whose rows stand side by side."""
    band: int | None = None
    """A cross-layer transcoder: layers that each of its features writes to at most."""

    @property
    def width_out(self) -> int:
        """Width of what comes out."""
        return self.d_in if self.d_out is None else self.d_out


class SAE(nn.Module, ABC):
    """A trained sparse autoencoder: activations in their own units go in, their reconstruction comes out."""

    architecture: ClassVar[str]
    saelens: ClassVar[str]
    """The same architecture's name in a SAELens ``cfg.json``."""
    saelens_transcoder: ClassVar[str | None] = None
    """Its name as a transcoder; None: there is none."""
    pre_biases: ClassVar[tuple[str, ...]] = ("b_enc",)
    """Biases that are added to pre-activations."""
    massive: Massive | None = None
    """Rows that it was not trained on, has no features on, and is not measured on; None: it is for all."""

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.block_scales: tuple[float, ...] = ()
        """Of a crosscoder just trained: each block's factor in the units of training."""
        self.W_enc = nn.Parameter(torch.zeros(cfg.d_in, cfg.d_sae), requires_grad=False)
        self.W_dec = nn.Parameter(torch.zeros(cfg.d_sae, cfg.width_out), requires_grad=False)
        self.b_dec = nn.Parameter(torch.zeros(cfg.width_out), requires_grad=False)
        for name in self.pre_biases:
            setattr(self, name, nn.Parameter(torch.zeros(cfg.d_sae), requires_grad=False))
        if cfg.skip:
            self.W_skip = nn.Parameter(torch.zeros(cfg.width_out, cfg.d_in), requires_grad=False)

    def __repr__(self) -> str:
        kind = "SAE" if self.cfg.d_out is None else "skip transcoder" if self.cfg.skip else "transcoder"
        sparsity = "" if self.cfg.k is None else f", k={self.cfg.k}"
        widths = f"{self.cfg.d_in} → {self.cfg.d_sae:,} features → {self.cfg.width_out}"
        return f"{kind}({self.architecture}: {widths}{sparsity}, {self.W_enc.device})"

    @abstractmethod
    def activate(self, pre: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
        """Feature activations from pre-activations."""

    def centred(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """What the encoder sees of x."""
        x = x.to(self.W_enc.dtype)
        if self.cfg.normalize != "none":
            mean, scale, _ = of_rows(x, self.cfg.normalize)
            x = (x - mean) / scale
        return x - self.b_dec if self.cfg.d_out is None else x

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Feature activations f ≥ 0 of x; none on a massive row."""
        f = self.activate(self.centred(x) @ self.W_enc + getattr(self, "b_enc"))  # noqa: B009 (set by name above)
        return f if self.massive is None else f * self.massive.kept(x)[..., None]

    def decode(
        self, f: Float[Tensor, "... d_sae"], x: Float[Tensor, "... d_in"] | None = None
    ) -> Float[Tensor, "... d_out"]:
        """The reconstruction x̂ from feature activations.

        Args:
            f: feature activations.
            x: the rows that they are of, where the SAE normalises rows or has a skip connection; others do not look at it.

        Raises:
            ValueError: such an SAE, and no x.
        """
        found = f @ self.W_dec + self.b_dec
        if self.cfg.normalize == "none" and not self.cfg.skip:
            return found
        if x is None:
            raise ValueError("this SAE normalises its rows or has a skip connection: decode(f, x) needs the rows x")
        x = x.to(self.W_enc.dtype)
        if self.cfg.skip:
            found = found + x @ self.W_skip.T
        if self.cfg.normalize == "none" or self.cfg.d_out is not None:  # another site has other units
            return found
        mean, _, scale = of_rows(x, self.cfg.normalize)
        return found * scale + mean

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """x̂ of x."""
        return self.decode(self.encode(x), x)


@dataclass
class Outcome:
    """What one training step found out besides the gradients; tensors on the device, read only when someone asks."""

    error: Float[Tensor, "batch d_out"]
    """x̂ − y in the trainer's units."""
    fired: Float[Tensor, " d_sae"]
    """Above 0 for the features that were active on some row of the batch."""
    active: Tensor
    """How many features were active, summed over the rows."""
    parts: dict[str, Float[Tensor, ""]]
    """Terms of the loss beside ‖error‖², each already a mean over the batch."""
    along: Float[Tensor, " d_sae"] | None = None
    """⟨∂W_dec[i], W_dec[i]⟩ of every feature, where it falls out of the step: Σ_b f ∂L/∂f."""
    smallest: Float[Tensor, ""] | None = None
    """Of a selection over the batch the smallest activation that was kept; not finite where none was."""


class Objective(ABC):
    """The training rule of one architecture. It sees rows x, and rows y to reconstruct, in the trainer's units."""

    resamples: ClassVar[bool] = False
    """Whether dead features are drawn anew (else: whether the auxiliary loss may revive them)."""
    penalised: ClassVar[bool] = False
    """Whether a penalty makes it sparse, which can steer itself to a target (:mod:`circuits.sae.modules.steering`)."""
    start: ClassVar[float] = 0.1
    """The coefficient from which a penalty that is steered sets out, where none is given."""
    transcodes: ClassVar[bool] = True
    """Whether it can be trained from one site to another."""

    def __init__(self, spec: TrainSpec) -> None:
        self.spec = spec
        self.tied = spec.d_out is None
        """Whether b_dec is taken from the encoder's input."""
        self.state: dict[str, Tensor] = steering.begin() if self.steers else {}
        """What is learned without a gradient; kept in checkpoints."""

    @property
    def steers(self) -> bool:
        """Whether its penalty steers itself."""
        return self.penalised and self.spec.target_l0 is not None

    def coefficient(self, given: float | None) -> float:
        """The penalty's coefficient."""
        return given if given is not None else self.start if self.steers else 0.0

    def penalty(self, step: int, warmup: int) -> float | Tensor:
        """Factor of the coefficient of the sparsity penalty at a step."""
        found = self.spec.sparsity_at(step, warmup)
        return found * steering.factor(self.state) if self.steers else found

    @staticmethod
    def problems(spec: TrainSpec) -> list[str]:
        """What is wrong with the architecture's own options, one line each."""
        return []

    def encoder_scale(self) -> float:
        """Norm of the encoder rows at the start, where they are parallel to the decoder's unit rows."""
        return 1.0

    def init(self, generator: torch.Generator) -> Weights:
        """Random unit decoder rows, a tied encoder (in a transcoder: another one), zero biases, on the CPU so that every
        device starts alike."""
        spec = self.spec
        rows = F.normalize(torch.randn(spec.d_sae, spec.width_out, generator=generator), dim=1)
        read = rows if self.tied else F.normalize(torch.randn(spec.d_sae, spec.d_in, generator=generator), dim=1)
        return {
            "W_enc": nn.Parameter(read * self.encoder_scale()),
            "b_enc": nn.Parameter(torch.zeros(spec.d_sae)),
            "W_dec": nn.Parameter(rows),
            "b_dec": nn.Parameter(torch.zeros(spec.width_out)),
            **({"W_skip": nn.Parameter(torch.zeros(spec.width_out, spec.d_in))} if spec.skip else {}),
        }

    def centred(self, w: Weights, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """What the encoder sees of x."""
        return x - w["b_dec"] if self.tied else x

    def left(
        self, w: Weights, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"]
    ) -> Float[Tensor, "batch d_out"]:
        """What the features and b_dec are to reconstruct: y, less what a skip connection makes of x."""
        return torch.addmm(y, x, w["W_skip"].T, alpha=-1) if self.spec.skip else y

    @abstractmethod
    def gradients(
        self,
        w: Weights,
        x: Float[Tensor, "batch d_in"],
        y: Float[Tensor, "batch d_out"],
        step: int,
        dead: Int[Tensor, " n_dead"] | None,
    ) -> Outcome:
        """Write the loss's gradient into every ``.grad``. `dead`: features not active for `dead_after` rows."""

    @abstractmethod
    def loss(
        self,
        w: Weights,
        x: Float[Tensor, "batch d_in"],
        y: Float[Tensor, "batch d_out"],
        step: int,
        dead: Int[Tensor, " n_dead"] | None,
    ) -> Float[Tensor, ""]:
        """The same loss in plain autograd: slow, obvious, and what `gradients` is tested against."""

    def revive(
        self,
        w: Weights,
        x: Float[Tensor, "batch d_in"],
        error: Float[Tensor, "batch d_out"],
        dead: Bool[Tensor, " d_sae"],
        noise: Float[Tensor, " batch"],
    ) -> Bool[Tensor, " d_sae"]:
        """Give dead features new weights; True for those that got them (their optimiser moments are then zeroed)."""
        return torch.zeros_like(dead)

    def follow(self, outcome: Outcome, step: int) -> None:
        """Once a step, whatever the number of parts that its batch is processed in: move what is learned without a gradient."""
        if self.steers:
            risen = step >= max(self.spec.l1_warmup, self.spec.l0_warmup)
            steering.follow(self.state, self.spec, outcome.active, step, risen)

    def project(self, w: Weights) -> None:  # noqa: B027 (most have nothing to do)
        """After each optimiser step: bring parameters back to where they have a meaning."""

    @torch.no_grad()
    def export(self, sae: SAE, w: Weights, read: Units, write: Units) -> None:
        """Fold the units x' = s(x − μ), y' = t(y − ν) into `sae`, so that it takes raw x and W_dec rows keep unit norm.

        With f' = act(c' W + b'), c' = x' − b_dec', and ŷ = (f' W_dec + b_dec')/t + ν, the SAE on raw x has f = f'/t, because
        act is positively homogeneous: W_enc = W s/t, b_enc = b'/t, b_dec = ν + b_dec'/t. In a transcoder c' = x', hence
        b_enc = (b' − s μ W)/t. Blocks have a factor each: W_enc's rows are multiplied by theirs, W_dec's
        columns divided. A skip connection adds W' x' to f' W_dec + b_dec': W_skip = W' s/t, and − s W' μ/t to b_dec.
        """
        sae.W_enc.copy_(w["W_enc"].T * (read.scale / write.scale))
        sae.W_dec.copy_(write.rows_of(w["W_dec"]))
        sae.b_dec.copy_(write.mean + write.rows_of(w["b_dec"]) / write.scale)
        if read.by is not None:
            sae.W_enc.mul_(read.by[:, None])
            sae.block_scales = tuple(float(part[0]) for part in read.by.chunk(self.spec.blocks))
        for name in sae.pre_biases:
            bias = w[name] if self.tied else w[name] - read.scale * (w["W_enc"] @ read.mean)
            getattr(sae, name).copy_(bias / write.scale)
        if self.spec.skip:
            sae.W_skip.copy_(w["W_skip"] * (read.scale / write.scale))
            sae.b_dec.sub_(sae.W_skip @ read.mean)


@dataclass(frozen=True)
class Architecture:
    """One entry of the registry."""

    name: str
    sae: type[SAE]
    objective: type[Objective]
