"""Resample ablation: the values of another prompt (Chan et al. 2022, causal scrubbing).

The donor is another clean prompt of another group, so that it shares neither the answer nor the things named; of equal length
where there is one, else a longer one matched from the end (:func:`circuits.interventions.pairing.donors`).
"""

from torch import Tensor

from circuits.interventions.ask import Ask
from circuits.interventions.edits.base import Edit, Here


class Resample(Edit):
    """A donor's values."""

    name = "resample"
    source = "donor"

    def new(self, old: Tensor, here: Here) -> Tensor:
        return here.source.to(old.dtype)


def make(ask: Ask) -> Edit:
    """It needs nothing."""
    return Resample()
