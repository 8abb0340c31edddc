"""A world whose features are known, and how well an SAE has found them.

Rows are sparse sums x = Σ_i a_i v_i of unit directions v_i in fewer dimensions than there are features. Feature i is active with
probability p_i ∝ rank^(−decay), independently, with a magnitude from a folded normal around 1; Σ p_i is the true L0.

The SAE's features are matched one to one with the true ones by the Hungarian method on |cos| of decoder rows and directions:

    MCC   mean |cos| of the matched pairs (mean correlation coefficient)
    MMCS  mean over true features of the largest cosine with any decoder row (may use one row twice)
    precision, recall, F1   of "this feature is active on this row", for each matched pair, mean over pairs

A world must not share its seed with an SAE: equal draws of directions would hand the SAE the answer. The world's generator is
therefore derived from its seed and its own purpose, never the seed itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from circuits.data.seeds import derive_seed
from circuits.sae.modules import SAE


class Sample(NamedTuple):
    """Rows of a world, and the true activations behind them."""

    x: Float[Tensor, "n d"]
    activations: Float[Tensor, "n features"]


class World:
    """A known dictionary and what it produces."""

    def __init__(
        self,
        features: int = 512,
        width: int = 128,
        l0: float = 9.35,
        decay: float = 0.5,
        spread: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.seed, self.spread = seed, spread
        self.directions = F.normalize(torch.randn(features, width, generator=self._generator("directions")), dim=1)
        weights = torch.arange(1, features + 1, dtype=torch.float64) ** -decay
        p = (l0 * weights / weights.sum()).float()
        if float(p.max()) > 1:
            raise ValueError(f"l0 = {l0}: the most frequent of {features} features would be active more than always")
        self.probabilities = p[torch.randperm(features, generator=self._generator("order"))]

    def _generator(self, *purpose: str | int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, "synthetic world", *purpose))

    def sample(self, n: int, index: int) -> Sample:
        """Batch `index`: the same rows whenever it is asked for."""
        g = self._generator("rows", index)
        on = torch.rand(n, len(self.directions), generator=g) < self.probabilities
        size = (1 + self.spread * torch.randn(n, len(self.directions), generator=g)).abs()
        activations = on * size
        return Sample(activations @ self.directions, activations)

    def batches(self, size: int, rows: int) -> Iterator[Float[Tensor, "size d"]]:
        """Batches for training, `rows` rows in all."""
        for index in range(rows // size):
            yield self.sample(size, index).x

    def heldout(self, n: int = 20_000) -> Sample:
        """Rows that no training batch has."""
        return self.sample(n, -1)


class Scores(NamedTuple):
    """How well an SAE reconstructs a world and has found its features."""

    explained_variance: float
    l0: float
    mcc: float
    mmcs: float
    precision: float
    recall: float
    f1: float
    dead_fraction: float


@torch.no_grad()
def score(sae: SAE, world: World, sample: Sample | None = None) -> Scores:
    """Scores on held-out rows."""
    held = sample or world.heldout()
    device = sae.W_dec.device
    x = held.x.to(device)
    f = torch.cat([sae.encode(part) for part in x.split(4096)])
    error = torch.cat([sae.decode(part) for part in f.split(4096)]) - x
    rows = F.normalize(sae.W_dec.float(), dim=1)
    truth = world.directions.to(device)
    cosine = rows @ truth.T
    mine, true = (torch.as_tensor(i, device=device) for i in linear_sum_assignment(-cosine.abs().cpu().numpy()))
    on, wanted = f[:, mine] > 0, held.activations.to(device)[:, true] > 0
    both, fired, needed = ((a.sum(0).cpu().double()) for a in (on & wanted, on, wanted))
    return Scores(
        explained_variance=float(1 - error.square().sum() / (x - x.mean(0)).square().sum()),
        l0=float((f > 0).sum(1).float().mean()),
        mcc=float(cosine.abs()[mine, true].mean()),
        mmcs=float(cosine.amax(0).mean()),
        precision=float((both / fired.clamp(min=1)).mean()),
        recall=float((both / needed.clamp(min=1)).mean()),
        f1=float((2 * both / (fired + needed).clamp(min=1)).mean()),
        dead_fraction=float((~(f > 0).any(0)).float().mean()),
    )
