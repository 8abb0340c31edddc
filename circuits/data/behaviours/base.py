"""What every behaviour is made of: an example, a generator of examples, and the split that keeps some of them unseen.

A behaviour is a family of prompt pairs (SPEC TL-1): `clean` and `corrupt` have as many tokens, `target` is the right next
token of `clean` and `foil` that of `corrupt`, so the logit difference target − foil has one sign on each side. A prompt
never ends with its answer, answers are balanced, and nothing but the behaviour tells which answer is right.

The split is a function of the text alone (SPEC TL-3): whoever trains on "train" prompts and tests on "heldout" prompts
shares no prompt between them, whatever the seeds, and nobody has to keep a list. Standard library and numpy only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np

Split = Literal["train", "heldout"]
Wording = Literal["embedded", "natural", "digits"]
"""The embedded model's few words, what a model of natural language is asked, and what it is asked instead where its tokenizer
makes every digit, and the space before a number, a token of its own."""

WORD = re.compile(r"\w+|[^\w\s]+")
"""A word: a run of letters and digits, or of punctuation. The embedded model's tokenizer cuts at the same places."""

HELDOUT_ONE_IN = 10

T = TypeVar("T")


class Example(NamedTuple):
    """A prompt pair. `target` and `foil` begin with a space, as the token that follows a prompt does (``digits``: prompts end
    with the space)."""

    clean: str
    corrupt: str
    target: str
    foil: str
    group: str
    """Prompts about the same thing (noun, country, pair of names); a grouped split keeps a group on one side."""
    factors: dict[str, str]
    """What was chosen in making the prompt, for analyses by condition."""
    rest: str = ""
    """What training text goes on with after the answer (with a leading space), where the behaviour determines it."""


OPENINGS = (
    "The",
    "Today the",
    "I know that the",
    "We learned that the",
    "We read that the",
    "Everyone says that the",
    "He said that the",
    "It seems that the",
)
"""Beginnings of a statement about a thing in the world, for relations that differ only in the thing."""


@dataclass(frozen=True)
class Behaviour:
    """A generator of examples. The embedded model learns every behaviour that is not `natural_only`, so its words are declared.

    Models of natural language are asked `natural`, where there is one, in more words and as such text is written.
    """

    name: str
    description: str
    words: tuple[str, ...]
    """Every word that may occur in a prompt or as an answer."""
    draw: Callable[[np.random.Generator], Example]
    domain: Callable[[], Iterable[Example]] | None = None
    """All examples, where the whole domain is to be tested rather than unseen draws (single-digit sums)."""
    natural: Callable[[np.random.Generator], Example] | None = None
    """Draws for models of natural language; None where the embedded model's wording is natural enough."""
    natural_only: bool = False
    """Asked of models of natural language only: `draw` writes natural text, and the embedded model never sees it."""
    digits: Callable[[np.random.Generator], Example] | None = None
    """Natural draws for tokenizers under which no natural answer is one token; None where no answer is a number."""
    aligned: bool = True
    """Whether clean and corrupt must have as many tokens, which patching by position needs."""

    def generator(self, wording: Wording) -> Callable[[np.random.Generator], Example]:
        """What draws examples in a wording."""
        if wording == "digits" and self.digits is not None:
            return self.digits
        return self.draw if wording == "embedded" or self.natural is None else self.natural


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, uniformly. `random` is four times as fast as `integers` and a stream draws millions."""
    return options[int(rng.random() * len(options))]


def distinct(rng: np.random.Generator, options: Sequence[T], n: int) -> list[T]:
    """`n` different ones of `options`, in random order (rejection: `n` is small beside the number of options)."""
    chosen: list[T] = []
    while len(chosen) < n:
        option = pick(rng, options)
        if option not in chosen:
            chosen.append(option)
    return chosen


def sentence(opening: str, body: str) -> str:
    """`body` after `opening`; with a capital where it opens the sentence itself."""
    return f"{opening} {body}" if opening else body[0].upper() + body[1:]


def words_in(*texts: str | Iterable[str]) -> tuple[str, ...]:
    """The distinct words of `texts`, sorted; a template's ``{field}`` is left out."""
    found: set[str] = set()
    for text in texts:
        for line in (text,) if isinstance(text, str) else text:
            found.update(WORD.findall(re.sub(r"\{\w+\}", " ", line)))
    return tuple(sorted(found))


def split(example: Example) -> Split:
    """The side `example` belongs to: one clean text in ten is held out, by a hash of the text."""
    digest = hashlib.blake2b(example.clean.encode(), digest_size=4).digest()
    return "heldout" if int.from_bytes(digest, "big") % HELDOUT_ONE_IN == 0 else "train"


def draw_from(behaviour: Behaviour, rng: np.random.Generator, side: Split) -> Example:
    """The next draw of `behaviour` that lies on `side` of the split."""
    while True:
        example = behaviour.draw(rng)
        if split(example) == side:
            return example


def unseen(behaviour: Behaviour, rng: np.random.Generator, n: int) -> list[Example]:
    """Up to `n` examples with different clean texts, none of which the embedded model was trained on.

    A small domain has fewer (draws stop after 200 in a row that gave no new text). A behaviour with a `domain` gives all of
    it instead, seen or not.
    """
    if behaviour.domain is not None:
        return list(behaviour.domain())
    found: dict[str, Example] = {}
    repeats = 0
    while len(found) < n and repeats < 200:
        example = draw_from(behaviour, rng, "heldout")
        repeats = repeats + 1 if example.clean in found else 0
        found.setdefault(example.clean, example)
    return list(found.values())
