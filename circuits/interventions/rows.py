"""The rows of a study: each prompt with the tokens that are read after it, its counterpart and its donor.

Answers of single tokens need one row a prompt, read at the prompt's last token. With ``span`` (``metric=full_target``) an answer
of several tokens needs a row of its own, prompt + answer without its last token, read at every token of the answer (teacher
forcing, SPEC TL-8). Rows are padded on the right; mask and position ids are ours, so no number depends on the padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from circuits.data.prompts import PromptSet
from circuits.errors import UserError

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


def check_pairs(prompts: PromptSet, from_end: bool) -> None:
    """Pairs whose tokens can be matched: of one length, or matched from the end.

    Raises:
        UserError: naming the first pairs that are not.
    """
    prompts.sequences("corrupt")
    unlike = [p for p in prompts if len(p.ids) != len(p.corrupt_ids or ())]
    if unlike and not from_end:
        p = unlike[0]
        raise UserError(
            f"clean and corrupt prompt of {len(unlike)} prompts have unlike lengths ({p.id}: {len(p.ids)} and "
            f"{len(p.corrupt_ids or ())} tokens), so their positions cannot be matched; positions=last (or negative numbers) "
            "matches them from the end"
        )


def donors(prompts: PromptSet, seed: int) -> tuple[list[int | None], list[str]]:
    """The donor of each prompt, and the ids of prompts that have none.

    A donor is a prompt of another group and another text; of equal length where there is one, else the shortest longer one. The
    rule is a random draw among the candidates, a function of `seed`.
    """
    rng = np.random.default_rng(seed)
    lengths = np.array([len(p.ids) for p in prompts])
    found: list[int | None] = []
    for p in prompts:
        fits = [
            i for i, q in enumerate(prompts) if lengths[i] >= len(p.ids) and q.group != p.group and q.prompt != p.prompt
        ]
        shortest = min((int(lengths[i]) for i in fits), default=0)
        near = [i for i in fits if lengths[i] == shortest]
        found.append(int(rng.choice(near)) if near else None)
    return found, [p.id for p, donor in zip(prompts, found, strict=True) if donor is None]
