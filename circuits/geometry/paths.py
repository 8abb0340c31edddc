"""The path that the residual stream takes over the tokens of a prompt: how long its steps are, how sharply it turns.

* Step length: ‖r_{t+1} − r_t‖₂, over all steps, the first five, and the rest. (tinyLab calls this curvature; it is a speed.)
* Turning angle: the angle between one step and the next, arccos of their cosine: 0 on a straight line (Hénaff, Goris & Simoncelli
  2019; of language models Hosseini & Fedorenko 2023).

Each prompt has its own mean, since the prompt is the unit of sampling; padding takes no part.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

FIRST = 5
"""Steps that count as the first."""
PATHS = ("step_length", "step_length_first", "step_length_rest", "turning_angle")


def paths(resid: Float[Tensor, "rows pos width"], mask: Bool[Tensor, "rows pos"]) -> dict[str, Float[Tensor, " rows"]]:
    """:data:`PATHS` of each row, NaN where it is too short; angles in radians."""
    steps = resid[:, 1:].float() - resid[:, :-1].float()
    real = mask[:, 1:] & mask[:, :-1]
    first = real & (real.long().cumsum(1) <= FIRST)
    length = steps.norm(dim=-1)
    means = (_mean(length, real), _mean(length, first), _mean(length, real & ~first))
    # The angle as twice an arctangent (Kahan): exact near 0 and π, where arccos of a float32 cosine is not.
    unit = steps / length.clamp(min=torch.finfo(length.dtype).tiny)[..., None]
    before, after = unit[:, :-1], unit[:, 1:]
    angle = 2 * torch.atan2((after - before).norm(dim=-1), (after + before).norm(dim=-1))
    moving = real & (length > 0)  # a step of length 0 has no direction
    return dict(zip(PATHS, (*means, _mean(angle, moving[:, :-1] & moving[:, 1:])), strict=True))


def _mean(values: Float[Tensor, "rows n"], where: Bool[Tensor, "rows n"]) -> Float[Tensor, " rows"]:
    """The mean over `where` of each row; NaN without any."""
    return torch.where(where, values, 0.0).sum(1) / where.sum(1)
