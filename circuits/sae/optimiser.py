"""One optimiser step: project the decoder's gradient → clip by global norm → Adam → decoder rows back to unit norm.

The part of ∂W_dec parallel to W_dec is removed (Bricken et al. 2023: a unit row can only turn). Memory bandwidth is what these
steps cost on a CPU. So the parallel part is taken from the step that wrote the gradient, where it falls out of it; passes over the
decoder go by blocks of rows that stay in the cache; and clipping is done by Adam's fused kernel, which divides gradients by
`grad_scale` as it reads them. (Of MPS that kernel takes the argument and does not read it: there they are divided before.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.errors import UserError
from circuits.sae.modules import Weights
from circuits.sae.modules.gradients import buffer

BETAS, EPS = (0.9, 0.999), 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq")
VECTORS = 2.0
"""Rate of biases and thresholds, in multiples of that of the rows: in the units of training they are several times as large."""
SHARED = ("b_dec", "W_skip")  # weights that belong to no feature
BLOCK_BYTES = 4 << 20
SCALED = ("cpu", "cuda")  # devices whose fused Adam divides gradients by `grad_scale`


def _norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(torch.linalg.vector_norm(rows, dim=-1))


def _without_parallel(rows: Tensor, grad: Tensor, along: Tensor) -> Tensor:
    """Remove from a gradient what is parallel to its unit row, `along` times that row; the norm of what is left."""
    grad.addcmul_(rows, along[:, None], value=-1)
    return _norm(grad)


def _unit_rows(rows: Tensor) -> None:
    """Each row back to norm 1."""
    rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=1e-12))


def _in_cache(decoder: Float[Tensor, "d_sae d"]) -> Sequence[Tensor]:
    """Its rows in parts that stay in the cache."""
    on_cpu = decoder.device.type == "cpu"
    return decoder.split(max(1, BLOCK_BYTES // (4 * decoder.shape[1])) if on_cpu else len(decoder))


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

    def __init__(self, weights: Weights, clip: float, compiled: bool = False, frozen: str | None = None) -> None:
        """`frozen`: the name of weights that stay as they are."""
        self.weights, self.clip, self.frozen = weights, clip, frozen
        self._project: Callable[[Tensor, Tensor, Tensor], Tensor] = (
            fused(_without_parallel) if compiled else _without_parallel
        )
        self._renew: Callable[[Tensor], None] = fused(_unit_rows) if compiled else _unit_rows
        device = next(iter(weights.values())).device
        self.moments = {
            moment: {name: torch.zeros_like(p, requires_grad=False) for name, p in self._moving().items()}
            for moment in MOMENTS
        }
        self.steps = {name: torch.zeros((), device=device) for name in self._moving()}

    def _moving(self) -> Weights:
        return {name: p for name, p in self.weights.items() if not (self.frozen and name.startswith(self.frozen))}

    def step(self, lr: float, along: Float[Tensor, " d_sae"] | None = None) -> None:
        """Update the weights from the gradients in their buffers.

        Args:
            lr: the rate.
            along: ⟨∂W_dec[i], W_dec[i]⟩ of every feature, where it is known; of several decoders one after the other.
        """
        moving = self._moving()
        grads = {name: buffer(p) for name, p in moving.items()}
        decoders = [name for name in moving if name.startswith("W_dec")]
        along = None if along is None or not decoders else along.split([len(moving[name]) for name in decoders])
        norms = [_norm(grad) for name, grad in grads.items() if name not in decoders]
        for i, name in enumerate(decoders):
            norms += self._across(moving[name].data, grads[name], None if along is None else along[i])
        scale = (torch.linalg.vector_norm(torch.stack(norms)) / self.clip).clamp_(min=1.0)
        moments, variances = (list(found.values()) for found in self.moments.values())
        parameters, steps = [p.data for p in moving.values()], list(self.steps.values())
        read = parameters[0].device.type in SCALED
        lists = (parameters, list(grads.values()), moments, variances, steps)
        if not read:
            torch._foreach_div_(list(grads.values()), scale)
        torch._foreach_add_(steps, 1)
        for vectors, factor in ((False, 1.0), (True, VECTORS)):
            which = [i for i, p in enumerate(parameters) if (p.ndim == 1) == vectors]
            own, given, first, second, taken = ([some[i] for i in which] for some in lists)
            torch._fused_adam_(  # what torch.optim.Adam(fused=True) calls, after it has sorted its tensors by device
                own, given, first, second, [], taken, grad_scale=scale if read else None, amsgrad=False, lr=factor * lr,
                beta1=BETAS[0], beta2=BETAS[1], weight_decay=0.0, eps=EPS, maximize=False,
            )  # fmt: skip
        for name in decoders:
            for block in _in_cache(moving[name].data):
                self._renew(block)

    def _across(self, decoder: Tensor, grad: Tensor, along: Tensor | None) -> list[Tensor]:
        """Leave of a decoder's gradient what turns its rows; the norms of the blocks."""
        rows, grads = _in_cache(decoder), _in_cache(grad)
        known = (
            [torch.linalg.vecdot(g, r) for r, g in zip(rows, grads, strict=True)]
            if along is None
            else along.split(len(rows[0]))
        )
        return [self._project(r, g, a) for r, g, a in zip(rows, grads, known, strict=True)]

    def reset(self, keep: Tensor) -> None:
        """Zero the moments of the features where `keep` is False."""
        for moments in self.moments.values():
            for name, moment in moments.items():
                if name not in SHARED:
                    moment.mul_(keep if moment.ndim == 1 else keep[:, None])

    def tensors(self) -> dict[str, Tensor]:
        """Its state by name, live."""
        moments = {f"adam.{key}.{name}": t for key, found in self.moments.items() for name, t in found.items()}
        return {**moments, **{f"adam.step.{name}": steps for name, steps in self.steps.items()}}
