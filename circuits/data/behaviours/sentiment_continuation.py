"""Continuation in the sentiment of what was said (in the manner of Radford et al. 2017, "Learning to generate reviews").

"The movie was wonderful. I felt" -> " happy", not " sad". Four continuations with a pair of answers each; the adjective decides.
Corrupt: an adjective of the other sentiment.

Unseen means: this adjective was never seen with this noun, opening and continuation at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from circuits.data.behaviours.base import Behaviour, Example, pick, words_in

ADJECTIVES = (
    ("awful", "bad", "boring", "disappointing", "dreadful", "horrible", "poor", "terrible"),
    ("amazing", "brilliant", "delightful", "excellent", "great", "lovely", "superb", "wonderful"),
)
OPENINGS = ("The", "This", "That")
NOUNS = ("movie", "meal", "trip", "song", "party", "game")
CONTINUATIONS = (
    ("I felt", (" sad", " happy")),
    ("My review was", (" negative", " positive")),
    ("It made us", (" cry", " smile")),
    ("All of us", (" hated", " loved")),
)
SENTIMENTS = ("negative", "positive")


NATURAL_OPENINGS = ("The", "I thought that the", "In my opinion the")
NATURAL_NOUNS = (*NOUNS, "book", "show", "concert", "hotel", "food")
NATURAL_CONTINUATIONS = (
    ("Overall, my impression was very", (" negative", " positive")),
    ("When it ended I felt", (" sad", " happy")),
    ("Honestly, I", (" hated", " loved")),
    ("It was one of the", (" worst", " best")),
)


def draw(
    rng: np.random.Generator,
    openings: Sequence[str] = OPENINGS,
    nouns: Sequence[str] = NOUNS,
    continuations: Sequence[tuple[str, tuple[str, str]]] = CONTINUATIONS,
) -> Example:
    """One opinion and one continuation; both sentiments are equally likely."""
    sentiment = pick(rng, (0, 1))
    start = f"{pick(rng, openings)} {pick(rng, nouns)} was"
    adjective, opposite = pick(rng, ADJECTIVES[sentiment]), pick(rng, ADJECTIVES[1 - sentiment])
    continuation, answers = pick(rng, continuations)
    return Example(
        clean=f"{start} {adjective}. {continuation}",
        corrupt=f"{start} {opposite}. {continuation}",
        target=answers[sentiment],
        foil=answers[1 - sentiment],
        group=adjective,
        factors={"sentiment": SENTIMENTS[sentiment], "continuation": continuation, "adjective": adjective},
    )


BEHAVIOUR = Behaviour(
    name="sentiment_continuation",
    description="continue in the sentiment of the opinion before",
    words=words_in(
        *ADJECTIVES, OPENINGS, NOUNS, (c for c, _ in CONTINUATIONS), (w for _, p in CONTINUATIONS for w in p), "was."
    ),
    draw=draw,
    natural=partial(draw, openings=NATURAL_OPENINGS, nouns=NATURAL_NOUNS, continuations=NATURAL_CONTINUATIONS),
)
