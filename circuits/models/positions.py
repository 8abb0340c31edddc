"""Positions by the attention mask, so that nothing depends on the padding side, the batch size or the batch order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuits.transfer import sent

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


@dataclass(frozen=True)
class Kept:
    """Which positions of each row were kept: the last n valid ones, in order, left-filled where a row is shorter."""

    index: Int[Tensor, "batch n"]
    """Original position of each; meaningless where not valid."""
    valid: Bool[Tensor, "batch n"]
    """False where the row is shorter than n (what is kept there is zero)."""
    all_valid: bool
    """Whether every row has n valid positions (known on the host, so that the usual case costs no masking)."""

    def to(self, device: torch.device) -> Kept:
        """The same on `device`."""
        return Kept(sent(self.index, device), sent(self.valid, device), self.all_valid)


def last_positions(mask: Bool[Tensor, "batch pos"], n: int) -> Kept:
    """The last `n` valid positions of each row."""
    pos = mask.shape[1]
    # A stable sort by validity puts the valid positions last, each group in its own order.
    index = torch.argsort(mask.to(torch.uint8), dim=1, stable=True)[:, -n:]
    valid = mask.gather(1, index)
    if n > pos:
        index = torch.nn.functional.pad(index, (n - pos, 0))
        valid = torch.nn.functional.pad(valid, (n - pos, 0), value=False)
    return Kept(index, valid, bool(valid.all()))
