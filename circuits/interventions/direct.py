"""Total and direct effect of a head, and how the model repairs itself (McGrath et al. 2023; Rushing & Nanda 2024, 2402.15390).

An edit of a head changes what its layer's attention adds to the residual stream by Δ at the token that is read. With r the last
block's output in the run without edits and LD(·) the logit difference read through the final norm:

    direct, norm frozen   D_0 = LD(r + Δ) − LD(r)     the final norm divides by what it divides r by
    direct                D   = LD(r + Δ) − LD(r)     through the final norm
    total                 T   = what the edited run reads − what the run without edits reads

    repair by the final norm  = D − D_0        repair by later layers = T − D

Δ is measured in the edited pass, behind any norm that stands between attention and the residual stream (Gemma), so that the three
are right in every family. In a linear model without later readers both repairs are 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from circuits.interventions.engine import Batch, Engine, Key, Watch
from circuits.interventions.units.base import Unit
from circuits.models.unembed import frozen_difference, logit_difference


class Direct(Watch):
    """Watches units of one layer each, for rows that read first tokens of target and foil."""

    names = ("direct", "direct_frozen")

    def base(self, engine: Engine, units: Sequence[Unit]) -> list[Key]:
        layers = sorted({unit.layer for unit in units if unit.layer is not None})
        return [*(("attn_out", layer) for layer in layers), ("resid_post", engine.lm.dims.layers - 1)]

    def edited(self, units: Sequence[Unit], chosen: Sequence[int]) -> list[Key]:
        return [
            ("attn_out", layer) for layer in sorted({units[i].layer or 0 for i in chosen if units[i].layer is not None})
        ]

    def read(
        self, engine: Engine, batch: Batch, units: Sequence[Unit], chosen: Sequence[int], sites: Mapping[Key, Tensor]
    ) -> dict[str, Tensor]:
        lm, n = engine.lm, len(batch.rows)
        resid = batch.watched["resid_post", lm.dims.layers - 1].float()
        target, foil = batch.answers.first.clamp(min=0).unbind(1)
        direct, frozen = resid.new_zeros(len(resid)), resid.new_zeros(len(resid))
        before = logit_difference(lm, resid, target, foil)
        for slot, i in enumerate(chosen):
            rows = slice(slot * n, (slot + 1) * n)
            layer = units[i].layer
            if layer is None:  # nothing is edited, or several layers are: no single Δ
                direct[rows] = frozen[rows] = float("nan") if units[i].places else 0.0
                continue
            key = ("attn_out", layer)
            change = sites[key][rows].float() - batch.watched[key][rows].float()
            here = (target[rows], foil[rows])
            direct[rows] = logit_difference(lm, resid[rows] + change, *here) - before[rows]
            frozen[rows] = frozen_difference(lm, resid[rows], change, *here)
        return {"direct": direct, "direct_frozen": frozen}
