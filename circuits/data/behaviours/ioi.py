"""Indirect object identification (Wang et al. 2022, "Interpretability in the wild").

"When Mary and John went to the store, John gave a drink to" -> " Mary". The two names come in either order (ABBA, BABA), so the
answer is not at a fixed place. Corrupt: the other name gives, which exchanges target and foil.

Unseen means: this combination of names, order, wording, place and object was never trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from circuits.data.behaviours.base import Behaviour, Example, distinct, pick, words_in

NAMES = ("Anna", "James", "John", "Mark", "Mary", "Paul", "Sarah", "Tom")
MORE_NAMES = (
    *NAMES, "Alice", "Andrew", "David", "Emily", "George", "Henry", "Jack", "Jane", "Kate", "Laura", "Martin", "Peter",
)  # fmt: skip
PLACES = ("store", "park", "school", "station", "beach")
OBJECTS = ("drink", "book", "ring", "letter", "ball")
TEMPLATES = (
    "When {a} and {b} went to the {place}, {giver} gave a {object} to",
    "After {a} and {b} left the {place}, {giver} handed a {object} to",
    "While {a} and {b} were at the {place}, {giver} showed a {object} to",
    "Then {a} and {b} met at the {place}, and {giver} sold a {object} to",
)


def draw(rng: np.random.Generator, names: Sequence[str] = NAMES) -> Example:
    """Two names in random order, one of whom gives; the other is the answer."""
    template = pick(rng, TEMPLATES)
    receiver, giver = distinct(rng, names, 2)
    order = pick(rng, ("ABBA", "BABA"))
    a, b = (receiver, giver) if order == "ABBA" else (giver, receiver)
    fields = {"a": a, "b": b, "place": pick(rng, PLACES), "object": pick(rng, OBJECTS)}
    return Example(
        clean=template.format(giver=giver, **fields),
        corrupt=template.format(giver=receiver, **fields),
        target=f" {receiver}",
        foil=f" {giver}",
        group=" ".join(sorted((a, b))),
        factors={"order": order, "wording": template.split(" ", 1)[0], "receiver": receiver},
    )


BEHAVIOUR = Behaviour(
    name="ioi",
    description="indirect object identification",
    words=words_in(NAMES, PLACES, OBJECTS, TEMPLATES),
    draw=draw,
    natural=partial(draw, names=MORE_NAMES),
)
