"""What is read of a pass with edits, by row: the answers' numbers, and KL to the run without edits.

KL is Σ_v p(v)(log p(v) − log q(v)) without any clamping, exactly 0 for equal logits (SPEC B2). One sign everywhere: positive
favours the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuits.activations.answers import READ, Answers, read
from circuits.errors import NonFinite

if TYPE_CHECKING:
    from jaxtyping import Float

NUMBERS = ("z_target", "z_foil", "logp_target", "logp_foil", "logp_first", "kl", "top", "top_probability")
"""Of :data:`~circuits.activations.answers.READ`, and the mean KL over the positions read (nats)."""


def numbers(
    logits: Float[Tensor, "rows n vocab"], clean: Float[Tensor, "rows n vocab"], answers: Answers
) -> dict[str, Tensor]:
    """:data:`NUMBERS` of each row as float64 in main memory; NaN where a row does not read that answer.

    Raises:
        NonFinite: a logit is none.
    """
    logits = logits.float()
    logp = logits.log_softmax(-1)
    difference = torch.where(clean == logp, 0.0, clean - logp)  # −∞ on both sides is no difference
    kl = (clean.exp() * difference).nan_to_num(nan=0.0).sum(-1)
    kl = (kl * answers.mask).sum(1) / answers.mask.sum(1)
    *found, last = torch.cat([read(logits, logp, answers), kl[None]]).cpu().double()
    values = dict(zip(READ, found, strict=True)) | {"kl": last}
    if not all(bool(torch.isfinite(values[name]).all()) for name in ("kl", "top", "top_probability")):
        raise NonFinite("non-finite logits in a pass with edits; use precision=fp32 or precision=bf16")
    return {name: values[name] for name in NUMBERS}


def relative(found: Mapping[str, Tensor], base: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """Numbers of several copies of `n` rows, each corrected by what its own copy reads without edits.

    A product of matrices may round equal rows in different places of a batch differently. So each copy is held against its own, and
    an edit that changes nothing has an effect of exactly 0.
    """
    own = ("kl", "top")  # the one is relative to its own copy already, the other is no number to add to
    copies = len(next(iter(base.values()))) // n
    return {
        name: value if name in own or copies == 1 else value - base[name] + base[name][:n].repeat(copies)
        for name, value in found.items()
    }
