"""What activations are captured of: an ordered, numbered set of token sequences with what is known of each.

Either the first sequences of a training stream (:class:`StreamSamples`) or a behaviour's prompts (:class:`PromptSamples`).
Both are functions of a number, so any window of them can be asked for, by any process, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from circuits.data.prompts import PromptSet
from circuits.data.tokens import TokenSource
from circuits.errors import UserError
from circuits.model_input import ModelInput, joined, padded

BLOCK = 1024  # sequences that are asked of a stream together


class Samples(Protocol):
    """Sequences 0 … len - 1 in their order."""

    @property
    def name(self) -> str:
        """What they are, for messages."""

    def __len__(self) -> int: ...

    def window(self, start: int, stop: int) -> ModelInput:
        """Sequences `start` … `stop` - 1; `Tokens.samples` are their numbers in the source (a corpus's context …)."""

    def names(self, start: int, stop: int) -> list[str]:
        """What each of them is called, for messages and to recognise work that was done before."""

    def columns(self, start: int, stop: int) -> dict[str, list[Any]]:
        """What the row index says of each of them: split, group, factors."""


class StreamSamples:
    """The first `n` training sequences of a token source."""

    def __init__(self, source: TokenSource, n: int) -> None:
        if source.passes(1, n) > 1:
            raise UserError(
                f"{n:,} sequences of {source.name}: it has only about {int(n / source.passes(1, n)):,} training contexts; "
                "lower activations.n_sequences (or activations.tokens), or give more text"
            )
        self.source, self._n = source, n
        self._block: tuple[int, ModelInput] | None = None

    @property
    def name(self) -> str:
        return self.source.name

    def __len__(self) -> int:
        return self._n

    def window(self, start: int, stop: int) -> ModelInput:
        parts = []
        for index in range(start // BLOCK, (stop - 1) // BLOCK + 1):
            if self._block is None or self._block[0] != index:
                self._block = (index, self.source.block(index, BLOCK))
            first = index * BLOCK
            parts.append(self._block[1].take(slice(max(start - first, 0), min(stop - first, BLOCK))))
        return parts[0] if len(parts) == 1 else joined(parts)

    def names(self, start: int, stop: int) -> list[str]:
        return [str(number) for number in self.window(start, stop).samples.tolist()]

    def columns(self, start: int, stop: int) -> dict[str, list[Any]]:
        return {"split": ["train"] * (stop - start)}


class PromptSamples:
    """The prompts of a prompt set, both splits, in the set's order; a sample's number is its place in it."""

    def __init__(self, prompts: PromptSet, name: str = "prompts") -> None:
        if not len(prompts):
            raise UserError(f"{name}: no prompt in it")
        self.prompts, self.name = prompts, name
        self._sequences: Sequence[Sequence[int]] = prompts.sequences()
        self._factors = sorted({factor for prompt in prompts for factor in prompt.factors})

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(ids) for ids in self._sequences)

    def window(self, start: int, stop: int) -> ModelInput:
        return padded([list(ids) for ids in self._sequences[start:stop]], list(range(start, stop)))

    def names(self, start: int, stop: int) -> list[str]:
        return self.prompts.samples[start:stop]

    def columns(self, start: int, stop: int) -> dict[str, list[Any]]:
        chosen = self.prompts.prompts[start:stop]
        columns: dict[str, list[Any]] = {
            "sample_id": [p.id for p in chosen],
            "behaviour": [p.behaviour for p in chosen],
            "split": [p.split for p in chosen],
            "group": [p.group for p in chosen],
        }
        for factor in self._factors:
            columns[f"factor.{factor}"] = [p.factors.get(factor) for p in chosen]
        return columns


def kept_positions(
    tokens: ModelInput, last_n: int | None, skip_first: int, select: str = "all"
) -> Bool[Tensor, "n pos"]:
    """Which tokens of right-padded sequences are captured: not the first `skip_first`, then the last `last_n` of each; of these
    those that `select` names (``image`` and ``text`` tokens, the ``last`` one; ``all`` and ``mean``: all of them)."""
    place = torch.arange(tokens.ids.shape[1])
    keep = tokens.after(skip_first)
    if select == "last":
        return keep & (place == tokens.last[:, None])
    if select in ("image", "text"):
        shown = torch.zeros_like(tokens.mask) if tokens.shown is None else tokens.shown
        keep &= shown if select == "image" else ~shown
    if last_n is not None:
        keep &= place >= tokens.lengths[:, None] - last_n
    return keep


def count_sequences(source: TokenSource, rows: int, last_n: int | None, skip_first: int) -> int:
    """How many training sequences give at least `rows` captured tokens.

    Raises:
        UserError: the corpus does not have that many, or no token of it is captured.
    """
    found = n = index = 0
    while found < rows:
        block = source.block(index, BLOCK)
        each = kept_positions(block, last_n, skip_first).sum(dim=1).cumsum(0)
        if not int(each[-1]):
            raise UserError(
                f"activations.skip_first={skip_first} leaves no token of {source.name}'s sequences; lower it"
            )
        reached = (found + each >= rows).nonzero()
        if len(reached):
            return n + int(reached[0, 0]) + 1
        found, n, index = found + int(each[-1]), n + BLOCK, index + 1
        if source.passes(1, n) > 1:
            raise UserError(
                f"activations.tokens={rows:,}: {source.name} has fewer (about {found:,}); lower it, or give more text"
            )
    return n


def row_columns(tokens: ModelInput, keep: Bool[Tensor, "n pos"], last_n: int | None) -> dict[str, np.ndarray]:
    """The token columns of the row index, in reading order; ``_sequence`` is the row's sequence in `tokens`."""
    sequence, position = (index.numpy() for index in keep.nonzero(as_tuple=True))
    lengths = tokens.lengths.numpy()
    kinds = {} if tokens.shown is None else {"token_type": _types(tokens.shown.numpy()[sequence, position])}
    short = np.zeros(len(tokens), bool) if last_n is None else keep.sum(dim=1).numpy() < last_n
    return {
        "_sequence": sequence,
        "sample": tokens.samples.numpy()[sequence],
        "position": position,
        "from_end": lengths[sequence] - 1 - position,
        "token_id": tokens.ids.numpy()[sequence, position],
        "padded": short[sequence],
        **kinds,
    }


def _types(shown: NDArray[np.bool_]) -> NDArray[np.str_]:
    return np.where(shown, "image", "text")
