"""Subject-verb number agreement across an attractor (Linzen, Dupoux and Goldberg 2016, "Assessing the ability of LSTMs").

"The cats near the dog" -> " are", not " is": the verb agrees with the head noun, whatever the number of the noun beside
it. The opening fixes the tense, so the answer is one of four verbs. Corrupt: the head noun in its other number.

Unseen means: this combination of opening, head, preposition and attractor was never trained on; its nouns were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from circuits.data.behaviours.base import Behaviour, Example, pick, words_in

NOUNS = ("bird", "boy", "cat", "dog", "doctor", "farmer", "girl", "horse", "king", "teacher")
PREPOSITIONS = ("near", "behind", "beside", "above")
OPENINGS = (
    ("The", "present"),
    ("Today the", "present"),
    ("I know that the", "present"),
    ("Yesterday the", "past"),
    ("Last year the", "past"),
)
VERBS = {"present": (" is", " are"), "past": (" was", " were")}
NUMBERS = ("singular", "plural")


def _inflect(noun: str, number: int) -> str:
    return noun + "s" if number else noun


NATURAL_NOUNS = (
    *NOUNS, "actor", "author", "brother", "car", "house", "lawyer", "manager", "player", "student", "writer",
)  # fmt: skip
NATURAL_OPENINGS = (
    *OPENINGS,
    ("This morning I saw that the", "past"),
    ("For many years the", "perfect"),
    ("Since last week the", "perfect"),
)
NATURAL_VERBS = VERBS | {"perfect": (" has", " have")}


def draw(
    rng: np.random.Generator,
    nouns: Sequence[str] = NOUNS,
    openings: Sequence[tuple[str, str]] = OPENINGS,
    verbs: Mapping[str, tuple[str, str]] = VERBS,
) -> Example:
    """One prompt; head number, attractor number and tense are independent."""
    opening, tense = pick(rng, openings)
    head, attractor = pick(rng, nouns), pick(rng, nouns)
    while attractor == head:
        attractor = pick(rng, nouns)
    number, other = pick(rng, (0, 1)), pick(rng, (0, 1))
    tail = f"{pick(rng, PREPOSITIONS)} the {_inflect(attractor, other)}"
    return Example(
        clean=f"{opening} {_inflect(head, number)} {tail}",
        corrupt=f"{opening} {_inflect(head, 1 - number)} {tail}",
        target=verbs[tense][number],
        foil=verbs[tense][1 - number],
        group=head,
        factors={"number": NUMBERS[number], "attractor": NUMBERS[other], "tense": tense},
    )


BEHAVIOUR = Behaviour(
    name="grammar_agreement",
    description="subject-verb number agreement across an attractor noun",
    words=words_in(
        NOUNS,
        (n + "s" for n in NOUNS),
        PREPOSITIONS,
        (o for o, _ in OPENINGS),
        "the",
        *VERBS["present"],
        *VERBS["past"],
    ),
    draw=draw,
    natural=partial(draw, nouns=NATURAL_NOUNS, openings=NATURAL_OPENINGS, verbs=NATURAL_VERBS),
)
