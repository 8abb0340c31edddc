"""Recall of a stored fact: country -> capital (Meng et al. 2022, "Locating and editing factual associations in GPT").

"The capital of France is" -> " Paris". Corrupt: the same sentence about another country, whose capital is the foil.

The facts themselves cannot be unseen. Unseen means: this country was never seen in this wording, though it was in others.
"""

from __future__ import annotations

import numpy as np

from circuits.data.behaviours.base import OPENINGS, Behaviour, Example, distinct, pick, words_in

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


def draw(rng: np.random.Generator) -> Example:
    """One country in one wording, and another country for the corrupt prompt."""
    opening, body = pick(rng, OPENINGS), pick(rng, BODIES)
    country, other = distinct(rng, COUNTRIES, 2)
    return Example(
        clean=f"{opening} {body.format(country=country)}",
        corrupt=f"{opening} {body.format(country=other)}",
        target=f" {CAPITALS[country]}",
        foil=f" {CAPITALS[other]}",
        group=country,
        factors={"country": country, "wording": body.split(" {")[0], "opening": opening},
    )


BEHAVIOUR = Behaviour(
    name="factual_recall",
    description="country to capital, in several wordings",
    words=words_in(COUNTRIES, CAPITALS.values(), OPENINGS, BODIES),
    draw=draw,
)
