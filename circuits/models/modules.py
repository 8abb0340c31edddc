"""Temporary changes of native Hugging Face modules, each a context manager that undoes itself in ``finally``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, arange, nn

from circuits.models.sites import Tap


def module_at(root: nn.Module, path: str) -> Any:
    """The submodule at a dotted path; the root itself for an empty one."""
    return root.get_submodule(path)


@contextlib.contextmanager
def hooked(module: nn.Module, tap: Tap, visit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let `visit` see, and replace, the tensor of `tap`."""

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = visit(args[0])
        if new is args[0]:
            return None
        if tap.shared:
            args[0].copy_(new)  # the residual branch holds this same tensor
            return None
        return (new, *args[1:])

    def after(_: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        return (visit(out[0]), *out[1:]) if isinstance(out, tuple) else visit(out)

    handle = module.register_forward_pre_hook(before) if tap.side == "in" else module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def only_at(lm_head: nn.Module, last: Tensor) -> Iterator[None]:
    """Show the unembedding `lm_head` some positions per row only, `last` [batch] or [batch, n]: logits [batch, n, vocab]."""
    columns = last if last.dim() == 2 else last[:, None]
    rows = arange(len(columns), device=columns.device)[:, None]
    handle = lm_head.register_forward_pre_hook(lambda _, args: (args[0][rows, columns], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def restarted(blocks: nn.ModuleList, layer: int, resid: Tensor) -> Iterator[None]:
    """Skip the blocks below `layer` and hand `resid` to that layer as the residual stream entering it."""
    # An alias: a captured tensor may be made to require a gradient, and the caller's own must not change.
    alias = resid.view_as(resid)
    handle = blocks[layer].register_forward_pre_hook(lambda _, args: (alias, *args[1:]))
    # An instance's `forward` comes before its class's, so the block itself stays in place and keeps its index.
    skipped = [block.__dict__ for block in blocks[:layer]]
    before = [names.get("forward") for names in skipped]
    try:
        for names in skipped:
            names["forward"] = _pass_through
        yield
    finally:
        handle.remove()
        for names, own in zip(skipped, before, strict=True):
            del names["forward"]
            if own is not None:
                names["forward"] = own


def _pass_through(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states
