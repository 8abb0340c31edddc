"""Neurons: the MLP's activations before its output projection, one number each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from circuits.interventions.ask import Ask, Studied
from circuits.interventions.choice import as_list, chosen, matched_sets
from circuits.interventions.units.base import Lens, Place, Unit
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


class SomeNeurons(Studied):
    """The neurons that are named, or those with the largest estimated effect on the prompts that are not measured."""

    def lens(self, ask: Ask) -> Lens:
        return Neurons()

    def units(self, ask: Ask, lens: Lens) -> list[Unit]:
        listed = ask.settings.neurons
        groups = (
            chosen(ask, lens)
            if listed is None
            else [(layer, (int(n),)) for layer in ask.layers for n in as_list(listed)]
        )
        return [Unit(lens.name(layer, items[0]), (Place(layer, items),), ask.positions) for layer, items in groups]

    def controls(self, ask: Ask, lens: Lens, units: Sequence[Unit]) -> list[Unit]:
        return matched_sets(ask, lens, units)


STUDIED = SomeNeurons()
