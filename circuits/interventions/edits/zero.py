"""Zero ablation: the values become 0."""

from torch import Tensor

from circuits.interventions.ask import Ask
from circuits.interventions.edits.base import Edit, Here


class Zero(Edit):
    """0."""

    name = "zero"

    def new(self, old: Tensor, here: Here) -> Tensor:
        return old.new_zeros(())


def make(ask: Ask) -> Edit:
    """It needs nothing."""
    return Zero()
