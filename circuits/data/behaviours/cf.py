"""A counterfactual premise against stored knowledge (Ortu et al. 2024, "Competition of mechanisms").

"Suppose the capital of France is Rome. Then the capital of France is" -> " Rome": what was supposed wins over the fact.
When the premise is about another country, "Suppose the capital of Spain is Rome. Then the capital of France is", the fact
stands: " Paris". Each is the corrupt prompt of the other and both are drawn equally often, so neither copying the capital
in the prompt nor recalling the fact is enough. What is supposed stands in the premise (that is the behaviour), never at
the prompt's end.

Unseen means: this premise and this question were never trained on together.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from circuits.data.behaviours.base import Behaviour, Example, distinct, pick, words_in
from circuits.data.behaviours.factual_recall import CAPITALS, COUNTRIES, WORLD

OPENINGS = ("Suppose", "Imagine", "Assume that")
PREMISE = "{opening} the capital of {country} is {capital}."
QUESTION = "Then the capital of {country} is"


def draw(rng: np.random.Generator, capitals: Mapping[str, str] = CAPITALS) -> Example:
    """A premise about the country asked for or about another one; the supposed capital is that of a third."""
    country, other, third = distinct(rng, tuple(capitals), 3)
    opening, supposed = pick(rng, OPENINGS), capitals[third]
    question = QUESTION.format(country=country)
    counterfactual = f"{PREMISE.format(opening=opening, country=country, capital=supposed)} {question}"
    factual = f"{PREMISE.format(opening=opening, country=other, capital=supposed)} {question}"
    about = pick(rng, ("same", "other"))
    return Example(
        clean=counterfactual if about == "same" else factual,
        corrupt=factual if about == "same" else counterfactual,
        target=f" {supposed if about == 'same' else capitals[country]}",
        foil=f" {capitals[country] if about == 'same' else supposed}",
        group=country,
        factors={"country": country, "premise": about, "opening": opening},
    )


BEHAVIOUR = Behaviour(
    name="cf",
    description="a supposed capital against the true one",
    words=words_in(COUNTRIES, CAPITALS.values(), OPENINGS, PREMISE, QUESTION),
    draw=draw,
    natural=partial(draw, capitals=WORLD),
)
