"""Which tokens see which among pictures and text: made by the model in one pass, and handed to the next over rows that are alike.

A model that sees pictures makes that of the mask and the token types alone, and takes as long for it as for a few blocks of a small
model. Rows of one prompt are alike in both, whatever is in the pictures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from circuits.models.load import LM
from circuits.models.modules import module_at

TYPES = "token_type_ids"


@dataclass(frozen=True)
class _Made:
    """What a model made, and of what."""

    mask: Tensor
    types: Tensor
    how: tuple[Any, ...]
    """The attention's implementation, whether there was a cache, and whether its tensors can be part of a graph."""
    attention: dict[str, Any]

    def is_of(self, mask: Tensor, types: Tensor, how: tuple[Any, ...]) -> bool:
        return self.how == how and torch.equal(self.mask, mask) and torch.equal(self.types, types)


_last: WeakKeyDictionary[nn.Module, _Made] = WeakKeyDictionary()


@contextlib.contextmanager
def shared(lm: LM, mask: Tensor, types: Tensor | None, cached: bool) -> Iterator[Any]:
    """What a pass over rows of this mask and these types is to get as attention mask; what it makes of them is kept.

    Args:
        mask: of valid tokens, ``[batch, pos]``.
        types: which of them are of a picture; None of text, where the mask is all.
        cached: whether keys and values are kept in this pass.
    """
    plain = mask.long()
    if types is None:
        yield plain
        return
    how = (getattr(lm.model.config, "_attn_implementation", None), cached, torch.is_inference_mode_enabled())
    before = _last.get(lm.model)
    if before is not None and before.is_of(mask, types, how):
        yield before.attention
        return

    def take(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        if isinstance(found := given.get("attention_mask"), dict):
            _last[lm.model] = _Made(mask, types, how, found)

    inner = module_at(lm.model, lm.family.blocks.rpartition(".")[0])
    handle = inner.register_forward_pre_hook(take, with_kwargs=True)
    try:
        yield plain
    finally:
        handle.remove()
