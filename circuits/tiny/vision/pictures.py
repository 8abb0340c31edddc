"""Drawn scenes as a set of pictures: what the embedded vision-language model is studied on. Torch-free.

Each scene gives three pictures of one group: two twins and one with an unseen gender. Training pictures come from the training
scenes, test pictures from scenes that the model has not been trained on; captions are drawn by the planted biases.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from circuits.data.pictures import lexicon
from circuits.data.pictures.saved import Picture
from circuits.data.pictures.table import Built
from circuits.tiny.vision import scenes
from circuits.tiny.vision.drawing import draw

CAPTIONS = 3
"""Of each picture."""


def drawn(
    languages: Sequence[str], n: int, n_test: int, seed: int, context_bias: float, word_bias: float
) -> tuple[Built, np.ndarray]:
    """`n` training and `n_test` test pictures (rounded up to whole scenes), and their pixels ``[n, 32, 32, 3]``."""
    found, pixels = [], []
    for split, side, many in (("train", "train", n), ("test", "heldout", n_test)):
        for number in range(-(-many // len(scenes.GENDERS))):
            one = scenes.scene(seed, side, number)  # type: ignore[arg-type]
            for gender in scenes.GENDERS:
                found.append(_picture(one.as_(gender), split, languages, seed, context_bias, word_bias))
                pixels.append(draw(one.as_(gender)))
    return Built(found, {}), np.stack(pixels)


def _picture(
    one: scenes.Scene, split: str, languages: Sequence[str], seed: int, context_bias: float, word_bias: float
) -> Picture:
    said = list(scenes.captions(one, seed, CAPTIONS, context_bias, word_bias))
    captions = {language: [texts[language] for _, texts in said] for language in languages}  # type: ignore[index]
    labels = {
        language: lexicon.vote(lexicon.label(text, language) for text in texts) for language, texts in captions.items()
    }
    return Picture(
        id=f"{split}-{one.number}-{one.gender}",
        split=split,
        group=f"{split}-{one.number}",
        label=lexicon.together(labels),
        labels=labels,
        captions=captions,
        prompts={language: scenes.PROMPTS[language] for language in languages},
        factors={
            "seen": one.gender,
            "place": one.at.english,
            "coded": one.at.coded,
            "thing": scenes.THINGS[one.thing][0],
        },
    )
