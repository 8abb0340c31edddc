"""One element of a pack whose SAEs are trained together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits.activations.stream import Stream
    from circuits.run.context import Context, Work
    from circuits.sae.history import History
    from circuits.sae.spec import TrainSpec

Name = tuple[int, int]  # member, layer


@dataclass
class Member:
    """One element: what it is to make, and its training curves."""

    context: Context
    works: dict[int, Work]  # by layer
    histories: dict[int, History] = field(default_factory=dict)
    open: Callable[[Context, list[int]], Stream] | None = None
    """Opens what it is trained on, where that is not the activations of its layers one by one."""
    adjust: Callable[[TrainSpec, Stream], TrainSpec] | None = None
    """Makes another training's settings out of an SAE's."""
    publish: (
        Callable[[Member, Mapping[int, Any], Mapping[int, Any], Stream, Mapping[int, tuple[int, int]]], None] | None
    ) = None
    """Measures and publishes what was trained, where it is not an SAE of one layer."""

    @property
    def steps(self) -> int:
        """Where its training stops."""
        sae = self.context.cfg.sae
        return min(sae.steps, sae.max_steps or sae.steps)
