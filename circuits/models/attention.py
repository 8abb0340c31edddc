"""Which tokens see which, kept from one pass for the next ones over the same rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from circuits.models.load import LM
from circuits.models.modules import module_at


@dataclass
class Attention:
    """Which tokens see which, as a model makes it of rows: made in the first pass, handed to further ones over the same rows.

    Of pictures it costs as much as two blocks of a small model. It is for rows of equal mask and token types, without a cache or
    with an empty one.
    """

    made: Any = None

    @contextlib.contextmanager
    def taken(self, lm: LM) -> Iterator[None]:
        """In a pass that makes it: keep it."""
        inner = lm.family.blocks.rpartition(".")[0]

        def take(module: torch.nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            if isinstance(found := given.get("attention_mask"), dict):  # else the model has not made it yet
                self.made = found

        handle = module_at(lm.model, inner).register_forward_pre_hook(take, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
