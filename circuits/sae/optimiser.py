"""One optimiser step: project the decoder's gradient → clip by global norm → Adam → decoder rows back to unit norm.

The part of ∂W_dec parallel to W_dec is removed (Bricken et al. 2023: a unit row can only turn). Memory bandwidth is what these
steps cost on a CPU: the passes over the decoder go by blocks of rows that fit a core's cache, and clipping is done by Adam's fused
kernel, which divides gradients by `grad_scale` as it reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from circuits.errors import UserError
from circuits.sae.modules import Weights
from circuits.sae.modules.gradients import buffer

BETAS, EPS = (0.9, 0.999), 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq")
BLOCK_BYTES = 1 << 20


def _without_parallel(rows: Tensor, grad: Tensor) -> Tensor:
    """Remove from a gradient what is parallel to its unit row; the norm of what is left."""
    grad.addcmul_(rows, (grad * rows).sum(1, keepdim=True), value=-1)
    return torch.linalg.vector_norm(grad)


def _unit_rows(rows: Tensor) -> None:
    """Each row back to norm 1."""
    rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=1e-12))


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` by ``torch.compile``: its passes over memory become one or two.

    Raises (when first called):
        UserError: there is no compiler to do it with.
    """
    inner = torch.compile(function, dynamic=True)

    def call(*given: Tensor) -> Any:
        try:
            return inner(*given)
        except RuntimeError as e:  # torch's own errors of compilation are RuntimeErrors
            if "torch._dynamo" in type(e).__module__ or "torch._inductor" in type(e).__module__:
                reason = str(e).strip().splitlines()[0][:160]
                raise UserError(f"sae.compile=true: torch.compile failed ({reason}); leave it out") from e
            raise

    return call


class Optimiser:
    """Adam over the weights of one SAE."""

    def __init__(self, weights: Weights, clip: float, compiled: bool = False) -> None:
        self.weights, self.clip = weights, clip
        self._project: Callable[[Tensor, Tensor], Tensor] = fused(_without_parallel) if compiled else _without_parallel
        self._renew: Callable[[Tensor], None] = fused(_unit_rows) if compiled else _unit_rows
        self.adam = torch.optim.Adam(weights.values(), lr=0.0, betas=BETAS, eps=EPS, fused=True)
        device = weights["W_dec"].device
        for p in weights.values():  # the state from the first step on, so that a checkpoint of step 0 has it too
            p.grad = torch.zeros_like(p)
            moments = {name: torch.zeros_like(p) for name in MOMENTS}
            self.adam.state[p] = {"step": torch.zeros((), device=device), **moments}

    def step(self, lr: float) -> None:
        """Update the weights from the gradients in their buffers."""
        decoder = self.weights["W_dec"]
        norms = [self._project(*block) for block in self._blocks()]
        norms += [
            torch.linalg.vector_norm(torch.linalg.vector_norm(grad, dim=-1))
            for p in self.weights.values()
            if p is not decoder and (grad := p.grad) is not None
        ]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        self.adam.grad_scale = (norm / self.clip).clamp_(min=1.0)  # type: ignore[attr-defined]
        self.adam.param_groups[0]["lr"] = lr
        self.adam.step()
        for rows, _ in self._blocks():
            self._renew(rows)

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of the decoder and of its gradient."""
        decoder = self.weights["W_dec"]
        rows = len(decoder) if decoder.is_cuda else max(1, BLOCK_BYTES // (4 * decoder.shape[1]))
        yield from zip(decoder.data.split(rows), buffer(decoder).split(rows), strict=True)

    def reset(self, keep: Tensor) -> None:
        """Zero the moments of the features where `keep` is False."""
        for name, p in self.weights.items():
            if name == "b_dec":
                continue
            for moment in MOMENTS:
                state = self.adam.state[p][moment]
                state.mul_(keep if state.ndim == 1 else keep[:, None])

    def tensors(self) -> dict[str, Tensor]:
        """Its state by name, live."""
        return {
            f"adam.{key}.{name}": value for name, p in self.weights.items() for key, value in self.adam.state[p].items()
        }
