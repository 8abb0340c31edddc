"""SAE features: their activations are edited, and the difference alone is written back,

    h ← h + Σ_i (a'_i − a_i) W_dec[i]

so that what the SAE does not explain stays in place; the reconstruction never takes the place of h (SPEC QC-10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from circuits.errors import UserError
from circuits.interventions.ask import Ask, Studied
from circuits.interventions.choice import as_list, chosen, matched_sets
from circuits.interventions.units.base import Lens, Place, Unit
from circuits.models.sites import Dims

if TYPE_CHECKING:
    from circuits.sae.modules import SAE


class Features(Lens):
    """Items are features of each layer's SAE; dim is 1.

    Raises:
        UserError: a transcoder (what it writes is another site's), or an SAE whose rows are normalised (a feature's direction
            then has no size of its own).
    """

    word = "feature"

    def __init__(self, site: str, saes: Mapping[int, SAE]) -> None:
        self.site, self.saes = site, dict(saes)
        for layer, sae in self.saes.items():
            if sae.cfg.d_out is not None:
                raise UserError(f"layer {layer}: a transcoder writes to another site than it reads; take an SAE")
            if sae.cfg.normalize != "none":
                raise UserError(
                    f"layer {layer}: this SAE normalises its rows ({sae.cfg.normalize}), so that no edit of a feature has a size"
                )

    def count(self, dims: Dims, layer: int) -> int:
        return self.saes[layer].cfg.d_sae

    def values(self, x: Tensor, layer: int, items: Sequence[int]) -> Tensor:
        sae = self.saes[layer]
        return sae.encode(x.flatten(2).to(sae.W_enc.dtype))[:, :, list(items)].unsqueeze(-1)

    def put(self, x: Tensor, layer: int, items: Sequence[int], old: Tensor, new: Tensor) -> Tensor:
        change = (new - old).squeeze(-1) @ self.saes[layer].W_dec[list(items)]
        return x + change.view(x.shape).to(x.dtype)


class SomeFeatures(Studied):
    """Features or groups of them: as named, or those with the largest estimated effect on prompts that are not measured."""

    reads_sae = True

    def lens(self, ask: Ask) -> Lens:
        return Features(ask.settings.site, ask.saes)

    def units(self, ask: Ask, lens: Lens) -> list[Unit]:
        s = ask.settings
        if s.features is None and s.groups is None:
            groups = chosen(ask, lens)
        else:
            listed = as_list(s.groups) if s.groups is not None else as_list(s.features)
            groups = [(layer, tuple(map(int, as_list(one)))) for layer in ask.layers for one in listed]
        return [Unit(_name(layer, items), (Place(layer, items),), ask.positions) for layer, items in groups]

    def controls(self, ask: Ask, lens: Lens, units: Sequence[Unit]) -> list[Unit]:
        return matched_sets(ask, lens, units)


def _name(layer: int, items: Sequence[int]) -> str:
    return f"L{layer}." + "+".join(f"F{item}" for item in items)


STUDIED = SomeFeatures()
