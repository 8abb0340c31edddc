"""What takes the place of a unit's values: an edit sees them through the study's lens, and where they come from besides.

A new edit is one file with a subclass of :class:`Edit`; its name is the file's (``intervention.edit=zero``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from circuits.interventions.units.base import Unit

Source = Literal["base", "other", "donor"]
"""The run whose values an edit takes: the run that is edited, as it is without; the pair's other prompt; another prompt."""


@dataclass(frozen=True)
class Here:
    """Where in a pass an edit stands: one site's tensor of one layer."""

    layer: int
    items: Sequence[int]
    """The items that are seen; what is edited of which row is masked by the engine."""
    rows: Int[Tensor, " rows"]
    """The number of each row in the study."""
    units: Sequence[int]
    """The number of each row's unit."""
    source: Float[Tensor, "rows pos items dim"]
    """The values in the run that :attr:`Edit.source` names, at matching positions; empty where it names none."""


class Edit(ABC):
    """Gives the values that a unit has instead of its own."""

    name: ClassVar[str]
    source: Source | None = None

    def fit(self, engine: Any, units: Sequence[Unit]) -> None:
        """Look at the study's rows before the first pass (means, constants).

        `engine` is the :class:`~circuits.interventions.engine.Engine` that measures; it reads this file.
        """
        return

    @abstractmethod
    def new(self, old: Float[Tensor, "rows pos items dim"], here: Here) -> Tensor:
        """Values in place of `old`; what is outside the unit of a row is not looked at. May be broadcast."""
