"""One SAE training step against the dense floor and SAELens, interleaved in one run; a Markdown table of medians.

A step is forward + backward + clip + Adam with everything a real training step does besides (norms, dead counters,
metrics). The floor is the five products of B·d_in·d_sae that a dense step cannot do without, into buffers that exist.
Contestants take turns, so that a busy machine slows all of them alike; ratios are what to read.

    python benchmarks/sae_step.py [--full] [--rounds 30] [--device cpu]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from circuits.sae.spec import TrainSpec
from circuits.sae.training import Trainer

Step = Callable[[], Any]
SHAPES = {False: [(512, 4096, 256)], True: [(512, 4096, 256), (1024, 8192, 256), (512, 4096, 4096)]}
K = 32


def floor(d: int, m: int, batch: int, device: torch.device) -> Step:
    """Five dense products: encode, decode, the features' gradient and the two weight gradients."""
    g = torch.Generator().manual_seed(0)
    wide, narrow = (torch.randn(batch, n, generator=g).to(device) for n in (m, d))
    enc, dec = (torch.randn(m, d, generator=g).to(device) for _ in range(2))
    out = {key: torch.empty_like(t) for key, t in (("wide", wide), ("narrow", narrow), ("weight", enc))}

    def step() -> None:
        torch.mm(narrow, enc.T, out=out["wide"])
        torch.mm(wide, dec, out=out["narrow"])
        torch.mm(narrow, dec.T, out=out["wide"])
        torch.mm(wide.T, narrow, out=out["weight"])
        torch.mm(wide.T, narrow, out=out["weight"])

    return step


def ours(architecture: str, x: torch.Tensor, m: int, device: torch.device) -> Step:
    """Our trainer's step, with its defaults."""
    options: dict[str, Any] = {"topk": {"k": K}, "relu": {"l1": 0.06, "l1_warmup": 100}}[architecture]
    spec = TrainSpec(architecture, x.shape[1], m, 1e-3, len(x), 10_000, warmup=50, decay=0.2, **options)
    trainer = Trainer(spec, device, x)
    return lambda: trainer.train_step(x)


def saelens(architecture: str, x: torch.Tensor, m: int, device: torch.device, sparse: bool = False) -> Step:
    """SAELens's own trainer step."""
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    d, n = x.shape[1], len(x)
    if architecture == "topk":
        # Its sparse activations do not work together with its default rescaling by decoder norms.
        options = {"k": K, "use_sparse_activations": sparse, "rescale_acts_by_decoder_norm": not sparse}
        sae: Any = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=m, device=str(device), **options))
    else:
        config = StandardTrainingSAEConfig(
            d_in=d, d_sae=m, l1_coefficient=1.0, l1_warm_up_steps=100, device=str(device)
        )
        sae = StandardTrainingSAE(config)
    cfg = SAETrainerConfig(
        total_training_samples=10_000 * n,
        train_batch_size_samples=n,
        lr=1e-3,
        lr_end=1e-4,
        device=str(device),
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer: Any = SAETrainer(cfg=cfg, sae=sae, data_provider=iter([x]))

    def step() -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return step


def measure(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each, taking turns."""

    def timed(step: Step) -> float:
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1000 * (time.perf_counter() - start)

    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 3):
        for name, step in steps.items():
            ms = timed(step)
            if turn >= 3:
                times[name].append(ms)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more shapes")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, float32, median of {args.rounds}\n")
    print("| d_in, d_sae, batch | step | ms | floor ÷ step | SAELens ÷ step |\n|---|---|---|---|---|")
    for d, m, batch in SHAPES[args.full]:
        x = torch.randn(batch, d, generator=torch.Generator().manual_seed(1)).to(device)
        steps = {
            "floor: 5 dense products": floor(d, m, batch, device),
            "TopK": ours("topk", x, m, device),
            "TopK, SAELens": saelens("topk", x, m, device),
            "TopK, SAELens sparse": saelens("topk", x, m, device, sparse=True),
            "ReLU + L1": ours("relu", x, m, device),
            "ReLU + L1, SAELens": saelens("standard", x, m, device),
        }
        ms = measure(steps, args.rounds, device)
        best = {"TopK": min(ms["TopK, SAELens"], ms["TopK, SAELens sparse"]), "ReLU + L1": ms["ReLU + L1, SAELens"]}
        for name, value in ms.items():
            ratio = f"{best[name] / value:.2f}" if name in best else ""
            print(
                f"| {d}, {m}, {batch} | {name} | {value:.1f} | {ms['floor: 5 dense products'] / value:.2f} | {ratio} |"
            )


if __name__ == "__main__":
    main()
