"""Induction (Elhage et al. 2021; Olsson et al. 2022, "In-context learning and induction heads").

"river stone lamp cloud stone" -> " lamp": different random words, then one or two of them again; what followed before
follows again, in training text up to the end of the sequence. Length, place and run vary, so the answer is at no fixed
distance. Corrupt: a run from another place is repeated, and the word after that one is the foil.

Ten words are few on purpose: a small model finds the circuit within some 15,000 sequences of twelve words and has not
found it after 19,000 of twenty-four. Unseen means: this sequence of words was never trained on.

Natural: a longer list and a second pass over it, which is how induction is measured in models of natural language.
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
NATURAL_LENGTHS = (14, 15, 16)
SHOWN = (6, 7, 8, 9, 10)  # words of the second pass: with fewer a real model is not yet sure that it is one


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


def draw_repeated(rng: np.random.Generator) -> Example:
    """Random words and a second pass over them from the first one on (Olsson et al. 2022), for models of natural language.

    Clean and corrupt differ in the first pass alone, where the word that is to follow and a later one change places: each stands
    once in either prompt, so only what followed the last word before tells which is right. An opening gives every word a space
    before it, and hence one token.
    """
    words = distinct(rng, MORE_WORDS, pick(rng, NATURAL_LENGTHS))
    shown = pick(rng, SHOWN)
    later = pick(rng, range(shown + 1, len(words)))
    second = words[:shown]
    exchanged = list(words)
    exchanged[shown], exchanged[later] = words[later], words[shown]
    return Example(
        clean=" ".join(["Words:", *words, *second]),
        corrupt=" ".join(["Words:", *exchanged, *second]),
        target=f" {words[shown]}",
        foil=f" {words[later]}",
        group=second[-1],
        factors={"length": str(len(words)), "shown": str(shown), "apart": str(later - shown)},
    )


BEHAVIOUR = Behaviour(
    name="induction",
    description="repeat what followed a run of words before",
    words=words_in(WORDS),
    draw=draw,
    natural=draw_repeated,
)
