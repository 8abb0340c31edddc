"""The worlds of ``sae_quality.py``: SAELens's generator, and where an SAE stands in one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from circuits.sae.modules import SAE
from circuits.sae.synthetic import Sample, score

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
