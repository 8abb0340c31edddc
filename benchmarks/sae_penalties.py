"""Two penalties of 2025 beside the plain SAE, on worlds where the features are known: is either worth an option?

    orthogonal   γ/m Σ_i max_{j≠i} cos²(d_i, d_j) over decoder rows (OrtSAE, arXiv:2509.22033)
    temporal     γ · InfoNCE of the first half of the features between neighbouring rows (T-SAE, arXiv:2511.05541)

TopK and BatchTopK at our presets, the true L0, 393,216 rows; ± is a 95% interval over seeds (t). Rows of these worlds are drawn one
by one, so neighbours have nothing in common, unless ``--persistent`` has each second row keep the first half of the features of the
one before it: then temporal has what it is made for.

    python benchmarks/sae_penalties.py [--worlds independent,hierarchical] [--seeds 3] [--persistent]
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sae_quality import BATCH, cell, spec
from sae_worlds import WORLDS, World

from circuits.sae.modules.base import Outcome
from circuits.sae.modules.gradients import buffer
from circuits.sae.training import Trainer

GRID = {"plain": (0.0,), "orthogonal": (0.25, 4.0, 32.0), "temporal": (0.1, 1.0, 10.0)}
TEMPERATURE = 0.1


class Penalised(Trainer):
    """A trainer whose loss has one more term."""

    penalty, gamma = "plain", 0.0

    def _gradients(self, x: Tensor, y: Tensor) -> Outcome:
        outcome = super()._gradients(x, y)
        if self.penalty == "orthogonal":
            self._orthogonal(outcome)
        elif self.penalty == "temporal":
            self._temporal(x)
        return outcome

    def _orthogonal(self, outcome: Outcome) -> None:
        rows = self.weights["W_dec"].detach()
        with torch.enable_grad():
            w = rows.clone().requires_grad_()
            unit = F.normalize(w, dim=1)
            cosine = unit @ unit.T - 2 * torch.eye(len(w))
            loss = self.gamma * cosine.max(1).values.square().mean()
            (g,) = torch.autograd.grad(loss, w)
        buffer(self.weights["W_dec"]).add_(g)
        if outcome.along is not None:
            outcome.along.add_((g * rows).sum(1))

    def _temporal(self, x: Tensor) -> None:
        names = ("W_enc", "b_enc")
        with torch.enable_grad():
            w, b = (self.weights[name].detach().clone().requires_grad_() for name in names)
            f = self.objective.features((x - self.weights["b_dec"].detach()) @ w.T + b, self.step)  # type: ignore[attr-defined]
            z = F.normalize(f[:, : len(w) // 2], dim=1, eps=1e-6)
            score = z[0::2] @ z[1::2].T / TEMPERATURE
            at = torch.arange(len(score))
            loss = self.gamma * (F.cross_entropy(score, at) + F.cross_entropy(score.T, at)) / 2
            for name, g in zip(names, torch.autograd.grad(loss, (w, b)), strict=True):
                buffer(self.weights[name]).add_(g)


def persistent(world: World) -> None:
    """Give each second row the first half of the features of the one before it, as tokens of one text share what it is about."""
    half = world.directions.shape[0] // 2
    samples = list(world._samples(len(world.rows)))
    active = torch.cat([sample.activations for sample in samples])
    active[1::2, :half] = active[0::2, :half]
    with torch.no_grad():
        world.rows = torch.cat([world.model.feature_dict(part) for part in active.split(4096)])


def one_seed(task: tuple[str, int, bool]) -> dict[tuple[str, str, float], tuple[float, ...]]:
    """Every penalty in one world."""
    title, seed, together = task
    torch.set_num_threads(1)
    world, found = World(WORLDS[title], seed), {}
    if together:
        persistent(world)
    for name in ("topk", "batchtopk"):
        for penalty, gammas in GRID.items():
            for gamma in gammas:
                trainer: Any = Penalised(spec(name, world, world.l0, seed), torch.device("cpu"), world.rows[:4096])
                trainer.penalty, trainer.gamma = penalty, gamma
                for x in world.rows.split(BATCH):
                    trainer.train_step(x)
                l0, measures = world.point(trainer.export())
                found[name, penalty, gamma] = (l0, *measures)
        print(f"{title} {seed} {name} done", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default="independent,hierarchical", help="with commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--persistent", action="store_true", help="neighbouring rows share half of the features")
    args = parser.parse_args()
    for title in args.worlds.split(","):
        tasks = [(title, seed, args.persistent) for seed in range(args.seeds)]
        with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
            found = pool.map(one_seed, tasks, chunksize=1)
        print(f"\n**{title}**{', neighbours alike' * args.persistent}, {args.seeds} seeds\n")
        print("| SAE | penalty | γ | L0 | EV | MCC | F1 |\n|---|---|---|---|---|---|---|")
        for key in found[0]:
            values = " | ".join(cell([one[key][i] for one in found]) for i in range(4))
            print(f"| {key[0]} | {key[1]} | {key[2]:g} | {values} |", flush=True)


if __name__ == "__main__":
    main()
