"""What the model loses when it has to run on an SAE's reconstruction.

At the kept positions of one site the activation x is replaced by x̂ (spliced), or by zero (the floor of the CE score).
The prediction of token t+1 at position t counts when both are valid; sums are per sequence, in float32 from
log-softmax. A transcoder's estimate of another site, made from what the same pass has at its own site, replaces that one.

Which rows count is looked up once a chunk, where possible on the host: an accelerator that is asked for a mask's True entries
makes the host wait, here for each sequence, pass and layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.model_input import ModelInput
from circuits.models.edits import kept_rows, replaced
from circuits.models.hooks import Edit, Prefix, forward
from circuits.models.load import LM
from circuits.sae.metrics import SpliceSums
from circuits.sae.modules import SAE
from circuits.transfer import sent


def splice_losses(
    logits_clean: Float[Tensor, "n pos vocab"],
    logits_spliced: Float[Tensor, "n pos vocab"],
    logits_zero: Float[Tensor, "n pos vocab"],
    ids: Int[Tensor, "n pos"],
    mask: Bool[Tensor, "n pos"],
    predicted: Bool[Tensor, "n pos"] | None = None,
) -> SpliceSums:
    """Next-token cross-entropies and KL(clean ‖ spliced), one sequence at a time: float32 logits of a large vocabulary
    are the largest tensors of the whole evaluation. `predicted`: the tokens that count as next ones, all where None."""
    counted = (mask if predicted is None else predicted)[:, 1:] & mask[:, :-1]
    counts, device = counted.sum(1).tolist(), logits_clean.device
    ids, places = sent(ids, device), sent(counted.nonzero()[:, 1], device)
    rows = []
    for row, at in enumerate(places.split(counts)):
        clean, spliced, zero = (
            torch.log_softmax(logits[row].index_select(0, at).float(), dim=-1)
            for logits in (logits_clean, logits_spliced, logits_zero)
        )
        target = ids[row, 1:].index_select(0, at)[:, None]
        ce = [-log_p.gather(1, target).sum() for log_p in (clean, spliced, zero)]
        # What the model itself excludes (log p = −∞) adds nothing; logits that are no numbers show in the cross-entropies.
        rows.append(torch.stack([*ce, (clean.exp() * (clean - spliced)).nansum()]))
    sums = torch.stack(rows).cpu().double().T if rows else torch.zeros(4, 0, dtype=torch.float64)
    return SpliceSums(torch.tensor(counts, dtype=torch.float64), *sums)


def reconstruct(sae: SAE) -> Callable[[Tensor], Tensor]:
    """x̂ in the SAE's own precision, on its own device."""

    def fn(x: Tensor) -> Tensor:
        return sae(x.to(sae.W_enc.device, sae.W_enc.dtype)).to(x.device)

    return fn


def transcode(sae: SAE, site: str, target: str, layer: int, at: Int[Tensor, " rows"]) -> tuple[Edit, Edit]:
    """Two edits: one that changes nothing and reads the transcoder's site, one that puts its estimate at the other."""
    seen: list[Tensor] = []

    def read(x: Tensor) -> Tensor:
        seen[:] = [x.flatten(0, 1).index_select(0, at).flatten(1)]
        return x

    def write(rows: Tensor) -> Tensor:
        return reconstruct(sae)(seen[0]).to(rows.device)

    return Edit(site, layer, read), Edit(target, layer, replaced(write, at))


@torch.no_grad()
def splice_sums(
    lm: LM,
    saes: Mapping[int, SAE],
    rows: ModelInput,
    keep: Mapping[int, Bool[Tensor, "n pos"]],
    *,
    site: str,
    target: str | None = None,
) -> dict[int, SpliceSums]:
    """Losses of one chunk of sequences for each layer's SAE, one layer at a time; the clean pass is shared, and the others
    restart from what it had at their layer. `keep`: by layer, the positions at which something is put in."""

    def logits(*edits: Edit, prefix: Prefix) -> Tensor:
        found = forward(lm, rows, edits=edits, logits="all", prefix=prefix).logits
        return torch.empty(0) if found is None else found

    whole = forward(lm, rows, capture={"resid_pre": saes}, logits="all")
    clean = torch.empty(0) if whole.logits is None else whole.logits
    places = {id(mask): kept_rows(mask, clean.device) for mask in {id(m): m for m in keep.values()}.values()}
    sums = {}  # most layers share one mask: it is looked up once
    for layer, sae in saes.items():
        at = places[id(keep[layer])]
        before = Prefix(layer, whole.sites["resid_pre", layer])
        if target is None:
            spliced = logits(Edit(site, layer, replaced(reconstruct(sae), at)), prefix=before)
        else:
            spliced = logits(*transcode(sae, site, target, layer, at), prefix=before)
        zero = logits(Edit(target or site, layer, replaced(torch.zeros_like, at)), prefix=before)
        sums[layer] = splice_losses(clean, spliced, zero, rows.ids, rows.mask, rows.predicted)
    return sums
