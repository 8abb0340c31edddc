"""What frozen baselines and a target for L0 cost, beside the same training without them; a Markdown table of medians.

512 → 4,096, batches of 256 rows of noise; stretches of 24 steps (three of them with a step of both baselines) in turn, so that a
busy machine slows both. Goals: baselines at most 40% of a training, the controller of a penalty at most 3%.

    python benchmarks/sae_beside.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from circuits.sae.modules import steering
from circuits.sae.spec import TrainSpec
from circuits.sae.training import Trainer

WIDTH, FEATURES, BATCH, STEPS = 512, 4096, 256, 24


def stretch(trainer: Trainer, rows: torch.Tensor) -> float:
    """Seconds of a stretch."""
    began = time.perf_counter()
    for _ in range(STEPS):
        trainer.train_step(rows)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    rows = torch.randn(BATCH, WIDTH)
    plain = TrainSpec("topk", WIDTH, FEATURES, 1e-3, BATCH, 100_000, k=32, dead_after=10**9)
    gated = TrainSpec("gated", WIDTH, FEATURES, 1e-4, BATCH, 100_000, l1=0.1, dead_after=10**9, resample_every=0)
    cases = {
        "frozen baselines, topk": (plain, replace(plain, baselines=True), 1.4),
        "frozen baselines, gated": (gated, replace(gated, baselines=True), 1.4),
        "a target for L0, gated": (gated, replace(gated, target_l0=2048.0), 1.03),
    }
    print(f"{torch.get_num_threads()} threads, median of {rounds} rounds\n")
    print("| beside it | without, ms a step | with | ratio | range | goal |\n|---|---|---|---|---|---|")
    usual = steering.GAIN
    for title, (one, other, goal) in cases.items():
        steering.GAIN = 0.0 if other.target_l0 else usual  # its work without its effect: both are equally active
        without, with_it = (Trainer(spec, torch.device("cpu"), rows) for spec in (one, other))
        stretch(without, rows), stretch(with_it, rows)
        pairs = [(stretch(without, rows), stretch(with_it, rows)) for _ in range(rounds)]
        ratios = [b / a for a, b in pairs]
        found = statistics.median(ratios)
        times = [1e3 * statistics.median(column) / STEPS for column in zip(*pairs, strict=True)]
        print(
            f"| {title} | {times[0]:.1f} | {times[1]:.1f} | {found:.2f} | {min(ratios):.2f}-{max(ratios):.2f} | "
            f"≤ {goal} {'met' if found <= goal else 'MISSED'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
