"""Other rules for the backward pass: what a gradient is taken to be at norms, nonlinearities, gates and attention.

=================  ===============================================================================================================
norms frozen       a norm divides by a constant (LN rule: Ali et al. 2022, arXiv:2202.07304)
identity           a nonlinearity a(x) counts as x · (a(x)/x) with the factor constant (RelP, arXiv:2508.21258)
half               where two factors are multiplied each gets half of the gradient (gates; RelP, GIM arXiv:2505.17630)
GIM attention      the softmax's gradient at temperature 2; the product of pattern and values splits in halves, the pattern's half
                   again between query and key: ¼ ¼ ½
frozen attention   patterns are constants, so that nothing goes to queries and keys
=================  ===============================================================================================================

Values never change: only gradients do. Everything is undone in ``finally``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from circuits.attribution.anatomy import Anatomy
from circuits.models.modules import module_at
from circuits.models.norms import Norm

NAME = "circuits_rules"
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Rules:
    """Which rules a backward pass has; none of them is the ordinary gradient."""

    norms: bool = False
    act: bool = False
    gate: bool = False
    attention: str = ""
    """``gim``, ``frozen`` or nothing."""

    @property
    def any(self) -> bool:
        """Whether anything is changed."""
        return self != Rules()


PLAIN = Rules()


class _Scaled(torch.autograd.Function):
    """The same value; the gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


class _Given(torch.autograd.Function):
    """`y` as the value, `pull` as the way of its gradient to `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, pull: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.pull = pull
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.pull(grads[0]), None, None


class _TemperedSoftmax(torch.autograd.Function):
    """Softmax whose gradient is that of a softmax at a higher temperature."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        tempered = torch.softmax(scores / TEMPERATURE, -1)
        ctx.save_for_backward(tempered)
        return torch.softmax(scores, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        g = grads[0]
        return (g - (g * p).sum(-1, keepdim=True)) * p / TEMPERATURE


@contextlib.contextmanager
def applied(anatomy: Anatomy, rules: Rules) -> Iterator[None]:
    """Passes inside go backward by these rules."""
    with contextlib.ExitStack() as stack:
        if rules.norms:
            for module, norm in _norms(anatomy):
                stack.enter_context(_rewritten(module, partial(_frozen, norm)))
        for block in anatomy.blocks:
            inner = anatomy.inner
            if rules.act:
                stack.enter_context(_rewritten(module_at(block, inner.act), _identity))
            if rules.gate and inner.up:
                for path in (inner.up, inner.act):
                    stack.enter_context(_halved(module_at(block, path)))
        if rules.attention:
            stack.enter_context(_attention(anatomy, rules.attention))
        yield


def _frozen(norm: Norm, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    size = norm.size(x)

    def pull(g: Tensor) -> Tensor:
        back = g.float() * norm.scale / size
        return (back - back.mean(-1, keepdim=True) if norm.centred else back).to(g.dtype)

    return pull


def _identity(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    slope = torch.where(x.abs() > 1e-6, y / torch.where(x == 0, torch.ones_like(x), x), torch.full_like(x, 0.5))
    return lambda g: g * slope


@contextlib.contextmanager
def _rewritten(module: nn.Module, pull_of: Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """The module's value, and a gradient of our own: it is called without a graph, so that none is kept."""
    seen: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(args[0])
        return (args[0].detach(), *args[1:])

    def after(_: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        x = seen.pop()
        if not x.requires_grad:
            return y
        out: Tensor = _Given.apply(x, y, pull_of(args[0], y))
        return out

    handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _halved(module: nn.Module) -> Iterator[None]:
    """The gradient that comes back to the module's output, halved."""
    handle = module.register_forward_hook(lambda _, args, y: _Scaled.apply(y, 0.5) if y.requires_grad else y)
    try:
        yield
    finally:
        handle.remove()


def _norms(anatomy: Anatomy) -> list[tuple[nn.Module, Norm]]:
    """Every norm of the model, those of queries and keys too."""
    lm = anatomy.lm
    found: list[tuple[nn.Module, Norm]] = []
    for module in [*anatomy.blocks.modules(), module_at(lm.model, lm.family.final_norm)]:
        weight = getattr(module, "weight", None)
        if "Norm" in type(module).__name__ and weight is not None and weight.dim() == 1:
            found.append((module, Norm.of(module, len(weight), lm.device, lm.dtype)))
    return found


# -- attention -------------------------------------------------------------------------------------------------------

_way: list[str] = []  # the rule in force; transformers' registry holds functions by name for the whole process


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out, as transformers' own eager one, with the gradients of the rule in force."""
    groups = query.shape[1] // key.shape[1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    gim = _way[-1] == "gim"
    if gim:
        query, key, value = (_Scaled.apply(x, f) for x, f in ((query, 0.25), (key, 0.25), (value, 0.5)))
    if groups > 1:
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    pattern = _TemperedSoftmax.apply(scores.float()) if gim else torch.softmax(scores.float(), -1).detach()
    pattern = pattern.to(query.dtype)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


@contextlib.contextmanager
def _attention(anatomy: Anatomy, way: str) -> Iterator[None]:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    model: Any = anatomy.lm.model
    before = model.config._attn_implementation
    _way.append(way)
    try:
        model.set_attn_implementation(NAME)
        yield
    finally:
        model.set_attn_implementation(before)
        _way.pop()
