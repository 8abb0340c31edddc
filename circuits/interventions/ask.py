"""What a study's parts are made from, and the registries of files that make them."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from circuits.data.keeper import Keeper
from circuits.data.prompts import PromptSet
from circuits.data.seeds import derive_seed
from circuits.interventions.positions import Positions, parse
from circuits.interventions.settings import Settings
from circuits.interventions.units.base import Lens, Unit

if TYPE_CHECKING:
    import pandas as pd

    from circuits.interventions.edits.base import Edit
    from circuits.interventions.effects import Effects
    from circuits.models.load import LM
    from circuits.sae.modules import SAE


@dataclass(frozen=True)
class Ask:
    """Everything that units and edits of a study are made from.

    Attributes:
        lm: the model.
        measured: the prompts that are measured.
        others: prompts of the other split, on which constants are fitted and groups are chosen; empty where nothing is.
        layers: of the study.
        settings: what is asked for.
        saes: by layer, where features are edited.
        seed: from which each draw derives its own.
        tell: told (what, done, all) during longer preparations; may end the work.
        keep: where what a preparation has measured is kept, by a name.
    """

    lm: LM
    measured: PromptSet
    others: PromptSet
    layers: tuple[int, ...]
    settings: Settings
    saes: Mapping[int, SAE] = field(default_factory=dict)
    seed: int = 0
    tell: Callable[[str, int, int], None] = lambda what, done, total: None
    keep: Callable[[str], Keeper[str]] = lambda name: Keeper()

    @property
    def positions(self) -> Positions:
        """Where units are edited."""
        return parse(self.settings.positions)

    def draw(self, *purpose: str) -> int:
        """A seed of its own for a purpose."""
        return derive_seed(self.seed, "interventions", *purpose)


@dataclass(frozen=True)
class More:
    """What some units add when all are measured: further units of the effects, tables by name, and keys of ``metrics.json``."""

    effects: Effects
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


class Studied(ABC):
    """A file of ``units/``: which units a study has, how they are seen, and the controls beside them.

    Attributes:
        reads_sae: whether features of an SAE are edited.
    """

    reads_sae: bool = False

    @abstractmethod
    def lens(self, ask: Ask) -> Lens:
        """How the units are seen."""

    @abstractmethod
    def units(self, ask: Ask, lens: Lens) -> list[Unit]:
        """What is edited."""

    def controls(self, ask: Ask, lens: Lens, units: Sequence[Unit]) -> list[Unit]:
        """Random units of equal size at the same layers, none of them studied; ``control`` and ``of`` are set."""
        return []

    def finish(self, ask: Ask, lens: Lens, edit: Edit, effects: Effects) -> More:
        """What is measured besides, when all units were measured under `edit`."""
        return More(effects)


def studied(name: str) -> Studied:
    """What ``units=name`` means; :func:`circuits.interventions.settings.check` has refused other names."""
    found: Studied = importlib.import_module(f"circuits.interventions.units.{name}").STUDIED
    return found


def edit(name: str, ask: Ask) -> Edit:
    """What ``edit=name`` means."""
    make: Callable[[Ask], Edit] = importlib.import_module(f"circuits.interventions.edits.{name}").make
    return make(ask)
