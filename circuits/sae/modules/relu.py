"""ReLU SAE with an L1 penalty: Bricken et al. 2023, "Towards Monosemanticity" (transformer-circuits.pub).

    f = ReLU((x − b_dec) W_enc + b_enc)          L = ‖x − x̂‖² + λ Σ_i f_i          with ‖W_dec[i]‖ = 1

The unit norm is what gives λ a meaning: without it the penalty is escaped by small f and long decoder rows. A feature
of size a is shrunk by λ/2, and n equal features share ‖x‖² as a = ‖x‖/√n; so λ is given relative to the rows' size:
λ = l1·√d_in for rows scaled to mean ‖x‖² = d_in, and one `l1` serves every width and layer. λ rises linearly over the
first `l1_warmup` steps, so that features find a direction before they are pressed.

Dead features are resampled as in their section "Neuron Resampling": a dead feature gets the direction of an input row,
drawn with probability ∝ (loss of that row)², an encoder row of 0.2 × the mean norm of the living ones, a zero bias, and
fresh optimiser moments. Rows are drawn without replacement (features given one row would stay identical for ever), from
the batch at hand, so at most one feature per row is revived at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.sae.modules.base import SAE, Architecture, Objective, Outcome, Weights
from circuits.sae.modules.gradients import dense_gradients
from circuits.sae.spec import TrainSpec

REVIVED_NORM = 0.2
"""Encoder norm of a resampled feature, relative to the living ones' mean."""


class ReLUSAE(SAE):
    """Every feature with a positive pre-activation is active."""

    architecture = "relu"

    def activate(self, pre: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
        return pre.relu()


class ReLUObjective(Objective):
    """Reconstruction error plus λ·L1."""

    resamples = True

    @staticmethod
    def problems(spec: TrainSpec) -> list[str]:
        if spec.l1 is None or spec.l1 < 0:
            return [f"a ReLU SAE needs l1 >= 0, the coefficient of the L1 penalty, got {spec.l1}"]
        return []

    def encoder_scale(self) -> float:
        # E[Σ_i ReLU(x·w_i) w_i] = (d_sae / 2 d_in) x over random unit rows: this norm makes x̂ ≈ x at the first step.
        return min(1.0, 2 * self.spec.d_in / self.spec.d_sae)

    def l1(self, step: int) -> float:
        """λ at `step`."""
        warm = 1.0 if self.spec.l1_warmup == 0 else min(1.0, (step + 1) / self.spec.l1_warmup)
        return (self.spec.l1 or 0.0) * self.spec.d_in**0.5 * warm

    def gradients(
        self, w: Weights, x: Float[Tensor, "batch d_in"], step: int, dead: Int[Tensor, " n_dead"] | None
    ) -> Outcome:
        l1 = self.l1(step)
        c = x - w["b_dec"]
        f = torch.addmm(w["b_enc"], c, w["W_enc"].T).relu_()
        error = torch.addmm(w["b_dec"], f, w["W_dec"]) - x
        g = error * (2 / len(x))
        active = f.sign()  # 1.0 or 0.0: products with a boolean mask would cost several times as much on a CPU
        h = torch.addmm(torch.full_like(w["b_enc"], l1 / len(x)), g, w["W_dec"].T).mul_(active)
        dense_gradients(w, c, f, h, g)
        return Outcome(error, active.sum(0), {"l1": f.sum() * (l1 / len(x))})

    def loss(
        self, w: Weights, x: Float[Tensor, "batch d_in"], step: int, dead: Int[Tensor, " n_dead"] | None
    ) -> Float[Tensor, ""]:
        f = ((x - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]).relu()
        reconstruction = f @ w["W_dec"] + w["b_dec"]
        return (reconstruction - x).square().sum(1).mean() + self.l1(step) * f.sum(1).mean()

    def revive(
        self,
        w: Weights,
        x: Float[Tensor, "batch d_in"],
        error: Float[Tensor, "batch d_in"],
        dead: Bool[Tensor, " d_sae"],
        noise: Float[Tensor, " batch"],
    ) -> Bool[Tensor, " d_sae"]:
        # Gumbel top-k: sorting log p + Gumbel noise draws rows without replacement with probability p ∝ loss².
        log_p = 2 * error.square().sum(1).clamp(min=1e-30).log()
        order = (log_p - torch.log(-torch.log(noise))).argsort(descending=True)
        place = dead.cumsum(0) - 1  # the n-th dead feature takes the n-th drawn row
        taken = dead & (place < len(x))
        direction = F.normalize((x - w["b_dec"])[order[place.clamp(0, len(x) - 1)]], dim=1)
        norms = w["W_enc"].norm(dim=1)
        alive = (~dead).to(norms.dtype)
        norm = REVIVED_NORM * (norms * alive).sum() / alive.sum().clamp(min=1)
        w["W_dec"].copy_(torch.where(taken[:, None], direction, w["W_dec"]))
        w["W_enc"].copy_(torch.where(taken[:, None], direction * norm, w["W_enc"]))
        w["b_enc"].mul_(~taken)
        return taken


ARCHITECTURE = Architecture("relu", "standard", ReLUSAE, ReLUObjective)
