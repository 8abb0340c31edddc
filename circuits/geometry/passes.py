"""Passes over prompts in which some heads of one layer are 0, and what is kept of the residual stream above them.

What lies below the ablated layer is computed once; every pass starts there, over the same batches in the same shapes, the one
without an ablation included: a set of heads that changes nothing changes exactly nothing. One pass a set serves all that is
measured of it. Rows are read by their mask, so neither the padding's side nor the batch size matters beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.data.prompts import PromptSet, Side, batches
from circuits.errors import NonFinite, UserError
from circuits.geometry.names import BY_PROMPT
from circuits.geometry.paths import paths
from circuits.model_input import ModelInput
from circuits.models.edits import without_heads
from circuits.models.hooks import Edit, forward, make_prefix
from circuits.models.load import LM
from circuits.models.sites import check_layer

SITE = "resid_post"


@dataclass(frozen=True)
class Captured:
    """The residual stream leaving one layer, and each prompt's own numbers, in the order of the prompts."""

    last: Float[Tensor, "prompts width"]
    """At the last valid token, float32."""
    shared: Float[Tensor, "prompts pos width"]
    """At the positions that all prompts have and at which they can differ; none where only the last token is wanted."""
    numbers: Mapping[str, Float[Tensor, " prompts"]]
    """:data:`~circuits.geometry.names.BY_PROMPT`, float64 in main memory; NaN where a prompt is too short."""


class Passes:
    """Prompts prepared for passes that zero heads of one layer.

    Args:
        lm: the model.
        prompts: at least two different ones.
        head_layer: whose heads are zeroed.
        layers: at which the residual stream is read, none below `head_layer`.
        batch_size: prompts of a pass.
        positions: whether more than the last token is wanted of the stream.
        side, by_length: how rows are padded and put together; results agree to rounding.

    Raises:
        UserError: prompts or layers that do not do.
    """

    def __init__(
        self,
        lm: LM,
        prompts: PromptSet,
        head_layer: int,
        layers: Sequence[int],
        *,
        batch_size: int,
        positions: bool = True,
        side: Side = "right",
        by_length: bool = True,
    ) -> None:
        prompts.check_vocabulary(lm.dims.vocab, lm.name)
        prompts.check_lengths(lm.dims.context, lm.name)
        for layer in (head_layer, *layers):
            check_layer(layer, lm.dims)
        if below := [layer for layer in layers if layer < head_layer]:
            raise UserError(f"heads of layer {head_layer} change nothing at layer {below[0]}, below it")
        sequences = prompts.sequences()
        if len(set(sequences)) < 2:
            raise UserError(f"{len(prompts)} prompts are {len(set(sequences))} different ones: a spread needs two")
        self.lm, self.names, self.head_layer, self.layers = lm, prompts.samples, head_layer, list(layers)
        self.distinct = len(set(sequences))
        self.positions = differing(sequences) if positions else range(0)
        self._batches = list(batches(sequences, batch_size, side=side, by_length=by_length))
        with torch.inference_mode():
            self._prefixes = [make_prefix(lm, rows, head_layer) for rows in self._batches]

    def run(self, heads: Sequence[int], ask: Callable[[], None] = lambda: None) -> dict[int, Captured]:
        """Zero `heads` in every prompt; what leaves each of the layers. `ask` may end the work between batches."""
        if bad := [head for head in heads if not 0 <= head < self.lm.dims.heads]:
            raise UserError(
                f"head {bad[0]} is out of range: the model has {self.lm.dims.heads} heads (0-{self.lm.dims.heads - 1})"
            )
        found = {layer: self._empty() for layer in self.layers}
        for rows, prefix in zip(self._batches, self._prefixes, strict=True):
            ask()
            with torch.inference_mode():
                out = forward(
                    self.lm,
                    rows,
                    capture=[(SITE, layer) for layer in self.layers],
                    edits=[Edit("head_z", self.head_layer, without_heads(heads))],
                    logits="last",
                    prefix=prefix,
                )
                entropies = output_entropy(out.logits)  # type: ignore[arg-type]
                for layer in self.layers:
                    self._keep(found[layer], rows, out.sites[SITE, layer], entropies, layer)
        return found

    def _empty(self) -> Captured:
        # float64, which the entropies need, is not to be had on Apple's GPUs
        n, width = len(self.names), self.lm.dims.width
        place = torch.device("cpu") if self.lm.device.type == "mps" else self.lm.device
        numbers = {name: torch.zeros(n, dtype=torch.float64) for name in BY_PROMPT}
        last, shared = ((n, width), (n, len(self.positions), width))
        return Captured(torch.empty(last, device=place), torch.empty(shared, device=place), numbers)

    def _keep(self, to: Captured, rows: ModelInput, resid: Tensor, entropies: Tensor, layer: int) -> None:
        mask, last = rows.mask.to(resid.device), rows.last.to(resid.device)
        samples, each = rows.samples, torch.arange(len(rows), device=resid.device)
        sound = torch.isfinite(resid).all(-1) | ~mask
        if not bool((sound.all(1) & torch.isfinite(entropies)).all()):
            bad = int((~(sound.all(1) & torch.isfinite(entropies))).nonzero()[0, 0])
            raise NonFinite(
                f"non-finite activation or logits, {SITE} layer {layer}, prompt {self.names[int(samples[bad])]}; "
                "use precision=fp32 or precision=bf16"
            )
        at = samples.to(to.last.device)
        to.last[at] = resid[each, last].to(to.last)
        if self.positions:
            first = (last - rows.lengths.to(resid.device) + 1)[:, None]
            columns = first + torch.tensor(list(self.positions), device=resid.device)
            to.shared[at] = resid[each[:, None], columns].to(to.shared)
        for name, values in {"output_entropy": entropies, **paths(resid, mask)}.items():
            to.numbers[name][samples] = values.cpu().double()


def differing(sequences: Sequence[Sequence[int]]) -> range:
    """The positions that all sequences have and at which they do not all begin alike.

    Where everything up to a token is the same in all prompts (a BOS token, a common first word), so are the activations, and their
    covariance is 0.
    """
    shortest = min(map(len, sequences))
    alike = next((p for p in range(shortest) if len({s[p] for s in sequences}) > 1), shortest)
    return range(alike, shortest)


def output_entropy(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """−Σ p log p of each row in nats, from a float32 log-softmax; a logit of −∞ adds nothing."""
    logp = logits.float().log_softmax(-1)
    return -torch.where(torch.isneginf(logp), 0.0, logp.exp() * logp).sum(-1)
