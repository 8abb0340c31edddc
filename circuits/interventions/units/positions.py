"""A map over layers and positions: the site's vector at one token at a time, counted from the prompt's end (SPEC TL-14, QC-10)."""

from __future__ import annotations

from circuits.interventions.ask import Ask, Studied
from circuits.interventions.positions import Positions
from circuits.interventions.units.base import Lens, Place, Unit
from circuits.interventions.units.sites import Sites


class EveryPosition(Studied):
    """Every layer of the study at each of the last ``last_n`` tokens; a prompt that is shorter has no value there."""

    def lens(self, ask: Ask) -> Lens:
        return Sites(ask.settings.site)

    def units(self, ask: Ask, lens: Lens) -> list[Unit]:
        longest = max(len(p.ids) for p in ask.measured)
        places = range(-min(ask.settings.last_n, longest), 0)
        return [Unit(f"L{layer} @{at}", (Place(layer),), Positions((at,))) for layer in ask.layers for at in places]


STUDIED = EveryPosition()
