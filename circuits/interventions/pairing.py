"""Which prompts stand beside which: pairs whose positions can be matched, and a donor for each prompt."""

from __future__ import annotations

import numpy as np

from circuits.data.prompts import PromptSet
from circuits.errors import UserError


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
