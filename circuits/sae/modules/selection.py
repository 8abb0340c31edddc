"""The largest entries of a batch of pre-activations: of each row (TopK) or of the whole batch (BatchTopK).

On a CPU a full `topk` over a wide row is a large part of a sparse step. Two exact short cuts:

* of a row: the k largest entries lie in the k columns (of a table of 16 × d_sae/16) with the largest maxima, so that a vectorised
  maximum and two small `topk` suffice;
* of a batch: the n-th largest value changes little from step to step, so that entries above 9/10 of the last one contain the n
  largest, and are few. When they do not, all positive entries are looked at.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from circuits.sae.modules.support import positive

COLUMN = 16
MARGIN = 0.9


def largest_of_rows(
    pre: Float[Tensor, "batch d_sae"], k: int
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """Values and features of each row's k largest entries, in any order."""
    batch, width = pre.shape
    if pre.device.type != "cpu" or width % COLUMN or width // COLUMN < 2 * k:
        found = pre.topk(k, dim=1, sorted=False)
        return found.values, found.indices
    table = pre.view(batch, COLUMN, width // COLUMN)
    columns = table.amax(1).topk(k, dim=1, sorted=False).indices
    candidates = table.gather(2, columns[:, None].expand(-1, COLUMN, -1)).view(batch, COLUMN * k)
    values, at = candidates.topk(k, dim=1, sorted=False)
    return values, columns.gather(1, at % k) + (at // k) * (width // COLUMN)


def without_waiting(pre: Float[Tensor, "batch d_sae"], n: int) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """The n largest of a batch by one `topk`: how many there are is known beforehand, so the host need not ask the device."""
    values, index = pre.relu().flatten().topk(n, sorted=False)
    index, order = index.sort()
    return values[order], index


class BatchSelection:
    """Finds the positive entries among the n largest of a batch; remembers where to look, which changes no result."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, pre: Float[Tensor, "batch d_sae"], n: int) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"]]:
        """Values and ascending flat positions. Entries equal to the n-th largest are all taken on a CPU; on an accelerator
        exactly n are, zeros among them when fewer are positive, and the host does not wait."""
        if pre.device.type != "cpu":
            return without_waiting(pre, n)
        index = self._above(pre, MARGIN * self._last)
        if len(index) < n and self._last > 0:
            index = self._above(pre, 0.0)
        values = pre.view(-1)[index]
        if len(index) > n:
            bound = values.kthvalue(len(index) - n + 1).values
            self._last = float(bound)
            kept = values >= bound
            index, values = index[kept], values[kept]
        return values, index

    @staticmethod
    def _above(pre: Tensor, bound: float) -> Tensor:
        return positive(pre, bound=bound).view(-1).nonzero().squeeze(1)
