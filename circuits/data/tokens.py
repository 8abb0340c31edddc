"""Who can give training text: a source of blocks of padded sequences.

A source is a function of an index, not an iterator: block 7 is the same whether or not blocks 0 to 6 were ever asked
for. A resumed run therefore continues by number, with nothing to rewind.
"""

from __future__ import annotations

from typing import Protocol

from circuits.model_input import ModelInput


class TokenSource(Protocol):
    """Where training tokens come from. Everything is deterministic in the source's own settings and its arguments."""

    @property
    def name(self) -> str:
        """What it is, for logs and errors: a file's name, ``embedded`` …"""

    @property
    def context(self) -> int:
        """The longest sequence it gives, in tokens."""

    def block(self, index: int, n: int) -> ModelInput:
        """Sequences ``index * n … (index + 1) * n - 1`` of the endless training stream, by number and in any order."""

    def heldout(self, n: int) -> ModelInput:
        """The first `n` held-out sequences (fewer when there are no more); none of them is in any training block."""

    def passes(self, index: int, n: int) -> float:
        """How often the corpus was gone through before ``block(index, n)``; 0.0 for a generator that never repeats."""
