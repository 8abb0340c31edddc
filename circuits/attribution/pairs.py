"""Rows of a study of circuits: the run that is edited, the run whose values are put in, and which of their positions belong
together.

Positions are ``all``, ``last`` (only there a writer's change counts) or ``spans``: each pair is cut into the stretches that both of
its prompts have and those that were exchanged, so that scores can be summed by piece over prompts of unlike lengths (PEAP,
arXiv:2502.04577), and clean and corrupt prompts of unlike lengths are matched piece by piece from the piece's end.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.activations.answers import Answers, Row, rows_of
from circuits.data.prompts import PromptSet
from circuits.errors import UserError
from circuits.interventions.pairing import check_pairs
from circuits.model_input import ModelInput, padded


@dataclass(frozen=True)
class Batch:
    """Some rows in one padded shape.

    Attributes:
        rows: their numbers.
        base: the tokens of the run that is edited.
        other: the tokens of the run whose values are put in.
        answers: what is read.
        others: the same, in the other run.
        at: for each position the one of the other run that it is held against; None where they are the same.
        counts: ``[n, pos]``, 1 where a change counts.
        piece: ``[n, pos]``, the number of each position's piece; −1 for padding. None where there are no pieces.
    """

    rows: list[int]
    base: ModelInput
    other: ModelInput
    answers: Answers
    others: Answers
    at: Int[Tensor, "n pos"] | None
    counts: Tensor | None
    piece: Int[Tensor, "n pos"] | None


class Pairs:
    """The rows of a prompt set, in batches.

    Args:
        prompts: whose rows they are.
        denoising: edit the corrupt prompt's run and put the clean one's values in.
        span: compare whole answers.
        positions: ``all``, ``last`` or ``spans``.

    Raises:
        UserError: a prompt without a corrupt one; unlike lengths without spans; spans whose pieces differ between prompts.
    """

    def __init__(
        self,
        prompts: PromptSet,
        *,
        denoising: bool = False,
        span: bool = False,
        positions: str = "all",
    ) -> None:
        self.prompts, self.positions, self.denoising = prompts, positions, denoising
        self.rows = rows_of(prompts, base="corrupt" if denoising else "clean", span=span)
        self.names: list[str] = []
        self._cuts: list[tuple[list[int], list[int]]] = []
        if positions == "spans":
            self._cut()
        else:
            check_pairs(prompts, from_end=False)

    def __len__(self) -> int:
        return len(self.rows)

    def _cut(self) -> None:
        self.prompts.sequences("corrupt")
        for p in self.prompts:
            mine, theirs, names = cuts(p.ids, p.corrupt_ids or ())
            if self.names and names != self.names:
                raise UserError(
                    f"positions=spans: the pair of prompt {p.id} has the pieces {', '.join(names)}, the first one's "
                    f"{', '.join(self.names)}; spans need the same pieces in the same order in all (one wording at a time)"
                )
            self.names = names
            self._cuts.append((theirs, mine) if self.denoising else (mine, theirs))

    def batches(self, size: int, device: torch.device, rows: Sequence[int] | None = None) -> Iterator[Batch]:
        """Batches of at most `size` rows, longest first; of `rows` where some are named."""
        chosen = range(len(self.rows)) if rows is None else rows
        order = sorted(chosen, key=lambda i: (-len(self.rows[i].ids), i))
        for start in range(0, len(order), size):
            yield self.batch(order[start : start + size], device)

    def batch(self, members: Sequence[int], device: torch.device) -> Batch:
        """These rows in one shape."""
        rows = [self.rows[i] for i in members]
        base, other = padded([row.ids for row in rows]), padded([row.other or () for row in rows])
        at = piece = counts = None
        if self.positions == "spans":
            at, piece = self._matched(rows, base.ids.shape[1])
        elif self.positions == "last":
            counts = torch.zeros(base.ids.shape)
            counts[torch.arange(len(rows)), [row.length - 1 for row in rows]] = 1
        to = lambda x: None if x is None else x.to(device)  # noqa: E731
        theirs = [replace(row, length=len(row.other or ()) - row.read + 1) for row in rows]
        answers, others = Answers.of(rows, device), Answers.of(theirs, device)
        return Batch(list(members), base, other, answers, others, to(at), to(counts), to(piece))

    def _matched(self, rows: Sequence[Row], width: int) -> tuple[Tensor, Tensor]:
        at, piece = torch.zeros(len(rows), width, dtype=torch.int64), torch.full((len(rows), width), -1)
        for r, row in enumerate(rows):
            mine, theirs = self._cuts[row.prompt]
            for k, (start, stop, first, end) in enumerate(
                zip(mine, [*mine[1:], row.length], theirs, [*theirs[1:], len(row.other or ()) - row.read + 1], strict=True)
            ):  # fmt: skip
                for back in range(1, stop - start + 1):
                    at[r, stop - back] = max(end - back, first)
                    piece[r, stop - back] = k
            extra = torch.arange(row.length, len(row.ids))
            at[r, extra] = extra - row.length + len(row.other or ()) - row.read + 1
            piece[r, extra] = len(mine) - 1
        return at, piece

    def per_prompt(self, values: Tensor) -> Tensor:
        """Sums of rows ``[rows, …]`` by prompt."""
        index = torch.tensor([row.prompt for row in self.rows])
        return torch.zeros(len(self.prompts), *values.shape[1:], dtype=values.dtype).index_add_(0, index, values)


def cuts(mine: Sequence[int], theirs: Sequence[int]) -> tuple[list[int], list[int], list[str]]:
    """Where the pieces of a pair begin in each of its prompts, and what they are called.

    A piece is a stretch of tokens that both have (``same``) or that was exchanged (``differing``), counted from 1; the last
    token is a piece of its own. A stretch that only one prompt has is a part of the piece before it.
    """
    starts: list[int] = []
    others: list[int] = []
    names: list[str] = []
    matcher = difflib.SequenceMatcher(None, list(mine[:-1]), list(theirs[:-1]), autojunk=False)
    counted: dict[str, int] = {}
    for tag, i, j, k, m in matcher.get_opcodes():
        if names and (i == j or k == m):
            continue
        what = "same" if tag == "equal" else "differing"
        counted[what] = counted.get(what, 0) + 1
        starts.append(i)
        others.append(k)
        names.append(f"{what} {counted[what]}")
    return [*starts, len(mine) - 1], [*others, len(theirs) - 1], [*names, "last"]
