"""Attention heads: the input of the output projection, ``z`` before W_O, seen head by head (SPEC TL-11)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuits.interventions.ask import Ask, Studied
from circuits.interventions.settings import heads
from circuits.interventions.units.base import Lens, Place, Unit
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


class AllHeads(Studied):
    """Every head of the layers, or those that are named; the others of a head's layer are its control."""

    def lens(self, ask: Ask) -> Lens:
        return Heads()

    def units(self, ask: Ask, lens: Lens) -> list[Unit]:
        listed = ask.settings.heads
        named = (
            [(layer, h) for layer in ask.layers for h in range(ask.lm.dims.heads)]
            if listed is None
            else heads(listed, ask.layers)
        )
        return [Unit(lens.name(layer, h), (Place(layer, (h,)),), ask.positions) for layer, h in named]


STUDIED = AllHeads()
