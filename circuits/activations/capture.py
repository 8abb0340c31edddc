"""Capture: run a model over numbered samples once and keep sites' activations at chosen positions, resumably.

Samples are taken in windows of `WINDOW` batches. Inside a window they are sorted by length and cut into batches of
`batch_size`, so little is padded; rows then go back into sample order. Which samples share a batch depends on nothing but the
samples and `batch_size`: not on the layers asked for, nor on interruptions, nor on the number of processes. Of `world_size`
processes, number `shard` runs batches shard, shard + world_size, … of the whole set. So on equal machines the result of any
division is equal bit by bit (a model's output for a row does depend, in the last bits, on the batch that it is in).

Positions are chosen inside the hook (:func:`circuits.models.hooks.forward`), so memory grows with what is kept. Values are
checked in the type that they are stored in: an overflow of fp16 is found here and not later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from circuits.activations.pieces import Entry, Piece, Pieces
from circuits.activations.samples import Samples, kept_positions
from circuits.errors import Damaged, NonFinite, OutOfMemory
from circuits.model_input import ModelInput
from circuits.models.hooks import Key, forward
from circuits.models.load import DTYPES, LM
from circuits.models.sites import site_width
from circuits.transfer import sent

WINDOW = 4  # batches that are sorted by length together
ON_DISK: dict[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "bf16": np.dtype(np.uint16),
    "fp16": np.dtype(np.float16),
}


@dataclass(frozen=True)
class Plan:
    """How samples are captured.

    Attributes:
        batch_size: sequences a forward pass.
        last_n: the last so many captured positions of each sequence; None: all.
        skip_first: leading positions left out.
        dtype: ``fp32``, ``bf16`` or ``fp16``: how values are stored.
        nonfinite: ``fail`` raises at the first NaN or infinity; ``drop`` leaves out every sample that has one at any layer of
            the model, so that the same ones are left out whichever layers a run is about.
        shard, world_size: this process's number and how many share the work.
        writer: who writes, where others may at the same time: each has unfinished work of its own.
        select: which tokens of a row with a picture: ``all image text last``, or ``mean`` (of all: one row a sample).
        save_every: samples between moments at which work is made durable.
    """

    batch_size: int = 16
    last_n: int | None = None
    skip_first: int = 0
    dtype: str = "fp32"
    nonfinite: str = "fail"
    shard: int = 0
    world_size: int = 1
    save_every: int = 1024
    writer: str = ""
    select: str = "all"

    @property
    def share(self) -> str:
        """The name of this process's part of the work."""
        return f"shard-{self.shard}-of-{self.world_size}"

    @property
    def piece(self) -> str:
        """The name of this process's directory of unfinished work."""
        return f"{self.share}.{self.writer}" if self.writer else self.share


@dataclass
class Tally:
    """What a call of :func:`capture` did."""

    samples: int = 0
    rows: int = 0
    seconds: float = 0.0
    stopped: bool = False


class Captured(NamedTuple):
    """One sample at one (site, layer), in the type it is stored in."""

    values: Float[Tensor, "rows width"]
    norms: Float[Tensor, " rows"]


@dataclass
class _Window:
    """One window's captured samples of this process."""

    found: dict[Key, dict[int, Captured]] = field(default_factory=dict)
    dropped: dict[str, dict[int, list[int]]] = field(default_factory=dict)  # site -> sample -> layers


def capture(
    lm: LM,
    samples: Samples,
    partials: Mapping[Key, Path],
    plan: Plan,
    *,
    progress: Callable[[int, int, Tally], None] = lambda done, total, tally: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Tally:
    """Capture this process's share of `samples` at the (site, layer) pairs of `partials`, into those directories.

    Work found there is continued. When `stopping()` says so, everything is saved and ``Tally.stopped`` is set.

    Raises:
        NonFinite: under ``nonfinite=fail``; the message names the site, the layer and the sample.
    """
    disk, widths = ON_DISK[plan.dtype], {key: site_width(lm.dims, key[0]) for key in partials}
    pieces = {key: Piece(partial / plan.piece, disk, widths[key]) for key, partial in partials.items()}
    elsewhere = {key: Pieces(partial, disk, widths[key]).names for key, partial in partials.items()}
    tally, began = Tally(), time.monotonic()
    try:
        for start, tokens, batches in _windows(samples, plan):
            names = samples.names(start, start + len(tokens))
            window = _Window()
            mine: dict[Key, list[int]] = {key: [] for key in pieces}
            for rows in batches:
                numbers = [start + i for i in rows.tolist()]
                wanted = [key for key in pieces if _unknown(pieces[key], elsewhere[key], numbers, names, start)]
                if not wanted:
                    continue
                if tally.stopped or stopping():
                    tally.stopped = True
                    break
                _run(lm, tokens.take(rows), numbers, wanted, plan, window, samples)
                for key in wanted:
                    mine[key] += numbers
            if tally.stopped:
                break  # the window is begun again by whoever goes on: it is a few batches
            tally.rows += _append(pieces, window, mine, names, start)
            tally.samples += len({number for numbers in mine.values() for number in numbers})
            tally.seconds = time.monotonic() - began
            for piece in pieces.values():
                if piece.unsaved >= plan.save_every:
                    piece.sync()
            progress(start + len(tokens), len(samples), tally)
        for piece in pieces.values():
            piece.sync()
    finally:
        for piece in pieces.values():
            piece.close()
    tally.seconds = time.monotonic() - began
    return tally


def _windows(samples: Samples, plan: Plan) -> Iterator[tuple[int, ModelInput, list[Tensor]]]:
    """Every window: its first sample, its tokens, and the rows of each of its batches that are this process's."""
    size, number = WINDOW * plan.batch_size, 0
    for start in range(0, len(samples), size):
        stop = min(start + size, len(samples))
        count = -(-(stop - start) // plan.batch_size)
        mine = [b for b in range(count) if (number + b) % plan.world_size == plan.shard]
        number += count
        if not mine:
            continue
        tokens = samples.window(start, stop)
        order = torch.argsort(tokens.lengths, descending=True, stable=True)
        yield start, tokens, [order[b * plan.batch_size : (b + 1) * plan.batch_size].sort().values for b in mine]


def _unknown(
    piece: Piece, elsewhere: Mapping[int, str], numbers: Sequence[int], names: Sequence[str], start: int
) -> bool:
    """Whether a batch is still to be captured; what was captured must have been of these very samples."""
    for number in numbers:
        before = piece.done.get(number, elsewhere.get(number))
        if before is not None and before != names[number - start]:
            raise Damaged(
                f"{piece.directory.parent}: sample {number} was {before} and is {names[number - start]} now; "
                "remove that directory and run the same command again"
            )
    return any(number not in piece.done and number not in elsewhere for number in numbers)


@torch.no_grad()
def _run(
    lm: LM, tokens: ModelInput, numbers: list[int], wanted: Sequence[Key], plan: Plan, window: _Window, samples: Samples
) -> None:
    """One forward pass; the kept rows of every sample, in the stored type, go into `window`."""
    layers = range(lm.dims.layers)
    keys = list(wanted)
    if plan.nonfinite == "drop":  # whether a sample is dropped must not depend on the layers that this run is about
        keys = [(site, layer) for site in dict.fromkeys(site for site, _ in wanted) for layer in layers]
    keep = kept_positions(tokens, plan.last_n, plan.skip_first, plan.select)
    last_n = None if plan.last_n is None else min(plan.last_n, tokens.ids.shape[1])
    try:
        found = forward(lm, tokens, capture=keys, positions=last_n)
    except torch.OutOfMemoryError as e:
        raise OutOfMemory(
            f"out of memory on {lm.device} in a pass over {len(tokens)} sequences of {tokens.ids.shape[1]} tokens; "
            f"lower activations.batch_size ({plan.batch_size})"
        ) from e
    chosen = keep if last_n is None else _among_last(keep, tokens, last_n)
    counts = keep.sum(dim=1).tolist()
    rows = [1] * len(counts) if plan.select == "mean" else counts
    at = sent(chosen.flatten().nonzero().squeeze(1), lm.device)
    for key in keys:
        values = found.sites[key].flatten(2).flatten(0, 1).index_select(0, at)
        if plan.select == "mean":
            values = torch.stack([part.float().mean(0) for part in values.split(counts)])
        values = values.to(DTYPES[plan.dtype])
        bad = _bad_samples(values, rows)
        if bad and plan.nonfinite == "fail":
            raise NonFinite(_nonfinite(key, [numbers[i] for i in bad], plan, samples))
        for i in bad:
            window.dropped.setdefault(key[0], {}).setdefault(numbers[i], []).append(key[1])
        if key in wanted:
            norms = torch.linalg.vector_norm(values.float(), dim=-1)  # here: by batches, as everything else
            parts = map(Captured, values.cpu().split(rows), norms.cpu().split(rows))
            window.found.setdefault(key, {}).update(zip(numbers, parts, strict=True))


def _among_last(keep: Bool[Tensor, "n pos"], tokens: ModelInput, last_n: int) -> Bool[Tensor, "n last"]:
    """`keep` as seen by a pass that returned the last `last_n` valid positions of each row, left-filled."""
    place = tokens.lengths[:, None] - last_n + torch.arange(last_n)
    return keep.gather(1, place.clamp(min=0)) & (place >= 0)


def _bad_samples(values: Float[Tensor, "rows width"], counts: Sequence[int]) -> list[int]:
    """Which samples hold a NaN or an infinity, at the cost of one host sync when none does."""
    suspect = ~values.sum(dim=-1, dtype=torch.float32).isfinite()
    if not bool(suspect.any()):
        return []
    rows = suspect.nonzero()[:, 0]
    rows = rows[~values[rows].isfinite().all(dim=-1)].cpu()
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return owner[rows].unique().tolist()


def _nonfinite(key: Key, bad: Sequence[int], plan: Plan, samples: Samples) -> str:
    name = samples.names(bad[0], bad[0] + 1)[0]
    more = f" and {len(bad) - 1} more of its batch" if len(bad) > 1 else ""
    wider = "activations.dtype=fp32 or bf16" if plan.dtype == "fp16" else "precision=fp32 or bf16"
    return (
        f"non-finite activation at {key[0]}, layer {key[1]}, sample {name}{more} of {samples.name}; "
        f"use {wider}, or leave such samples out with activations.nonfinite=drop"
    )


def _append(
    pieces: Mapping[Key, Piece], window: _Window, mine: Mapping[Key, list[int]], names: Sequence[str], start: int
) -> int:
    """Write one window's rows in sample order; how many rows of one piece at most."""
    most = 0
    for key, piece in pieces.items():
        numbers, dropped = sorted(mine[key]), window.dropped.get(key[0], {})
        if not numbers:
            continue
        found = window.found[key]
        kept = {number: found[number] for number in numbers if number not in dropped}
        entry = Entry(
            samples=numbers,
            names=[names[number - start] for number in numbers],
            rows=[len(kept[number].values) if number in kept else 0 for number in numbers],
            dropped={str(number): dropped[number] for number in numbers if number in dropped},
        )
        empty = next(iter(found.values())).values[:0]
        values = torch.cat([empty, *(one.values for one in kept.values())])
        norms = torch.cat([empty.new_empty(0).float(), *(one.norms for one in kept.values())])
        piece.append(entry, as_stored(values, piece.values.dtype), norms.numpy())
        most = max(most, len(values))
    return most


def as_stored(values: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A CPU tensor as numpy holds it on disk: bf16 as the 16 bits that it is."""
    if dtype == np.uint16:
        return values.to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16)
    return values.contiguous().numpy().astype(dtype, copy=False)
