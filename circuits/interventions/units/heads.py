"""Attention heads: the input of the output projection, ``z`` before W_O, seen head by head (SPEC TL-11)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuits.interventions.units.base import Lens
from circuits.models.sites import Dims


class Heads(Lens):
    """Items are heads; dim is a head's width."""

    site = "head_z"
    word = "head"

    def count(self, dims: Dims, layer: int) -> int:
        return dims.heads

    def values(self, x: Tensor, layer: int, items: Sequence[int]) -> Tensor:
        return x[:, :, list(items)]

    def put(self, x: Tensor, layer: int, items: Sequence[int], old: Tensor, new: Tensor) -> Tensor:
        return x.index_copy(2, torch.tensor(list(items), device=x.device), new)
