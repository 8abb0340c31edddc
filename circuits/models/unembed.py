"""From the last residual stream to differences of logits: the final norm, as it is or with a frozen scale, and the unembedding."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.load import LM
from circuits.models.modules import module_at


@torch.no_grad()
def final_scale(lm: LM) -> tuple[Float[Tensor, " width"], bool]:
    """The final norm's scale for each dimension, and whether it takes the mean out; found by asking the norm itself.

    A vector of ±1 in equal number has mean 0 and length √width, so both kinds of norm only scale it; the difference of the
    answers to it and to its negative is free of a bias.
    """
    norm = module_at(lm.model, lm.family.final_norm)
    signs = torch.ones(lm.dims.width, device=lm.device, dtype=lm.dtype)
    signs[1::2] = -1
    scale = ((norm(signs[None]) - norm(-signs[None])) / 2)[0].float() * signs.float()
    ones = torch.ones_like(signs)[None]
    answer = (norm(ones) - norm(-ones)).float().norm()
    return scale, bool(answer < 0.01 * scale.norm())


@torch.no_grad()
def logit_difference(
    lm: LM, resid: Float[Tensor, "rows width"], target: Int[Tensor, " rows"], foil: Int[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """logit(target) − logit(foil) of the last block's output, float32; nothing else of the vocabulary is computed."""
    normed = module_at(lm.model, lm.family.final_norm)(resid.to(lm.dtype)[:, None])[:, 0]
    return _read(lm, normed.float(), target, foil)


@torch.no_grad()
def frozen_difference(
    lm: LM,
    resid: Float[Tensor, "rows width"],
    change: Float[Tensor, "rows width"],
    target: Int[Tensor, " rows"],
    foil: Int[Tensor, " rows"],
) -> Float[Tensor, " rows"]:
    """How much `change` moves the logit difference while the final norm divides by what it divides `resid` by."""
    scale, centred = final_scale(lm)
    norm = module_at(lm.model, lm.family.final_norm)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0))
    resid, change = resid.float(), change.float()
    if centred:
        resid, change = (x - x.mean(-1, keepdim=True) for x in (resid, change))
    size = (resid.square().mean(-1, keepdim=True) + eps).sqrt()
    head = module_at(lm.model, lm.family.lm_head).weight
    return (change / size * scale * (head[target] - head[foil]).float()).sum(-1)


def _read(lm: LM, normed: Tensor, target: Tensor, foil: Tensor) -> Tensor:
    head = module_at(lm.model, lm.family.lm_head)
    found = (normed * (head.weight[target] - head.weight[foil]).float()).sum(-1)
    return found if head.bias is None else found + (head.bias[target] - head.bias[foil]).float()
