"""JumpReLU SAE: Rajamanoharan et al. 2024, "Jumping ahead" (arXiv:2407.14435).

    f = pre · H(pre − θ),  pre = (x − b_dec) W_enc + b_enc          L = ‖x − x̂‖² + λ Σ_i H(pre_i − θ_i)

H is the step function; θ has a gradient by the straight-through estimate with the rectangle kernel K of bandwidth ε (their
equations 11 and 12), which reaches θ only:

    ∂f/∂θ ≈ −(θ/ε) K((pre − θ)/ε)          ∂H/∂θ ≈ −(1/ε) K((pre − θ)/ε)

θ is trained as it is and kept above zero: Adam moves a parameter by about its rate a step, which for log θ would barely move a
small one. Units: rows are scaled to mean ‖x‖² = d, where a random direction sees a variance of 1; so θ and ε are of the order of 1
at every width, and λ = l0_coefficient · d is relative to the rows' size. Dead features are resampled, threshold included.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuits.sae.modules.base import SAE, Architecture, Objective, Outcome, SAEConfig
from circuits.sae.modules.gradients import Weights, beside_features, buffer, dense_weights, encode, sparse_weights
from circuits.sae.modules.products import combine, project
from circuits.sae.modules.resampling import resample
from circuits.sae.modules.scratch import scratch
from circuits.sae.modules.support import Support, sparse_support
from circuits.sae.normalise import Units
from circuits.sae.spec import TrainSpec


class JumpReLUSAE(SAE):
    """Pre-activations above their feature's threshold are active."""

    architecture = "jumprelu"
    saelens = "jumprelu"
    saelens_transcoder = "jumprelu_transcoder"

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        self.threshold = nn.Parameter(torch.zeros(cfg.d_sae), requires_grad=False)

    def activate(self, pre: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
        return pre.relu() * (pre > self.threshold)


class JumpReLUObjective(Objective):
    """Reconstruction error plus λ·L0."""

    resamples = True
    penalised = True
    start = 0.006

    @staticmethod
    def problems(spec: TrainSpec) -> list[str]:
        wrong = []
        if (spec.l0_coefficient is None and spec.target_l0 is None) or (spec.l0_coefficient or 0.0) < 0:
            wrong.append(
                f"a JumpReLU SAE needs l0_coefficient >= 0, the weight of the L0 penalty, or target_l0, got {spec.l0_coefficient}"
            )
        if not spec.bandwidth > 0:
            wrong.append(f"bandwidth = {spec.bandwidth} must be above 0")
        return wrong

    def encoder_scale(self) -> float:
        return min(1.0, 2 * self.spec.d_in / self.spec.d_sae)

    def init(self, generator: torch.Generator) -> Weights:
        start = torch.full((self.spec.d_sae,), self.spec.threshold)
        return {**super().init(generator), "threshold": nn.Parameter(start)}

    def l0(self, step: int) -> float | Tensor:
        """λ at `step`."""
        return (
            self.coefficient(self.spec.l0_coefficient) * self.spec.width_out * self.penalty(step, self.spec.l0_warmup)
        )

    def gradients(self, w: Weights, x: Tensor, y: Tensor, step: int, dead: Int[Tensor, " n_dead"] | None) -> Outcome:
        penalty, c, y = self.l0(step) / len(x), self.centred(w, x), self.left(w, x, y)
        pre = encode(w, c, w["b_enc"])
        half = self.spec.bandwidth / 2
        near = torch.gt(pre, w["threshold"] - half, out=scratch("mask", tuple(pre.shape), pre, torch.bool))
        if found := sparse_support(near):
            return self._sparse(w, c, y, penalty, pre, *found)
        over = torch.sub(pre, w["threshold"], out=scratch("over", tuple(pre.shape), pre))
        on = (over > 0).to(pre.dtype)
        band = over.abs_().lt(half).to(pre.dtype)
        f = pre.mul_(on)
        error = combine(f, w["W_dec"], w["b_dec"]).sub_(y)
        g = error * (2 / len(x))
        h = project(g, w["W_dec"], None, "h")
        self._threshold(w, (h * band).sum(0), band.sum(0), penalty)
        h.mul_(on)
        dense_weights(w, c, f, h, g)
        torch.sum(h, dim=0, out=buffer(w["b_enc"]))
        beside_features(w, c, g, w["b_enc"].grad if self.tied else None)
        fired = on.sum(0)
        return Outcome(error, fired, fired.sum(), {"l0_penalty": fired.sum() * penalty})

    def _sparse(
        self, w: Weights, c: Tensor, y: Tensor, penalty: float | Tensor, pre: Tensor, support: Support, index: Tensor
    ) -> Outcome:
        """Entries are those above or near their threshold."""
        value = pre.view(-1)[index]
        over = value - w["threshold"][support.features]
        on, band = (over > 0).to(value.dtype), (over.abs() < self.spec.bandwidth / 2).to(value.dtype)
        f = value * on
        error = support.decode(f, w["W_dec"]).add_(w["b_dec"]).sub_(y)
        g = error * (2 / len(c))
        h = support.dots(g, w["W_dec"])
        self._threshold(w, support.feature_sums(h * band), support.feature_sums(band), penalty)
        h.mul_(on)
        sparse_weights(w, c, support, f, h, g)
        buffer(w["b_enc"]).copy_(support.feature_sums(h))
        beside_features(w, c, g, w["b_enc"].grad if self.tied else None)
        parts, along = {"l0_penalty": on.sum() * penalty}, support.feature_sums(f * h)
        return Outcome(error, support.feature_sums(on), on.sum(), parts, along)

    def _threshold(self, w: Weights, pulled: Tensor, near: Tensor, penalty: float | Tensor) -> None:
        """∂L/∂θ = −(θ Σ_b h K + λ/B Σ_b K)/ε."""
        found = (w["threshold"] * pulled + penalty * near) / -self.spec.bandwidth
        buffer(w["threshold"]).copy_(found)

    def loss(self, w: Weights, x: Tensor, y: Tensor, step: int, dead: Int[Tensor, " n_dead"] | None) -> Tensor:
        pre = self.centred(w, x) @ w["W_enc"].T + w["b_enc"]
        f, on = _Jump.apply(pre, w["threshold"], self.spec.bandwidth)
        reconstruction = f @ w["W_dec"] + w["b_dec"]
        return (reconstruction - self.left(w, x, y)).square().sum(1).mean() + self.l0(step) * on.sum(1).mean()

    def project(self, w: Weights) -> None:
        w["threshold"].data.clamp_(min=0.0)

    def revive(
        self, w: Weights, x: Tensor, error: Tensor, dead: Bool[Tensor, " d_sae"], noise: Tensor
    ) -> Bool[Tensor, " d_sae"]:
        start = {"b_enc": 0.0, "threshold": self.spec.threshold}
        return resample(w, self.centred(w, x), error, dead, noise, start)

    @torch.no_grad()
    def export(self, sae: SAE, w: Weights, read: Units, write: Units) -> None:
        super().export(sae, w, read, write)
        sae.get_parameter("threshold").copy_(w["threshold"] / write.scale)


class _Jump(torch.autograd.Function):
    """f and H with their straight-through gradients, for the reference loss."""

    @staticmethod
    def forward(pre: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        on = (pre > threshold).to(pre.dtype)
        return pre * on, on.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        pre, threshold, ctx.bandwidth = inputs
        ctx.save_for_backward(pre, threshold)

    @staticmethod
    def backward(ctx, for_f: Tensor, for_on: Tensor):  # type: ignore[no-untyped-def,override]
        pre, threshold = ctx.saved_tensors
        kernel = ((pre - threshold).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        to_threshold = -(kernel * (threshold * for_f + for_on)).sum(0)
        return for_f * (pre > threshold), to_threshold, None


ARCHITECTURE = Architecture("jumprelu", JumpReLUSAE, JumpReLUObjective)
