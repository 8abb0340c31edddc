"""The rows of a prompt set, where their answers are read, and what is read there: logits and log-probabilities of target and foil.

Answers of single tokens need one row a prompt, read at the prompt's last token. With ``span`` (``metric=full_target``) an answer
of several tokens needs a row of its own, prompt + answer without its last token, read at every token of the answer (teacher
forcing, SPEC TL-8). Mask and position ids are ours, so no number depends on the padding. All from float32 logits and log-softmax,
whatever the model's own precision (SPEC B2), at the positions that are read: no [batch, pos, vocab] tensor is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from circuits.data.prompts import PromptSet
from circuits.errors import UserError
from circuits.transfer import sent

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Base = Literal["clean", "corrupt"]


@dataclass(frozen=True)
class Row:
    """One row of the model.

    Attributes:
        prompt: its number in the set.
        answer: whose tokens are read: ``both`` first tokens of target and foil, or one whole answer.
        ids: the tokens of the run that is edited.
        length: tokens of the prompt alone, so that ``length - 1`` is where an answer begins to be read.
        tokens: the answer tokens read at ``length - 1``, …: (target, foil) for ``both``, else one answer's.
        other: the pair's other prompt with the same answer; None where there is none.
    """

    prompt: int
    answer: Literal["both", "target", "foil"]
    ids: tuple[int, ...]
    length: int
    tokens: tuple[int, ...]
    other: tuple[int, ...] | None = None

    @property
    def read(self) -> int:
        """How many positions are read."""
        return 1 if self.answer == "both" else len(self.tokens)


def rows_of(prompts: PromptSet, *, base: Base = "clean", span: bool = False) -> list[Row]:
    """The rows of a study, one or two a prompt.

    Raises:
        UserError: target and foil begin with the same token where first tokens are compared; no corrupt prompt to start from.
    """
    if not span and (same := [p.id for p in prompts if p.target_ids[0] == p.foil_ids[0]]):
        raise UserError(
            f"metric=first_token: target and foil of {len(same)} prompts ({' '.join(same[:5])}) begin with the same token; "
            "metric=full_target compares whole answers"
        )
    if base == "corrupt":
        prompts.sequences("corrupt")  # refused where one is missing
    found = []
    for i, p in enumerate(prompts):
        ids, other = (p.ids, p.corrupt_ids) if base == "clean" else (p.corrupt_ids or (), p.ids)
        if not span or len(p.target_ids) == len(p.foil_ids) == 1:
            found.append(Row(i, "both", ids, len(ids), (p.target_ids[0], p.foil_ids[0]), other))
            continue
        for name, tokens in (("target", p.target_ids), ("foil", p.foil_ids)):
            whole = None if other is None else other + tokens[:-1]
            found.append(Row(i, name, ids + tokens[:-1], len(ids), tokens, whole))  # type: ignore[arg-type]
    return found


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
        target, foil = ([_tokens(row, side) for row in rows] for side in ("target", "foil"))
        columns = [[row.length - 1 + (j if j < row.read else 0) for j in range(n)] for row in rows]
        mask = [[j < row.read for j in range(n)] for row in rows]
        first = [[*t[:1], *f[:1]] for t, f in zip(target, foil, strict=True)]
        filled = ([[*tokens, *[-1] * (n - len(tokens))] for tokens in side] for side in (target, foil))
        return Answers(*(sent(torch.tensor(values), device) for values in (columns, mask, first, *filled)))

    def difference(self, logits: Float[Tensor, "rows n vocab"]) -> Float[Tensor, " rows"]:
        """What a row adds to its prompt's compared difference, with a gradient: log-probabilities, target − foil."""
        logp = logits.float().log_softmax(-1)
        return _summed(logp, self.target).nan_to_num() - _summed(logp, self.foil).nan_to_num()


def _tokens(row: Row, side: str) -> tuple[int, ...]:
    """The tokens of an answer that the row reads, −1 where it reads the other one only."""
    if row.answer == "both":
        return row.tokens[:1] if side == "target" else row.tokens[1:]
    return row.tokens if row.answer == side else (-1,)


READ = ("z_target", "z_foil", "logp_target", "logp_foil", "logp_first", "logp_first_foil", "top", "top_probability")
"""Logits of the answers' first tokens; log-probabilities of the whole answers that the row reads; of the target's and the foil's
first token; the likeliest first token, and its probability."""


def read(
    logits: Float[Tensor, "rows n vocab"], logp: Float[Tensor, "rows n vocab"], answers: Answers
) -> Float[Tensor, "numbers rows"]:
    """:data:`READ` of each row, from float32 logits and their log-softmax; NaN where a row does not read that answer."""
    z, first = _at(logits[:, 0], answers.first), _at(logp[:, 0], answers.first)
    probability, top = logp[:, 0].max(-1)
    whole = [_summed(logp, tokens) for tokens in (answers.target, answers.foil)]
    # Token ids are whole numbers below 2^24 and so exact in float32: one copy brings everything.
    return torch.stack([*z.unbind(1), *whole, *first.unbind(1), top.float(), probability.exp()])


def _at(table: Float[Tensor, "rows vocab"], ids: Int[Tensor, "rows k"]) -> Float[Tensor, "rows k"]:
    """`table` at ids, NaN where an id is −1."""
    return torch.where(ids >= 0, table.gather(1, ids.clamp(min=0)), float("nan"))


def _summed(logp: Float[Tensor, "rows n vocab"], ids: Int[Tensor, "rows n"]) -> Float[Tensor, " rows"]:
    """Σ over an answer's tokens, NaN where a row reads none of it."""
    each = logp.gather(2, ids.clamp(min=0).unsqueeze(-1))[..., 0]
    total = torch.where(ids >= 0, each, 0.0).sum(1)
    return torch.where((ids >= 0).any(1), total, float("nan"))
