"""What fifteen SAEs of 3584 → 14336, 50,000 steps of 256 rows each, cost on this accelerator: projected from a measured slice.

    python benchmarks/sae_accelerator.py [--layers 15] [--steps 200] [--device cuda] [--tf32] [--only topk,relu]

Some steps of as many trainers as fit are timed, rows in pinned memory as a store hands them out. Beside them stand this chip's own
limits, measured in the same run: its float32 (or TF32) rate on a product of the encoder's size, and its copying rate. A step has at
least the encoder's product (TopK family; five of its size in dense steps) and moves every weight, gradient and moment once:
7 × 4 bytes a parameter. Goal: under two GPU-hours for all fifteen.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from circuits.sae.spec import TrainSpec
from circuits.sae.training import Trainer

D_IN, D_SAE, BATCH, STEPS, LAYERS, K = 3584, 14336, 256, 50_000, 15, 32
OPTIONS = {"topk": {"k": K}, "relu": {"l1": 0.06, "l1_warmup": 100}}
MOVED = 7 * 4
"""Bytes a parameter that an optimiser step reads (weight, gradient, two moments) and writes (weight, two moments)."""


def seconds(work: Callable[[], object], device: torch.device, times: int) -> float:
    """Of one call, in the mean, the device waited for at both ends."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(3):
        work()
    wait()
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - start) / times


def limits(device: torch.device, d_in: int, d_sae: int) -> tuple[float, float]:
    """Floating-point operations, and bytes, a second."""
    x, w = torch.randn(4096, d_in, device=device), torch.randn(d_in, d_sae, device=device)
    out = torch.empty(4096, d_sae, device=device)
    flops = 2 * 4096 * d_in * d_sae / seconds(lambda: torch.mm(x, w, out=out), device, 20)
    one, two = torch.empty(1 << 26, device=device), torch.empty(1 << 26, device=device)
    return flops, 2 * one.nbytes / seconds(lambda: two.copy_(one), device, 20)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--shape", default=f"{D_IN},{D_SAE}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--only", default="topk,relu")
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("not measured: no accelerator here")
        return
    device, (d_in, d_sae) = torch.device(given.device), map(int, given.shape.split(","))
    torch.backends.cuda.matmul.allow_tf32 = given.tf32
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    flops, moves = limits(device, d_in, d_sae)
    print(f"{name}, torch {torch.__version__}, {'TF32' if given.tf32 else 'float32'}, {d_in} → {d_sae}, batch {BATCH}: "
          f"{flops / 1e12:.1f} TFLOP/s, {moves / 1e9:.0f} GB/s\n")  # fmt: skip
    print(
        "| SAE | layers at once | ms a step and layer | share of matmul limit | share of memory limit | 15 × 50,000 steps | goal |"
    )
    print("|---|---|---|---|---|---|---|")
    for architecture in given.only.split(","):
        rows = torch.randn(16 * BATCH, d_in)
        rows = rows.pin_memory() if device.type == "cuda" else rows
        trainers = []
        for layer in range(given.layers):
            spec = TrainSpec(
                architecture, d_in, d_sae, 1e-3, BATCH, STEPS, layer=layer, warmup=50, **OPTIONS[architecture]
            )
            trainers.append(Trainer(spec, device, rows))

        def step(number: int = 0, trainers: list[Trainer] = trainers, rows: torch.Tensor = rows) -> None:
            for trainer in trainers:
                start = trainer.step % 16 * BATCH
                trainer.train_step(rows[start : start + BATCH].to(device, non_blocking=True))

        took = seconds(step, device, max(1, given.steps)) / len(trainers)
        products = 1 if architecture == "topk" else 5
        parameters = 2 * d_in * d_sae + d_in + d_sae
        matmul = 2 * products * BATCH * d_in * d_sae / flops / took
        memory = MOVED * parameters / moves / took
        hours = took * STEPS * LAYERS / 3600
        met = "" if given.shape != f"{D_IN},{D_SAE}" else f"< 2 h {'met' if hours < 2 else 'MISSED'}"
        print(
            f"| {architecture} | {len(trainers)} | {1000 * took:.2f} | {matmul:.0%} | {memory:.0%} | {hours:.2f} h | {met} |"
        )


if __name__ == "__main__":
    main()
