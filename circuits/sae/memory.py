"""How much memory a training takes at its peak, from sizes alone: to be known before anything is started. No torch.

A parameter takes 16 bytes while it is trained (itself, its gradient, two Adam moments; float32), 4 more where the best weights are
kept, and 4 where a batch is processed in parts. After training gradients and moments go before anything else is made; while they
are measured an SAE and its control take 8. Of checkpoints one that is being written and one that waits hold 12 bytes a parameter
each; more wait only where there is room. What the programs themselves take is not counted: what does not fit by these figures does
not fit.
"""

from __future__ import annotations

from dataclasses import dataclass

FEATURES_AT_ONCE = 1 << 26
"""Feature activations that are looked at together wherever an SAE is measured or its features are described."""
TRAINED, BEST, PARTS, MEASURED, SAVED = 16, 4, 4, 8, 2 * 12
BASELINES, BASELINES_MEASURED, BASELINES_SAVED = 2 * 12, 2 * 4, 2 * 2 * 8
"""Of the two frozen baselines: weights, gradients and the moments of the half that is trained."""
WORK = {"topk": 4, "batchtopk": 4, "matryoshka": 4, "relu": 2, "gated": 8, "jumprelu": 6}
"""Float32 tensors of a batch's pre-activations that a step has at a time where its products are dense, as on an accelerator (on a
CPU fewer): by architecture; trainers of one process share them. tests/test_claimed_device.py counts them."""
LOOKED_AT = 4
"""Such tensors of `FEATURES_AT_ONCE` while an SAE is measured."""


@dataclass(frozen=True)
class Need:
    """Bytes for one SAE, and whatever their number: on the device that trains, and in the machine's own memory `beside` it."""

    parameters: int
    each: int
    fixed: int
    beside_each: int
    beside: int


def training(
    d_in: int,
    d_sae: int,
    batch_size: int,
    *,
    architecture: str,
    d_out: int | None = None,
    skip: bool = False,
    block_rows: int = 0,
    row_bytes: int = 4,
    ram: float = 0.0,
    best: bool = False,
    parts: int = 1,
    baselines: bool = False,
    count: int = 1,
    measured: int = 0,
) -> Need:
    """What it takes to train SAEs of one shape.

    Args:
        d_in, d_sae, batch_size: the SAE's sizes, and the rows of a step.
        architecture: by its name.
        d_out: another site's width, for a transcoder.
        skip: whether it has a skip connection.
        block_rows: rows that a stream from the model holds for each layer, on the device.
        row_bytes: bytes of one of their values.
        ram: bytes in which a store's rows are shuffled, for each layer.
        best: whether the best weights are kept (early stopping); a validation has a copy of one SAE more.
        parts: in which a batch is processed.
        baselines: whether frozen baselines are trained beside it.
        count: SAEs that are trained together.
        measured: rows that are measured together.
    """
    out = d_in if d_out is None else d_out
    parameters = (d_in + out) * d_sae + d_sae + out + skip * d_in * out
    rows = block_rows * (d_in + (d_out or 0)) * row_bytes
    weights = TRAINED + BEST * best + PARTS * (parts > 1) + (BASELINES + 2 * PARTS * (parts > 1)) * baselines
    kept = MEASURED + BASELINES_MEASURED * baselines
    step = 4 * WORK[architecture] * (batch_size // parts) * d_sae
    looking = 4 * LOOKED_AT * min(FEATURES_AT_ONCE, measured * d_sae)
    fixed = max(step + 4 * parameters * best, looking - count * (weights - kept) * parameters)
    return Need(
        parameters, weights * parameters + rows, fixed, round(ram), (SAVED + BASELINES_SAVED * baselines) * parameters
    )
