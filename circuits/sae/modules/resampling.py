"""Dead features drawn anew: Bricken et al. 2023, "Towards Monosemanticity" (transformer-circuits.pub), "Neuron Resampling".

A dead feature gets the direction of an input row, drawn with probability ∝ (loss of that row)², an encoder row of 0.2 × the mean
norm of the living ones, zero biases, and fresh optimiser moments. Rows are drawn without replacement (features given one row would
stay identical for ever), from the batch at hand, so at most one feature per row is revived at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.sae.modules.gradients import Weights

REVIVED_NORM = 0.2
"""Encoder norm of a resampled feature, relative to the living ones' mean."""


def resample(
    w: Weights,
    c: Float[Tensor, "batch d_in"],
    error: Float[Tensor, "batch d_out"],
    dead: Bool[Tensor, " d_sae"],
    noise: Float[Tensor, " batch"],
    start: Mapping[str, float],
) -> Bool[Tensor, " d_sae"]:
    """Give dead features the rows `c` that are reconstructed worst; `start` is the value of per-feature parameters there.

    In a transcoder the decoder row takes the direction of what is missing of y.
    """
    # Gumbel top-k: sorting log p + Gumbel noise draws rows without replacement with probability p ∝ loss².
    log_p = 2 * error.square().sum(1).clamp(min=1e-30).log()
    order = (log_p - torch.log(-torch.log(noise))).argsort(descending=True)
    place = dead.cumsum(0) - 1  # the n-th dead feature takes the n-th drawn row
    taken = dead & (place < len(c))
    drawn = order[place.clamp(0, len(c) - 1)]
    read = F.normalize(c[drawn], dim=1)
    write = read if w["W_dec"].shape == w["W_enc"].shape else F.normalize(-error[drawn], dim=1)
    norms = torch.linalg.vector_norm(w["W_enc"], dim=1)
    alive = (~dead).to(norms.dtype)
    norm = REVIVED_NORM * (norms * alive).sum() / alive.sum().clamp(min=1)
    w["W_dec"].copy_(torch.where(taken[:, None], write, w["W_dec"]))
    w["W_enc"].copy_(torch.where(taken[:, None], read * norm, w["W_enc"]))
    for name, value in start.items():
        w[name].masked_fill_(taken, value)
    return taken
