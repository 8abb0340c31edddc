"""Rescue (SPEC TL-17): a unit's places are zeroed, and its `restored` items get back what the run without edits had there.

Restoring the only item that was zeroed is a tautology, so a unit needs at least two.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuits.errors import UserError
from circuits.interventions.ask import Ask
from circuits.interventions.edits.base import Edit, Here

if TYPE_CHECKING:
    from circuits.interventions.engine import Engine
    from circuits.interventions.units.base import Unit


class Restore(Edit):
    """0, but for what is restored."""

    name = "restore"
    source = "base"

    def fit(self, engine: "Engine", units: Sequence["Unit"]) -> None:
        self._kept = [{(place.layer, item) for place in unit.restored for item in place.items} for unit in units]
        for unit in units:
            if unit.restored and not unit.places:
                raise UserError(f"{unit.name}: restores all that it takes away; a group of at least two is needed")

    def new(self, old: Tensor, here: Here) -> Tensor:
        kept = [[(here.layer, item) in self._kept[unit] for item in here.items] for unit in here.units]
        return torch.where(torch.tensor(kept, device=old.device)[:, None, :, None], here.source.to(old.dtype), 0)


def make(ask: Ask) -> Edit:
    """It needs nothing."""
    return Restore()
