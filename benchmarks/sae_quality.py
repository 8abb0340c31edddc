"""How well SAEs find the features of worlds where they are known, at equal L0: ours, SAELens's, and frozen baselines.

Worlds are drawn by SAELens's own generator: 512 features in 128 dimensions with Zipf rates (`independent`), the same with
correlations and a hierarchy (`hierarchical`), and SynthSAEBench-16k scaled down eight times, with a quarter as many SAE features as
true ones (`synth`). Every SAE sees the same rows in batches of 256; worlds and SAEs have different seeds. Ours are at our presets,
with ``target_l0`` (or k) at five levels around the true L0. SAELens's are at the best of three rates and of two warm-ups that were
tried (`PEER`), over a grid of penalties; whole frontiers of theirs in the first two worlds, near the true L0 in the others. Both
are read off at the levels by interpolation in log L0, so that no two figures beside each other are at another sparsity. ± is a
95% interval over seeds (t).

    python benchmarks/sae_quality.py [--worlds independent] [--seeds 5] [--only topk,relu] [--processes 2] [--no-saelens]

MCC: mean |cos| of Hungarian-matched directions; F1: of "this feature is on in this row"; EV: explained variance on 20,480 other
rows.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from scipy.stats import t

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from circuits.sae import baselines
from circuits.sae.modules import SAE
from circuits.sae.spec import GRADUAL, RISING, TrainSpec, rate
from circuits.sae.synthetic import Sample, score
from circuits.sae.training import Trainer

HERE = Path(__file__).resolve().parent
BATCH, ALL = 256, ("topk", "batchtopk", "matryoshka", "jumprelu", "gated", "relu")
WITH_K = ("topk", "batchtopk", "matryoshka")
LEVELS = (0.5, 0.7, 1.0, 1.4, 2.0)
"""Of the true L0."""
RISE = 0.6
PEER: dict[str, tuple[float, Sequence[float]]] = {
    "topk": (4e-3, LEVELS), "batchtopk": (4e-3, LEVELS), "matryoshka": (4e-3, LEVELS),
    "jumprelu": (4e-3, (0.06, 0.08, 0.1, 0.13, 0.18, 0.3)), "gated": (1e-2, (0.15, 0.22, 0.35, 0.55, 0.9, 1.4)),
    "relu": (1e-2, (0.2, 0.3, 0.45, 0.7, 1.1, 1.7)),
}  # fmt: skip
"""SAELens's best rate of .001, .004 and .01 on the first world, and its grid of penalties (or levels of k)."""
MEASURES = ("explained_variance", "mcc", "f1")
Point = tuple[float, tuple[float, ...]]
"""L0, and the measures."""


@dataclass(frozen=True)
class Shape:
    """A kind of world."""

    features: int
    width: int
    d_sae: int
    rows: int
    max_rate: float
    min_rate: float
    exponent: float
    structured: bool


WORLDS = {
    "independent": Shape(512, 128, 512, 393_216, 0.2, 0.01, 0.5, False),
    "hierarchical": Shape(512, 128, 512, 393_216, 0.2, 0.01, 0.5, True),
    "synth": Shape(2048, 96, 512, 393_216, 0.4, 0.0005, 0.5, True),
}


class World:
    """A world of SAELens's generator, as :func:`circuits.sae.synthetic.score` reads one."""

    def __init__(self, shape: Shape, seed: int) -> None:
        from sae_lens.synthetic.firing_probabilities import ZipfianFiringProbabilityConfig
        from sae_lens.synthetic.hierarchy import HierarchyConfig
        from sae_lens.synthetic.synthetic_model import LowRankCorrelationConfig, SyntheticModel, SyntheticModelConfig

        rates = ZipfianFiringProbabilityConfig(shape.exponent, shape.max_rate, shape.min_rate)
        tree = HierarchyConfig(total_root_nodes=shape.features // 16, branching_factor=3, max_depth=2)
        beside: dict[str, Any] = {"hierarchy": tree, "correlation": LowRankCorrelationConfig(rank=16)}
        self.model = SyntheticModel(
            SyntheticModelConfig(
                shape.features, shape.width, rates, std_firing_magnitudes=0.5, bias=0.0, seed=1_000 + seed,
                **(beside if shape.structured else {}),
            )
        )  # fmt: skip
        self.d_sae = shape.d_sae
        self.directions = self.model.feature_dict.feature_vectors.detach()
        torch.manual_seed(50_000 + seed)
        self.rows = torch.cat([sample.x for sample in self._samples(shape.rows)])
        self.held = Sample(*(torch.cat(column) for column in zip(*self._samples(20_480), strict=True)))
        self.l0 = float((self.held.activations > 0).sum(1).float().mean())

    @torch.no_grad()
    def _samples(self, rows: int) -> Iterator[Sample]:
        for _ in range(rows // 4096):
            active = self.model.activation_generator.sample(4096)
            yield Sample(self.model.feature_dict(active), active)

    def point(self, sae: SAE) -> Point:
        """Where an SAE stands in this world."""
        found = score(sae, self, self.held)  # type: ignore[arg-type]
        return found.l0, tuple(float(getattr(found, name)) for name in MEASURES)


def spec(name: str, world: World, l0: float, seed: int) -> TrainSpec:
    """Ours at conf/sae/<name>.yaml, at a target."""
    preset = yaml.safe_load((HERE.parent / "conf" / "sae" / f"{name}.yaml").read_text(encoding="utf-8"))
    steps, width = len(world.rows) // BATCH, world.rows.shape[1]
    given = {key: value for key, value in preset.items() if key in TrainSpec.__dataclass_fields__ and value is not None}
    given |= {key: round(GRADUAL * steps) for key in RISING if key in preset and preset[key] is None}
    given |= {"k": max(1, round(l0))} if name in WITH_K else {"target_l0": l0}
    given |= {"lr": rate(name, width), "steps": steps, "seed": seed, "dead_after": len(world.rows) // 10}
    return TrainSpec(d_in=width, d_sae=world.d_sae, **given)


def ours(given: TrainSpec, world: World) -> Point:
    """One of ours, or a frozen baseline of it."""
    trainer = Trainer(given, torch.device("cpu"), world.rows[:4096])
    for x in world.rows.split(BATCH)[: given.steps]:
        trainer.train_step(x)
    return world.point(trainer.export())


def theirs(name: str, world: World, setting: float, seed: int) -> Point:
    """One of SAELens's, read back through its own inference format."""
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer
    from sae_step import saelens_name

    from circuits.sae import formats

    torch.manual_seed(10_000 + seed)
    features, width = world.d_sae, world.rows.shape[1]
    steps, lr = len(world.rows) // BATCH, PEER[name][0]
    penalty = "l0" if name == "jumprelu" else "l1"
    own: dict[str, Any] = {f"{penalty}_coefficient": setting, f"{penalty}_warm_up_steps": round(RISE * steps)}
    if name in WITH_K:
        own = {"k": max(1, round(setting * world.l0))}
    if name == "matryoshka":
        own["matryoshka_widths"] = [features >> i for i in (4, 3, 2, 1, 0)]
    title = saelens_name(name)
    sae: Any = getattr(sae_lens, f"{title}TrainingSAE")(
        getattr(sae_lens, f"{title}TrainingSAEConfig")(d_in=width, d_sae=features, **own)
    )
    cfg = SAETrainerConfig(
        total_training_samples=steps * BATCH, train_batch_size_samples=BATCH, lr=lr, lr_end=lr / 10, lr_warm_up_steps=50,
        lr_decay_steps=steps // 5, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer: Any = SAETrainer(cfg=cfg, sae=sae, data_provider=iter([world.rows[:4096]]))
    for x in world.rows.split(BATCH)[:steps]:
        trainer.step(x)
        trainer.n_training_steps += 1
    with tempfile.TemporaryDirectory() as place:
        sae.save_inference_model(place)
        return world.point(formats.load(Path(place)))


def at(points: Sequence[Point], l0: float) -> tuple[float, ...] | None:
    """The measures at an L0, between the nearest two points; None beyond the outermost by more than a tenth."""
    known = sorted(points)
    if not known[0][0] / 1.1 <= l0 <= known[-1][0] * 1.1:
        return None
    below = max((p for p in known if p[0] <= l0), default=known[0])
    above = min((p for p in known if p[0] >= l0), default=known[-1])
    span = math.log(above[0] / below[0])
    w = math.log(l0 / below[0]) / span if span > 0 else 0.0
    return tuple((1 - w) * a + w * b for a, b in zip(below[1], above[1], strict=True))


Found = dict[tuple[str, str], list[tuple[float, ...] | None]]
"""By architecture and whose: the measures at each level."""


def one_seed(task: tuple[str, int, tuple[str, ...], bool]) -> tuple[float, Found]:
    """Everything in one world: the true L0, and the frontiers."""
    title, seed, names, peers = task
    torch.set_num_threads(1)
    world, found = World(WORLDS[title], seed), Found()
    levels = [level * world.l0 for level in LEVELS]
    for name in names:
        mine = [ours(spec(name, world, l0, seed), world) for l0 in levels]
        found[name, "ours"] = [at(mine, l0) for l0 in levels]
        for frozen in baselines.FROZEN:
            whole = spec(name, world, world.l0, seed)
            still = baselines.spec_of(whole, frozen)
            found[name, frozen.replace("_", " ")] = [None, None, ours(still, world)[1], None, None]
        if peers:
            settings = PEER[name][1]
            near = settings if seed < 2 else (1.0,) if name in WITH_K else settings[2:5]
            other = [theirs(name, world, setting, seed) for setting in near]
            found[name, "SAELens"] = [at(other, l0) for l0 in levels]
        print(f"{title} {seed} {name} done", file=sys.stderr, flush=True)
    return world.l0, found


def cell(values: list[float]) -> str:
    """Mean ± half of the 95% interval."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


def table(title: str, results: list[tuple[float, Found]]) -> None:
    """The measures at the true L0, and MCC and explained variance over the frontier."""
    shape, l0 = WORLDS[title], statistics.mean(true for true, _ in results)
    print(
        f"\n**{title}**: {shape.features} features in {shape.width} dimensions, {shape.d_sae} in an SAE, {shape.rows:,} rows, "
        f"true L0 {l0:.1f}; {len(results)} seeds\n"
    )
    heads = [f"MCC at {level * l0:.1f}" for level in LEVELS] + [f"EV at {level * l0:.1f}" for level in LEVELS]
    print(f"| SAE | EV | MCC | F1 | {' | '.join(heads)} |\n|{'---|' * (4 + len(heads))}")
    for key in results[0][1]:

        def values(level: int, measure: int, key: tuple[str, str] = key) -> list[float]:
            return [found[key][level][measure] for _, found in results if found[key][level] is not None]  # type: ignore[index]

        true = [cell(values(2, measure)) for measure in range(3)]
        line = [
            f"{statistics.mean(some):.3f}" if (some := values(level, m)) else "–" for m in (1, 0) for level in range(5)
        ]
        print(f"| {key[0]}, {key[1]} | {' | '.join(true + line)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default=",".join(WORLDS), help="with commas")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default=",".join(ALL), help="architectures, with commas")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--no-saelens", action="store_true")
    args = parser.parse_args()
    names = tuple(args.only.split(","))
    for title in args.worlds.split(","):
        tasks = [(title, seed, names, not args.no_saelens) for seed in range(args.seeds)]
        with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
            table(title, pool.map(one_seed, tasks, chunksize=1))


if __name__ == "__main__":
    main()
