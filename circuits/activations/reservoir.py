"""Shuffled rows of activation stores, read forwards from disk within a memory budget.

Random reads collapse on network disks and forward reads do not, so shuffling is done in memory: an epoch goes through the
file's chunks (`CHUNK_BYTES` of neighbouring rows) in a seeded order; as many chunks as fit make a *block*, whose rows are put
to the places of a seeded permutation while they are still in the processor's cache, and handed out as consecutive batches.
Meanwhile the next block is filled, by as many threads as torch uses: two blocks are the memory budget. Compare SAELens's mixing
buffer and saev's chunks.

A batch is a function of (epoch, block, offset) and the seed alone. So a checkpoint is a few integers, nothing is replayed on
resume, and the same rows of several layers come out beside one another. Each row comes once an epoch, but for what is left of
an epoch's last block when it is cut into batches (fewer than `batch_size` rows, other ones each epoch).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from circuits.activations.store import STORED, VALUES, ActivationStore
from circuits.activations.stream import Batch, Position
from circuits.data.npy import HEADER
from circuits.data.seeds import derive_seed
from circuits.errors import Damaged, UserError
from circuits.models.load import DTYPES
from circuits.transfer import locked
from circuits.words import size

CHUNK_BYTES = 16 << 20
LOOK_S = 0.2  # between two questions whether to stop, while a block is awaited
STAGE_BYTES = 1 << 20  # read at once: fits into a core's cache, from which rows are scattered


@dataclass(frozen=True)
class _Block:
    index: int
    rows: dict[int, Tensor]  # by layer, in the stored type, shuffled; page-locked for CUDA


class Reservoir:
    """Batches of `stores` (one a layer, of the same samples and positions), shuffled.

    Of a pair of stores of a layer, rows of the same token stand side by side (what a transcoder is trained on). `ram_bytes`
    bounds the two blocks of each layer, so that a layer's batches do not depend on which others are read. `batches` gives
    what :meth:`circuits.activations.stream.ActivationStream.batches` gives, so a trainer reads either. `device`: where batches go.
    With ``own=False`` a float32 batch on the CPU is a view into the block, valid until a batch of the next block is asked for.
    """

    def __init__(
        self,
        stores: Mapping[int, ActivationStore | tuple[ActivationStore, ...]] | ActivationStore,
        *,
        batch_size: int,
        ram_bytes: int = 2 << 30,
        seed: int = 0,
        device: torch.device | str = "cpu",
        own: bool = True,
    ) -> None:
        given = {stores.layer: stores} if isinstance(stores, ActivationStore) else stores
        self.stores = {layer: one if isinstance(one, tuple) else (one,) for layer, one in given.items()}
        self.batch_size, self.ram_bytes, self.seed, self.own = batch_size, ram_bytes, seed, own
        self.device = torch.device(device)
        self.layers = tuple(sorted(self.stores))
        _check_alike(self.stores)
        first = self.stores[self.layers[0]]
        self.sites, self.dtype, self.n_rows = tuple(store.site for store in first), first[0].dtype, first[0].n_rows
        self.width = sum(store.width for store in first)
        if not 1 <= batch_size <= self.n_rows:
            raise UserError(f"batch_size={batch_size}: the store has {self.n_rows} rows")
        self.chunk_rows, self.chunks_per_block = self._sizes()
        self.blocks_per_epoch = -(-self._chunks // self.chunks_per_block)
        self._at = Position(0, 0, 0)
        self._plan: dict[int, tuple[list[tuple[int, int]], NDArray[np.int64]]] = {}  # of the block after the last one

    @property
    def facts(self) -> dict[str, Any]:
        """What the batches are a function of, to compare at resume."""
        return {
            "source": "store",
            "site": self.sites[0],
            **({"target": self.sites[1]} if len(self.sites) > 1 else {}),
            "n_rows": self.n_rows,
            "batch_size": self.batch_size,
            "chunk_rows": self.chunk_rows,
            "chunks_per_block": self.chunks_per_block,
            "seed": self.seed,
        }

    def batches(self, start: Position | None = None, stopping: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
        """Endless batches from `start` on (where the last ones ended, or `load_state_dict` said, when None).

        They end when `stopping()` says so while a block is read. Whoever leaves them early waits for no block.
        """
        at = start or self._at
        buffers: list[dict[int, Tensor]] = [{}, {}]
        read: list[Any] = [None, None]  # what CUDA has to have copied before a block is filled anew
        left = Event()
        with (
            ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="reservoir-reader") as readers,
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="reservoir") as prefetch,
            _setting(left),  # first of the three: the threads wait for nothing more
        ):
            coming = prefetch.submit(self._fill, readers, left, at.block, buffers[at.block % 2])
            while True:
                while not wait([coming], LOOK_S).done:
                    if stopping():
                        return
                block = coming.result()
                other = (block.index + 1) % 2
                coming = prefetch.submit(self._fill, readers, left, block.index + 1, buffers[other], read[other])
                rows = len(block.rows[self.layers[0]])
                while at.block == block.index and at.offset + self.batch_size <= rows:
                    end = at.offset + self.batch_size
                    more = end + self.batch_size <= rows
                    following = Position(at.step + 1, at.block + (not more), end if more else 0)
                    self._at = following
                    yield Batch(
                        at, following, {layer: self._taken(block.rows[layer][at.offset : end]) for layer in self.layers}
                    )
                    at = following
                if at.block == block.index:
                    at = Position(at.step, at.block + 1, 0)
                if self.device.type == "cuda":
                    read[block.index % 2] = torch.cuda.current_stream(self.device).record_event()

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch stands, and what the batches are a function of."""
        return {"position": asdict(self._at), "facts": self.facts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            UserError: it was taken from another store, seed, batch size or memory budget.
        """
        changed = [name for name, value in self.facts.items() if state["facts"].get(name) != value]
        if changed:
            was = ", ".join(f"{name} {state['facts'].get(name)} (now {self.facts[name]})" for name in changed)
            raise UserError(f"the saved position belongs to other batches: {was}; give the same values, or begin anew")
        self._at = Position(**state["position"])

    def passes(self, block: int) -> float:
        """How often the rows were gone through before this block."""
        return block / self.blocks_per_epoch

    # ------------------------------------------------------------------------------------------------------------

    @property
    def _chunks(self) -> int:
        return -(-self.n_rows // self.chunk_rows)

    def _sizes(self) -> tuple[int, int]:
        """Rows of a chunk, a multiple of the batch so that blocks divide into batches; chunks of a block."""
        row_bytes = self.width * np.dtype(STORED[self.dtype]).itemsize
        block_rows = self.ram_bytes // 2 // row_bytes
        if block_rows < 2 * self.batch_size:
            raise UserError(
                f"{size(self.ram_bytes)} of memory hold {2 * block_rows} rows of a layer; two "
                f"batches of {self.batch_size} have to fit twice ({size(4 * self.batch_size * row_bytes)})"
            )
        batches = max(1, min(CHUNK_BYTES // row_bytes, block_rows // 2) // self.batch_size)
        return batches * self.batch_size, max(1, block_rows // (batches * self.batch_size))

    def _order(self, epoch: int) -> NDArray[np.int64]:
        generator = np.random.Generator(np.random.PCG64(derive_seed(self.seed, "chunks", epoch)))
        return generator.permutation(self._chunks)

    def _planned(self, index: int) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
        """Of block `index` of the endless sequence of blocks: stretches of the file, and the place of each of their rows."""
        epoch, place = divmod(index, self.blocks_per_epoch)
        chunks = self._order(epoch)[place * self.chunks_per_block : (place + 1) * self.chunks_per_block]
        spans = [(int(c) * self.chunk_rows, min((int(c) + 1) * self.chunk_rows, self.n_rows)) for c in chunks]
        generator = np.random.Generator(np.random.PCG64(derive_seed(self.seed, "rows", index)))
        return spans, generator.permutation(sum(stop - start for start, stop in spans))

    def _fill(self, readers: Executor, left: Event, index: int, buffers: dict[int, Tensor], read: Any = None) -> _Block:
        """Read block `index` into `buffers`, after the CUDA event `read`; whatever is there once nobody waits for it (`left`)."""
        if read is not None:
            read.synchronize()
        spans, places = self._plan.get(index) or self._planned(index)
        rows, ends = len(places), np.cumsum([stop - start for start, stop in spans])[:-1]
        work: list[tuple[ActivationStore, int, NDArray[np.int64], Tensor]] = []
        for layer, stores in self.stores.items():
            if layer not in buffers:
                most = min(self.chunks_per_block * self.chunk_rows, self.n_rows)
                buffers[layer] = locked(most, self.width, DTYPES[self.dtype], self.device)
            for store, columns in zip(stores, buffers[layer].split([s.width for s in stores], dim=1), strict=True):
                work += [
                    (store, start, at, columns) for (start, _), at in zip(spans, np.split(places, ends), strict=True)
                ]
        reading = [readers.submit(_read, left, *one) for one in work]
        self._plan = {index + 1: self._planned(index + 1)}  # while they read
        for done in reading:
            done.result()
        return _Block(index, {layer: buffers[layer][:rows] for layer in self.layers})

    def _taken(self, rows: Tensor) -> Float[Tensor, "batch width"]:
        """A batch as it is handed out; a copy, unless the consumer promised to be done with it in time."""
        if self.device.type == "cpu":
            return rows.to(torch.float32, copy=self.own)
        # Widened there: half the bytes to move. Only from page-locked memory may the copy be under way when we go on.
        return rows.to(self.device, non_blocking=rows.is_pinned()).to(torch.float32)


def _check_alike(stores: Mapping[int, tuple[ActivationStore, ...]]) -> None:
    """All layers of one form; the stores of a layer of the same rows.

    Raises:
        UserError: with what differs.
    """
    first = next(iter(stores.values()))
    for beside in stores.values():
        for store, other in zip(beside, first, strict=True):
            alike = ("site", "width", "dtype", "n_rows")
            if wrong := [name for name in alike if getattr(store, name) != getattr(other, name)]:
                raise UserError(
                    f"layers {other.layer} and {store.layer} are not of the same rows: their {' and '.join(wrong)} differ"
                )
        for store in beside[1:]:
            facts = {
                name: (beside[0].facts.get(name), store.facts.get(name)) for name in ("dtype", "n_rows", "skip_first")
            }
            facts["samples dropped"] = (_dropped(beside[0]), _dropped(store))
            if wrong := [name for name, (a, b) in facts.items() if a != b]:
                raise UserError(
                    f"{beside[0].site} and {store.site} of layer {store.layer} are not of the same rows: their "
                    f"{' and '.join(wrong)} differ; make both with one task=activations"
                )


def _dropped(store: ActivationStore) -> set[int]:
    """Samples that have no rows in a store."""
    return {record["sample"] for record in store.facts.get("dropped", [])}


@contextlib.contextmanager
def _setting(event: Event) -> Iterator[None]:
    """Set it at the end."""
    try:
        yield
    finally:
        event.set()


def _read(left: Event, store: ActivationStore, start: int, places: NDArray[np.int64], into: Tensor) -> None:
    """Rows from `start` on, each to its place in `into`: forwards in the file, a cache's worth at a time."""
    row_bytes = into.shape[1] * into.element_size()
    block = into.view(torch.int16).numpy()  # rows as they are, whatever their type
    stage = np.empty((max(1, STAGE_BYTES // row_bytes), block.shape[1]), block.dtype)
    path = store.path / VALUES
    with path.open("rb", buffering=0) as file:
        file.seek(HEADER + start * row_bytes)
        for first in range(0, len(places), len(stage)):
            if left.is_set():
                return
            here = places[first : first + len(stage)]
            rows = stage[: len(here)]
            _read_all(file, rows.data.cast("B"), path)
            block[here] = rows


def _read_all(file: IO[bytes], into: memoryview, path: Path) -> None:
    """Read until `into` is full; a network file system may give less at a time."""
    while into:
        got = file.readinto(into)  # type: ignore[attr-defined]
        if not got:
            raise Damaged(f"{path}: ends before its rows do; it was cut after it was opened")
        into = into[got:]
