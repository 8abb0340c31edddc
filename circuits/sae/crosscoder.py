"""Crosscoders: one dictionary for several layers, or for two models, and which of its features belong to all of them or to one.

A crosscoder (Lindsey et al. 2024, "Sparse crosscoders for cross-layer features and model diffing", transformer-circuits.pub) is an
SAE on rows that stand side by side, one block a layer: f = act(Σ_b x_b W_enc,b + b_enc), x̂_b = f W_dec,b + b_dec,b. Blocks are
scaled alike, and a feature's decoder rows have norm 1 over all blocks together; how that norm is spread says where it lives.

Of two models A and B the *relative norm* of a feature is ‖d_B‖ / (‖d_A‖ + ‖d_B‖): near 0 it seems A's alone, near 1 B's alone. A
sparse dictionary makes such features where there are none: the other model's part is shrunk to nothing, or written by other
features. So each is checked by *latent scaling* (Minder et al. 2025, "Overcoming sparsity artifacts in crosscoders",
arXiv:2504.02922): with d the feature's row of its own model, β(y) = argmin Σ ‖β f d − y‖² over held-out tokens, once for y of the
other model and once of its own,

    ν_error           β(x − x̂ of the other) / β(x − x̂ + f d of its own)    the other's error still holds it: shrinkage
    ν_reconstruction  β(x̂ of the other) / β(x̂ of its own)                  other features write it: decoupling

and a feature is exclusive only where ν_error < 0.2 and ν_reconstruction < 0.5.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from circuits.sae.metrics import LeftOut
from circuits.sae.modules import SAE

ALONE = 0.1
"""Relative norm below which, or above 1 less it, a feature seems to belong to one model."""
ERROR_BOUND, RECONSTRUCTION_BOUND = 0.2, 0.5
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """A part of a row."""

    model: int
    layer: int
    scale: float
    """Of this block's rows in training, over the common one: norms are compared in those units."""


def norms(sae: SAE, blocks: Sequence[Block]) -> Array:
    """``[blocks, d_sae]``: norms of the decoder rows by block, in the units in which blocks count alike."""
    parts = sae.W_dec.detach().double().cpu().chunk(len(blocks), dim=1)
    return np.stack([part.norm(dim=1).numpy() * block.scale for part, block in zip(parts, blocks, strict=True)])


def relative_norm(found: Array, blocks: Sequence[Block]) -> Array:
    """‖d_B‖ / (‖d_A‖ + ‖d_B‖) of every feature; NaN for a feature without a decoder."""
    of = np.array([block.model for block in blocks])
    a, b = (np.sqrt(np.square(found[of == model]).sum(0)) for model in (0, 1))
    return np.divide(b, a + b, out=np.full_like(a, np.nan), where=a + b > 0)


class BlockSums(ABC):
    """Sums over held-out rows from which explained variance follows, block by block, in units in which blocks count alike."""

    SUMS: tuple[str, ...] = ()
    """Attributes in which a subclass sums up more."""

    def __init__(self, sae: SAE, blocks: int) -> None:
        self.sae, self.n, self.left_out = sae, blocks, LeftOut(sae)
        self._rows: list[Tensor] = []
        self._totals: list[Tensor] = []

    @abstractmethod
    def add(self, rows: Float[Tensor, "n pos d"], keep: Bool[Tensor, "n pos"]) -> None:
        """Whole sequences; only positions where `keep` is True count."""

    def state(self) -> dict[str, Tensor]:
        """What :meth:`load` takes."""
        mine: dict[str, Tensor] = {name: getattr(self, name) for name in self.SUMS}
        return {"rows": torch.cat(self._rows), "totals": torch.cat(self._totals), **mine, **self.left_out.state()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        self._rows, self._totals = [tensors["rows"]], [tensors["totals"]]
        for name in self.SUMS:
            getattr(self, name).copy_(tensors[name])
        self.left_out.load(tensors)

    def add_rows(
        self,
        error: Float[Tensor, "n pos d"],
        centred: Float[Tensor, "n pos d"],
        keep: Bool[Tensor, "n pos"],
        active: Float[Tensor, " n"],
    ) -> None:
        """Whole sequences; both are zero where `keep` is False. `active`: features on, summed over a sequence's rows."""
        by_block = [
            part.square().sum((1, 3)).double() for part in (t.unflatten(2, (self.n, -1)) for t in (error, centred))
        ]
        facts = torch.stack([keep.sum(1).double(), active.double()], dim=1)
        self._rows.append(torch.cat([facts, *by_block], dim=1).cpu())
        self._totals.append(centred.sum(1).double().cpu())

    def explained_variance(self, seed: int = 0, resamples: int = 1000) -> tuple[Array, float, list[float]]:
        """By block; their mean, in which every block counts alike; its 95% interval over sequences."""
        columns, blocks = torch.cat(self._rows).numpy(), self.n
        rows, error, squares = columns[:, 0], columns[:, 2 : 2 + blocks], columns[:, 2 + blocks :]
        total = torch.cat(self._totals)
        delta = total.sum(0) / rows.sum()
        cross = (total * delta).unflatten(1, (blocks, -1)).sum(2).numpy()
        own = delta.unflatten(0, (blocks, -1)).square().sum(1).numpy()
        variance = squares - 2 * cross + rows[:, None] * own
        by_block = 1 - error.sum(0) / variance.sum(0)
        drawn = np.random.default_rng(seed).integers(0, len(rows), (resamples, len(rows)))
        means = np.array([(1 - error[d].sum(0) / variance[d].sum(0)).mean() for d in drawn])
        low, high = np.percentile(means, [2.5, 97.5])
        return by_block, float(by_block.mean()), [float(low), float(high)]

    @property
    def total_squares(self) -> float:
        """Σ‖x − b_dec‖² over all rows and blocks."""
        return float(torch.cat(self._rows)[:, 2 + self.n :].sum())

    @property
    def counts(self) -> tuple[int, int, float]:
        """Rows, sequences, and active features a row."""
        columns = torch.cat(self._rows)
        rows = float(columns[:, 0].sum())
        return int(rows), len(columns), float(columns[:, 1].sum()) / max(rows, 1.0)


class Measured(BlockSums):
    """Beside explained variance activity, and what latent scaling needs. Feed `add`, then read."""

    SUMS = ("fired", "squares", "products")

    def __init__(self, sae: SAE, blocks: Sequence[Block]) -> None:
        super().__init__(sae, len(blocks))
        self.blocks = tuple(blocks)
        device, m = sae.W_dec.device, sae.cfg.d_sae
        self.two = len({block.model for block in blocks}) == 2
        self.fired = torch.zeros(m, dtype=torch.float64, device=device)
        self.squares = torch.zeros(m, dtype=torch.float64, device=device)
        self.products = torch.zeros(2, 2, 2, m, dtype=torch.float64, device=device)
        """By whose direction, whose rows, and error or reconstruction: Σ f ⟨d, y⟩."""
        scale = torch.tensor([block.scale for block in blocks], device=device)
        self._by = scale.repeat_interleave(sae.cfg.d_in // len(blocks))

    @torch.no_grad()
    def add(self, rows: Float[Tensor, "n pos d"], keep: Bool[Tensor, "n pos"]) -> None:
        """Whole sequences; only positions where `keep` is True count. Rows are compared in units in which blocks count alike."""
        sae, device = self.sae, self.sae.W_dec.device
        x = rows.to(device, torch.float32)
        keep = self.left_out.kept(x, keep.to(device))
        x = torch.where(keep[..., None], x, sae.b_dec)
        f = sae.encode(x) * keep[..., None]
        found = (f @ sae.W_dec) * self._by
        centred = (x - sae.b_dec) * self._by
        error = (centred - found) * keep[..., None]
        self.add_rows(error, centred, keep, (f > 0).sum((1, 2)))
        flat = f.flatten(0, 1)
        self.fired += (flat > 0).sum(0)
        if self.two:
            self.squares += flat.square().sum(0)
            self._scale(flat, error.flatten(0, 1), found.flatten(0, 1))

    def _scale(self, f: Tensor, error: Tensor, found: Tensor) -> None:
        half = f.new_tensor([block.model for block in self.blocks]).repeat_interleave(
            self.sae.cfg.d_in // len(self.blocks)
        )
        rows = self.sae.W_dec * self._by
        for whose in (0, 1):
            direction = rows[:, half == whose]
            for of in (0, 1):
                for kind, y in enumerate((error, found)):
                    self.products[whose, of, kind] += (f * (y[:, half == of] @ direction.T)).sum(0)

    def latent_scaling(self) -> tuple[Array, Array]:
        """ν_error and ν_reconstruction of every feature, as if of the model in which its row is longer; NaN where it never fired or
        its own model's β is not above 0."""
        of = torch.tensor([block.model for block in self.blocks]).repeat_interleave(
            self.sae.cfg.d_in // len(self.blocks)
        )
        rows = (self.sae.W_dec * self._by).double()
        lengths = torch.stack([rows[:, of == model].square().sum(1) for model in (0, 1)])
        mine = lengths.argmax(0)
        at = torch.arange(rows.shape[0], device=rows.device)
        own, other = self.products[mine, mine, :, at], self.products[mine, 1 - mine, :, at]
        # Its own contribution is put back into its own error: Σ f ⟨d, f d⟩ = ‖d‖² Σ f².
        error_own = own[:, 0] + lengths[mine, at] * self.squares
        found = []
        for above, below in ((other[:, 0], error_own), (other[:, 1], own[:, 1])):
            found.append(torch.where(below > 0, above / below, torch.nan).cpu().numpy())
        return found[0], found[1]


def exclusive(
    relative: Array, nu_error: Array, nu_reconstruction: Array
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Features that seem to be one model's by their norms, and those of them that stand latent scaling."""
    seems = (relative < ALONE) | (relative > 1 - ALONE)
    return seems, seems & (nu_error < ERROR_BOUND) & (nu_reconstruction < RECONSTRUCTION_BOUND)
