"""Gradients of the reconstruction loss, written out so that nothing is computed that no one needs.

Loss: L = (1/B) Σ_b ‖x̂_b − x_b‖² + …, x̂ = f W_dec + b_dec, f = act(pre), pre = c W_encᵀ + b_enc, c = x − b_dec
(W_enc feature-major). With g = ∂L/∂x̂ = 2 (x̂ − x)/B and h = ∂L/∂pre:

    ∂W_dec = fᵀ g     ∂W_enc = hᵀ c     ∂b_enc = Σ_b h_b     ∂b_dec = Σ_b g_b − W_encᵀ ∂b_enc

The input gets no gradient, and b_dec's way through the encoder is one matrix-vector product, not a sixth large one.
All results go into gradient buffers that live as long as the trainer: fresh large buffers cost page faults each step.

When only k features of a row are active, every product but the encoder's forward is a weighted sum of few rows, which
is what ``embedding_bag`` computes; sorting the active entries by feature makes the two weight gradients such sums too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuits.sae.modules.base import Weights


def buffer(parameter: torch.nn.Parameter) -> Tensor:
    """The gradient buffer of a parameter, made at first use."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def bias_gradients(w: Weights, g: Float[Tensor, "batch d_in"]) -> None:
    """∂b_dec, from g and the ∂b_enc that is already in its buffer."""
    torch.sum(g, dim=0, out=buffer(w["b_dec"]))
    buffer(w["b_dec"]).addmv_(w["W_enc"].T, buffer(w["b_enc"]), alpha=-1)


def dense_gradients(
    w: Weights,
    c: Float[Tensor, "batch d_in"],
    f: Float[Tensor, "batch d_sae"],
    h: Float[Tensor, "batch d_sae"],
    g: Float[Tensor, "batch d_in"],
) -> None:
    """All four gradients by dense products."""
    torch.mm(f.T, g, out=buffer(w["W_dec"]))
    torch.mm(h.T, c, out=buffer(w["W_enc"]))
    torch.sum(h, dim=0, out=buffer(w["b_enc"]))
    bias_gradients(w, g)


class Active(NamedTuple):
    """The active entries of a batch: `values[b, j]` is the activation of feature `features[b, j]` on row b."""

    values: Float[Tensor, "batch k"]
    features: Int[Tensor, "batch k"]


def decode(active: Active, table: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
    """Σ_j values[b, j] · table[features[b, j]]."""
    return F.embedding_bag(active.features, table, per_sample_weights=active.values, mode="sum")


def decode_with_gradient(
    active: Active, table: Float[Tensor, "d_sae d_in"], x: Float[Tensor, "batch d_in"], bias: Float[Tensor, " d_in"]
) -> tuple[Float[Tensor, "batch d_in"], Float[Tensor, "batch d_in"], Float[Tensor, "batch k"]]:
    """error = x̂ − x, g = 2·error/B, and ∂L/∂values[b, j] = g_b · table[features[b, j]]."""
    with torch.enable_grad():
        values = active.values.detach().requires_grad_()
        sums = decode(Active(values, active.features), table.detach())
    error = sums.detach() + bias - x
    g = error * (2 / len(x))
    return error, g, torch.autograd.grad(sums, values, g)[0]


def sparse_gradients(
    w: Weights,
    c: Float[Tensor, "batch d_in"],
    active: Active,
    h: Float[Tensor, "batch k"],
    g: Float[Tensor, "batch d_in"],
) -> None:
    """All four gradients by sums over active entries; `h` is ∂L/∂pre at them."""
    n_features, k = len(w["W_dec"]), active.features.shape[1]
    feature, order = active.features.flatten().sort(stable=True)
    row = order // k
    starts = torch.searchsorted(feature, torch.arange(n_features, device=feature.device))
    for name, table, weights in (("W_dec", g, active.values), ("W_enc", c, h)):
        weight = weights.flatten()[order]
        buffer(w[name]).copy_(F.embedding_bag(row, table, starts, mode="sum", per_sample_weights=weight))
    buffer(w["b_enc"]).zero_().index_add_(0, active.features.flatten(), h.flatten())
    bias_gradients(w, g)
