"""One SAE training step against the dense floor and SAELens, interleaved in one run; a Markdown table of the least times.

A step is forward + backward + clip + Adam with everything a real training step does besides (norms, dead counters,
metrics). The floor is the five products of B·d_in·d_sae that a dense step cannot do without, by torch.mm into buffers that exist.
Contestants take turns, so that a busy machine slows all of them alike, and the least of the rounds is taken (of large batches half
as many, and SAELens's and sparsify's steps, which take long, in every second one); ratios are what to read. `--cpu-time` counts
processor time instead of the clock's: for machines that others share, with one thread.

"a quarter dead" has the auxiliary loss at work on a quarter of the features. An architecture that learns how many features are
active starts with half of them, where its step is dense; "64 active" is its step later, at about 64 a row. SAELens and sparsify
are compared where they are installed (``make bench`` installs them), else left out: on a bare machine with torch this file needs
nothing else.

    python benchmarks/sae_step.py [--full | --shape 512,4096,256] [--rounds 15] [--threads N] [--cpu-time] [--device cpu]
                                  [--only topk,relu]
"""

from __future__ import annotations

import argparse
import contextlib
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
SHAPES = {
    False: [(512, 4096, 256)],
    True: [(d, d * times, batch) for d in (512, 1024) for times in (4, 8) for batch in (256, 4096)],
}
K = 32
ACTIVE, LEARN_L0 = 64, ("relu", "gated", "jumprelu")
THEIRS_GOAL = {
    "topk, SAELens": 3.0,
    "topk, SAELens sparse": 2.2,
    "topk, sparsify": 1.25,
    "relu, SAELens": 1.25,
    **{f"{name}, SAELens": 1.0 for name in ("batchtopk", "matryoshka", "gated", "jumprelu")},
}
"""How many times as long as ours each peer's step is to take, at least."""
OURS: dict[str, dict[str, Any]] = {
    "topk": {"k": K},
    "batchtopk": {"k": K},
    "matryoshka": {"k": K, "groups": 5},
    "relu": {"l1": 0.06, "l1_warmup": 100},
    "gated": {"l1": 0.25, "l1_warmup": 100},
    "jumprelu": {"l0_coefficient": 0.006, "l0_warmup": 100},
}


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


def floor_goal(name: str, m: int, batch: int) -> float | None:
    """The floor's time as a share of ours, at least."""
    if name == "relu":
        return 0.85 if batch <= 256 else 0.93
    return 1.8 if name == "topk" and m >= 4096 else None


def ours(architecture: str, x: torch.Tensor, m: int, device: torch.device, dead: int = 0, active: int = 0) -> Step:
    """Our trainer's step, with its defaults; with the first `dead` features dead for good, or biased so that about `active`
    features of a row are active."""
    spec = TrainSpec(architecture, x.shape[1], m, 1e-3, len(x), 10_000, warmup=50, decay=0.2, **OURS[architecture])
    trainer = Trainer(spec, device, x)
    if active:
        w, sample = trainer.weights, trainer.read.normalise(x[:256])
        largest = (sample @ w["W_enc"].T).topk(active + 1).values[:, -1].mean()
        w["b_gate" if "b_gate" in w else "b_enc"].data.sub_(largest - (spec.threshold if "threshold" in w else 0.0))
    if not dead:
        return lambda: trainer.train_step(x)
    index = torch.arange(dead, device=device)

    def step() -> None:
        trainer.dead_index = index
        trainer.train_step(x)

    return step


def saelens_name(architecture: str) -> str:
    """What SAELens's classes call it."""
    return {
        "topk": "TopK",
        "batchtopk": "BatchTopK",
        "matryoshka": "MatryoshkaBatchTopK",
        "relu": "Standard",
        "gated": "Gated",
        "jumprelu": "JumpReLU",
    }[architecture]


def saelens(architecture: str, x: torch.Tensor, m: int, device: torch.device, **options: Any) -> Step | None:
    """SAELens's own trainer step, with its defaults and `options`; None where it is not installed."""
    try:
        import sae_lens as theirs
    except ImportError:
        return None
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    d, n = x.shape[1], len(x)
    name = saelens_name(architecture)
    own: dict[str, Any] = {
        "k": {"k": K} if architecture in ("topk", "batchtopk", "matryoshka") else {},
        "widths": {"matryoshka_widths": [m >> i for i in (4, 3, 2, 1, 0)]} if architecture == "matryoshka" else {},
    }
    config = getattr(theirs, f"{name}TrainingSAEConfig")(
        d_in=d, d_sae=m, device=str(device), **own["k"], **own["widths"], **options
    )
    sae: Any = getattr(theirs, f"{name}TrainingSAE")(config)
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


def sparsify(x: torch.Tensor, m: int, device: torch.device) -> Step | None:
    """sparsify's SAE with fused Adam and clipping; None where it is not installed."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it tells what it lacks
            from sparsify import SparseCoder, SparseCoderConfig
    except ImportError:
        return None
    sae = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=m, k=K), device=device, dtype=torch.float32)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        adam.zero_grad()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()
        sae.set_decoder_norm_to_unit_norm()

    return step


def measure(
    steps: dict[str, Step], rounds: int, seldom: bool, device: torch.device, clock: Callable[[], float]
) -> dict[str, float]:
    """Least milliseconds of each, taking turns; with `seldom` the others' only every second time."""

    def timed(step: Step) -> float:
        start = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1000 * (clock() - start)

    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            if seldom and name in THEIRS_GOAL and turn % 2:
                continue
            ms = timed(step)
            if turn:
                times[name].append(ms)
    return {name: min(found) for name, found in times.items()}


def contestants(x: torch.Tensor, m: int, device: torch.device, only: list[str]) -> dict[str, Step]:
    """The floor, ours and the others'."""
    steps: dict[str, Step] = {"floor: 5 dense products": floor(x.shape[1], m, len(x), device)}
    for name in only:
        steps[name] = ours(name, x, m, device)
        if peer := saelens(name, x, m, device):
            steps[f"{name}, SAELens"] = peer
        if name in LEARN_L0:
            steps[f"{name}, {ACTIVE} active"] = ours(name, x, m, device, active=ACTIVE)
    if "topk" in only:
        steps["topk, a quarter dead"] = ours("topk", x, m, device, dead=m // 4)
        # SAELens's sparse activations do not work together with its default rescaling by decoder norms.
        options = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}
        if peer := saelens("topk", x, m, device, **options):
            steps["topk, SAELens sparse"] = peer
        if step := sparsify(x, m, device):
            steps["topk, sparsify"] = step
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all shapes")
    parser.add_argument("--shape", action="append", help="one shape: d_in,d_sae,batch; may be given several times")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cpu-time", action="store_true", help="processor time, with one thread unless --threads says")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default=",".join(OURS), help="architectures, with commas")
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.threads or args.cpu_time:
        torch.set_num_threads(args.threads or 1)
    clock = time.process_time if args.cpu_time else time.perf_counter
    kind = "processor time" if args.cpu_time else "clock"
    least = f"least of {args.rounds} (of large batches {args.rounds // 2}, the others' {args.rounds // 4})"
    how = f"{torch.get_num_threads()} threads, float32, k={K}, {kind}, {least}"
    print(f"torch {torch.__version__}, {device}, {how}\n")
    print("| d_in, d_sae, batch | step | ms | floor ÷ step | theirs ÷ ours | goal |\n|---|---|---|---|---|---|")
    chosen = [tuple(map(int, shape.split(","))) for shape in args.shape or []] or SHAPES[args.full]
    for d, m, batch in chosen:
        x = torch.randn(batch, d, generator=torch.Generator().manual_seed(1)).to(device)
        large = batch > 1024
        steps = contestants(x, m, device, args.only.split(","))
        ms = measure(steps, args.rounds // (2 if large else 1), large, device, clock)
        base = ms["floor: 5 dense products"]
        for name, value in ms.items():
            own = ms.get(name.split(",")[0])
            peer = name in THEIRS_GOAL and own is not None
            reached = value / own if peer and own else base / value
            goal = THEIRS_GOAL[name] if peer else floor_goal(name, m, batch)
            met = "" if goal is None else f"≥ {goal:g} {'met' if reached >= goal else 'MISSED'}"
            ratio = f"{reached:.2f}" if peer else ""
            print(f"| {d}, {m}, {batch} | {name} | {value:.1f} | {base / value:.2f} | {ratio} | {met} |", flush=True)


if __name__ == "__main__":
    main()
