"""The held-out pass: sequences that nothing is trained on, in order, with their activations at one or several layers.

Whatever an SAE is trained on (a stream, or stores on disk), it is measured by this pass, and by no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.data.tokens import TokenSource
from circuits.errors import NonFinite, UserError
from circuits.model_input import ModelInput
from circuits.models.hooks import forward
from circuits.models.load import LM
from circuits.models.sites import check_layer, check_site, site_width
from circuits.transfer import sent

_NAMED_SAMPLES = 20
"""Samples with a non-finite activation that are named; all are counted."""


@dataclass(frozen=True)
class Heldout:
    """A chunk of held-out sequences, in order."""

    tokens: ModelInput
    """In main memory, where it can be looked at without waiting for a device."""
    keep: Bool[Tensor, "n pos"]
    """Positions that count: valid, not among the skipped first ones, finite where non-finite ones are dropped. In main memory."""
    sites: dict[int, Float[Tensor, "n pos width"]]
    """By layer, in float32 on the model's device; whatever stands where `keep` is False is to be ignored."""


class HeldoutPass:
    """Reads a site's activations of a source's held-out sequences.

    `site` and `layers` say what is read; `forward_batch` sequences go through the model together; the first `skip_first`
    positions of every sequence do not count (at the very first a model's activations are many times larger than elsewhere).
    `nonfinite`: ``fail`` raises `NonFinite` at the first NaN or infinity; ``drop`` leaves such rows out, for all layers alike,
    and counts them. With a `target` site, its activations of the same token and layer stand beside each row (what a transcoder
    is trained on).
    """

    def __init__(
        self,
        lm: LM,
        source: TokenSource,
        *,
        site: str,
        layers: Sequence[int],
        forward_batch: int = 32,
        skip_first: int = 0,
        nonfinite: str = "fail",
        target: str | None = None,
    ) -> None:
        if nonfinite not in ("fail", "drop"):
            raise UserError(f"nonfinite={nonfinite}; choices: fail drop")
        if not layers:
            raise UserError("no layer to read activations of")
        if forward_batch < 1:
            raise UserError(f"forward_batch={forward_batch}; at least 1")
        self.lm, self.source, self.site = lm, source, check_site(site)
        self.layers = tuple(sorted({check_layer(layer, lm.dims) for layer in layers}))
        self.forward_batch, self.skip_first, self.nonfinite = forward_batch, skip_first, nonfinite
        self.width = site_width(lm.dims, site)
        self.target = None if target is None else check_site(target)
        self.target_width = None if target is None else site_width(lm.dims, target)
        self.heldout_dropped = 0
        """Rows left out as non-finite by the latest `heldout`."""

    def heldout(
        self, n_sequences: int, chunk: int | None = None, first: int = 0, dropped: int = 0
    ) -> Iterator[Heldout]:
        """Held-out sequences with their activations, `chunk` (by default `forward_batch`) at a time.

        Goes on at sequence `first`; `dropped`: rows that were left out before it.
        """
        tokens = self.source.heldout(n_sequences)
        chunk = chunk or self.forward_batch
        self.heldout_dropped = dropped
        for start in range(first, len(tokens), chunk):
            part = tokens.take(slice(start, start + chunk))
            sites = {layer: values.float() for layer, values in self._capture(part).items()}
            keep = self._keep(part)
            bad = bad_rows(list(sites.values())) & sent(keep, self.lm.device)
            if bool(bad.any()):
                bad, owners = bad.cpu(), part.samples[:, None].expand_as(keep)
                self._refuse(bad.flatten(1), owners.flatten())
                self.heldout_dropped += int(bad.any(dim=0).sum())
                keep = keep & ~bad.any(dim=0)
            yield Heldout(part, keep, sites)

    def _keep(self, tokens: ModelInput) -> Bool[Tensor, "n pos"]:
        return tokens.after(self.skip_first)

    @torch.no_grad()
    def _capture(self, tokens: ModelInput) -> dict[int, Float[Tensor, "n pos width"]]:
        wanted = [(site, layer) for site in (self.site, self.target) if site is not None for layer in self.layers]
        sites = forward(self.lm, tokens, capture=wanted).sites
        if self.target is None:
            return {layer: sites[(self.site, layer)].flatten(2) for layer in self.layers}
        both = {layer: [sites[(site, layer)].flatten(2) for site in (self.site, self.target)] for layer in self.layers}
        return {layer: torch.cat(pair, dim=2) for layer, pair in both.items()}

    def _refuse(self, bad: Bool[Tensor, "layers rows"], owners: Int[Tensor, " rows"]) -> dict[str, Any]:
        """The record of non-finite rows when they are to be dropped; else raise, naming the first."""
        if self.nonfinite == "fail":
            row = int(bad.any(dim=1).nonzero()[0])
            sample = int(owners[bad[row]].min())
            describe = getattr(self.source, "describe", None)
            place = f" ({describe(sample)})" if describe else ""
            raise NonFinite(
                f"non-finite activation at {self.site}, layer {self.layers[row]}, sample {sample}{place} "
                f"of {self.source.name}; try a wider dtype, or leave such rows out with sae.nonfinite=drop"
            )
        return {
            "rows": int(bad.any(dim=0).sum()),
            "layers": {layer: int(n) for layer, n in zip(self.layers, bad.sum(dim=1), strict=True)},
            "samples": owners[bad.any(dim=0)].unique()[:_NAMED_SAMPLES].tolist(),
        }


def bad_rows(by_layer: Sequence[Float[Tensor, "... width"]]) -> Bool[Tensor, "layers ..."]:
    """Which rows of each layer hold a NaN or an infinity, at the cost of one host sync.

    Such a row has a sum that is not finite, which is many times cheaper to find than looking at every value. So has a
    row of values near the largest float32: where there is a suspect, every value is looked at.
    """
    suspect = torch.stack([~values.sum(dim=-1, dtype=torch.float32).isfinite() for values in by_layer])
    if bool(suspect.any()):
        for values, rows in zip(by_layer, suspect, strict=True):
            rows[rows.clone()] = ~values[rows].isfinite().all(dim=-1)
    return suspect
