"""One element of a pack whose SAEs are trained together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuits.run.context import Context, Work
    from circuits.sae.history import History

Name = tuple[int, int]  # member, layer


@dataclass
class Member:
    """One element: what it is to make, and its training curves."""

    context: Context
    works: dict[int, Work]  # by layer
    histories: dict[int, History] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Where its training stops."""
        sae = self.context.cfg.sae
        return min(sae.steps, sae.max_steps or sae.steps)
