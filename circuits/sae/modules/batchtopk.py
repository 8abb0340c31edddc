"""BatchTopK SAE: Bussmann, Leask and Nanda 2024 (arXiv:2412.06410).

    f = the k·B largest entries of ReLU((x − b_dec) W_enc + b_enc) over a batch of B rows, zero elsewhere
    L = ‖x − x̂‖² + α ‖e − ê‖²                                              (modules/auxiliary.py)

A row's features then depend on the rest of its batch, so that outside training they are those above a threshold: the mean over
training of the smallest activation that was kept (their section 3.2), here a moving average with weight `threshold_rate`, which
begins after `threshold_warmup` steps. The trained SAE is a JumpReLU SAE with one threshold for all features.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.sae.modules.base import SAE, Architecture, Outcome
from circuits.sae.modules.gradients import Weights, beside_features, buffer, encode, sparse_weights
from circuits.sae.modules.jumprelu import JumpReLUSAE
from circuits.sae.modules.selection import BatchSelection
from circuits.sae.modules.support import Support, sparse_pays
from circuits.sae.modules.topk import TopKObjective
from circuits.sae.normalise import Units
from circuits.sae.spec import TrainSpec


def move_threshold(threshold: Tensor, outcome: Outcome, spec: TrainSpec, step: int) -> None:
    """Towards the smallest positive activation that a batch kept."""
    smallest = outcome.smallest
    if smallest is None:
        raise TypeError("a selection over a batch tells the smallest activation that it kept")
    weight = spec.threshold_rate if step > spec.threshold_warmup else 1.0
    threshold.copy_(torch.where(smallest.isfinite(), threshold + weight * (smallest - threshold), threshold))


class BatchTopKObjective(TopKObjective):
    """Reconstruction error plus the auxiliary loss on dead features; a moving average of the smallest kept activation."""

    def __init__(self, spec: TrainSpec) -> None:
        super().__init__(spec)
        self.select = BatchSelection()
        self.state = {"threshold": torch.zeros(())}

    def gradients(self, w: Weights, x: Tensor, y: Tensor, step: int, dead: Int[Tensor, " n_dead"] | None) -> Outcome:
        c, y = self.centred(w, x), self.left(w, x, y)
        pre = encode(w, c, w["b_enc"])
        f, index = self.select(pre, self.spec.k_at(step) * len(x))
        support = Support.flat(index, len(x), self.spec.d_sae)
        on = (f > 0).to(f.dtype)
        error, nested, h, through = self._gradients(w, c, y, support, f, on)
        buffer(w["b_enc"]).copy_(support.feature_sums(h))
        beside_features(w, c, through, w["b_enc"].grad if self.tied else None)
        along = support.feature_sums(f * h)
        if dead is not None:
            nested["aux"] = self._auxiliary(w, c, pre, error, dead, along)
        smallest = torch.where(f > 0, f, torch.inf).min() if len(f) else torch.full((), torch.inf, device=f.device)
        return Outcome(error, support.feature_sums(on), on.sum(), nested, along, smallest)

    def _gradients(
        self, w: Weights, c: Tensor, y: Tensor, support: Support, f: Tensor, on: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """error, further parts of the loss, ∂L/∂pre at the entries, and ∂L/∂b_dec by row; writes the weights' gradients."""
        if sparse_pays(self.spec.k_at(0) * len(y), len(y), self.spec.d_sae, y.device):
            error, g, h = self._sparse(w, y, support, f)
            h.mul_(on)
            sparse_weights(w, c, support, f, h, g)
            return error, {}, h, g
        error, whole = self._dense(w, c, y, support, f)
        return error, {}, whole[support.rows, support.features].mul_(on), error * (2 / len(y))

    def follow(self, outcome: Outcome, step: int) -> None:
        """Move the threshold towards this batch's smallest positive activation."""
        move_threshold(self.state["threshold"], outcome, self.spec, step)

    def features(self, pre: Float[Tensor, "batch d_sae"], step: int) -> Float[Tensor, "batch d_sae"]:
        flat = pre.relu().flatten()
        values, index = flat.topk(self.spec.k_at(step) * len(pre))
        return torch.zeros_like(flat).scatter(0, index, values).view_as(pre)

    @torch.no_grad()
    def export(self, sae: SAE, w: Weights, read: Units, write: Units) -> None:
        super().export(sae, w, read, write)
        sae.get_parameter("threshold").fill_(float(self.state["threshold"]) / write.scale)


ARCHITECTURE = Architecture("batchtopk", JumpReLUSAE, BatchTopKObjective)
