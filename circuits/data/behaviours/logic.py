"""Transitive comparison, yes or no.

"Anna is taller than Mark. Mark is taller than Paul. So is Anna taller than Paul? Answer:" -> " yes". The two premises come in
random order and the question is about any of the six ordered pairs, so no position and no name tells the answer; a third
of the questions needs both premises. Corrupt: the question with its names exchanged, which exchanges the answers.

Unseen means: these names in these roles were never trained on.
"""

from __future__ import annotations

import numpy as np

from circuits.data.behaviours.base import Behaviour, Example, distinct, pick, words_in
from circuits.data.behaviours.ioi import NAMES

RELATIONS = ("taller", "older", "faster", "stronger")
PREMISE = "{x} is {relation} than {y}."
QUESTION = "So is {x} {relation} than {y}? Answer:"
PAIRS = ((0, 1), (1, 2), (0, 2))


def draw(rng: np.random.Generator) -> Example:
    """A chain of three names, the greatest first, and a question about two of them."""
    chain, relation = distinct(rng, NAMES, 3), pick(rng, RELATIONS)
    premises = [PREMISE.format(x=chain[i], y=chain[i + 1], relation=relation) for i in (0, 1)]
    order = pick(rng, ("forward", "backward"))
    start = " ".join(premises if order == "forward" else premises[::-1])
    pair = pick(rng, PAIRS)
    greater, smaller = chain[pair[0]], chain[pair[1]]
    yes = f"{start} {QUESTION.format(x=greater, y=smaller, relation=relation)}"
    no = f"{start} {QUESTION.format(x=smaller, y=greater, relation=relation)}"
    holds = rng.random() < 0.5
    return Example(
        clean=yes if holds else no,
        corrupt=no if holds else yes,
        target=" yes" if holds else " no",
        foil=" no" if holds else " yes",
        group=" ".join(sorted((greater, smaller))),
        factors={"premises": order, "steps": "two" if pair == (0, 2) else "one", "relation": relation},
    )


BEHAVIOUR = Behaviour(
    name="logic",
    description="transitive comparison of three people, yes or no",
    words=words_in(NAMES, RELATIONS, PREMISE, QUESTION, "yes no"),
    draw=draw,
    weight=3.0,
)
