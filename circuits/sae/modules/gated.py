"""Gated SAE: Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders" (arXiv:2404.16014).

    π = (x − b_dec) W_enc + b_gate          μ = (x − b_dec) (W_enc ⊙ exp(r_mag)) + b_mag
    f = 1[π > 0] ⊙ ReLU(μ)                  q = ReLU(π)
    L = ‖x − x̂(f)‖² + λ Σ_i q_i + ‖x − x̂_frozen(q)‖²                        (their equation 8)

The L1 penalty presses on the gate only, so magnitudes are not shrunk; the last term, with the decoder held fixed, keeps the gate a
detector of what it gates. λ = l1·√d as for the ReLU SAE. Dead features are resampled.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuits.sae.modules.base import SAE, Architecture, Objective, Outcome
from circuits.sae.modules.gradients import Weights, buffer, decoder_bias, dense_weights, encode, sparse_weights
from circuits.sae.modules.products import combine, project
from circuits.sae.modules.resampling import resample
from circuits.sae.modules.support import Support, positive, sparse_support
from circuits.sae.spec import TrainSpec


class GatedSAE(SAE):
    """A gate decides whether a feature is active, a magnitude how much."""

    architecture = "gated"
    saelens = "gated"
    pre_biases = ("b_gate", "b_mag")
    b_gate: nn.Parameter
    b_mag: nn.Parameter

    def __init__(self, cfg) -> None:  # type: ignore[no-untyped-def]
        super().__init__(cfg)
        self.r_mag = nn.Parameter(torch.zeros(cfg.d_sae), requires_grad=False)

    def activate(self, pre: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
        """From pre-activations without their biases."""
        return (pre * self.r_mag.exp() + self.b_mag).relu() * (pre + self.b_gate > 0)

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        return self.activate(self.centred(x) @ self.W_enc)


class GatedObjective(Objective):
    """Reconstruction error, L1 on the gate, and the gate's own reconstruction error."""

    resamples = True
    penalised = True
    transcodes = False

    @staticmethod
    def problems(spec: TrainSpec) -> list[str]:
        if (spec.l1 is None and spec.target_l0 is None) or (spec.l1 or 0.0) < 0:
            return [
                f"a gated SAE needs l1 >= 0, the coefficient of the L1 penalty on its gate, or target_l0, got {spec.l1}"
            ]
        return []

    def encoder_scale(self) -> float:
        return min(1.0, 2 * self.spec.d_in / self.spec.d_sae)

    def init(self, generator: torch.Generator) -> Weights:
        w = super().init(generator)
        del w["b_enc"]
        return {**w, **{name: nn.Parameter(torch.zeros(self.spec.d_sae)) for name in ("b_gate", "b_mag", "r_mag")}}

    def l1(self, step: int) -> float | Tensor:
        """λ at `step`."""
        return self.coefficient(self.spec.l1) * self.spec.width_out**0.5 * self.penalty(step, self.spec.l1_warmup)

    def gradients(self, w: Weights, x: Tensor, y: Tensor, step: int, dead: Int[Tensor, " n_dead"] | None) -> Outcome:
        l1, c, n = self.l1(step) / len(x), self.centred(w, x), len(x)
        q = encode(w, c, w["b_gate"]).relu_()
        if found := sparse_support(positive(q)):
            return self._sparse(w, c, y, l1, q, *found)
        gate = q.sign()
        size = torch.addcmul(w["b_mag"], q - w["b_gate"], w["r_mag"].exp())  # only where the gate is open
        f = size.relu().mul_(gate)
        both = combine(torch.cat([f, q]), w["W_dec"], w["b_dec"])
        both.view(2, n, -1).sub_(y)
        g = both * (2 / n)
        wide = project(g, w["W_dec"], None, "h")
        for_size, for_gate = wide[:n].mul_(f.sign()), wide[n:].add_(l1).mul_(gate)
        sums = (for_gate.sum(0), for_size.sum(0), (for_size * (f - w["b_mag"])).sum(0))
        h = for_gate.addcmul_(for_size, w["r_mag"].exp())
        dense_weights(w, c, f, h, g[:n])
        fired = f.sign().sum(0)
        return self._outcome(w, both, g, sums, fired, q.sum() * l1)

    def _sparse(
        self, w: Weights, c: Tensor, y: Tensor, l1: float | Tensor, q: Tensor, support: Support, index: Tensor
    ) -> Outcome:
        """Entries are those whose gate is open."""
        n, values = len(c), q.view(-1)[index]
        growth, b_mag = w["r_mag"].exp()[support.features], w["b_mag"][support.features]
        f = (values - w["b_gate"][support.features]).mul_(growth).add_(b_mag).relu_()
        both = torch.cat([support.decode(f, w["W_dec"]), support.decode(values, w["W_dec"])]).add_(w["b_dec"])
        both.view(2, n, -1).sub_(y)
        g = both * (2 / n)
        for_size = support.dots(g[:n], w["W_dec"]).mul_(f.sign())
        for_gate = support.dots(g[n:], w["W_dec"]).add_(l1)
        sums = tuple(support.feature_sums(t) for t in (for_gate, for_size, for_size * (f - b_mag)))
        h = for_gate.addcmul_(for_size, growth)
        sparse_weights(w, c, support, f, h, g[:n])
        return self._outcome(w, both, g, sums, support.feature_sums(f.sign()), values.sum() * l1)

    def _outcome(
        self, w: Weights, both: Tensor, g: Tensor, sums: tuple[Tensor, ...], fired: Tensor, penalty: Tensor
    ) -> Outcome:
        """Write the biases' gradients. `sums`: of ∂L/∂π, of ∂L/∂μ, and of ∂L/∂μ · (μ − b_mag), which is ∂L/∂r_mag."""
        n = len(both) // 2
        for name, found in zip(("b_gate", "b_mag", "r_mag"), sums, strict=True):
            buffer(w[name]).copy_(found)
        decoder_bias(w, g[:n], sums[0] + sums[1] * w["r_mag"].exp())
        parts = {"l1": penalty, "gate": both[n:].square().sum() / n}
        return Outcome(both[:n], fired, fired.sum(), parts)

    def loss(self, w: Weights, x: Tensor, y: Tensor, step: int, dead: Int[Tensor, " n_dead"] | None) -> Tensor:
        pre = self.centred(w, x) @ w["W_enc"].T
        gate = pre + w["b_gate"]
        f = (pre * w["r_mag"].exp() + w["b_mag"]).relu() * (gate > 0)
        q = gate.relu()
        error = f @ w["W_dec"] + w["b_dec"] - y
        by_gate = q @ w["W_dec"].detach() + w["b_dec"].detach() - y
        reconstruction = error.square().sum(1).mean() + by_gate.square().sum(1).mean()
        return reconstruction + self.l1(step) * q.sum(1).mean()

    def revive(
        self, w: Weights, x: Tensor, error: Tensor, dead: Bool[Tensor, " d_sae"], noise: Tensor
    ) -> Bool[Tensor, " d_sae"]:
        start = {"b_gate": 0.0, "b_mag": 0.0, "r_mag": 0.0}
        return resample(w, self.centred(w, x), error, dead, noise, start)

    @torch.no_grad()
    def export(self, sae: SAE, w: Weights, read, write) -> None:  # type: ignore[no-untyped-def]
        super().export(sae, w, read, write)
        sae.get_parameter("r_mag").copy_(w["r_mag"])


ARCHITECTURE = Architecture("gated", GatedSAE, GatedObjective)
