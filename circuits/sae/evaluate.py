"""Measure several layers' SAEs in one pass over held-out sequences: reconstruction, sparsity, and loss when spliced in.

The control is the same SAE before any training: what its sparsity, normalisation and decoder bias explain by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from circuits.data.stream import ActivationStream
from circuits.errors import NonFinite
from circuits.sae.metrics import Evaluator, SpliceSums
from circuits.sae.modules import SAE
from circuits.sae.splice import splice_sums

LOGIT_BYTES = 1 << 30
"""Of the three passes' logits that are held at a time: the largest tensors of the measurement, whatever `sae.forward_batch` is."""

Measured = tuple[dict[str, Any], Float[Tensor, " d_sae"]]


def measure(
    stream: ActivationStream,
    saes: Mapping[int, SAE],
    untrained: Mapping[int, SAE],
    *,
    n_sequences: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, Measured]:
    """By layer: the metrics of :class:`Evaluator` with ``control``, and each feature's firing rate.

    Args:
        stream: gives the held-out sequences and their activations.
        saes: by layer, on the model's device.
        untrained: controls by layer; a layer without one has none.
        n_sequences: held-out sequences (fewer when the corpus has no more; the number is in the metrics).
        seed: of the bootstrap.
        progress: told (sequences done, all).
    """
    evaluators = {layer: Evaluator(sae, seed=seed) for layer, sae in saes.items()}
    controls = {layer: Evaluator(sae, seed=seed) for layer, sae in untrained.items()}
    done = 0
    for chunk in stream.heldout(n_sequences, _sequences(stream)):
        for layer, evaluator in (*evaluators.items(), *controls.items()):
            evaluator.add(chunk.sites[layer], chunk.keep)
        sums = splice_sums(
            stream.lm, saes, chunk.tokens.ids, chunk.tokens.mask, chunk.keep, site=stream.site, target=stream.target
        )
        for layer, evaluator in evaluators.items():
            _require_finite(sums[layer], chunk.tokens.samples, layer)
            evaluator.add_splice(sums[layer])
        done += len(chunk.tokens)
        progress(done, n_sequences)
    measured = {}
    for layer, evaluator in evaluators.items():
        control = controls[layer].result() if layer in controls else None
        kept = {name: control[name] for name in ("explained_variance", "explained_variance_ci")} if control else None
        measured[layer] = ({**evaluator.result(), "control": kept}, evaluator.firing_rate())
    return measured


def _sequences(stream: ActivationStream) -> int:
    """How many go through the model together."""
    lm = stream.lm
    one = 3 * stream.source.context * lm.dims.vocab * lm.dtype.itemsize
    return max(1, min(stream.forward_batch, LOGIT_BYTES // one))


def _require_finite(sums: SpliceSums, samples: Int[Tensor, " n"], layer: int) -> None:
    """A loss that is no number stops the measurement; it names which forward pass and which sample."""
    passes = {
        "ce_clean": "the model itself",
        "ce_spliced": f"the reconstruction of layer {layer}",
        "ce_zero": f"layer {layer} at zero",
    }
    for name, what in passes.items():
        bad = ~getattr(sums, name).isfinite()
        if bool(bad.any()):
            sample = int(samples.cpu()[bad.cpu()][0])
            raise NonFinite(f"non-finite logits with {what}, held-out sample {sample}; try a wider dtype")
