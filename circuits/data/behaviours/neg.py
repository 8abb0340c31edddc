"""Negation and category (in the manner of Ettinger 2020, "What BERT is not").

"A duck is not a fruit. This is" -> " true". The answer is the exclusive or of two things, whether the noun belongs to the
category and whether the sentence is negated, so neither alone says anything about it: each of the four combinations is
drawn equally often. Corrupt: the other polarity ("is not a" against "is surely a", equally long) or another category.

Unseen means: this noun was never seen with this category, polarity and wording at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from circuits.data.behaviours.base import Behaviour, Example, pick, words_in

PROMPT = "{opening} {noun} is {polarity} a {category}. This is"
NATURAL = "{opening} {noun} is {polarity} a {category}. This statement is"
MEMBERS = {
    "bird": ("duck", "crow", "hawk"),
    "fish": ("salmon", "shark", "tuna"),
    "fruit": ("lemon", "peach", "pear"),
    "tool": ("hammer", "saw", "drill"),
}
CATEGORY = {noun: category for category, nouns in MEMBERS.items() for noun in nouns}
NOUNS, CATEGORIES = tuple(CATEGORY), tuple(MEMBERS)
MORE_MEMBERS = {
    "bird": ("duck", "crow", "hawk", "robin", "sparrow"),
    "fish": ("salmon", "shark", "tuna", "trout", "cod"),
    "fruit": ("lemon", "peach", "pear", "banana", "grape"),
    "tool": ("hammer", "saw", "drill", "wrench", "shovel"),
    "vehicle": ("car", "truck", "bus", "train", "van"),
}
POLARITY = ("surely", "not")
OPENINGS = (
    "A",
    "I know that a",
    "We learned that a",
    "We read that a",
    "Everyone says that a",
    "He said that a",
    "She thinks that a",
    "It seems that a",
)
ANSWERS = (" false", " true")


def draw(rng: np.random.Generator, members: Mapping[str, Sequence[str]] = MEMBERS, prompt: str = PROMPT) -> Example:
    """One statement; belonging and polarity are independent and even."""
    nouns = {noun: category for category, found in members.items() for noun in found}
    opening, noun = pick(rng, OPENINGS), pick(rng, tuple(nouns))
    belongs, negated = pick(rng, (0, 1)), pick(rng, (0, 1))
    own = nouns[noun]
    foreign = pick(rng, tuple(members))
    while foreign == own:
        foreign = pick(rng, tuple(members))
    category, other = (own, foreign) if belongs else (foreign, own)
    changed = pick(rng, ("polarity", "category"))

    def written(polarity: str, category: str) -> str:
        return prompt.format(opening=opening, noun=noun, polarity=polarity, category=category)

    corrupt = written(POLARITY[1 - negated], category) if changed == "polarity" else written(POLARITY[negated], other)
    answer = belongs ^ negated
    return Example(
        clean=written(POLARITY[negated], category),
        corrupt=corrupt,
        target=ANSWERS[answer],
        foil=ANSWERS[1 - answer],
        group=noun,
        factors={"belongs": str(bool(belongs)), "negated": str(bool(negated)), "changed": changed, "opening": opening},
    )


BEHAVIOUR = Behaviour(
    name="neg",
    description="true or false, from category membership and negation",
    words=words_in(NOUNS, CATEGORIES, POLARITY, OPENINGS, ANSWERS, "is a . This is"),
    draw=draw,
    natural=partial(draw, members=MORE_MEMBERS, prompt=NATURAL),
)
