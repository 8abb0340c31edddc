"""Functions for edits (:class:`circuits.models.hooks.Edit`): what to put at which positions.

Which rows count is looked up once a chunk, where possible on the host: an accelerator that is asked for a mask's True entries makes
the host wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.transfer import sent


def kept_rows(keep: Bool[Tensor, "n pos"], device: torch.device) -> Int[Tensor, " rows"]:
    """Kept positions, as numbers into the flattened ``[n · pos]``."""
    return sent(keep.flatten().nonzero().squeeze(1), device)


def added(change: Float[Tensor, "rows pos width"]) -> Callable[[Tensor], Tensor]:
    """An edit function that adds `change` to the first rows of a pass."""

    def edit(x: Tensor) -> Tensor:
        x[: len(change)] += change.to(x.dtype)
        return x

    return edit


def without_heads(heads: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """An edit function that leaves out what these heads say, of ``head_z``."""

    def edit(z: Tensor) -> Tensor:
        z[:, :, list(heads)] = 0
        return z

    return edit


def replaced(fn: Callable[[Tensor], Tensor], at: Int[Tensor, " rows"]) -> Callable[[Tensor], Tensor]:
    """An edit function that puts ``fn(x)`` at kept positions (:func:`kept_rows`); `fn` sees rows [rows, width], heads side by
    side."""

    def edit(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        rows = fn(flat.index_select(0, at).flatten(1))
        return flat.index_copy(0, at, rows.view(len(at), *flat.shape[1:]).to(x.dtype)).view(x.shape)

    return edit
