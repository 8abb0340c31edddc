"""ReLU SAE with an L1 penalty: Bricken et al. 2023, "Towards Monosemanticity" (transformer-circuits.pub).

    f = ReLU((x − b_dec) W_enc + b_enc)          L = ‖x − x̂‖² + λ Σ_i f_i          with ‖W_dec[i]‖ = 1

The unit norm is what gives λ a meaning: without it the penalty is escaped by small f and long decoder rows. A feature
of size a is shrunk by λ/2, and n equal features share ‖x‖² as a = ‖x‖/√n; so λ is given relative to the rows' size:
λ = l1·√d for rows scaled to mean ‖x‖² = d, and one `l1` serves every width and layer. λ rises linearly over the
first `l1_warmup` steps, so that features find a direction before they are pressed. Dead features are resampled.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.sae.modules.base import SAE, Architecture, Objective, Outcome
from circuits.sae.modules.gradients import Weights, beside_features, buffer, dense_weights, encode, sparse_weights
from circuits.sae.modules.products import combine, project
from circuits.sae.modules.resampling import resample
from circuits.sae.modules.scratch import scratch
from circuits.sae.modules.support import Support, few, positive
from circuits.sae.spec import TrainSpec


class ReLUSAE(SAE):
    """Every feature with a positive pre-activation is active."""

    architecture = "relu"
    saelens = "standard"
    saelens_transcoder = "transcoder"

    def activate(self, pre: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
        return pre.relu()


class ReLUObjective(Objective):
    """Reconstruction error plus λ·L1."""

    resamples = True
    penalised = True
    start = 0.05

    @staticmethod
    def problems(spec: TrainSpec) -> list[str]:
        if (spec.l1 is None and spec.target_l0 is None) or (spec.l1 or 0.0) < 0:
            return [f"a ReLU SAE needs l1 >= 0, the coefficient of the L1 penalty, or target_l0, got {spec.l1}"]
        return []

    def encoder_scale(self) -> float:
        # E[Σ_i ReLU(x·w_i) w_i] = (d_sae / 2 d_in) x over random unit rows: this norm makes x̂ ≈ x at the first step.
        return min(1.0, 2 * self.spec.d_in / self.spec.d_sae)

    def l1(self, step: int) -> float | Tensor:
        """λ at `step`."""
        return self.coefficient(self.spec.l1) * self.spec.width_out**0.5 * self.penalty(step, self.spec.l1_warmup)

    def gradients(self, w: Weights, x: Tensor, y: Tensor, step: int, dead: Int[Tensor, " n_dead"] | None) -> Outcome:
        l1, c, y = self.l1(step) / len(x), self.centred(w, x), self.left(w, x, y)
        f = encode(w, c, w["b_enc"]).relu_()
        active = torch.sign(
            f, out=scratch("h", tuple(f.shape), f)
        ).sum()  # counting booleans costs a CPU several times as much
        if few(active, f):
            return self._sparse(w, c, y, l1, f, *Support.where(positive(f)))
        error = combine(f, w["W_dec"], w["b_dec"]).sub_(y)
        g = error * (2 / len(x))
        h = project(g, w["W_dec"], torch.ones_like(w["b_enc"]) * l1, "h")
        torch.ops.aten.threshold_backward.grad_input(h, f, 0.0, grad_input=h)  # zero where f is
        torch.sum(h, dim=0, out=buffer(w["b_enc"]))
        fired, along = f.sum(0), None  # along: Σ f ∂L/∂f without the penalty
        if len(x) < y.shape[1]:  # of more rows, the optimiser is faster at finding it
            along = torch.mul(f, h, out=scratch("over", tuple(f.shape), f)).sum(0).sub_(fired * l1)
        dense_weights(w, c, f, h, g)
        beside_features(w, c, g, w["b_enc"].grad if self.tied else None)
        return Outcome(error, fired, active, {"l1": fired.sum() * l1}, along)

    def _sparse(
        self, w: Weights, c: Tensor, y: Tensor, l1: float | Tensor, f: Tensor, support: Support, index: Tensor
    ) -> Outcome:
        values = f.view(-1)[index]
        error = support.decode(values, w["W_dec"]).add_(w["b_dec"]).sub_(y)
        g = error * (2 / len(c))
        h = support.dots(g, w["W_dec"]).add_(l1)
        sparse_weights(w, c, support, values, h, g)
        buffer(w["b_enc"]).copy_(support.feature_sums(h))
        beside_features(w, c, g, w["b_enc"].grad if self.tied else None)
        fired = support.feature_sums(torch.ones_like(values))
        along = support.feature_sums(values * (h - l1))
        return Outcome(error, fired, fired.sum(), {"l1": values.sum() * l1}, along)

    def loss(self, w: Weights, x: Tensor, y: Tensor, step: int, dead: Int[Tensor, " n_dead"] | None) -> Tensor:
        f = (self.centred(w, x) @ w["W_enc"].T + w["b_enc"]).relu()
        reconstruction = f @ w["W_dec"] + w["b_dec"]
        return (reconstruction - self.left(w, x, y)).square().sum(1).mean() + self.l1(step) * f.sum(1).mean()

    def revive(
        self, w: Weights, x: Tensor, error: Tensor, dead: Bool[Tensor, " d_sae"], noise: Tensor
    ) -> Bool[Tensor, " d_sae"]:
        return resample(w, self.centred(w, x), error, dead, noise, {"b_enc": 0.0})


ARCHITECTURE = Architecture("relu", ReLUSAE, ReLUObjective)
