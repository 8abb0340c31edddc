"""A premise against stored knowledge (Ortu et al. 2024, "Competition of mechanisms").

"Suppose the capital of France is Rome. Then the capital of France is" -> " Rome", not " Paris". Corrupt: the same premise with
the true capital, so the foil is the fact and the logit difference is context against memory. In half of the prompts a
second premise about another country stands before or after, so that copying the last capital is not enough: the
premise must be found by its country. The answer stands in the premise (that is the behaviour), never at the prompt's end.

Unseen means: this combination of countries and supposed capitals was never trained on.
"""

from __future__ import annotations

import numpy as np

from circuits.data.behaviours.base import Behaviour, Example, distinct, pick, words_in
from circuits.data.behaviours.factual_recall import CAPITALS, COUNTRIES

ASKED = COUNTRIES[:6]
OPENINGS = ("Suppose", "Imagine", "Assume that")
CLAUSE = "the capital of {country} is {capital}"


def _premises(clauses: list[tuple[str, str]]) -> str:
    return " and ".join(CLAUSE.format(country=country, capital=capital) for country, capital in clauses)


def draw(rng: np.random.Generator) -> Example:
    """One or two premises in random order, and a question about one of them."""
    country, *others = distinct(rng, ASKED, 4)
    supposed, distractor = CAPITALS[others[0]], (others[1], CAPITALS[others[2]])
    place = pick(rng, ("only", "only", "first", "second"))
    opening = pick(rng, OPENINGS)
    question = f"Then the capital of {country} is"

    def prompt(capital: str) -> str:
        asked = (country, capital)
        clauses = {"only": [asked], "first": [asked, distractor], "second": [distractor, asked]}[place]
        return f"{opening} {_premises(clauses)}. {question}"

    return Example(
        clean=prompt(supposed),
        corrupt=prompt(CAPITALS[country]),
        target=f" {supposed}",
        foil=f" {CAPITALS[country]}",
        group=country,
        factors={"country": country, "premise": place, "opening": opening},
    )


BEHAVIOUR = Behaviour(
    name="cf",
    description="a supposed capital against the true one",
    words=words_in(COUNTRIES, CAPITALS.values(), OPENINGS, CLAUSE, "and", ".", "Then"),
    draw=draw,
)
