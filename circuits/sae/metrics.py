"""How good an SAE is, on sequences it was not trained on.

    explained variance = 1 − Σ‖x − x̂‖² / Σ‖x − mean‖²     over all held-out rows, mean over the same rows
    L0                 = mean number of active features per row (a count)
    dead fraction      = features active on none of the held-out rows (says little without the number of rows)
    CE score           = (CE_zero − CE_spliced) / (CE_zero − CE_clean)     1: nothing lost; 0: no better than zeros
    KL                 = mean over tokens of KL(clean ‖ spliced)
    dense fraction     = features active on more than a tenth of the rows
    norm ratio         = Σ‖x̂ − b_dec‖ / Σ‖x − b_dec‖                 below 1: reconstructions are too short
    relative bias      = Σ‖x̂ − b_dec‖² / Σ⟨x̂ − b_dec, x − b_dec⟩    the factor by which scaling x̂ down would help most; below 1:
                         shrinkage (Rajamanoharan et al. 2024, arXiv:2404.16014; there without b_dec)
    decoder cosine     = mean over features of the largest cosine of its decoder row with another one's

In a transcoder x stands for the rows of the site that it reconstructs.

Everything is kept as sums per sequence, in float64, so that one pass over the data suffices and intervals come from a
bootstrap over sequences. The mean is not known during the pass: with x' = x − c for a fixed c near the mean, the
Σ‖x − mean‖² of a sequence is Σ‖x'‖² − 2 δ·Σx' + n‖δ‖², δ = mean − c, exactly. In the intervals the mean stays that of
all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.errors import RunError
from circuits.sae import massive
from circuits.sae.memory import FEATURES_AT_ONCE
from circuits.sae.modules import SAE
from circuits.stats.bootstrap import ratio_interval

DENSITY_EDGES = np.linspace(-6.0, 0.0, 25)
"""Bins of log10 firing rate; rarer features count in the first bin."""
DENSE_RATE = 0.1
TWIN_COSINE = 0.9
"""Decoder rows with a larger cosine are all but one feature."""
COMPARED = 4096
"""Features that are compared with all others at most, evenly spaced."""


class SpliceSums(NamedTuple):
    """Per-sequence sums over predicted tokens; cross-entropies in nats."""

    tokens: Float[Tensor, " n"]
    ce_clean: Float[Tensor, " n"]
    ce_spliced: Float[Tensor, " n"]
    ce_zero: Float[Tensor, " n"]
    kl: Float[Tensor, " n"]


def join(parts: Sequence[SpliceSums]) -> SpliceSums:
    """The sums of several chunks as one."""
    return SpliceSums(*(torch.cat(column) for column in zip(*parts, strict=True)))


def shrinkage(found: float, wanted: float, found_squared: float, product: float) -> dict[str, float | None]:
    """Norm ratio and relative bias from Σ‖x̂‖, Σ‖x‖, Σ‖x̂‖² and Σ⟨x̂, x⟩; None where nothing is reconstructed."""
    return {
        "norm_ratio": found / wanted if wanted else None,
        "relative_bias": found_squared / product if product > 0 else None,
    }


@torch.no_grad()
def decoder_cosine(W_dec: Float[Tensor, "d_sae d_out"]) -> dict[str, float | None]:
    """How alike the dictionary's directions are: the mean largest cosine with another row, and the share of rows with a twin."""
    rows = torch.nn.functional.normalize(W_dec.float(), dim=1)
    if len(rows) < 2:
        return {"decoder_cosine": None, "twin_fraction": None}
    chosen = torch.linspace(0, len(rows) - 1, min(len(rows), COMPARED), device=rows.device).long()
    largest = []
    for index in chosen.split(512):
        cosine = rows[index] @ rows.T
        cosine[torch.arange(len(index), device=rows.device), index] = -1.0
        largest.append(cosine.amax(1))
    found = torch.cat(largest)
    return {"decoder_cosine": float(found.mean()), "twin_fraction": float((found > TWIN_COSINE).sum()) / len(found)}


class LeftOut:
    """What of the held-out rows is massive (:mod:`circuits.sae.massive`), and how much of all variance that is."""

    def __init__(self, sae: SAE) -> None:
        self.sae, self.sums = sae, torch.zeros(2, dtype=torch.float64)

    def kept(self, rows: Float[Tensor, "n pos d"], keep: Bool[Tensor, "n pos"]) -> Bool[Tensor, "n pos"]:
        """Of the positions that count those that are not massive; the others are counted."""
        if self.sae.massive is None:
            return keep
        small = self.sae.massive.kept(rows)
        left = keep & ~small
        y = rows[..., -self.sae.cfg.width_out :] - self.sae.b_dec
        squares = torch.where(left, y.square().sum(-1), 0.0)
        self.sums += torch.stack([left.sum(), squares.sum()]).cpu().double()
        return keep & small

    def state(self) -> dict[str, Tensor]:
        """What :meth:`load` takes."""
        found = self.sae.massive
        if found is None:
            return {}
        return {"left_out": self.sums, "left_out_norms": torch.tensor(found.limits, dtype=torch.float64)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        if "left_out" in tensors:
            cfg = self.sae.cfg
            self.sums = tensors["left_out"].clone()
            self.sae.massive = massive.of_facts(tensors["left_out_norms"].tolist(), cfg.d_in, cfg.d_out)

    def metrics(self, kept: float, variance: float) -> dict[str, Any]:
        """``massive``: the share of rows left out and of all variance that they hold; nothing where all rows count.

        Args:
            kept: rows that count.
            variance: theirs, Σ‖x − mean‖².
        """
        if self.sae.massive is None:
            return {}
        rows, squares = self.sums.tolist()
        return {
            "massive": {
                "rows": rows / (rows + kept),
                "variance": squares / (squares + variance),
                "norms": self.sae.massive.facts(),
            }
        }


class Evaluator:
    """Feed it chunks of held-out activations with `add`, optionally `add_splice`, then read `result`."""

    def __init__(self, sae: SAE, *, seed: int = 0, resamples: int = 1000) -> None:
        self.sae, self.seed, self.resamples = sae, seed, resamples
        self.fired = torch.zeros(sae.cfg.d_sae, dtype=torch.float64)
        self.left_out = LeftOut(sae)
        self._sums: list[Float[Tensor, "n 8_plus_d"]] = []
        self._splices: list[SpliceSums] = []

    @torch.no_grad()
    def add(self, x: Float[Tensor, "n pos d"], keep: Bool[Tensor, "n pos"]) -> None:
        """Whole sequences of activations; only positions where `keep` is True count. For a transcoder [x | y]."""
        at_once = max(1, FEATURES_AT_ONCE // (x.shape[1] * self.sae.cfg.d_sae))
        for start in range(0, len(x), at_once):
            self._add(x[start : start + at_once], keep[start : start + at_once])

    def _add(self, x: Tensor, keep: Tensor) -> None:
        shift, cfg = self.sae.b_dec, self.sae.cfg
        x = x.to(shift.device, torch.float32)
        keep = self.left_out.kept(x, keep.to(shift.device))[..., None]
        # `where`, not a product: what stands at a padded position may be NaN.
        y = torch.where(keep, x if cfg.d_out is None else x[..., cfg.d_in :], shift)
        read = y if cfg.d_out is None else torch.where(keep, x[..., : cfg.d_in], 0.0)
        active = self.sae.encode(read)
        found = self.sae.decode(active, read)
        error = (found - y) * keep
        on = (active > 0) & keep
        centred, found = y - shift, (found - shift) * keep
        self.fired += on.sum((0, 1)).cpu().double()
        sums = (
            keep.sum((1, 2)),
            error.square().sum((1, 2)),
            on.sum((1, 2)),
            centred.square().sum((1, 2)),
            torch.linalg.vector_norm(found, dim=2).sum(1),
            torch.linalg.vector_norm(centred, dim=2).sum(1),
            found.square().sum((1, 2)),
            (found * centred).sum((1, 2)),
        )
        # In one piece: the host waits once. (Float32 holds the counts of a sequence exactly.)
        self._sums.append(torch.cat([torch.stack(sums, dim=1), centred.sum(1)], dim=1).cpu().double())

    def add_splice(self, sums: SpliceSums) -> None:
        """Losses with the reconstruction spliced into the model, for the same or other held-out sequences."""
        self._splices.append(SpliceSums(*(t.detach().cpu().double() for t in sums)))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What :meth:`load` takes: all that was added so far."""
        found = {"fired": self.fired, **self.left_out.state()}
        if self._sums:
            found["sums"] = torch.cat(self._sums)
        if self._splices:
            found |= {f"splice.{name}": column for name, column in join(self._splices)._asdict().items()}
        return found, {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        self.fired = tensors["fired"]
        self.left_out.load(tensors)
        self._sums = [tensors["sums"]] if "sums" in tensors else []
        splices = [tensors[f"splice.{name}"] for name in SpliceSums._fields if f"splice.{name}" in tensors]
        self._splices = [SpliceSums(*splices)] if splices else []

    def firing_rate(self) -> Float[Tensor, " d_sae"]:
        """For each feature the fraction of held-out rows on which it was active."""
        rows = sum(float(s[:, 0].sum()) for s in self._sums)
        return (self.fired / max(rows, 1.0)).float()

    def result(self) -> dict[str, Any]:
        """All measures as JSON-able values; those of the spliced model are None when it was not run."""
        if not self._sums:
            raise RunError("no held-out activations were given to the evaluation")
        columns = torch.cat(self._sums)
        rows, error, active, squares, *lengths = columns[:, :8].T
        total = columns[:, 8:]
        n = rows.sum()
        if n == 0:
            raise RunError(f"none of the {len(rows)} held-out sequences has a row to evaluate; give longer ones")
        delta = total.sum(0) / n
        variance = squares - 2 * total @ delta + rows * delta.square().sum()
        if variance.sum() <= 0:
            raise RunError(f"the {int(n)} held-out rows are all equal: explained variance has no meaning")
        return {
            "explained_variance": float(1 - error.sum() / variance.sum()),
            "explained_variance_ci": self._interval(variance - error, variance),
            "mse": float(error.sum() / n / self.sae.cfg.width_out),
            "l0": float(active.sum() / n),
            "l0_ci": self._interval(active, rows),
            "dead_fraction": float((self.fired == 0).double().mean()),
            "dense_fraction": float((self.firing_rate() > DENSE_RATE).double().mean()),
            **shrinkage(*(float(column.sum()) for column in lengths)),
            **decoder_cosine(self.sae.W_dec),
            "density": self._density(),
            "n_rows": int(n),
            "n_sequences": len(rows),
            **self.left_out.metrics(float(n), float(variance.sum())),
            **self._splice_result(),
        }

    def _interval(self, numerator: Tensor, denominator: Tensor) -> list[float] | None:
        found = ratio_interval(numerator.numpy(), denominator.numpy(), seed=self.seed, resamples=self.resamples)
        return None if found is None else list(found)

    def _density(self) -> dict[str, Any]:
        rate = self.firing_rate().double()
        logs = rate[rate > 0].log10().clamp(DENSITY_EDGES[0], DENSITY_EDGES[-1]).numpy()
        counts, _ = np.histogram(logs, bins=DENSITY_EDGES)
        return {"edges": DENSITY_EDGES.tolist(), "counts": counts.tolist(), "never": int((rate == 0).sum())}

    def _splice_result(self) -> dict[str, Any]:
        names = ("ce_clean", "ce_spliced", "ce_zero", "ce_score", "ce_score_ci", "kl", "kl_ci")
        sums = join(self._splices) if self._splices else None
        if sums is None or sums.tokens.sum() == 0:
            return dict.fromkeys(names)
        n = sums.tokens.sum()
        means = {name: float(getattr(sums, name).sum() / n) for name in ("ce_clean", "ce_spliced", "ce_zero", "kl")}
        kept, at_stake = sums.ce_zero - sums.ce_spliced, sums.ce_zero - sums.ce_clean
        lost = float(at_stake.sum())
        return {
            **means,
            "ce_score": float(kept.sum()) / lost if lost != 0 else None,
            "ce_score_ci": self._interval(kept, at_stake) if lost != 0 else None,
            "kl_ci": self._interval(sums.kl, sums.tokens),
        }
