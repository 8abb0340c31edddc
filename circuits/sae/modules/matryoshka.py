"""Matryoshka BatchTopK SAE: Bussmann, Nabeshima, Karvonen and Nanda 2025 (arXiv:2503.17547).

    L = mean over prefixes m of ‖x − f[:m] W_dec[:m] − b_dec‖²  +  α ‖e − ê‖²

with f as in BatchTopK. Each prefix of the dictionary has to reconstruct by itself, so that general features come first and are not
absorbed by special ones. Prefixes are nested by halves: d_sae/2^(groups−1), …, d_sae/2, d_sae.

The prefixes differ by bands of features; with the errors e_j of the prefixes, a feature of band i sees the gradient
g_i = 2/(B·groups) Σ_{j ≥ i} e_j. So one decoding into (row, band) slots and running sums over bands serve all prefixes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.sae.modules.base import Architecture
from circuits.sae.modules.batchtopk import BatchTopKObjective
from circuits.sae.modules.gradients import Weights, buffer
from circuits.sae.modules.jumprelu import JumpReLUSAE
from circuits.sae.modules.scratch import scratch
from circuits.sae.modules.support import Support, sparse_pays
from circuits.sae.modules.topk import k_problems
from circuits.sae.spec import TrainSpec


def prefixes(d_sae: int, groups: int) -> list[int]:
    """Sizes of the nested dictionaries, ascending; the last is the whole."""
    return [d_sae >> (groups - 1 - i) for i in range(groups)]


class MatryoshkaObjective(BatchTopKObjective):
    """The mean of the prefixes' reconstruction errors."""

    def __init__(self, spec: TrainSpec) -> None:
        super().__init__(spec)
        self.ends = prefixes(spec.d_sae, spec.groups)
        self._bounds = torch.tensor(self.ends)
        self.bands = list(zip([0, *self.ends[:-1]], self.ends, strict=True))

    @staticmethod
    def problems(spec: TrainSpec) -> list[str]:
        wrong = k_problems(spec)
        if spec.groups < 2:
            wrong.append(f"groups = {spec.groups}: at least 2 prefixes, or choose batchtopk")
        elif spec.d_sae % 2 ** (spec.groups - 1):
            wrong.append(
                f"groups = {spec.groups}: d_sae = {spec.d_sae} is not divisible by 2^{spec.groups - 1}, for halves of halves"
            )
        return wrong

    def _gradients(
        self, w: Weights, c: Tensor, y: Tensor, support: Support, f: Tensor, on: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        sparse = sparse_pays(self.spec.k_at(0) * len(y), len(y), self.spec.d_sae, y.device)
        errors, found = self._slots(w, support, f, len(y)) if sparse else self._banded(w, support, f, len(y))
        for band in range(1, len(self.bands)):
            errors[:, band] += errors[:, band - 1]
        errors += (w["b_dec"] - y)[:, None]
        error = errors[:, -1].clone()
        squared = errors.square().sum() / len(self.bands)
        nested = {"nested": (squared - error.square().sum()) / len(y)}
        for band in reversed(range(len(self.bands) - 1)):
            errors[:, band] += errors[:, band + 1]
        g = errors.mul_(2 / (len(y) * len(self.bands)))
        if isinstance(found, Support):
            h = self._sparse_weights(w, c, support, f, on, g, found)
        else:
            h = self._dense_weights(w, c, support, g, found)
        return error, nested, h, g[:, 0]

    def _slot(self, support: Support) -> Tensor:
        """(row, band) of every entry as one number; ascending, as features ascend within a row."""
        self._bounds = self._bounds.to(support.features.device)
        return support.rows * len(self.ends) + torch.bucketize(support.features, self._bounds, right=True)

    def _slots(
        self, w: Weights, support: Support, f: Tensor, batch: int
    ) -> tuple[Float[Tensor, "batch bands d_out"], Support]:
        count = batch * len(self.bands)
        slots = self._slot(support)
        starts = torch.searchsorted(slots, torch.arange(count + 1, device=slots.device))
        by_slot = Support(slots, support.features, starts, self.spec.d_sae)
        return by_slot.decode(f, w["W_dec"]).view(batch, len(self.bands), -1), by_slot

    def _sparse_weights(
        self,
        w: Weights,
        c: Tensor,
        support: Support,
        f: Tensor,
        on: Tensor,
        g: Float[Tensor, "batch bands d_out"],
        by_slot: Support,
    ) -> Tensor:
        flat = g.view(-1, g.shape[-1])
        h = by_slot.dots(flat, w["W_dec"]).mul_(on)
        support.weight_gradient(f, flat, buffer(w["W_dec"]), rows=by_slot.rows)
        support.weight_gradient(h, c, buffer(w["W_enc"]))
        return h

    def _banded(
        self, w: Weights, support: Support, f: Tensor, batch: int
    ) -> tuple[Float[Tensor, "batch bands d_out"], Float[Tensor, "batch d_sae"]]:
        whole = scratch("f", (batch, self.spec.d_sae), f).zero_().index_put_((support.rows, support.features), f)
        return torch.stack([whole[:, a:b] @ w["W_dec"][a:b] for a, b in self.bands], dim=1), whole

    def _dense_weights(
        self, w: Weights, c: Tensor, support: Support, g: Float[Tensor, "batch bands d_out"], whole: Tensor
    ) -> Tensor:
        h = scratch("h", tuple(whole.shape), whole)
        for band, (a, b) in enumerate(self.bands):
            h[:, a:b] = g[:, band] @ w["W_dec"][a:b].T
            buffer(w["W_dec"])[a:b] = whole[:, a:b].T @ g[:, band]
        h.mul_(whole.sign())
        torch.mm(h.T, c, out=buffer(w["W_enc"]))
        return h[support.rows, support.features]

    def reconstruction_loss(self, w: Weights, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        nested = [f[:, :m] @ w["W_dec"][:m] + w["b_dec"] for m in self.ends]
        losses = [(reconstruction - y).square().sum(1).mean() for reconstruction in nested]
        return nested[-1], torch.stack(losses).mean()


ARCHITECTURE = Architecture("matryoshka", JumpReLUSAE, MatryoshkaObjective)
