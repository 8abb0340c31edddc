"""From the last residual stream to differences of logits: the final norm, as it is or with a frozen scale, and the unembedding."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.load import LM
from circuits.models.modules import module_at
from circuits.models.norms import Norm


def final_norm(lm: LM) -> Norm:
    """The final norm's parts."""
    return Norm.of(module_at(lm.model, lm.family.final_norm), lm.dims.width, lm.device, lm.dtype)


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
    norm = final_norm(lm)
    head = module_at(lm.model, lm.family.lm_head).weight
    return (norm.along(change, norm.size(resid)) * (head[target] - head[foil]).float()).sum(-1)


def _read(lm: LM, normed: Tensor, target: Tensor, foil: Tensor) -> Tensor:
    head = module_at(lm.model, lm.family.lm_head)
    found = (normed * (head.weight[target] - head.weight[foil]).float()).sum(-1)
    return found if head.bias is None else found + (head.bias[target] - head.bias[foil]).float()
