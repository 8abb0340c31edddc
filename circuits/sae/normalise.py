"""Units in which an SAE is trained: x' = s (x − μ), so that rates and penalties mean the same at every layer and width.

``standard``  μ the mean and s = sqrt(d / mean ‖x − μ‖²) of the first rows
``rms``       μ = 0 and s = sqrt(d / mean ‖x‖²): Anthropic's April 2024 update. At layers with a large common offset that
              leaves little variance to train on
``none``      raw activations

A crosscoder's rows are several layers' (or models') side by side, its *blocks*: each has its own mean and its own factor, so that
none counts for more because its activations are larger.

All is folded into the weights at export.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.errors import NonFinite, RunError


@dataclass
class Units:
    """x' = scale · by ⊙ (x − mean)."""

    mean: Float[Tensor, " d"]
    scale: float
    by: Float[Tensor, " d"] | None = None
    """Each block's own factor, repeated; None where there is one block."""

    def normalise(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """Rows of any dtype in these units, as a fresh float32 tensor."""
        found = (x.to(self.mean.device, torch.float32) - self.mean).mul_(self.scale)
        return found if self.by is None else found.mul_(self.by)

    def rows_of(self, weights: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Directions of these units in those of the rows, at the same `scale`."""
        return weights if self.by is None else weights / self.by

    def to(self, device: torch.device) -> Units:
        """The same on another device."""
        return Units(self.mean.to(device), self.scale, None if self.by is None else self.by.to(device))


def measure(rows: Float[Tensor, "n d"], how: str, blocks: int = 1) -> Units:
    """The units of rows, in float64 on the CPU, so that they depend on nothing but the rows."""
    if blocks > 1:
        parts = [measure(part, how) for part in rows.chunk(blocks, dim=1)]
        scale = math.exp(sum(math.log(part.scale) for part in parts) / blocks)
        by = torch.cat([torch.full_like(part.mean, part.scale / scale) for part in parts])
        return Units(torch.cat([part.mean for part in parts]), scale, by)
    x = rows.detach().cpu().double()
    mean = x.mean(0)
    variance = (x - mean).square().sum(1).mean().item()
    if not math.isfinite(variance):
        raise NonFinite("the first rows contain NaN or infinity")
    if variance <= 0:
        raise RunError(f"the first {len(x)} rows are all equal: nothing to train an SAE on")
    width = x.shape[1]
    if how == "standard":
        return Units(mean.float(), math.sqrt(width / variance))
    scale = 1.0 if how == "none" else math.sqrt(width / x.square().sum(1).mean().item())
    return Units(torch.zeros(width), scale)


def of_rows(x: Float[Tensor, "... d"], how: str) -> tuple[Tensor, Tensor, Tensor]:
    """μ, s and t of each row, each [..., 1]: an SAE that normalises its rows sees (x − μ)/s and reconstructs t x̂ + μ.

    These are SAELens's ``layer_norm`` (its epsilon stands on one side only) and ``constant_norm_rescale``.
    """
    if how == "layer_norm":
        mean, spread = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return mean, spread + 1e-5, spread
    norm = x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny) / math.sqrt(x.shape[-1])
    return torch.zeros_like(norm), norm, norm
