"""Groups of heads: pairs, triplets, larger sets, with their members alone beside them (SPEC TL-15, TL-17)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from circuits.errors import UserError
from circuits.interventions.ask import Ask, Studied
from circuits.interventions.choice import as_list, random_sets, top_heads
from circuits.interventions.settings import heads
from circuits.interventions.units.base import Lens, Place, Unit
from circuits.interventions.units.heads import Heads

Head = tuple[int, int]


class Groups(Studied):
    """The groups that are named, or all sets of some sizes of the heads with the largest effects on the other split."""

    def lens(self, ask: Ask) -> Lens:
        return Heads()

    def units(self, ask: Ask, lens: Lens) -> list[Unit]:
        s = ask.settings
        if s.groups is not None:
            groups = [tuple(heads(one, ask.layers)) for one in as_list(s.groups)]
        else:
            top = top_heads(ask)
            groups = [group for size in as_list(s.sizes) for group in itertools.combinations(top, int(size))]
        if "restore" in s.edits:
            return rescues(groups, ask)
        singles = [(head,) for head in sorted({head for group in groups for head in group})]
        return [group_unit(group, lens, ask) for group in dict.fromkeys([*singles, *groups])]

    def controls(self, ask: Ask, lens: Lens, units: Sequence[Unit]) -> list[Unit]:
        return random_sets(ask, lens, [unit for unit in units if len(unit.items()) > 1])


def places(group: Iterable[Head]) -> tuple[Place, ...]:
    """A set of heads as places, one a layer."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in sorted(set(group)):
        by_layer.setdefault(layer, []).append(head)
    return tuple(Place(layer, tuple(found)) for layer, found in sorted(by_layer.items()))


def group_unit(group: Sequence[Head], lens: Lens, ask: Ask) -> Unit:
    """``L0.H2+L0.H4``."""
    name = "+".join(lens.name(*head) for head in sorted(group))
    return Unit(
        name,
        places(group),
        ask.positions,
        group={1: "single", 2: "pair", 3: "triplet"}.get(len(group), f"{len(group)} heads"),
    )


def rescues(groups: Sequence[Sequence[Head]], ask: Ask) -> list[Unit]:
    """Each group zeroed as a whole, and once for each member with that member given back.

    Raises:
        UserError: a group of one, whose rescue would be a tautology.
    """
    lens, found = Heads(), []
    for group in groups:
        if len(group) < 2:
            raise UserError(
                f"edit=restore: {lens.name(*group[0])} alone: giving back all that was taken is no rescue; name two"
            )
        whole = group_unit(group, lens, ask)
        found.append(whole)
        for head in sorted(group):
            rest = [one for one in group if one != head]
            found.append(
                Unit(
                    f"{whole.name} keep {lens.name(*head)}",
                    places(rest),
                    ask.positions,
                    places([head]),
                    group=whole.name,
                )
            )
    return found


STUDIED = Groups()
