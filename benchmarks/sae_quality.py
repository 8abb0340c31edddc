"""How well SAEs find the features of worlds where they are known, at equal L0: ours, SAELens's, and frozen baselines.

Worlds are drawn by SAELens's own generator: 512 features in 128 dimensions with Zipf rates (`independent`), the same with
correlations and a hierarchy (`hierarchical`), and SynthSAEBench-16k scaled down eight times, with a quarter as many SAE features as
true ones (`synth`). Every SAE sees the same rows in batches of 256; worlds and SAEs have different seeds. Ours are at our presets,
with ``target_l0`` (or k) at five levels around the true L0. SAELens's are at the best of three rates and of two warm-ups that were
tried (`PEER`), over a grid of penalties; whole frontiers of theirs in the first two worlds, near the true L0 in the others. Both
are read off at the levels by interpolation in log L0, so that no two figures beside each other are at another sparsity. ± is a
95% interval over seeds (t).

    python benchmarks/sae_quality.py [--worlds independent] [--seeds 5] [--only topk,relu] [--processes 2] [--no-saelens]
                                     [--keep FILE]


A whole run takes hours: with ``--keep`` each architecture of each world and seed is written to FILE as it is done, and the same
line goes on from there. What other code has measured (SAEs, presets, worlds, the peers' versions) is not taken.
MCC: mean |cos| of Hungarian-matched directions; F1: of "this feature is on in this row"; EV: explained variance on 20,480 other
rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from scipy.stats import t

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sae_worlds import WORLDS, Point, World

from circuits.sae import baselines
from circuits.sae.spec import GRADUAL, RISING, TrainSpec, rate
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


Found = dict[str, list[tuple[float, ...] | None]]
"""Of one architecture, by whose it is: the measures at each level."""


@dataclass(frozen=True)
class Part:
    """One architecture in one world of one seed."""

    world: str
    seed: int
    name: str
    peers: bool
    code: str


def code() -> str:
    """What the results are a function of, beside the seed."""
    root = HERE.parent
    used = [Path(str(m.__file__)) for name, m in sys.modules.items() if name.startswith("circuits.sae.")]
    files = [*used, *(root / "conf" / "sae").glob("*.yaml"), HERE / "sae_worlds.py"]
    facts = [*(version(name) for name in ("torch", "sae-lens")), BATCH, LEVELS, RISE, PEER, WITH_K]
    found = hashlib.sha256(repr(facts).encode())
    for file in sorted(files):
        found.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return found.hexdigest()[:12]


def one_part(part: Part) -> tuple[Part, float, Found]:
    """The true L0, and the frontiers."""
    torch.set_num_threads(1)
    world, name, seed = World(WORLDS[part.world], part.seed), part.name, part.seed
    levels = [level * world.l0 for level in LEVELS]
    mine = [ours(spec(name, world, l0, seed), world) for l0 in levels]
    found: Found = {"ours": [at(mine, l0) for l0 in levels]}
    for frozen in baselines.FROZEN:
        still = baselines.spec_of(spec(name, world, world.l0, seed), frozen)
        found[frozen.replace("_", " ")] = [None, None, ours(still, world)[1], None, None]
    if part.peers:
        settings = PEER[name][1]
        near = settings if seed < 2 else (1.0,) if name in WITH_K else settings[2:5]
        other = [theirs(name, world, setting, seed) for setting in near]
        found["SAELens"] = [at(other, l0) for l0 in levels]
    print(f"{part.world} {seed} {name} done", file=sys.stderr, flush=True)
    return part, world.l0, found


def measured(parts: Sequence[Part], processes: int, keep: Path | None) -> dict[Part, tuple[float, Found]]:
    """All parts, those that FILE holds from there."""
    known: dict[Part, tuple[float, Found]] = {}
    if keep is not None and keep.exists():
        for line in keep.read_text(encoding="utf-8").splitlines():
            part, l0, found = json.loads(line)
            known[Part(**part)] = (l0, found)
    missing = [part for part in parts if part not in known]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for part, l0, found in pool.imap_unordered(one_part, missing):
            known[part] = (l0, found)
            if keep is not None:
                with keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([asdict(part), l0, found]) + "\n")
    return {part: known[part] for part in parts}


def cell(values: list[float]) -> str:
    """Mean ± half of the 95% interval."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


def table(title: str, results: dict[Part, tuple[float, Found]]) -> None:
    """The measures at the true L0, and MCC and explained variance over the frontier."""
    shape, l0 = WORLDS[title], statistics.mean(true for true, _ in results.values())
    seeds = len({part.seed for part in results})
    print(
        f"\n**{title}**: {shape.features} features in {shape.width} dimensions, {shape.d_sae} in an SAE, {shape.rows:,} rows, "
        f"true L0 {l0:.1f}; {seeds} seeds\n"
    )
    heads = [f"MCC at {level * l0:.1f}" for level in LEVELS] + [f"EV at {level * l0:.1f}" for level in LEVELS]
    print(f"| SAE | EV | MCC | F1 | {' | '.join(heads)} |\n|{'---|' * (4 + len(heads))}")
    for name in dict.fromkeys(part.name for part in results):
        several = [found for part, (_, found) in results.items() if part.name == name]
        for whose in several[0]:

            def values(level: int, measure: int, some: list[Found] = several, whose: str = whose) -> list[float]:
                return [point[measure] for found in some if (point := found[whose][level]) is not None]

            true = [cell(values(2, measure)) for measure in range(3)]
            line = [
                f"{statistics.mean(some):.3f}" if (some := values(level, m)) else "–"
                for m in (1, 0)
                for level in range(5)
            ]
            print(f"| {name}, {whose} | {' | '.join(true + line)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default=",".join(WORLDS), help="with commas")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default=",".join(ALL), help="architectures, with commas")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--no-saelens", action="store_true")
    parser.add_argument("--keep", type=Path, help="what is measured is kept in this file, and taken from it")
    args = parser.parse_args()
    names, now = args.only.split(","), code()
    for title in args.worlds.split(","):
        parts = [Part(title, seed, name, not args.no_saelens, now) for seed in range(args.seeds) for name in names]
        table(title, measured(parts, args.processes, args.keep))


if __name__ == "__main__":
    main()
