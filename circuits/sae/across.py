"""What a cross-layer transcoder explains of each layer's output, on rows that it was not trained on."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.sae.cross_layer import CrossLayerTranscoder
from circuits.sae.crosscoder import BlockSums


class Measured(BlockSums):
    """Feed it held-out rows [x of all layers | y of all layers] with `add`, then read."""

    SUMS = ("fired", "seen")
    sae: CrossLayerTranscoder

    def __init__(self, sae: CrossLayerTranscoder) -> None:
        super().__init__(sae, sae.layers)
        self.fired = torch.zeros(sae.cfg.d_sae, dtype=torch.float64, device=sae.W_enc.device)
        self.seen = torch.zeros((), dtype=torch.float64)

    @property
    def rows(self) -> float:
        """Rows that count."""
        return float(self.seen)

    @torch.no_grad()
    def add(self, rows: Float[Tensor, "n pos d"], keep: Bool[Tensor, "n pos"]) -> None:
        """Whole sequences; only positions where `keep` is True count."""
        sae, device = self.sae, self.sae.W_enc.device
        rows = rows.to(device, torch.float32)
        keep = self.left_out.kept(rows, keep.to(device))
        x, y = rows.split([sae.cfg.d_in, sae.cfg.width_out], dim=-1)
        # `where`, not a product: what stands at a padded position may be NaN.
        x = torch.where(keep[..., None], x, 0.0)
        centred = torch.where(keep[..., None], y - sae.b_dec, 0.0)
        f = sae.encode(x) * keep[..., None]
        error = (centred - (sae.decode(f) - sae.b_dec)) * keep[..., None]
        self.add_rows(error, centred, keep, (f > 0).sum((1, 2)))
        self.fired += (f > 0).flatten(0, 1).sum(0)
        self.seen += float(keep.sum())

    def metrics(self, seed: int) -> dict[str, Any]:
        """Explained variance in the mean of all layers and of each, active features a row, in all and of each layer."""
        by_layer, mean, interval = self.explained_variance(seed)
        return {
            "explained_variance": mean,
            "explained_variance_ci": interval,
            "explained_variance_by_layer": by_layer.tolist(),
            "l0": self.counts[2],
            "l0_by_layer": (self.fired.view(self.n, -1).sum(1) / max(self.rows, 1.0)).tolist(),
            "dead_fraction": float((self.fired == 0).double().mean()),
            **self.left_out.metrics(self.rows, self.total_squares),
        }
