"""Gradients of the reconstruction loss, written out so that nothing is computed that no one needs.

Loss: L = (1/B) Σ_b ‖x̂_b − y_b‖² + …, x̂ = f W_dec + b_dec, f = act(pre), pre = c W_encᵀ + b_enc (W_enc feature-major), where
c = x − b_dec and y = x in an SAE, c = x and y another site's rows in a transcoder. With g = ∂L/∂x̂ = 2 (x̂ − y)/B and
h = ∂L/∂pre:

    ∂W_dec = fᵀ g     ∂W_enc = hᵀ c     ∂b_enc = Σ_b h_b     ∂b_dec = Σ_b g_b − W_encᵀ ∂b_enc (the latter if c = x − b_dec)

A skip connection adds W_skip x to x̂, and ∂W_skip = gᵀ x. The input gets no gradient, and b_dec's way through the encoder is one
matrix-vector product, not a sixth large one.
All results go into gradient buffers that live as long as the trainer. Where few features of a row are active, the products
are sums over the active entries (:mod:`circuits.sae.modules.support`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.sae.modules.products import project
from circuits.sae.modules.support import Support

Weights = dict[str, torch.nn.Parameter]


def buffer(parameter: torch.nn.Parameter) -> Tensor:
    """The gradient buffer of a parameter, made at first use."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def encode(w: Weights, c: Float[Tensor, "batch d_in"], bias: Tensor) -> Float[Tensor, "batch d_sae"]:
    """Pre-activations c W_encᵀ + bias, valid until the next call."""
    return project(c, w["W_enc"], bias, "pre")


def decoder_bias(w: Weights, g: Float[Tensor, "batch d_out"], through: Float[Tensor, " d_sae"] | None) -> None:
    """∂b_dec, from g and Σ_b h_b; None when the encoder does not see b_dec."""
    torch.sum(g, dim=0, out=buffer(w["b_dec"]))
    if through is not None:
        buffer(w["b_dec"]).sub_(_through_encoder(w["W_enc"], through))


def beside_features(
    w: Weights, c: Float[Tensor, "batch d_in"], g: Float[Tensor, "batch d_out"], through: Float[Tensor, " d_sae"] | None
) -> None:
    """∂b_dec, and ∂W_skip where there is a skip connection: then c is x, as in every transcoder."""
    decoder_bias(w, g, through)
    if "W_skip" in w:
        torch.mm(g.T, c, out=buffer(w["W_skip"]))


def _through_encoder(table: Float[Tensor, "d_sae d_in"], h: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_in"]:
    """W_encᵀ h. As two products side by side where that is possible: of one, a CPU uses one core."""
    parts = 2 if table.device.type == "cpu" and len(table) % 2 == 0 else 1
    return torch.bmm(h.view(parts, 1, -1), table.view(parts, -1, table.shape[1])).sum(0).view(-1)


def dense_weights(
    w: Weights,
    c: Float[Tensor, "batch d_in"],
    f: Float[Tensor, "batch d_sae"],
    h: Float[Tensor, "batch d_sae"],
    g: Float[Tensor, "batch d_out"],
) -> None:
    """∂W_dec and ∂W_enc by dense products."""
    torch.mm(f.T, g, out=buffer(w["W_dec"]))
    torch.mm(h.T, c, out=buffer(w["W_enc"]))


def sparse_weights(
    w: Weights,
    c: Float[Tensor, "batch d_in"],
    support: Support,
    f: Float[Tensor, " n"],
    h: Float[Tensor, " n"],
    g: Float[Tensor, "batch d_out"],
) -> None:
    """∂W_dec and ∂W_enc by sums over active entries."""
    support.weight_gradient(f, g, buffer(w["W_dec"]))
    support.weight_gradient(h, c, buffer(w["W_enc"]))
