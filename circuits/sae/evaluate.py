"""Measure several layers' SAEs in one pass over held-out sequences: reconstruction, sparsity, and loss when spliced in.

Controls are the same SAE before any training (what its sparsity, normalisation and decoder bias explain by themselves) and its
frozen baselines (:mod:`circuits.sae.baselines`). They are not spliced into the model: that would take a pass each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.activations.heldout import Heldout
from circuits.activations.stream import Stream
from circuits.data.keeper import Keeper, State
from circuits.errors import NonFinite
from circuits.sae.massive import Massive, find, parts
from circuits.sae.metrics import Evaluator, SpliceSums
from circuits.sae.modules import SAE
from circuits.sae.splice import splice_sums

LOGIT_BYTES = 1 << 30
"""Of the three passes' logits that are held at a time: the largest tensors of the measurement, whatever `sae.forward_batch` is."""

Measured = tuple[dict[str, Any], Float[Tensor, " d_sae"]]


def measure(
    stream: Stream,
    saes: Mapping[int, SAE],
    controls: Mapping[int, Mapping[str, SAE]],
    *,
    n_sequences: int,
    seed: int,
    keeper: Keeper[int] | None = None,
    massive: float | None = None,
) -> dict[int, Measured]:
    """By layer: the metrics of :class:`Evaluator` with ``control`` and ``baselines``, and each feature's firing rate.

    Args:
        stream: gives the held-out sequences and their activations.
        saes: by layer, on the model's device.
        controls: by layer and name; a layer may have none.
        n_sequences: held-out sequences (fewer when the corpus has no more; the number is in the metrics).
        seed: of the bootstrap.
        massive: of SAEs that nobody knows that of: rows beyond so many times the median norm of the first sequences are left out
            where they dominate (:mod:`circuits.sae.massive`).
        keeper: where each layer's sums are kept; told (sequences done, all), it may end the pass.
    """
    evaluators = {layer: Evaluator(sae, seed=seed) for layer, sae in saes.items()}
    beside = {
        layer: {name: Evaluator(sae, seed=seed) for name, sae in found.items()} for layer, found in controls.items()
    }
    keeper, chunk = keeper or Keeper(), _sequences(stream)
    kept = keeper.begin({layer: facts_of(stream, sae, n_sequences, chunk) for layer, sae in saes.items()})
    for layer, (tensors, _) in kept.items():
        evaluators[layer].load(part_of(tensors, "trained."))
        for name, one in beside.get(layer, {}).items():
            one.load(part_of(tensors, f"{name}."))
    dropped = [meta["dropped"] for _, meta in kept.values() if meta["done"] == keeper.start]

    def state(layer: int) -> State:
        parts = {"trained": evaluators[layer], **beside.get(layer, {})}
        found = {f"{before}.{name}": value for before, one in parts.items() for name, value in one.state()[0].items()}
        return found, {"dropped": stream.heldout_dropped}

    done = keeper.start
    for part in stream.heldout(n_sequences, chunk, done, max(dropped, default=0)):
        going = keeper.behind(done)
        if done == 0 and massive is not None:
            for layer in going:
                saes[layer].massive = _found(part, saes[layer], layer, massive)
        for layer in going:
            for one in (evaluators[layer], *beside.get(layer, {}).values()):
                one.add(part.sites[layer], part.keep)
        tokens, mine = part.tokens, {layer: saes[layer] for layer in going}
        keep = {layer: _counted(part, sae, layer) for layer, sae in mine.items()}
        sums = splice_sums(stream.lm, mine, tokens, keep, site=stream.site, target=stream.target)
        for layer in going:
            require_finite(sums[layer], tokens.samples, layer)
            evaluators[layer].add_splice(sums[layer])
        done += len(tokens)
        keeper.step(done, n_sequences, state)
    keeper.end(done, state)
    measured = {}
    with keeper.cutting():
        for layer, evaluator in evaluators.items():
            found = {name: _shown(one.result()) for name, one in beside.get(layer, {}).items()}
            control = found.pop("untrained", None)
            metrics = {**evaluator.result(), "control": control, **({"baselines": found} if found else {})}
            measured[layer] = (metrics, evaluator.firing_rate())
    return measured


def _found(part: Heldout, sae: SAE, layer: int, times: float) -> Massive | None:
    cfg = sae.cfg
    return find(part.sites[layer].cpu()[part.keep], parts(cfg.d_in, cfg.d_out), times)


def _counted(part: Heldout, sae: SAE, layer: int) -> Bool[Tensor, "n pos"]:
    """Positions that count for one SAE, in main memory."""
    return part.keep if sae.massive is None else part.keep & sae.massive.kept(part.sites[layer]).cpu()


def _shown(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What of a control is kept: all that needs no pass of its own."""
    names = ("explained_variance", "explained_variance_ci", "l0", "dead_fraction", "norm_ratio", "decoder_cosine")
    return {name: metrics[name] for name in names}


def facts_of(stream: Stream, sae: SAE, n_sequences: int, chunk: int) -> dict[str, Any]:
    """What the sums of a layer are a function of, beside its key: the very SAE (a machine may train another one), the batches."""
    beside = list(stream.layers) if stream.nonfinite == "drop" else []  # a row that is dropped for one layer is for all
    weights = [repr(float(value.sum(dtype=torch.float32))) for value in sae.state_dict().values()]
    return {"sequences": n_sequences, "chunk": chunk, "beside": beside, "weights": weights}


def part_of(tensors: Mapping[str, Tensor], before: str) -> dict[str, Tensor]:
    """Those whose names begin so, by the rest of their names."""
    return {name.removeprefix(before): value for name, value in tensors.items() if name.startswith(before)}


def _sequences(stream: Stream) -> int:
    """How many go through the model together."""
    lm = stream.lm
    one = 3 * stream.source.context * lm.dims.vocab * lm.dtype.itemsize
    return max(1, min(stream.forward_batch, LOGIT_BYTES // one))


def require_finite(sums: SpliceSums, samples: Int[Tensor, " n"], layer: int) -> None:
    """A loss or a divergence that is no number stops the measurement.

    Raises:
        NonFinite: with which forward pass and which sample.
    """
    passes = {
        "ce_clean": "the model itself",
        "ce_spliced": f"the reconstruction of layer {layer}",
        "ce_zero": f"layer {layer} at zero",
        "kl": f"the reconstruction of layer {layer}, which excludes what the model itself does not",
    }
    for name, what in passes.items():
        bad = ~getattr(sums, name).isfinite()
        if bool(bad.any()):
            sample = int(samples.cpu()[bad.cpu()][0])
            raise NonFinite(f"non-finite logits with {what}, held-out sample {sample}; try a wider dtype")
