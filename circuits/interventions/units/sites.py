"""Whole sites: the residual stream, an MLP's output, all heads together …, at chosen positions (SPEC TL-14)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from circuits.interventions.units.base import Lens
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
