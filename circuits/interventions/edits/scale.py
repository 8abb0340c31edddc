"""Scaling: the values times a factor. 0 is zero ablation, 1 a sham, above 1 amplification, below 0 inversion."""

from torch import Tensor

from circuits.interventions.ask import Ask
from circuits.interventions.edits.base import Edit, Here


class Scale(Edit):
    """factor · x."""

    name = "scale"

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def new(self, old: Tensor, here: Here) -> Tensor:
        return old * self.factor


def make(ask: Ask) -> Edit:
    """With ``scale``."""
    return Scale(ask.settings.scale)
