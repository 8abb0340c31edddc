"""Transitive comparison, yes or no.

"Anna is taller than Mark. Mark is taller than Paul. So is Anna taller than Paul? Answer:" -> " yes". The two premises
come in random order and the question is about the ends of the chain in either order, so neither position nor name tells
the answer and no premise states it. A model may compare the roles in which the two were named (the greater is only ever a
subject) rather than build the chain; which of the two it does is for an experiment to find out. Corrupt: the question with
its names exchanged, which exchanges the answers.

Five people are few on purpose: a small model learns it within some 15,000 prompts about five and has not learned it after
as many about eight. Unseen means: these names in these roles were never trained on with this relation and question.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from circuits.data.behaviours.base import Behaviour, Example, distinct, pick, words_in
from circuits.data.behaviours.ioi import MORE_NAMES, NAMES

RELATIONS = ("taller", "older", "faster", "stronger")
PEOPLE = NAMES[:5]
PREMISE = "{x} is {relation} than {y}."
QUESTION = "So is {x} {relation} than {y}? Answer:"


def draw(
    rng: np.random.Generator, people: Sequence[str] = PEOPLE, answers: tuple[str, str] = (" no", " yes")
) -> Example:
    """A chain of three names, the greatest first, and a question about its ends."""
    (greatest, middle, smallest), relation = distinct(rng, people, 3), pick(rng, RELATIONS)
    premises = [
        PREMISE.format(x=greatest, y=middle, relation=relation),
        PREMISE.format(x=middle, y=smallest, relation=relation),
    ]
    order = pick(rng, ("forward", "backward"))
    start = " ".join(premises if order == "forward" else premises[::-1])
    yes = f"{start} {QUESTION.format(x=greatest, y=smallest, relation=relation)}"
    no = f"{start} {QUESTION.format(x=smallest, y=greatest, relation=relation)}"
    holds = rng.random() < 0.5
    return Example(
        clean=yes if holds else no,
        corrupt=no if holds else yes,
        target=answers[holds],
        foil=answers[not holds],
        group=" ".join(sorted((greatest, smallest))),
        factors={"premises": order, "relation": relation},
    )


BEHAVIOUR = Behaviour(
    name="logic",
    description="transitive comparison of three people, yes or no",
    words=words_in(NAMES, RELATIONS, PREMISE, QUESTION, "yes no"),
    draw=draw,
    natural=partial(draw, people=MORE_NAMES, answers=(" No", " Yes")),
)
