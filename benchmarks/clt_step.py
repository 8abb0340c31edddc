"""A training step of a cross-layer transcoder and of a crosscoder, beside the dense products that it stands for; a Markdown table.

4 layers, 512 → 2,048 features each, batches of 256 and 4,096 rows, k = 32 a row and layer, on rows of noise. The floor is the
products of a dense step, measured in the same run, in turn: of a cross-layer transcoder encode and its gradient (4 × 2), and for
each of the 10 pairs of layers decode, its gradient for activations and for weights (10 × 3); of a crosscoder five of 2,048 ×
2,048. The optimiser is in the step and not in the floor. Goal: at least .9 of the floor's speed.

    python benchmarks/clt_step.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from circuits.sae.spec import TrainSpec
from circuits.sae.training import Trainer

LAYERS, WIDTH, FEATURES, K = 4, 512, 2048, 32


def seconds(step: Callable[[], object], times: int) -> float:
    """Of one step, over several."""
    began = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - began) / times


def product(batch: int, wide: int, features: int) -> Callable[[], torch.Tensor]:
    """One dense product of a step."""
    a, b = torch.randn(batch, wide), torch.randn(wide, features)
    out = torch.empty(batch, features)
    return lambda: torch.mm(a, b, out=out)


def cross_layer(batch: int) -> tuple[Trainer, torch.Tensor]:
    """A trainer and its rows."""
    spec = TrainSpec(
        "cross_layer", LAYERS * WIDTH, LAYERS * FEATURES, 1e-3, batch, 10_000, k=K, d_out=LAYERS * WIDTH, blocks=LAYERS,
        dead_after=10**9,
    )  # fmt: skip
    rows = torch.randn(batch, 2 * LAYERS * WIDTH)
    return Trainer(spec, torch.device("cpu"), rows), rows


def crosscoder(batch: int) -> tuple[Trainer, torch.Tensor]:
    """A trainer and its rows."""
    spec = TrainSpec("batchtopk", LAYERS * WIDTH, FEATURES, 1e-3, batch, 10_000, k=K, blocks=LAYERS, dead_after=10**9)
    rows = torch.randn(batch, LAYERS * WIDTH)
    return Trainer(spec, torch.device("cpu"), rows), rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    pairs = LAYERS * (LAYERS + 1) // 2
    print(
        f"{LAYERS} layers, {WIDTH} -> {FEATURES}, k = {K}, {torch.get_num_threads()} threads, median of {rounds} rounds\n"
    )
    print("| step | batch | ms | dense floor, ms | floor / step | range | goal |\n|---|---|---|---|---|---|---|")
    made = (
        ("cross-layer transcoder", cross_layer, WIDTH, 2 * LAYERS + 3 * pairs),
        ("crosscoder", crosscoder, LAYERS * WIDTH, 5),
    )
    for title, make, wide, products in made:
        for batch in (256, 4096):
            (trainer, rows), dense = make(batch), product(batch, wide, FEATURES)
            times = max(1, 2048 // batch)
            for _ in range(3):
                trainer.train_step(rows)
                dense()
            steps, floors = [], []
            for _ in range(rounds):
                steps.append(seconds(lambda t=trainer, x=rows: t.train_step(x), times))  # type: ignore[misc]
                floors.append(products * seconds(dense, 8 * times))
            shares = [floor / step for floor, step in zip(floors, steps, strict=True)]
            middle = statistics.median(shares)
            print(
                f"| {title} | {batch} | {1e3 * statistics.median(steps):.1f} | {1e3 * statistics.median(floors):.1f} "
                f"| {middle:.2f} | {min(shares):.2f}-{max(shares):.2f} | ≥ .9 {'met' if middle >= 0.9 else 'MISSED'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
