"""Whole sites: the residual stream, an MLP's output, all heads together …, at chosen positions (SPEC TL-14)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from circuits.interventions.ask import Ask, Studied
from circuits.interventions.units.base import Lens, Place, Unit
from circuits.models.sites import Dims


class Sites(Lens):
    """One item a layer: the site's whole vector."""

    word = "site"

    def __init__(self, site: str) -> None:
        self.site = site

    def count(self, dims: Dims, layer: int) -> int:
        return 1

    def values(self, x: Tensor, layer: int, items: Sequence[int]) -> Tensor:
        return x.flatten(2).unsqueeze(2)

    def put(self, x: Tensor, layer: int, items: Sequence[int], old: Tensor, new: Tensor) -> Tensor:
        return new.squeeze(2).view(x.shape)

    def name(self, layer: int, item: int) -> str:
        """``L3``: there is one site a layer in a study."""
        return f"L{layer}"


class EverySite(Studied):
    """The site at every layer, at the tokens that ``positions`` names."""

    def lens(self, ask: Ask) -> Lens:
        return Sites(ask.settings.site)

    def units(self, ask: Ask, lens: Lens) -> list[Unit]:
        return [Unit(f"L{layer}", (Place(layer),), ask.positions) for layer in ask.layers]


STUDIED = EverySite()
