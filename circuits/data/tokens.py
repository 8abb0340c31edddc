"""The two words every source of training text shares: a padded block of sequences, and who can give one.

A source is a function of an index, not an iterator: block 7 is the same whether or not blocks 0 to 6 were ever asked
for. A resumed run therefore continues by number, with nothing to rewind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuits.models.transfer import pinned, sent


@dataclass(frozen=True)
class Tokens:
    """`n` sequences, padded on the right to the longest of them."""

    ids: Int[Tensor, "n pos"]
    """Token ids, int64; whatever stands where `mask` is False is never read."""
    mask: Bool[Tensor, "n pos"]
    """True at valid tokens: a run of True, then padding."""
    samples: Int[Tensor, " n"]
    """Names each sequence inside its source, so that an error or a feature's example can say where it came from."""

    def __post_init__(self) -> None:
        if self.ids.shape != self.mask.shape or self.samples.shape != self.ids.shape[:1] or self.ids.ndim != 2:
            shapes = f"ids {tuple(self.ids.shape)}, mask {tuple(self.mask.shape)}, samples {tuple(self.samples.shape)}"
            raise ValueError(f"tokens need ids and mask [n, pos] and samples [n], got {shapes}")

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def lengths(self) -> Int[Tensor, " n"]:
        """Valid tokens of each sequence."""
        return self.mask.sum(dim=1)

    def take(self, index: slice | Int[Tensor, " m"]) -> Tokens:
        """The sequences `index` (a slice or row numbers), cut to the longest of them (at least one position)."""
        mask = self.mask[index]
        width = max(1, int(mask.sum(dim=1).max())) if mask.numel() else self.ids.shape[1]
        return Tokens(self.ids[index, :width], mask[:, :width], self.samples[index])

    def to(self, device: torch.device) -> Tokens:
        """The same block on `device`, without waiting where that can be."""
        return Tokens(*(sent(t, device) for t in (self.ids, self.mask, self.samples)))

    def pinned(self, device: torch.device) -> Tokens:
        """The same block, ids and mask where `device` copies from without the host."""
        return Tokens(pinned(self.ids, device), pinned(self.mask, device), self.samples)


def pad_right(sequences: list[list[int]], samples: list[int], pad: int = 0) -> Tokens:
    """Sequences of different lengths as one block."""
    width = max((len(s) for s in sequences), default=0)
    ids = torch.tensor([s + [pad] * (width - len(s)) for s in sequences], dtype=torch.int64).view(len(sequences), width)
    lengths = torch.tensor([len(s) for s in sequences], dtype=torch.int64)
    return Tokens(ids, torch.arange(width) < lengths[:, None], torch.tensor(samples, dtype=torch.int64))


class TokenSource(Protocol):
    """Where training tokens come from. Everything is deterministic in the source's own settings and its arguments."""

    @property
    def name(self) -> str:
        """What it is, for logs and errors: a file's name, ``embedded`` …"""

    @property
    def context(self) -> int:
        """The longest sequence it gives, in tokens."""

    def block(self, index: int, n: int) -> Tokens:
        """Sequences ``index * n … (index + 1) * n - 1`` of the endless training stream, by number and in any order."""

    def heldout(self, n: int) -> Tokens:
        """The first `n` held-out sequences (fewer when there are no more); none of them is in any training block."""

    def passes(self, index: int, n: int) -> float:
        """How often the corpus was gone through before ``block(index, n)``; 0.0 for a generator that never repeats."""
