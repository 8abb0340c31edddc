"""What is read of a pass by row: logits and log-probabilities of the answers, KL to the run without edits, the likeliest token.

All from float32 logits and log-softmax, whatever the model's own precision (SPEC B2): KL is Σ_v p(v)(log p(v) − log q(v)) without
any clamping, exactly 0 for equal logits. One sign everywhere: positive favours the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuits.errors import NonFinite

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from circuits.interventions.rows import Row

NUMBERS = ("z_target", "z_foil", "logp_target", "logp_foil", "logp_first", "kl", "top", "top_probability")
"""Logits of the answers' first tokens; log-probabilities of the whole answers that the row reads; log-probability of the target's
first token; mean KL over the positions read (nats); the likeliest first token, and its probability."""


@dataclass(frozen=True)
class Answers:
    """Where and what a batch's rows are read: up to `n` positions each, valid where `mask` says so."""

    columns: Int[Tensor, "rows n"]
    mask: Bool[Tensor, "rows n"]
    first: Int[Tensor, "rows 2"]
    """First tokens of target and foil; −1 where a row reads the other answer only."""
    target: Int[Tensor, "rows n"]
    """Tokens of the target at each position, −1 where none is read."""
    foil: Int[Tensor, "rows n"]

    @staticmethod
    def of(rows: Sequence[Row], device: torch.device) -> Answers:
        """The answers of `rows`, on `device`."""
        n = max(row.read for row in rows)
        columns, mask = torch.zeros(len(rows), n, dtype=torch.int64), torch.zeros(len(rows), n, dtype=torch.bool)
        first = torch.full((len(rows), 2), -1)
        target, foil = torch.full((len(rows), n), -1), torch.full((len(rows), n), -1)
        for r, row in enumerate(rows):
            at = torch.arange(row.read)
            columns[r] = row.length - 1
            columns[r, : row.read] = row.length - 1 + at
            mask[r, : row.read] = True
            if row.answer == "both":
                first[r] = torch.tensor(row.tokens)
                target[r, 0], foil[r, 0] = row.tokens
            else:
                side = 0 if row.answer == "target" else 1
                first[r, side] = row.tokens[0]
                (target, foil)[side][r, : row.read] = torch.tensor(row.tokens)
        return Answers(*(tensor.to(device) for tensor in (columns, mask, first, target, foil)))

    def difference(self, logits: Float[Tensor, "rows n vocab"]) -> Float[Tensor, " rows"]:
        """What a row adds to its prompt's compared difference, with a gradient: log-probabilities, target − foil."""
        logp = logits.float().log_softmax(-1)
        return _summed(logp, self.target).nan_to_num() - _summed(logp, self.foil).nan_to_num()


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
    z = _at(logits[:, 0], answers.first)
    probability, top = logp[:, 0].max(-1)
    found = torch.stack(
        [
            z[:, 0],
            z[:, 1],
            _summed(logp, answers.target),
            _summed(logp, answers.foil),
            _at(logp[:, 0], answers.first[:, :1])[:, 0],
            kl,
            top.float(),  # ids are below 2^24, and so exact
            probability.exp(),
        ]
    ).cpu()
    if not bool(torch.isfinite(found[5:]).all()):
        raise NonFinite("non-finite logits in a pass with edits; use precision=fp32 or precision=bf16")
    return dict(zip(NUMBERS, found.double(), strict=True))


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


def _at(table: Float[Tensor, "rows vocab"], ids: Int[Tensor, "rows k"]) -> Float[Tensor, "rows k"]:
    """`table` at ids, NaN where an id is −1."""
    return torch.where(ids >= 0, table.gather(1, ids.clamp(min=0)), float("nan"))


def _summed(logp: Float[Tensor, "rows n vocab"], ids: Int[Tensor, "rows n"]) -> Float[Tensor, " rows"]:
    """Σ over an answer's tokens, NaN where a row reads none of it."""
    each = logp.gather(2, ids.clamp(min=0).unsqueeze(-1))[..., 0]
    total = torch.where(ids >= 0, each, 0.0).sum(1)
    return torch.where((ids >= 0).any(1), total, float("nan"))
