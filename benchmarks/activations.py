"""What keeping activations costs: writing against a plain numpy write of the same bytes, reading shuffled against forwards.

    python benchmarks/activations.py [--quick] [--folder DIR] [--rounds 5] [--cpu-time]

10,000 sequences of 64 tokens at all layers of a random model of the embedded model's shape (4 x 128, float32): 1.3 GB. "plain"
is one numpy array a layer, written at one go and forced to the disk. "writer" is what capture does with rows that are there
already: windows appended to growing files, norms and journal beside them, forced to the disk every 1,024 samples. Every round
measures each in turn, in rotating order; a ratio is the median over rounds of ratios within a round. Goal: writer ≥ 0.60 of
plain. Reading: rows of 1,024 float32 from a warm cache, by as many threads as there are cores; goal 2 M rows/s.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from circuits.activations.capture import WINDOW, Plan, capture
from circuits.activations.pieces import Entry, Piece, Pieces
from circuits.activations.reservoir import Reservoir
from circuits.activations.samples import StreamSamples
from circuits.activations.store import ActivationStore
from circuits.data.npy import GrowingNpy
from circuits.files import write_json
from circuits.model_input import ModelInput
from circuits.models.hooks import forward
from circuits.models.load import LM, wrap

LAYERS, WIDTH, TOKENS, BATCH = 4, 128, 64, 64
FLOAT = np.dtype(np.float32)


class Random:
    """Full sequences of random tokens."""

    name, context = "random tokens", TOKENS

    def block(self, index: int, n: int) -> ModelInput:
        """Sequences of block `index`."""
        ids = torch.randint(0, 160, (n, TOKENS), generator=torch.Generator().manual_seed(index))
        return ModelInput(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(index * n, (index + 1) * n))

    def heldout(self, n: int) -> ModelInput:
        """None are needed."""
        raise NotImplementedError

    def passes(self, index: int, n: int) -> float:
        """It never ends."""
        return 0.0


def model() -> LM:
    """A random model of the embedded model's shape."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": LAYERS, "hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2}
    return wrap(
        Qwen2ForCausalLM(Qwen2Config(vocab_size=163, intermediate_size=512, max_position_embeddings=128, **sizes))
    )


def plain(folder: Path, rows: np.ndarray, count: int) -> None:
    """One array a layer: the same bytes, one after the other, forced to the disk at the end."""
    for layer in range(LAYERS):
        with (folder / f"{layer}.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": (count * len(rows), WIDTH)}
            )
            for _ in range(count):
                file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())


def writer(folder: Path, rows: np.ndarray, count: int) -> None:
    """The same rows through pieces, a window at a time, finished as an artifact's files."""
    pieces = [Piece(folder / str(layer) / "shard-0-of-1", FLOAT, WIDTH) for layer in range(LAYERS)]
    sequences = len(rows) // TOKENS
    norms = np.ones(len(rows), np.float32)
    for window in range(count):
        numbers = list(range(window * sequences, (window + 1) * sequences))
        for piece in pieces:
            piece.append(Entry(numbers, [str(n) for n in numbers], [TOKENS] * sequences, {}), rows, norms)
            if piece.unsaved >= 1024:
                piece.sync()
    for layer, piece in enumerate(pieces):
        piece.sync()
        piece.close()
        finish(folder / str(layer))


def finish(partial: Path) -> None:
    """Give the finished files their names."""
    (partial / "out").mkdir()
    Pieces(partial, FLOAT, WIDTH).write(partial / "out")


def measure(parts: dict[str, Callable[[Path], object]], folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each part in each round, each in an empty folder on a quiet disk."""
    names, seconds = list(parts), {name: [] for name in parts}  # type: ignore[var-annotated]
    for turn in range(rounds):
        for i in range(len(names)):
            name, place = names[(i + turn) % len(names)], folder / "round"
            place.mkdir()
            os.sync()
            start = time.perf_counter()
            parts[name](place)
            seconds[name].append(time.perf_counter() - start)
            shutil.rmtree(place)
    return seconds


def writing(folder: Path, n: int, rounds: int) -> None:
    """The table of writing."""
    lm, samples = model(), StreamSamples(Random(), n)
    window = WINDOW * BATCH
    count = n // window
    rows = np.random.default_rng(0).standard_normal((window * TOKENS, WIDTH), np.float32)

    def passes(_: Path) -> None:
        for start in range(0, n, BATCH):
            tokens = samples.window(start, min(start + BATCH, n))
            forward(lm, tokens, capture={"resid_post": range(LAYERS)})

    def captured(place: Path) -> None:
        capture(
            lm, samples, {("resid_post", layer): place / str(layer) for layer in range(LAYERS)}, Plan(batch_size=BATCH)
        )
        for layer in range(LAYERS):
            finish(place / str(layer))

    parts: dict[str, Callable[[Path], object]] = {
        "plain numpy write": lambda place: plain(place, rows, count),
        "writer": lambda place: writer(place, rows, count),
        "forward passes alone": passes,
        "capture, end to end": captured,
    }
    size = LAYERS * count * rows.nbytes / 1e9
    seconds = measure(parts, folder, rounds)
    print(f"{count * window:,} sequences of {TOKENS} tokens, {LAYERS} layers, {size:.2f} GB, {rounds} rounds\n")
    print("| writing | s | GB/s | rate ÷ plain write | quartiles | goal |\n|---|---|---|---|---|---|")
    for name, times in seconds.items():
        ratios = [p / t for t, p in zip(times, seconds["plain numpy write"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        goal = f"≥ 0.60 {'met' if middle >= 0.6 else 'MISSED'}" if name == "writer" else ""
        took = statistics.median(times)
        print(f"| {name} | {took:.2f} | {size / took:.2f} | {middle:.2f} | {low:.2f}-{high:.2f} | {goal} |")
    whole, alone = statistics.median(seconds["capture, end to end"]), statistics.median(seconds["forward passes alone"])
    print(f"\nCapture takes {whole / alone:.2f} times as long as its forward passes alone.\n")


def reading(folder: Path, rows: int, rounds: int, clock: Callable[[], float]) -> None:
    """The table of reading, in rows of 1,024 float32 a second."""
    place, width = folder / "store", 1024
    place.mkdir()
    file = GrowingNpy(place / "values.npy", FLOAT, (width,))
    part = np.random.default_rng(0).standard_normal((4096, width), np.float32)
    for _ in range(rows // len(part)):
        file.append(part)
    file.finish()
    write_json(place / "meta.json", {"site": "x", "layer": 0, "width": width, "dtype": "fp32", "n_rows": file.rows})
    store = ActivationStore(place)

    def forwards() -> None:
        into = np.empty((128, width), np.float32)
        with (place / "values.npy").open("rb", buffering=0) as opened:
            while opened.readinto(into.data):
                pass

    def shuffled(size: int, own: bool) -> Callable[[], None]:
        source = Reservoir(store, batch_size=size, ram_bytes=store.values.nbytes // 4, own=own).batches()

        def read() -> None:
            for _ in range(store.n_rows // size):
                next(source)

        read()  # the first epoch also pays for fresh memory
        return read

    def mapped_at_random() -> None:
        order = np.random.default_rng(0).permutation(store.n_rows)
        for start in range(0, store.n_rows, 4096):
            store.values[order[start : start + 4096]]

    parts = {
        "forwards, not shuffled": forwards,
        "memory map at random places, 4,096 rows": mapped_at_random,
        "reservoir, views of 4,096 rows": shuffled(4096, False),
        "reservoir, own batches of 256 rows": shuffled(256, True),
        "reservoir, own batches of 4,096 rows": shuffled(4096, True),
    }
    best = {name: float("inf") for name in parts}
    for _ in range(rounds):
        for name, read in parts.items():
            start = clock()
            read()
            best[name] = min(best[name], clock() - start)
    print(
        f"{store.n_rows:,} rows of {width} float32, warm cache, a quarter of them in memory, best of {rounds} ({clock.__name__})\n"
    )
    print("| reading | M rows/s | GB/s | goal |\n|---|---|---|---|")
    for name, took in best.items():
        rate = store.n_rows / took / 1e6
        goal = f"≥ 2 {'met' if rate >= 2 else 'MISSED'}" if "views" in name else ""
        print(f"| {name} | {rate:.2f} | {rate * width * 4 / 1e3:.1f} | {goal} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the bytes, 2 rounds: a look, not a measurement"
    )
    parser.add_argument("--folder", type=Path, default=None, help="the disk to measure; default: the temporary folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="reading by CPU seconds, for a busy machine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    n, rows, rounds = (1_024, 65_536, 2) if options.quick else (10_000, 262_144, options.rounds)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        writing(Path(name), n, rounds)
        torch.set_num_threads(os.cpu_count() or 1)
        reading(Path(name), rows, rounds, time.process_time if options.cpu_time else time.perf_counter)


if __name__ == "__main__":
    main()
