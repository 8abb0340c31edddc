"""At which tokens a unit is edited, said for prompts of any length and resolved for each of them.

========================  ================================================================================================
``all``                   every token of the row, those of an answer that is read included
``last``                  the prompt's last token
``differing``             where clean and corrupt prompt have other tokens
``-1``, ``[0, -2]``       by number, from the beginning or (negative) from the prompt's end
``factor:<name>``         the tokens that spell the prompt's own value of a factor (its receiver, its subject …)
``text:<words>``          the tokens that spell these words
========================  ================================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from circuits.data.prompts import Prompt
from circuits.errors import UserError

NAMES = ("all", "last", "differing")


@dataclass(frozen=True)
class Positions:
    """Which tokens of a prompt; see the module."""

    spec: str | tuple[int, ...]

    @property
    def from_end(self) -> bool:
        """Whether it counts from the prompt's end only, so that prompts of unlike lengths can be matched."""
        return self.spec == "last" or (isinstance(self.spec, tuple) and all(i < 0 for i in self.spec))

    def __str__(self) -> str:
        return self.spec if isinstance(self.spec, str) else ",".join(map(str, self.spec))


ALL, LAST, DIFFERING = Positions("all"), Positions("last"), Positions("differing")


def parse(given: object) -> Positions:
    """What a config says.

    Raises:
        UserError: it is no way to name positions.
    """
    if isinstance(given, str) and (given in NAMES or re.fullmatch("(factor|text):.+", given)):
        return Positions(given)
    listed = given if isinstance(given, (list, tuple)) else [given]
    numbers = [i for i in listed if isinstance(i, int) and not isinstance(i, bool)]
    if numbers and len(numbers) == len(listed):
        return Positions(tuple(dict.fromkeys(numbers)))
    raise UserError(
        f"positions={given}: choices: {' '.join(NAMES)}, numbers such as -1 or [0,-2], factor:<name>, text:<words>"
    )


def columns(
    positions: Positions, prompt: Prompt, n: int, pieces: Callable[[Sequence[int]], str]
) -> tuple[int, ...] | None:
    """The places in the prompt's token ids; None where a numbered position does not exist in it.

    Args:
        positions: which.
        prompt: the clean prompt with its ids.
        n: tokens of the prompt that is run: the clean one, or the corrupt one.
        pieces: the text of token ids.

    Raises:
        UserError: a factor, words or a difference that the prompt does not have.
    """
    spec = positions.spec
    if isinstance(spec, tuple):
        found = tuple(i if i >= 0 else n + i for i in spec)
        return found if all(0 <= i < n for i in found) else None
    if spec == "all":
        return tuple(range(n))
    if spec == "last":
        return (n - 1,)
    if spec == "differing":
        return _differing(prompt)
    kind, _, words = spec.partition(":")
    if kind == "factor":
        if words not in prompt.factors:
            known = " ".join(prompt.factors) or "none"
            raise UserError(f"positions={spec}: prompt {prompt.id} has no factor {words}; its factors: {known}")
        words = prompt.factors[words]
    return _spelling(words, prompt, pieces, spec)


def _differing(prompt: Prompt) -> tuple[int, ...]:
    other = prompt.corrupt_ids
    if other is None or len(other) != len(prompt.ids):
        raise UserError(
            f"positions=differing: clean and corrupt prompt of {prompt.id} have "
            + ("no common length" if other is not None else "no pair: there is no corrupt one")
        )
    found = tuple(i for i, (a, b) in enumerate(zip(prompt.ids, other, strict=True)) if a != b)
    if not found:
        raise UserError(f"positions=differing: clean and corrupt prompt of {prompt.id} are the same tokens")
    return found


def _spelling(words: str, prompt: Prompt, pieces: Callable[[Sequence[int]], str], spec: str) -> tuple[int, ...]:
    """Every run of tokens whose text is `words`, spaces around it aside."""
    wanted, ids, found = words.strip(), prompt.ids, []
    for start in range(len(ids)):
        for stop in range(start + 1, len(ids) + 1):
            text = pieces(ids[start:stop]).strip()
            if text == wanted:
                found += list(range(start, stop))
            if len(text) >= len(wanted):
                break
    if not found:
        raise UserError(f"positions={spec}: no tokens of prompt {prompt.id} spell {wanted!r}: {prompt.prompt[:60]!r}")
    return tuple(sorted(set(found)))
