"""Steering: a direction times a strength is added to the site, h ← h + s · α · v (Turner 2308.10248; Rimsky 2312.06681).

s is +1 where the corrupt prompt is steered towards the clean one's answer, −1 where the clean one is steered away from it. The
strength α, in lengths of the difference of means, is the one of ``strengths`` whose mean effect on the prompts that are not
measured is the largest in the wanted direction; of equal ones the first. Along a feature's direction −α is tried as well: nobody
says on which side of the answer a feature is. The controls of a direction are added at the same strength, so
that all changes are of one length. Strengths chosen and scored on the same prompts flatter every vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from circuits.activations.answers import rows_of
from circuits.errors import UserError
from circuits.interventions.ask import Ask
from circuits.interventions.edits.base import Edit, Here
from circuits.interventions.effects import effects_of
from circuits.interventions.engine import Engine
from circuits.interventions.settings import Metric
from circuits.interventions.steering import STUDIED, base, directions, of_features, sign, units
from circuits.interventions.units.base import Lens, Unit
from circuits.interventions.units.sites import Sites

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Chosen:
    """The strength of one direction.

    Attributes:
        norm: length of the directions.
        strength: what was chosen, in such lengths; below 0 it is against the direction.
        curve: the effect at every strength on the prompts that are not measured: ``strength effect wrong n``.
    """

    norm: float
    strength: float
    curve: list[dict[str, Any]]


class Steer(Edit):
    """Adds a vector of its own for each unit.

    Args:
        changes: what is added, by the unit's name; strength and sign are in it. A unit that is not named is left as it is.
        chosen: how the strength of each studied unit came about.
    """

    name = "steer"

    def __init__(
        self, changes: Mapping[str, Float[Tensor, " width"]], chosen: Mapping[str, Chosen] | None = None
    ) -> None:
        self.changes, self.chosen = dict(changes), dict(chosen or {})
        self._table = torch.empty(0)

    def fit(self, engine: Engine, units: Sequence[Unit]) -> None:
        """Put the vectors in the order of the units."""
        width = {len(change) for change in self.changes.values()}
        if len(width) != 1:
            raise UserError("steering needs vectors of one length, at least one")
        nothing = torch.zeros(width.pop())
        self._table = torch.stack([self.changes.get(unit.name, nothing).float().cpu() for unit in units])
        self._table = self._table.to(engine.lm.device)

    def new(self, old: Tensor, here: Here) -> Tensor:
        """The sum is taken in float32 at least, and rounded once."""
        return old + self._table[torch.tensor(here.units, device=self._table.device)][:, None, None]


def wanted_effects(ask: Ask, lens: Lens, tried: Mapping[str, Tensor], like: Unit) -> Mapping[str, np.ndarray[Any, Any]]:
    """The effect of each of `tried` on every prompt that is not measured, as units like `like`."""
    prompts = ask.others
    rows = rows_of(prompts, base=base(ask), span=ask.settings.metric is Metric.full_target)
    engine = Engine(ask.lm, prompts, rows, lens, batch_size=ask.settings.batch_size)
    given = [replace(like, name=one) for one in tried]
    keeper = ask.keep(f"strengths of {like.name}")
    found = effects_of(engine.measure(given, Steer(tried), keeper=keeper), given, "steer", prompts, rows)
    return dict(zip(found.names, found.values["effect"], strict=True))


def choose(ask: Ask, lens: Lens, direction: Float[Tensor, " width"], like: Unit, *, both: bool = False) -> Chosen:
    """The strength of one direction and its controls; `both`: along it or against it.

    Raises:
        UserError: the positions exist in none of the prompts on which it would be chosen.
    """
    strengths = ask.settings.strength_list
    strengths = [*strengths, *(-a for a in strengths if a)] if both else strengths
    tried = {f"{like.name} x{a:g}": sign(ask) * a * direction for a in strengths}
    curve = []
    for a, effects in zip(strengths, wanted_effects(ask, lens, tried, like).values(), strict=True):
        known = effects[np.isfinite(effects)]
        if not len(known):
            raise UserError(f"positions={ask.positions}: in none of the prompts on which a strength would be chosen")
        wrong = float((sign(ask) * known < 0).mean())
        curve.append({"strength": a, "effect": float(known.mean()), "wrong": wrong, "n": len(known)})
    best = max(range(len(curve)), key=lambda i: sign(ask) * curve[i]["effect"])
    return Chosen(float(direction.norm()), strengths[best], curve)


def make(ask: Ask) -> Edit:
    """Directions and strengths of every layer, from the prompts that are not measured alone."""
    lens = Sites(ask.settings.site)
    found = [one for dom in directions(ask, lens).values() for one in (dom, *of_features(ask, dom))]
    like = {unit.name: unit for unit in units(ask)}
    chosen = {one.unit: choose(ask, lens, one.dom, like[one.unit], both=one.kind != STUDIED) for one in found}
    changes = {
        unit: sign(ask) * chosen[one.unit].strength * vector for one in found for unit, vector in one.named().items()
    }
    return Steer(changes, chosen)
