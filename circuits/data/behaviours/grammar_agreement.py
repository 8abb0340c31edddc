"""Subject-verb number agreement across an attractor (Linzen, Dupoux and Goldberg 2016, "Assessing the ability of LSTMs").

"The cats near the dog" -> " are", not " is": the verb agrees with the head noun, whatever the number of the noun beside
it. The opening fixes the tense, so the answer is one of four verbs. Corrupt: the head noun in its other number.

Unseen means: this combination of opening, head, preposition and attractor was never trained on; its nouns were.
"""

from __future__ import annotations

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


def draw(rng: np.random.Generator) -> Example:
    """One prompt; head number, attractor number and tense are independent."""
    opening, tense = pick(rng, OPENINGS)
    head, attractor = pick(rng, NOUNS), pick(rng, NOUNS)
    while attractor == head:
        attractor = pick(rng, NOUNS)
    number, other = pick(rng, (0, 1)), pick(rng, (0, 1))
    tail = f"{pick(rng, PREPOSITIONS)} the {_inflect(attractor, other)}"
    return Example(
        clean=f"{opening} {_inflect(head, number)} {tail}",
        corrupt=f"{opening} {_inflect(head, 1 - number)} {tail}",
        target=VERBS[tense][number],
        foil=VERBS[tense][1 - number],
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
)
