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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.data.seeds import derive_seed
from circuits.data.tokens import TokenSource
from circuits.errors import NonFinite, OutOfMemory, RunError, UserError
from circuits.model_input import ModelInput
from circuits.models.hooks import forward
from circuits.models.load import LM
from circuits.models.sites import check_layer, check_site, site_width
from circuits.transfer import pinned, sent

_PROBE = 256
"""Sequences of the source's first block by whose mean length a block is sized."""
_NAMED_SAMPLES = 20
"""Samples with a non-finite activation that are named; all are counted."""


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
class Heldout:
    """A chunk of held-out sequences, in order."""

    tokens: ModelInput
    """In main memory, where it can be looked at without waiting for a device."""
    keep: Bool[Tensor, "n pos"]
    """Positions that count: valid, not among the skipped first ones, finite where non-finite ones are dropped. In main memory."""
    sites: dict[int, Float[Tensor, "n pos width"]]
    """By layer, in float32 on the model's device; whatever stands where `keep` is False is to be ignored."""


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


class ActivationStream:
    """Batches of a site's activations at one or several layers.

    `site` and `layers` say what is read; `batch_size` rows make a batch and about `block_rows` a block, within which
    rows are shuffled; `forward_batch` sequences go through the model together; the first `skip_first` positions of
    every sequence are left out (at the very first a model's activations are many times larger than elsewhere).
    `nonfinite`: ``fail`` raises `NonFinite` at the first NaN or infinity; ``drop`` leaves such rows out, for all
    layers alike, and counts them in `dropped`. Buffers are of `dtype`, the model's own when None. With a `target` site, its
    activations of the same token and layer stand beside each row (what a transcoder is trained on).
    """

    def __init__(
        self,
        lm: LM,
        source: TokenSource,
        *,
        site: str,
        layers: Sequence[int],
        batch_size: int,
        block_rows: int,
        forward_batch: int = 32,
        seed: int = 0,
        skip_first: int = 0,
        nonfinite: str = "fail",
        dtype: torch.dtype | None = None,
        target: str | None = None,
    ) -> None:
        if nonfinite not in ("fail", "drop"):
            raise UserError(f"nonfinite={nonfinite}; choices: fail drop")
        if not layers:
            raise UserError("no layer to read activations of")
        for name, value in (("batch_size", batch_size), ("forward_batch", forward_batch)):
            if value < 1:
                raise UserError(f"{name}={value}; at least 1")
        if block_rows < 2 * batch_size:
            raise UserError(
                f"sae.block_rows={block_rows} is less than two batches of sae.batch_size={batch_size}; raise it"
            )
        self.lm, self.source, self.site = lm, source, check_site(site)
        self.layers = tuple(sorted({check_layer(layer, lm.dims) for layer in layers}))
        self.batch_size, self.block_rows, self.forward_batch = batch_size, block_rows, forward_batch
        self.seed, self.skip_first, self.nonfinite = seed, skip_first, nonfinite
        self.dtype = dtype or lm.dtype
        self.width = site_width(lm.dims, site)
        self.target = None if target is None else check_site(target)
        self.target_width = None if target is None else site_width(lm.dims, target)
        self.dropped: dict[int, dict[str, Any]] = {}
        """Rows left out as non-finite, by block: ``{rows, layers: {layer: rows}, samples: [first few]}``. Merging the
        record of an interrupted run with that of its continuation counts no block twice."""
        self.heldout_dropped = 0
        """Rows left out as non-finite by the latest `heldout`."""
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

    def facts_of(self, layer: int) -> dict[str, Any]:
        """`facts`, and what one layer's rows come from beside that; the stream's come from the model itself."""
        return self.facts

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

    def heldout(
        self, n_sequences: int, chunk: int | None = None, first: int = 0, dropped: int = 0
    ) -> Iterator[Heldout]:
        """Held-out sequences with their activations, `chunk` (by default `forward_batch`) at a time.

        Goes on at sequence `first`; `dropped`: rows that were left out before it.
        """
        tokens = self.source.heldout(n_sequences)
        chunk = chunk or self.forward_batch
        self.heldout_dropped = dropped
        for start in range(first, len(tokens), chunk):
            part = tokens.take(slice(start, start + chunk))
            sites = {layer: values.float() for layer, values in self._capture(part).items()}
            keep = self._keep(part)
            bad = _bad_rows(list(sites.values())) & sent(keep, self.lm.device)
            if bool(bad.any()):
                bad, owners = bad.cpu(), part.samples[:, None].expand_as(keep)
                self._refuse(bad.flatten(1), owners.flatten())
                self.heldout_dropped += int(bad.any(dim=0).sum())
                keep = keep & ~bad.any(dim=0)
            yield Heldout(part, keep, sites)

    def _rows_per_sequence(self) -> float:
        """Mean number of kept rows of a sequence, from the source's first block."""
        keep = self._keep(self.source.block(0, min(_PROBE, self.block_rows)))
        if not keep.any():
            raise UserError(
                f"sae.skip_first={self.skip_first} leaves no position of {self.source.name}'s sequences; lower it"
            )
        return float(keep.sum()) / len(keep)

    def _keep(self, tokens: ModelInput) -> Bool[Tensor, "n pos"]:
        return tokens.mask & (torch.arange(tokens.ids.shape[1]) >= self.skip_first)

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

    @torch.no_grad()
    def _capture(self, tokens: ModelInput) -> dict[int, Float[Tensor, "n pos width"]]:
        wanted = [(site, layer) for site in (self.site, self.target) if site is not None for layer in self.layers]
        sites = forward(self.lm, tokens, capture=wanted).sites
        if self.target is None:
            return {layer: sites[(self.site, layer)].flatten(2) for layer in self.layers}
        both = {layer: [sites[(site, layer)].flatten(2) for site in (self.site, self.target)] for layer in self.layers}
        return {layer: torch.cat(pair, dim=2) for layer, pair in both.items()}

    def _finite(self, block: _Block, buffers: Mapping[int, Tensor]) -> int:
        """Rows of the block that may be handed out: checked once a block; rows to be dropped are closed up."""
        bad = _bad_rows([buffers[layer][: block.rows] for layer in self.layers])
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

    def _refuse(self, bad: Bool[Tensor, "layers rows"], owners: Int[Tensor, " rows"]) -> dict[str, Any]:
        """The record of non-finite rows when they are to be dropped; else raise, naming the first."""
        if self.nonfinite == "fail":
            row = int(bad.any(dim=1).nonzero()[0])
            sample = int(owners[bad[row]].min())
            describe = getattr(self.source, "describe", None)
            place = f" ({describe(sample)})" if describe else ""
            raise NonFinite(
                f"non-finite activation at {self.site}, layer {self.layers[row]}, sample {sample}{place} "
                f"of {self.source.name}; try a wider dtype, or leave such rows out with sae.nonfinite=drop"
            )
        return {
            "rows": int(bad.any(dim=0).sum()),
            "layers": {layer: int(n) for layer, n in zip(self.layers, bad.sum(dim=1), strict=True)},
            "samples": owners[bad.any(dim=0)].unique()[:_NAMED_SAMPLES].tolist(),
        }

    def _batch(self, at: Position, rows: int, buffers: Mapping[int, Tensor]) -> Batch:
        end = at.offset + self.batch_size
        more = end + self.batch_size <= rows
        following = Position(at.step + 1, at.block, end) if more else Position(at.step + 1, at.block + 1, 0)
        # A copy: the buffer is filled anew by the next block.
        taken = {layer: buffers[layer][at.offset : end].to(torch.float32, copy=True) for layer in self.layers}
        return Batch(at, following, taken)


def _bad_rows(by_layer: Sequence[Float[Tensor, "... width"]]) -> Bool[Tensor, "layers ..."]:
    """Which rows of each layer hold a NaN or an infinity, at the cost of one host sync.

    Such a row has a sum that is not finite, which is many times cheaper to find than looking at every value. So has a
    row of values near the largest float32: where there is a suspect, every value is looked at.
    """
    suspect = torch.stack([~values.sum(dim=-1, dtype=torch.float32).isfinite() for values in by_layer])
    if bool(suspect.any()):
        for values, rows in zip(by_layer, suspect, strict=True):
            rows[rows.clone()] = ~values[rows].isfinite().all(dim=-1)
    return suspect
