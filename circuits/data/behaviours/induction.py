"""Induction (Elhage et al. 2021; Olsson et al. 2022, "In-context learning and induction heads").

"river stone lamp cloud stone" -> " lamp": different random words, then one or two of them again; what followed before
follows again, in training text up to the end of the sequence. Length, place and run vary, so the answer is at no fixed
distance. Corrupt: a run from another place is repeated, and the word after that one is the foil.

Ten words are few on purpose: a small model finds the circuit within some 15,000 sequences of twelve words and has not
found it after 19,000 of twenty-four. Unseen means: this sequence of words was never trained on.
"""

from __future__ import annotations

import numpy as np

from circuits.data.behaviours.base import Behaviour, Example, distinct, pick, words_in

WORDS = ("river", "stone", "lamp", "cloud", "apple", "chair", "window", "garden", "paper", "bridge")
MORE_WORDS = (
    *WORDS, "bread", "clock", "door", "field", "glass", "horse", "island", "letter", "market", "music", "night", "ocean",
    "pencil", "road", "silver", "table", "tree", "winter",
)  # fmt: skip
LENGTHS = (3, 4, 5, 6, 7)
RUNS = (1, 2)


def draw(rng: np.random.Generator) -> Example:
    """A sequence of different words and two different runs in it that end before the last word."""
    words = distinct(rng, WORDS, pick(rng, LENGTHS))
    run = pick(rng, RUNS) if len(words) > 3 else 1
    place, other = distinct(rng, range(len(words) - run), 2)
    return Example(
        clean=" ".join(words + words[place : place + run]),
        corrupt=" ".join(words + words[other : other + run]),
        target=f" {words[place + run]}",
        foil=f" {words[other + run]}",
        group=words[place],
        factors={"length": str(len(words)), "place": str(place), "run": str(run)},
        rest="".join(f" {w}" for w in words[place + run + 1 :]),
    )


def draw_list(rng: np.random.Generator) -> Example:
    """The same over more words, behind an opening, so that every word has a space before it and hence one token."""
    words = distinct(rng, MORE_WORDS, pick(rng, (5, 6, 7, 8)))
    run = pick(rng, RUNS)
    place, other = distinct(rng, range(len(words) - run), 2)
    return Example(
        clean=" ".join(["Words:", *words, *words[place : place + run]]),
        corrupt=" ".join(["Words:", *words, *words[other : other + run]]),
        target=f" {words[place + run]}",
        foil=f" {words[other + run]}",
        group=words[place],
        factors={"length": str(len(words)), "place": str(place), "run": str(run)},
    )


BEHAVIOUR = Behaviour(
    name="induction",
    description="repeat what followed a run of words before",
    words=words_in(WORDS),
    draw=draw,
    natural=draw_list,
)
