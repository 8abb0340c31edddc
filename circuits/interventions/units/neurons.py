"""Neurons: the MLP's activations before its output projection, one number each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuits.interventions.units.base import Lens
from circuits.models.sites import Dims


class Neurons(Lens):
    """Items are neurons of ``mlp_act``; dim is 1."""

    site = "mlp_act"
    word = "neuron"

    def count(self, dims: Dims, layer: int) -> int:
        return dims.mlp_width

    def values(self, x: Tensor, layer: int, items: Sequence[int]) -> Tensor:
        return x[:, :, list(items)].unsqueeze(-1)

    def put(self, x: Tensor, layer: int, items: Sequence[int], old: Tensor, new: Tensor) -> Tensor:
        return x.index_copy(2, torch.tensor(list(items), device=x.device), new.squeeze(-1))
