"""The auxiliary loss that teaches dead features to explain what the living ones leave over: Gao et al. 2024 (arXiv:2406.04093),
appendix A.2.

    α ‖e − ê‖²,  e = y − ŷ (held fixed),  ê = z W_dec

where z are the k_aux largest pre-activations among dead features only, k_aux = d_out/2. z has no ReLU, as in EleutherAI's sparsify
and SAELens: with one, a feature pushed below zero would get no gradient and stay dead. The term reaches only the dead features'
weights, sees b_dec as a constant, and is not computed while none is dead.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.sae.modules.gradients import Weights, buffer


def strongest(pre: Float[Tensor, "batch n_dead"], k_aux: int) -> Float[Tensor, "batch n_dead"]:
    """z: all of them, or the k_aux largest of each row and zeros."""
    if pre.shape[1] <= k_aux:
        return pre
    values, index = pre.topk(k_aux, dim=1, sorted=False)
    return torch.zeros_like(pre).scatter(1, index, values)


def add_gradients(
    w: Weights,
    c: Float[Tensor, "batch d_in"],
    pre: Float[Tensor, "batch n_dead"],
    error: Float[Tensor, "batch d_out"],
    dead: Int[Tensor, " n_dead"],
    coefficient: float,
    along: Float[Tensor, " d_sae"],
) -> Float[Tensor, ""]:
    """Add the term's gradients to what is in the buffers and to `along`; its mean over the batch, coefficient included."""
    z = strongest(pre, max(1, error.shape[1] // 2))
    rows = w["W_dec"][dead]
    miss = torch.addmm(error, z, rows)  # ê − e, with e = −error
    g = miss * (2 * coefficient / len(c))
    h = (g @ rows.T).mul_(z != 0)
    buffer(w["W_dec"]).index_add_(0, dead, z.T @ g)
    buffer(w["W_enc"]).index_add_(0, dead, h.T @ c)
    buffer(w["b_enc"]).index_add_(0, dead, h.sum(0))
    along.index_add_(0, dead, z.mul(h).sum(0))
    return miss.square().sum() * (coefficient / len(c))


def loss(
    w: Weights, c: Tensor, y: Tensor, reconstruction: Tensor, dead: Int[Tensor, " n_dead"], coefficient: float
) -> Float[Tensor, ""]:
    """The term in plain autograd; `c` with b_dec held fixed."""
    z = strongest(c @ w["W_enc"][dead].T + w["b_enc"][dead], max(1, y.shape[1] // 2))
    estimate = z @ w["W_dec"][dead]
    residual = (y - reconstruction).detach()
    return coefficient * (residual - estimate).square().sum(1).mean()
