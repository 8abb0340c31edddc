"""How much memory a training takes at its peak, from sizes alone: to be known before anything is started. No torch.

A parameter takes 16 bytes while it is trained (itself, its gradient, two Adam moments; float32), 4 more where the best weights are
kept. Of checkpoints one that is being written and one that waits hold 12 bytes a parameter each; more wait only where there is
room. What the programs themselves take is not counted: what does not fit by these figures does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass

TRAINED, BEST, SAVED = 16, 4, 2 * 12
WORK = 4
"""Float32 tensors of a batch's pre-activations that a step has at a time; trainers of one process share them."""


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
    d_out: int | None = None,
    block_rows: int = 0,
    row_bytes: int = 4,
    ram: float = 0.0,
    best: bool = False,
) -> Need:
    """What it takes to train SAEs of one shape.

    Args:
        d_in, d_sae, batch_size: the SAE's sizes, and the rows of a step.
        d_out: another site's width, for a transcoder.
        block_rows: rows that a stream from the model holds for each layer, on the device.
        row_bytes: bytes of one of their values.
        ram: bytes in which a store's rows are shuffled, for each layer.
        best: whether the best weights are kept (early stopping).
    """
    out = d_in if d_out is None else d_out
    parameters = (d_in + out) * d_sae + d_sae + out
    rows = block_rows * (d_in + (d_out or 0)) * row_bytes
    each = (TRAINED + BEST * best) * parameters + rows
    return Need(parameters, each, WORK * 4 * batch_size * d_sae, round(ram), SAVED * parameters)
