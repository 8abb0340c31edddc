"""What each choice of the presets gains on a known world: one taken back at a time, at the true L0; a Markdown table.

The world and the measures are those of benchmarks/sae_quality.py (`independent`); each row is one setting other than the presets':

* rate: 0.001, as they had before, in place of one by the width
* gradual: the penalty rises over 200 steps (k does not fall) in place of six tenths of the training
* vectors: biases and thresholds at the rate of the rows in place of twice that

    python benchmarks/sae_causes.py [--seeds 3] [--only topk,relu]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sae_quality import ALL, ours, spec
from sae_worlds import WORLDS, World

from circuits.sae import optimiser

WITHOUT: Mapping[str, Mapping[str, Any]] = {
    "as the presets are": {},
    "without rate": {"lr": 1e-3},
    "without gradual": {"l1_warmup": 200, "l0_warmup": 200, "k_anneal": 0},
    "without vectors": {},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(ALL), help="architectures, with commas")
    args = parser.parse_args()
    torch.set_num_threads(1)
    worlds = [World(WORLDS["independent"], seed) for seed in range(args.seeds)]
    usual = optimiser.VECTORS
    print(f"mean of {args.seeds} seeds at the true L0, {statistics.mean(w.l0 for w in worlds):.1f}\n")
    print(f"| | {' | '.join(f'{name}: L0 · EV · MCC · F1' for name in WITHOUT)} |\n|{'---|' * (1 + len(WITHOUT))}")
    for name in args.only.split(","):
        cells = []
        for title, given in WITHOUT.items():
            optimiser.VECTORS = 1.0 if title == "without vectors" else usual
            points = [ours(replace(spec(name, w, w.l0, seed), **given), w) for seed, w in enumerate(worlds)]
            measures = [statistics.mean(column) for column in zip(*(found for _, found in points), strict=True)]
            cells.append(f"{statistics.mean(l0 for l0, _ in points):.1f} · " + " · ".join(f"{m:.3f}" for m in measures))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    optimiser.VECTORS = usual


if __name__ == "__main__":
    main()
