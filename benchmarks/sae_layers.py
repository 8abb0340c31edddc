"""Many SAEs in one process from stores on disk, against the pure steps; and a store far larger than the memory it is read with.

    python benchmarks/sae_layers.py [--layers 8] [--width 512] [--d-sae 4096] [--rows 65536] [--rounds 9] [--cpu-time]

Eight layers' TopK SAEs (k = 32, batch 256, float32) are trained by the loop that ``task=sae sae.source=store`` runs, from one store
a layer. "pure steps" are the same trainers' steps on batches that are there already, one layer after the other. The ratio is
between the two in one round, in turn; goal: at most 1.03. In both the first block's steps are not counted: the loop makes its
trainers and its buffers in them. Then one layer is trained from its store with memory for all of it and with memory for a tenth
of it; goal: the same rate (at most 1.03 of the time), within the memory given.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from circuits.activations.reservoir import Reservoir
from circuits.activations.store import ActivationStore
from circuits.data.npy import GrowingNpy
from circuits.files import write_json
from circuits.sae.loop import FIRST_ROWS, Hooks, train
from circuits.sae.spec import TrainSpec
from circuits.sae.training import Trainer

BATCH, K = 256, 32
UNCOUNTED, LOG_EVERY = 32, 16  # steps
CPU = torch.device("cpu")


def make_store(place: Path, layer: int, width: int, rows: int) -> ActivationStore:
    """A store of random rows."""
    place.mkdir()
    file = GrowingNpy(place / "values.npy", np.dtype(np.float32), (width,))
    generator = np.random.default_rng(layer)
    for _ in range(rows // 8192):
        file.append(generator.standard_normal((8192, width), np.float32))
    file.finish()
    facts = {"site": "resid_post", "layer": layer, "width": width, "dtype": "fp32", "n_rows": file.rows}
    write_json(place / "meta.json", facts)
    return ActivationStore(place)


def spec(layer: int, width: int, d_sae: int, steps: int) -> TrainSpec:
    """One layer's training."""
    return TrainSpec("topk", width, d_sae, 1e-3, BATCH, steps, k=K, layer=layer, warmup=50, decay=0.2)


class Source:
    """A reservoir as the loop takes a stream: batches, and where the model is."""

    def __init__(self, stores: dict[int, ActivationStore], ram: int) -> None:
        self.batches = Reservoir(stores, batch_size=BATCH, ram_bytes=ram, own=False).batches
        self.lm = SimpleNamespace(device=CPU)


def whole(
    stores: dict[int, ActivationStore], ram: int, d_sae: int, steps: int, clock: Callable[[], float]
) -> Callable[[], float]:
    """The loop over all of the stores' layers."""
    width, total = next(iter(stores.values())).width, UNCOUNTED + steps
    specs = {layer: spec(layer, width, d_sae, total) for layer in stores}

    def run() -> float:
        at: dict[int, float] = {}

        def log(_: int, step: int, __: Any) -> None:  # of the last layer, the last
            at[step] = clock()

        hooks: Any = Hooks(log=log, save=lambda *_: None, stopping=lambda: False, log_every=LOG_EVERY)
        train(Source(stores, ram), specs, {}, hooks, dict.fromkeys(specs, total))  # type: ignore[arg-type]
        return at[total] - at[UNCOUNTED]

    return run


def pure(layers: list[int], width: int, d_sae: int, steps: int, clock: Callable[[], float]) -> Callable[[], float]:
    """The steps alone, with the metrics that the loop reads."""
    rows = torch.randn(FIRST_ROWS, width, generator=torch.Generator().manual_seed(0))
    batches = rows.split(BATCH)

    def run() -> float:
        trainers = [Trainer(spec(layer, width, d_sae, UNCOUNTED + steps), CPU, rows) for layer in layers]
        total = 0.0
        for trainer in trainers:
            began = clock()
            for number, x in enumerate(itertools.islice(itertools.cycle(batches), UNCOUNTED + steps), 1):
                trainer.train_step(x)
                if number % LOG_EVERY == 0:
                    trainer.metrics()
                if number == UNCOUNTED:
                    began = clock()
            total += clock() - began
        return total

    return run


def compare(parts: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each part in each round, in rotating order; a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    names = list(parts)
    for turn in range(rounds + 1):
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            took = parts[name]()
            if turn:
                seconds[name].append(took)
    return seconds


def table(seconds: dict[str, list[float]], base: str, judged: str, steps: int) -> None:
    """Rows of a table; the ratio is the median over rounds."""
    print("| | s | ms a step | ratio | goal |\n|---|---|---|---|---|")
    for name, times in seconds.items():
        ratio = statistics.median(t / b for t, b in zip(times, seconds[base], strict=True))
        goal = f"≤ 1.03 {'met' if ratio <= 1.03 else 'MISSED'}" if name == judged else ""
        took = statistics.median(times)
        print(f"| {name} | {took:.2f} | {1000 * took / steps:.1f} | {ratio:.3f} | {goal} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=64, help="blocks hold 32 batches")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cpu-time", action="store_true", help="processor time, with one thread unless --threads says")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.threads or given.cpu_time:
        torch.set_num_threads(given.threads or 1)
    clock = time.process_time if given.cpu_time else time.perf_counter
    layers, steps = list(range(given.layers)), given.steps
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        stores = {layer: make_store(Path(folder) / str(layer), layer, given.width, given.rows) for layer in layers}
        size = stores[0].values.nbytes
        how = f"{torch.get_num_threads()} threads, {clock.__name__}, {given.rounds} rounds of {steps} steps"
        print(f"{given.layers} layers, {given.width} → {given.d_sae}, {size / 1e6:.0f} MB a store, {how}\n")
        name = f"{given.layers} layers from stores"
        parts = {
            "pure steps": pure(layers, given.width, given.d_sae, steps, clock),
            name: whole(stores, size // 4, given.d_sae, steps, clock),
        }
        table(compare(parts, given.rounds), "pure steps", name, steps * given.layers)
        one, many = {0: stores[0]}, given.rows // BATCH  # an epoch
        print()
        parts = {
            "one layer, memory for the whole store": whole(one, 2 * size, given.d_sae, many, clock),
            "one layer, memory for a tenth of it": whole(one, size // 10, given.d_sae, many, clock),
        }
        table(compare(parts, given.rounds), *parts, many)


if __name__ == "__main__":
    main()
