"""The norms of a model (LayerNorm, RMSNorm and kin) in closed form: y = scale ∘ (x − mean) / size + bias.

What a norm is, is found by asking it, so that a family needs no entry: a vector of ±1 in equal number has mean 0 and length
√width, so every such norm only scales it; the difference of the answers to it and to its negative is free of a bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.errors import UserError


@dataclass(frozen=True)
class Norm:
    """A norm's parts.

    Attributes:
        scale: its weight for each dimension, as it is applied (Gemma's is 1 + the stored one).
        bias: what it adds after.
        centred: whether it takes the mean out.
        eps: added to the mean square before the root.
    """

    scale: Float[Tensor, " width"]
    bias: Float[Tensor, " width"]
    centred: bool
    eps: float

    @staticmethod
    @torch.no_grad()
    def of(norm: Any, width: int, device: torch.device, dtype: torch.dtype) -> Norm:
        """The parts of a norm module.

        Raises:
            UserError: it does something else than such a norm.
        """
        signs = torch.ones(width, device=device, dtype=dtype)
        signs[1::2] = -1
        up, down = norm(signs[None])[0].float(), norm(-signs[None])[0].float()
        scale, bias = (up - down) / 2 * signs.float(), (up + down) / 2
        ones = torch.ones_like(signs)[None]
        answer = (norm(ones) - norm(-ones)).float().norm()
        eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0))
        found = Norm(scale, bias, bool(answer < 0.01 * scale.norm()), float(eps))
        # One vector that is neither centred nor of unit size: a norm of another kind answers otherwise.
        x = torch.linspace(-1, 2, width, device=device, dtype=dtype)[None]
        half = (norm(x) - norm(-x)).float() / 2
        tolerance = 1e-3 if dtype is torch.float32 else 3e-2
        if not torch.allclose(found.normed(x), half, rtol=tolerance, atol=tolerance * float(half.abs().max())):
            raise UserError(f"{type(norm).__name__} is no LayerNorm and no RMSNorm, and cannot be taken apart")
        return found

    def _middle(self, x: Tensor) -> Tensor:
        x = x.float()
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def size(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... 1"]:
        """What the norm divides `x` by."""
        return (self._middle(x).square().mean(-1, keepdim=True) + self.eps).sqrt()

    def unit(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """`x`, centred where the norm does so, divided by its size."""
        return self._middle(x) / self.size(x)

    def normed(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """The norm's answer to `x`, its bias left out, in float32."""
        return self.unit(x) * self.scale

    def along(self, change: Float[Tensor, "... width"], size: Float[Tensor, "... 1"]) -> Float[Tensor, "... width"]:
        """What `change` of its input changes in its answer while it divides by `size`."""
        return self._middle(change) / size * self.scale

    def pulled(
        self, g: Float[Tensor, "... width"], x: Float[Tensor, "... width"], frozen: bool = False
    ) -> Float[Tensor, "... width"]:
        """The gradient at the norm's input from the one at its answer (its Jacobian at `x`, transposed).

        Args:
            g: gradient at the answer; may have further dimensions before the last, as `x` broadcasts.
            x: the input.
            frozen: as if what it divides by were a constant.
        """
        size, g = self.size(x), g.float() * self.scale
        if not frozen:
            unit = self.unit(x)
            g = g - unit * (g * unit).mean(-1, keepdim=True)
        return self._middle(g) / size
