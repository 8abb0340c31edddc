"""How well SAEs find the features of a world where they are known, ours beside SAELens's; a Markdown table of means over seeds.

The world (circuits/sae/synthetic.py): 512 features in 128 dimensions, 9.35 active on a row on average, the most frequent ones
on a fifth of the rows, the rarest on one in a hundred. Every SAE has 512 features and sees the same 400,000 rows in batches of 256,
at one learning rate with the same schedule; worlds and SAEs have different seeds. Sparsity: k = 9 where there is a k, else our
defaults and SAELens's. EV, MCC, MMCS and F1 on 20,000 other rows.

    python benchmarks/sae_quality.py [--seeds 3] [--rows 400000] [--only topk,relu] [--no-saelens]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from circuits.sae.modules import SAE
from circuits.sae.spec import TrainSpec
from circuits.sae.synthetic import Scores, World, score
from circuits.sae.training import Trainer

HERE = Path(__file__).resolve().parent
BATCH, LR, K = 256, 1e-3, 9
OPTIONS = ("l1", "l1_warmup", "aux", "resample_every", "groups", "threshold_rate", "threshold_warmup", "l0_coefficient")
OPTIONS += ("l0_warmup", "threshold", "bandwidth", "warmup", "decay", "dead_after")
ALL = ("topk", "batchtopk", "matryoshka", "jumprelu", "gated", "relu")
GOALS = {"topk": {"explained_variance": 0.757, "mcc": 0.782}, "relu": {"mcc": 0.783}}
"""SAELens's best setting on such worlds."""
TOPK_FAMILY = ("topk", "batchtopk", "matryoshka")


def ours(name: str, rows: torch.Tensor, features: int, seed: int) -> SAE:
    """Our SAE at the settings of conf/sae/<name>.yaml, but for k and the number of steps."""
    preset = yaml.safe_load((HERE.parent / "conf" / "sae" / f"{name}.yaml").read_text(encoding="utf-8"))
    options: dict[str, Any] = {key: preset[key] for key in OPTIONS if key in preset}
    k = {"k": K} if name in TOPK_FAMILY else {}
    spec = TrainSpec(name, rows.shape[1], features, LR, BATCH, len(rows) // BATCH, seed=seed, **k, **options)
    trainer = Trainer(spec, torch.device("cpu"), rows[:4096])
    for x in rows.split(BATCH)[: spec.steps]:
        trainer.train_step(x)
    return trainer.export()


def theirs(name: str, rows: torch.Tensor, features: int, seed: int) -> SAE:
    """SAELens's at its defaults, read back through its own inference format."""
    import tempfile

    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer
    from sae_step import saelens_name

    from circuits.sae import formats

    torch.manual_seed(10_000 + seed)
    own: dict[str, Any] = {"k": K} if name in TOPK_FAMILY else {}
    if name == "matryoshka":
        own["matryoshka_widths"] = [features >> i for i in (4, 3, 2, 1, 0)]
    title, steps = saelens_name(name), len(rows) // BATCH
    config = getattr(sae_lens, f"{title}TrainingSAEConfig")(d_in=rows.shape[1], d_sae=features, **own)
    sae: Any = getattr(sae_lens, f"{title}TrainingSAE")(config)
    cfg = SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=LR,
        lr_end=LR / 10,
        lr_warm_up_steps=50,
        lr_decay_steps=steps // 5,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer: Any = SAETrainer(cfg=cfg, sae=sae, data_provider=iter([rows[:4096]]))
    for x in rows.split(BATCH)[:steps]:
        trainer.step(x)
        trainer.n_training_steps += 1
    with tempfile.TemporaryDirectory() as place:
        sae.save_inference_model(place)
        return formats.load(Path(place))


def measure(make: Callable[[int], SAE], worlds: list[World]) -> Scores:
    """The mean of each score over seeds."""
    found = [score(make(seed), world, world.heldout()) for seed, world in enumerate(worlds)]
    return Scores(*(statistics.mean(column) for column in zip(*found, strict=True)))


def verdict(label: str, scores: Scores) -> str:
    """What was to be reached, and whether it was."""
    goals = GOALS.get(label, {})
    met = all(getattr(scores, name) >= bound for name, bound in goals.items())
    named = " ".join(f"{'EV' if name == 'explained_variance' else 'MCC'} ≥ {bound}" for name, bound in goals.items())
    return f"{named} {'met' if met else 'MISSED'}" if goals else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--only", default=",".join(ALL), help="architectures, with commas")
    parser.add_argument("--no-saelens", action="store_true")
    args = parser.parse_args()
    worlds = [World(seed=100 + seed) for seed in range(args.seeds)]
    rows = [torch.cat(list(world.batches(8192, args.rows))) for world in worlds]
    features = len(worlds[0].directions)
    print(f"512 features in 128 dimensions, L0 9.35, {args.rows:,} rows, mean of {args.seeds} seeds\n")
    print(
        "| SAE | EV | L0 | MCC | MMCS | precision | recall | F1 | dead | goal |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for name in args.only.split(","):
        makers = {name: ours, **({} if args.no_saelens else {f"{name}, SAELens": theirs})}
        for label, make in makers.items():
            s = measure(lambda seed, n=name, m=make: m(n, rows[seed], features, seed), worlds)  # type: ignore[misc]
            cells = [s.explained_variance, s.mcc, s.mmcs, s.precision, s.recall, s.f1]
            shown = [f"{value:.3f}" for value in cells]
            dead = f"{s.dead_fraction:.1%}"
            print(
                f"| {label} | {shown[0]} | {s.l0:.1f} | {' | '.join(shown[1:])} | {dead} | {verdict(label, s)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
