"""TopK SAE: Gao et al. 2024, "Scaling and evaluating sparse autoencoders" (arXiv:2406.04093).

    f = ReLU(TopK((x − b_dec) W_enc + b_enc))                              (section 2.3, with the ReLU of their code)
    L = ‖x − x̂‖² + α ‖e − ê‖²,  e = x − x̂ (held fixed),  ê = z W_dec       (appendix A.2)

where z are the k_aux largest pre-activations among dead features only: the auxiliary loss teaches dead features to
explain what the living ones leave over. k_aux = d_in/2 follows appendix A.2; α is `aux` (1/32 there). z has no ReLU, as
in EleutherAI's sparsify and SAELens: with one, a feature pushed below zero would get no gradient and stay dead.
The auxiliary term reaches only the dead features' weights, and is not computed while none is dead.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.sae.modules.base import SAE, Architecture, Objective, Outcome, SAEConfig, Weights
from circuits.sae.modules.gradients import Active, decode_with_gradient, dense_gradients, sparse_gradients
from circuits.sae.spec import TrainSpec


def keep_largest(pre: Float[Tensor, "... d_sae"], k: int) -> Float[Tensor, "... d_sae"]:
    """ReLU of the k largest entries of each row, zero elsewhere."""
    values, index = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, index, values.relu())


class TopKSAE(SAE):
    """The k largest pre-activations of each row are the features of that row."""

    architecture = "topk"

    def __init__(self, cfg: SAEConfig) -> None:
        super().__init__(cfg)
        if cfg.k is None or not 1 <= cfg.k <= cfg.d_sae:
            raise ValueError(f"a TopK SAE needs 1 <= k <= d_sae = {cfg.d_sae}, got k = {cfg.k}")
        self.k = cfg.k

    def activate(self, pre: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_sae"]:
        return keep_largest(pre, self.k)


class TopKObjective(Objective):
    """Reconstruction error plus the auxiliary loss on dead features."""

    def __init__(self, spec: TrainSpec) -> None:
        super().__init__(spec)
        self.k = spec.k or 0
        self.k_aux = max(1, spec.d_in // 2)

    @staticmethod
    def problems(spec: TrainSpec) -> list[str]:
        if spec.k is None:
            return ["a TopK SAE needs k, the number of features kept for each row"]
        if not 1 <= spec.k <= spec.d_sae:
            return [f"k = {spec.k} is not between 1 and the dictionary size d_sae = {spec.d_sae}"]
        return []

    def gradients(
        self, w: Weights, x: Float[Tensor, "batch d_in"], step: int, dead: Int[Tensor, " n_dead"] | None
    ) -> Outcome:
        c = x - w["b_dec"]
        pre = torch.addmm(w["b_enc"], c, w["W_enc"].T)
        values, index = pre.topk(self.k, dim=1, sorted=False)
        active = Active(values.relu_(), index)
        # Sums of few rows are what a CPU does best; an accelerator's matrix units prefer the dense products.
        error = self._sparse(w, x, c, active) if x.device.type == "cpu" else self._dense(w, x, c, pre, active)
        fired = torch.zeros_like(w["b_enc"]).index_add_(0, index.flatten(), (active.values > 0).flatten().to(x.dtype))
        parts = {} if dead is None else {"aux": self._auxiliary(w, c, pre, error, dead)}
        return Outcome(error, fired, parts)

    def _sparse(self, w: Weights, x: Tensor, c: Tensor, active: Active) -> Tensor:
        error, g, h = decode_with_gradient(active, w["W_dec"], x, w["b_dec"])
        sparse_gradients(w, c, active, h * (active.values > 0), g)
        return error

    def _dense(self, w: Weights, x: Tensor, c: Tensor, pre: Tensor, active: Active) -> Tensor:
        f = torch.zeros_like(pre).scatter_(1, active.features, active.values)
        error = torch.addmm(w["b_dec"], f, w["W_dec"]) - x
        g = error * (2 / len(x))
        dense_gradients(w, c, f, (g @ w["W_dec"].T).mul_(f > 0), g)
        return error

    def _auxiliary(self, w: Weights, c: Tensor, pre: Tensor, error: Tensor, dead: Tensor) -> Tensor:
        """Add the auxiliary loss's gradients; its mean over the batch, coefficient included."""
        z = self._dead_features(pre[:, dead])
        rows = w["W_dec"][dead]
        miss = torch.addmm(error, z, rows)  # ê − e, with e = −error
        g = miss * (2 * self.spec.aux / len(c))
        h = (g @ rows.T).mul_(z != 0)
        w["W_dec"].grad.index_add_(0, dead, z.T @ g)  # type: ignore[union-attr]
        w["W_enc"].grad.index_add_(0, dead, h.T @ c)  # type: ignore[union-attr]
        w["b_enc"].grad.index_add_(0, dead, h.sum(0))  # type: ignore[union-attr]
        return miss.square().sum() * (self.spec.aux / len(c))

    def _dead_features(self, pre: Float[Tensor, "batch n_dead"]) -> Float[Tensor, "batch n_dead"]:
        """z: all of them, or the k_aux largest of each row and zeros."""
        if pre.shape[1] <= self.k_aux:
            return pre
        values, index = pre.topk(self.k_aux, dim=1, sorted=False)
        return torch.zeros_like(pre).scatter(1, index, values)

    def loss(
        self, w: Weights, x: Float[Tensor, "batch d_in"], step: int, dead: Int[Tensor, " n_dead"] | None
    ) -> Float[Tensor, ""]:
        pre = (x - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]
        reconstruction = keep_largest(pre, self.k) @ w["W_dec"] + w["b_dec"]
        loss = (reconstruction - x).square().sum(1).mean()
        if dead is None:
            return loss
        # The dead features' pre-activations see b_dec as a constant, so that the term trains dead features only.
        pre_dead = (x - w["b_dec"].detach()) @ w["W_enc"][dead].T + w["b_enc"][dead]
        estimate = self._dead_features(pre_dead) @ w["W_dec"][dead]
        residual = (x - reconstruction).detach()
        return loss + self.spec.aux * (residual - estimate).square().sum(1).mean()


ARCHITECTURE = Architecture("topk", "topk", TopKSAE, TopKObjective)
