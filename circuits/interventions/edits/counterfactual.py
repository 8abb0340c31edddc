"""Activation patching: the values of the pair's other prompt at the same positions (Meng et al. 2022; Wang et al. 2022).

With the clean prompt as the base this is noising (does breaking it break the answer?), with the corrupt one denoising (does
restoring it restore the answer?). See Zhang & Nanda 2023, arXiv:2309.16042.
"""

from torch import Tensor

from circuits.interventions.ask import Ask
from circuits.interventions.edits.base import Edit, Here


class Counterfactual(Edit):
    """The other prompt's values."""

    name = "counterfactual"
    source = "other"

    def new(self, old: Tensor, here: Here) -> Tensor:
        return here.source.to(old.dtype)


def make(ask: Ask) -> Edit:
    """It needs nothing."""
    return Counterfactual()
