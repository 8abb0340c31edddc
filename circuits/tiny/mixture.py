"""The text the embedded model is trained on: sentences of all behaviours, as a function of (seed, index).

A sentence is a prompt, its answer, what follows from it and a full stop. All behaviours are equally likely, unless the caller
says otherwise (training asks for more of what is not yet learned). Training sentences come only from texts on the training
side of the split, held-out ones only from the other (`behaviours.split`), so no clean prompt is ever on both sides. Torch-free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from circuits.data.behaviours import embedded
from circuits.data.behaviours.base import WORD, Split, draw_from
from circuits.data.seeds import derive_seed

END = "."


class Sentence(NamedTuple):
    """A prompt, its answer, what follows from it, and a full stop."""

    text: str
    behaviour: str
    answer: str
    place: int
    """Number of words before the answer."""


def sentences(
    seed: int, index: int, n: int, split: Split = "train", shares: Mapping[str, float] | None = None
) -> list[Sentence]:
    """Block `index` of `n` sentences: the same for the same arguments, whatever was asked for before.

    `shares`: behaviour -> how often it is drawn relative to the others (default: all alike).
    """
    rng = np.random.default_rng(derive_seed(seed, "mixture", split, index))
    behaviours = list(embedded().values())
    edges = list(accumulate(shares[b.name] if shares else 1.0 for b in behaviours))
    which = np.searchsorted(edges, rng.random(n) * edges[-1], side="right")
    found = []
    for i in which:
        example = draw_from(behaviours[i], rng, split)
        text = f"{example.clean}{example.target}{example.rest}{END}"
        found.append(Sentence(text, behaviours[i].name, example.target, len(WORD.findall(example.clean))))
    return found


def words() -> list[str]:
    """Every word that can occur, sorted."""
    return sorted({END}.union(*(b.words for b in embedded().values())))


def fingerprint() -> str:
    """Changes when a behaviour, a word or a generator does: what a model trained on this mixture depends on.

    Names and words enter directly, generators through 64 sentences of each side.
    """
    declared = [f"{b.name} {' '.join(b.words)}" for b in embedded().values()]
    sample = [s.text for side in ("train", "heldout") for s in sentences(0, 0, 64, side)]  # type: ignore[arg-type]
    return hashlib.sha256("\n".join([WORD.pattern, *declared, *sample]).encode()).hexdigest()
