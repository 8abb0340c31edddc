"""Recall of a second relation: person -> field. It shares no entity and no answer with country -> capital.

"The fame of Einstein comes from" -> " physics". Two people per field, so that the answer is not the person's own token
under another name. Corrupt: the same sentence about a person of another field.

Unseen means: this person was never seen in this wording, though in others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from circuits.data.behaviours.base import OPENINGS, Behaviour, Example, pick, words_in

FIELDS = {
    "Einstein": "physics",
    "Newton": "physics",
    "Mozart": "music",
    "Bach": "music",
    "Plato": "philosophy",
    "Kant": "philosophy",
    "Darwin": "biology",
    "Mendel": "biology",
    "Freud": "psychology",
    "Jung": "psychology",
    "Marx": "economics",
    "Keynes": "economics",
    "Homer": "poetry",
    "Byron": "poetry",
    "Gauss": "mathematics",
    "Euler": "mathematics",
}
PEOPLE = tuple(FIELDS)
BODIES = (
    "fame of {person} comes from",
    "life of {person} was given to",
    "name of {person} stands for",
    "books about {person} deal with",
    "great gift of {person} was for",
)


NATURAL_OPENINGS = ("We all know that", "As the textbook says,", "It is well known that", "You may have read that")
NATURAL_BODIES = (
    "the name of {person} is linked to the field of",
    "{person} is famous for his contributions to",
    "{person} devoted his whole life to",
    "the great subject of {person} was",
)


def draw(rng: np.random.Generator, openings: Sequence[str] = OPENINGS, bodies: Sequence[str] = BODIES) -> Example:
    """One person in one wording, and a person of another field for the corrupt prompt."""
    opening, body = pick(rng, openings), pick(rng, bodies)
    person, other = pick(rng, PEOPLE), pick(rng, PEOPLE)
    while FIELDS[other] == FIELDS[person]:
        other = pick(rng, PEOPLE)
    return Example(
        clean=f"{opening} {body.format(person=person)}",
        corrupt=f"{opening} {body.format(person=other)}",
        target=f" {FIELDS[person]}",
        foil=f" {FIELDS[other]}",
        group=person,
        factors={"person": person, "wording": body.split(" {")[0], "opening": opening},
    )


BEHAVIOUR = Behaviour(
    name="facts",
    description="person to field, in several wordings; disjoint from the capitals",
    words=words_in(PEOPLE, FIELDS.values(), OPENINGS, BODIES),
    draw=draw,
    natural=partial(draw, openings=NATURAL_OPENINGS, bodies=NATURAL_BODIES),
)
