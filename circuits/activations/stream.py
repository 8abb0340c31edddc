"""Activations of a model on a token source, shuffled and batched, as a stream that can be taken up at any batch.

Block b of the stream is `sequences_per_block` sequences of the source, run through the model in chunks of
`forward_batch` with one pass for all wanted layers (which ends after the deepest of them). The rows of valid tokens
are put into one buffer a layer at the places of a seeded permutation, the same for every layer, and handed out as
consecutive batches; less than a batch at the end of a block is left out. This is the shuffle buffer of SAE training
(Bricken et al. 2023, "Towards Monosemanticity", dataset; SAELens's mixing buffer), refilled whole rather than by
halves, because then a batch is a function of (block, offset) alone: nothing that came before it has to be saved or
replayed, a resumed stream repeats at most one block's forward passes, and a layer's batches do not depend on which
other layers are read beside it. They are bit-identical for equal device, thread count and libraries.

Tokens of the next block are prepared, sorted by length and (for CUDA) page-locked by one background thread.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.activations.heldout import HeldoutPass, bad_rows
from circuits.data.seeds import derive_seed
from circuits.data.tokens import TokenSource
from circuits.errors import OutOfMemory, RunError, UserError
from circuits.model_input import ModelInput
from circuits.models.load import LM
from circuits.transfer import pinned, sent

_PROBE = 256
"""Sequences of the source's first block by whose mean length a block is sized."""


@dataclass(frozen=True)
class Position:
    """A place in the stream."""

    step: int
    """Batches before it."""
    block: int
    offset: int
    """Rows of the block before it."""


@dataclass(frozen=True)
class Batch:
    """`batch_size` rows of every wanted layer; row i is the same token in all of them."""

    position: Position
    """Where this batch stands: `batches(position)` begins with it."""
    following: Position
    """Where the next one stands: what a checkpoint made after this batch keeps."""
    rows: dict[int, Float[Tensor, "batch width"]]
    """By layer, in float32 on the model's device; the consumer's own. With a `target`, [x | y] side by side."""


@dataclass(frozen=True)
class _Chunk:
    tokens: ModelInput
    source_rows: Int[Tensor, " rows"]
    """Kept positions, as numbers into the chunk's flattened ``[n * pos]``."""
    places: Int[Tensor, " rows"]
    """Where in the block's buffer each goes."""


@dataclass(frozen=True)
class _Block:
    index: int
    rows: int
    chunks: list[_Chunk]


class Stream(HeldoutPass, ABC):
    """What SAEs are trained on: batches of rows from a start on, and the held-out sequences that they are measured on.

    `batch_size` rows make a batch; `seed` decides their order. The rest is what the held-out pass takes.
    """

    blocks = 1
    """Parts of a row that are normalised by themselves."""

    @property
    def block_width(self) -> int:
        """Width of one of them."""
        return self.width

    def __init__(self, lm: LM, source: TokenSource, *, batch_size: int, seed: int = 0, **reading: Any) -> None:
        super().__init__(lm, source, **reading)
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}; at least 1")
        self.batch_size, self.seed = batch_size, seed
        self.dropped: dict[int, dict[str, Any]] = {}
        """Rows left out as non-finite, by block: ``{rows, layers: {layer: rows}, samples: [first few]}``. Merging the
        record of an interrupted run with that of its continuation counts no block twice."""

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the batches are a function of, for provenance and to compare at resume."""

    def facts_of(self, layer: int) -> dict[str, Any]:
        """`facts`, and what one layer's rows come from beside that."""
        return self.facts

    @abstractmethod
    def passes(self, steps: int) -> float:
        """How often the rows were gone through in so many batches."""

    @abstractmethod
    def batches(self, start: Position | None = None, stopping: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
        """Endless batches from `start` on (the beginning when None); they end when `stopping()` says so."""


class ActivationStream(Stream):
    """Rows straight from the model, shuffled within blocks of about `block_rows`.

    Buffers are of `dtype`, the model's own when None. The other arguments are those of :class:`Stream`.
    """

    def __init__(
        self, lm: LM, source: TokenSource, *, block_rows: int, dtype: torch.dtype | None = None, **given: Any
    ) -> None:
        super().__init__(lm, source, **given)
        if block_rows < 2 * self.batch_size:
            raise UserError(
                f"sae.block_rows={block_rows} is less than two batches of sae.batch_size={self.batch_size}; raise it"
            )
        self.block_rows, self.dtype = block_rows, dtype or lm.dtype
        self.rows_per_sequence = self._rows_per_sequence()
        self.sequences_per_block = math.ceil(block_rows / self.rows_per_sequence)

    @property
    def facts(self) -> dict[str, Any]:
        """What the batches are a function of, for provenance and to compare at resume. Not the layers: see above."""
        return {
            "source": self.source.name,
            "context": self.source.context,
            "site": self.site,
            "batch_size": self.batch_size,
            "block_rows": self.block_rows,
            "forward_batch": self.forward_batch,
            "skip_first": self.skip_first,
            "seed": self.seed,
            "nonfinite": self.nonfinite,
            "dtype": str(self.dtype).removeprefix("torch."),
            "sequences_per_block": self.sequences_per_block,
            **({"target": self.target} if self.target else {}),
        }

    def passes(self, steps: int) -> float:
        """How often the corpus was gone through in so many batches."""
        return self.source.passes(steps * self.batch_size // self.block_rows, self.sequences_per_block)

    def batches(self, start: Position | None = None, stopping: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
        """Endless batches from `start` on (the beginning when None); they end when `stopping()` says so while a block is filled."""
        at = start or Position(0, 0, 0)
        buffers: dict[int, Tensor] = {}
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokens") as prefetch:
            coming = prefetch.submit(self._prepare, at.block)
            while True:
                block = coming.result()
                coming = prefetch.submit(self._prepare, at.block + 1)
                if not self._fill(block, buffers, stopping):
                    return
                rows = self._finite(block, buffers)
                while at.block == block.index and at.offset + self.batch_size <= rows:
                    batch = self._batch(at, rows, buffers)
                    yield batch
                    at = batch.following
                if at.block == block.index:
                    at = Position(at.step, at.block + 1, 0)

    def _rows_per_sequence(self) -> float:
        """Mean number of kept rows of a sequence, from the source's first block."""
        keep = self._keep(self.source.block(0, min(_PROBE, self.block_rows)))
        if not keep.any():
            raise UserError(
                f"sae.skip_first={self.skip_first} leaves no position of {self.source.name}'s sequences; lower it"
            )
        return float(keep.sum()) / len(keep)

    def _prepare(self, index: int) -> _Block:
        """A block's sequences, longest first, in chunks, with the place of every row. Runs in the background thread."""
        tokens = self.source.block(index, self.sequences_per_block)
        tokens = tokens.take(torch.argsort(tokens.lengths, descending=True, stable=True))
        rows = int(self._keep(tokens).sum())
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "shuffle", index))
        places = torch.randperm(rows, generator=generator)
        chunks, first = [], 0
        for start in range(0, len(tokens), self.forward_batch):
            part = tokens.take(slice(start, start + self.forward_batch))
            kept = self._keep(part).flatten().nonzero().squeeze(1)
            chunks.append(self._pinned(_Chunk(part, kept, places[first : first + len(kept)])))
            first += len(kept)
        return _Block(index, rows, chunks)

    def _pinned(self, chunk: _Chunk) -> _Chunk:
        device = self.lm.device
        return _Chunk(chunk.tokens.pinned(device), pinned(chunk.source_rows, device), pinned(chunk.places, device))

    @torch.no_grad()
    def _fill(self, block: _Block, buffers: dict[int, Tensor], stopping: Callable[[], bool]) -> bool:
        """Run the model over a block and put every row in its place; whether it came to its end.

        Buffers are kept, and grown when too small.
        """
        device, width = self.lm.device, self.width + (self.target_width or 0)
        try:
            for layer in self.layers:
                if layer not in buffers or len(buffers[layer]) < block.rows:
                    buffers.pop(layer, None)
                    buffers[layer] = torch.empty(block.rows, width, dtype=self.dtype, device=device)
            for chunk in block.chunks:
                if stopping():
                    return False
                from_rows, places = sent(chunk.source_rows, device), sent(chunk.places, device)
                for layer, values in self._capture(chunk.tokens).items():
                    rows = values.flatten(0, 1).index_select(0, from_rows)
                    buffers[layer].index_copy_(0, places, rows.to(self.dtype))
        except torch.OutOfMemoryError as e:
            raise OutOfMemory(
                f"out of memory on {device} while reading activations of {len(self.layers)} layers; lower "
                f"sae.forward_batch ({self.forward_batch} sequences) or sae.block_rows ({self.block_rows})"
            ) from e
        return True

    def _finite(self, block: _Block, buffers: Mapping[int, Tensor]) -> int:
        """Rows of the block that may be handed out: checked once a block; rows to be dropped are closed up."""
        bad = bad_rows([buffers[layer][: block.rows] for layer in self.layers])
        if not bool(bad.any()):
            return block.rows
        per_sequence = [(c.tokens.samples, self._keep(c.tokens).sum(dim=1)) for c in block.chunks]
        owners = torch.empty(block.rows, dtype=torch.int64)
        owners[torch.cat([c.places for c in block.chunks])] = torch.cat(
            [s.repeat_interleave(n) for s, n in per_sequence]
        )
        self.dropped[block.index] = self._refuse(bad.cpu(), owners)
        good = ~bad.any(dim=0)
        left = int(good.sum())
        if left < self.batch_size:
            raise RunError(
                f"block {block.index}: {block.rows - left} of {block.rows} rows are not finite at {self.site}, "
                f"{left} are left, fewer than one batch of {self.batch_size}"
            )
        for layer in self.layers:
            buffers[layer][:left] = buffers[layer][: block.rows][good]
        return left

    def _batch(self, at: Position, rows: int, buffers: Mapping[int, Tensor]) -> Batch:
        end = at.offset + self.batch_size
        more = end + self.batch_size <= rows
        following = Position(at.step + 1, at.block, end) if more else Position(at.step + 1, at.block + 1, 0)
        # A copy: the buffer is filled anew by the next block.
        taken = {layer: buffers[layer][at.offset : end].to(torch.float32, copy=True) for layer in self.layers}
        return Batch(at, following, taken)
