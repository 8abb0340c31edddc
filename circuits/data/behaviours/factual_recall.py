"""Recall of a stored fact: country -> capital (Meng et al. 2022, "Locating and editing factual associations in GPT").

"The capital of France is" -> " Paris". Corrupt: the same sentence about another country, whose capital is the foil.

The facts themselves cannot be unseen. Unseen means: this country was never seen in this wording, though it was in others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from circuits.data.behaviours.base import OPENINGS, Behaviour, Example, distinct, pick, sentence, words_in

CAPITALS = {
    "China": "Beijing",
    "Egypt": "Cairo",
    "England": "London",
    "France": "Paris",
    "Germany": "Berlin",
    "Greece": "Athens",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Poland": "Warsaw",
    "Russia": "Moscow",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
}
COUNTRIES = tuple(CAPITALS)
BODIES = (
    "capital of {country} is",
    "capital city of {country} is",
    "government of {country} sits in",
    "biggest airport in {country} is near",
    "president of {country} lives in",
)


WORLD = CAPITALS | {
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Canada": "Ottawa",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Finland": "Helsinki",
    "Hungary": "Budapest",
    "India": "Delhi",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Ireland": "Dublin",
    "Israel": "Jerusalem",
    "Kenya": "Nairobi",
    "Norway": "Oslo",
    "Portugal": "Lisbon",
    "Scotland": "Edinburgh",
    "Syria": "Damascus",
    "Turkey": "Ankara",
    "Ukraine": "Kiev",
}
NATURAL_OPENINGS = ("", "As you know,", "In fact,", "It is said that")
NATURAL_BODIES = (
    "the capital of {country} is",
    "the capital city of {country} is called",
    "the government of {country} sits in the city of",
    "the parliament of {country} meets in the capital,",
)


def draw(
    rng: np.random.Generator,
    capitals: Mapping[str, str] = CAPITALS,
    openings: Sequence[str] = OPENINGS,
    bodies: Sequence[str] = BODIES,
) -> Example:
    """One country in one wording, and another country for the corrupt prompt."""
    opening, body = pick(rng, openings), pick(rng, bodies)
    country, other = distinct(rng, tuple(capitals), 2)
    return Example(
        clean=sentence(opening, body.format(country=country)),
        corrupt=sentence(opening, body.format(country=other)),
        target=f" {capitals[country]}",
        foil=f" {capitals[other]}",
        group=country,
        factors={"country": country, "wording": body.split(" {")[0], "opening": opening},
    )


BEHAVIOUR = Behaviour(
    name="factual_recall",
    description="country to capital, in several wordings",
    words=words_in(COUNTRIES, CAPITALS.values(), OPENINGS, BODIES),
    draw=draw,
    natural=partial(draw, capitals=WORLD, openings=NATURAL_OPENINGS, bodies=NATURAL_BODIES),
)
