"""Several layers' activations of the same tokens as one row, of one model or of two: what crosscoders are trained on.

The streams that are joined have equal text, seed and sizes, so that they give the same tokens in the same order; each model runs
once. The row is [model A: layer 1 | layer 2 | … | model B: layer 1 | …]; every part of it is a *block*. With a target site, all
layers' rows of it follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from circuits.activations.heldout import Heldout
from circuits.activations.stream import Batch, Position, Stream
from circuits.errors import RunError, UserError


class JoinedStream(Stream):
    """One row a token out of `streams`, each of which has `layers`; it stands under the lowest layer."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        first = streams[0]
        self.streams, self.joined = tuple(streams), first.layers
        self.blocks = len(streams) * len(first.layers)
        self.lm, self.source, self.site, self.seed = first.lm, first.source, first.site, first.seed
        self.layers, self.target = (first.layers[0],), first.target
        self.target_width = None if first.target_width is None else self.blocks * first.target_width
        self.forward_batch, self.skip_first, self.nonfinite = first.forward_batch, first.skip_first, first.nonfinite
        self.batch_size, self.dropped, self.heldout_dropped = first.batch_size, {}, 0
        self.width = self.blocks * first.width
        for other in streams[1:]:
            if other.width != first.width:
                raise UserError(
                    f"{other.lm.name} is {other.width} wide at {self.site}, {first.lm.name} {first.width}: equal widths are joined"
                )
            if other.lm.tokenizer.get_vocab() != first.lm.tokenizer.get_vocab():
                raise UserError(
                    f"{other.lm.name} and {first.lm.name} have different tokenizers: their activations are not of the same tokens"
                )

    def _join(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        width = self.streams[0].width
        sides = [[row[..., :width] for row in rows], [row[..., width:] for row in rows] if self.target else []]
        return torch.cat([part for side in sides for part in side], dim=-1)

    @property
    def block_width(self) -> int:
        return self.streams[0].width

    @property
    def facts(self) -> dict[str, Any]:
        return {**self.streams[0].facts, "joined": list(self.joined), "models": len(self.streams)}

    def passes(self, steps: int) -> float:
        return self.streams[0].passes(steps)

    def batches(self, start: Position | None = None, stopping: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
        for parts in zip(*(stream.batches(start, stopping) for stream in self.streams), strict=False):
            if len({part.position for part in parts}) > 1:
                raise RunError("the models' activations are not of the same tokens")
            rows = self._join([part.rows[layer] for part in parts for layer in self.joined])
            yield Batch(parts[0].position, parts[0].following, {self.layers[0]: rows})

    def heldout(
        self, n_sequences: int, chunk: int | None = None, first: int = 0, dropped: int = 0
    ) -> Iterator[Heldout]:
        passes = (stream.heldout(n_sequences, chunk, first, dropped) for stream in self.streams)
        for parts in zip(*passes, strict=True):
            rows = self._join([part.sites[layer] for part in parts for layer in self.joined])
            yield Heldout(parts[0].tokens, parts[0].keep, {self.layers[0]: rows})
