"""What is edited: a unit is some items (heads, neurons, features, or the whole of a site) at some layers and positions.

A :class:`Lens` shows a site's tensor as ``[rows, pos, items, dim]`` and puts new values back. Every unit of a study is seen through
one lens, so edits know nothing of heads or features. A new kind of unit is one file with a lens in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from circuits.interventions.positions import ALL, Positions

if TYPE_CHECKING:
    from jaxtyping import Float

    from circuits.models.sites import Dims


@dataclass(frozen=True)
class Place:
    """Some items of one layer."""

    layer: int
    items: tuple[int, ...] = (0,)
    """Numbers of heads, neurons or features; ``(0,)`` where the site is one item."""


@dataclass(frozen=True)
class Unit:
    """What one cell of a study edits.

    Attributes:
        name: ``L3.H2``, ``L3.H2+L5.H0``, ``L7 @-1``; unique in a study.
        places: what is edited, at most one place a layer; none: nothing is (a sham).
        positions: the tokens at which it is edited.
        restored: items that get back what the source run has there while `places` are edited (a rescue).
        group: what the unit belongs to in tables (a pair, a triplet, a feature group).
        control: what kind of control it is (``random``); empty for what is studied.
        of: the name of the unit that it is a control of.
    """

    name: str
    places: tuple[Place, ...]
    positions: Positions = ALL
    restored: tuple[Place, ...] = ()
    group: str = ""
    control: str = ""
    of: str = ""

    @property
    def layer(self) -> int | None:
        """The only layer that it is at; None for several."""
        layers = {place.layer for place in (*self.places, *self.restored)}
        return layers.pop() if len(layers) == 1 else None

    @property
    def item(self) -> int | None:
        """The only item that it is; None for several."""
        items = {(place.layer, item) for place in self.places for item in place.items}
        return items.pop()[1] if len(items) == 1 else None

    def items(self) -> tuple[tuple[int, int], ...]:
        """All (layer, item) that are edited."""
        return tuple((place.layer, item) for place in self.places for item in place.items)


class Lens(ABC):
    """How the numbers of a unit stand in a site's tensor.

    Attributes:
        site: where it looks.
        word: what an item is called.
    """

    site: str
    word: ClassVar[str]

    @abstractmethod
    def count(self, dims: Dims, layer: int) -> int:
        """How many items a layer has."""

    @abstractmethod
    def values(self, x: Tensor, layer: int, items: Sequence[int]) -> Float[Tensor, "rows pos items dim"]:
        """The values of `items` in the site's tensor ``[rows, pos, ...]``."""

    @abstractmethod
    def put(self, x: Tensor, layer: int, items: Sequence[int], old: Tensor, new: Tensor) -> Tensor:
        """The site's tensor with `new` in place of `old`, both ``[rows, pos, items, dim]`` as :meth:`values` gives them."""

    def name(self, layer: int, item: int) -> str:
        """``L3.H2``."""
        return f"L{layer}.{self.word[0].upper()}{item}"
