"""Drawn scenes as a set of pictures: what the embedded vision-language model is studied on. Torch-free.

Each scene gives three pictures of one group: two twins and one with an unseen gender. Training pictures come from the training
scenes, test pictures from scenes that the model has not been trained on; captions are drawn by the planted biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from circuits.data.pictures import lexicon
from circuits.data.pictures.saved import Picture
from circuits.data.pictures.table import Built
from circuits.tiny.vision import scenes
from circuits.tiny.vision.drawing import Picture as Drawn
from circuits.tiny.vision.drawing import draw

CAPTIONS = 3
"""Of each picture."""


def drawn(
    languages: Sequence[str], n: int, n_test: int, seed: int, context_bias: float, word_bias: float
) -> tuple[Built, dict[str, np.ndarray]]:
    """`n` training and `n_test` test pictures (rounded up to whole scenes), and their pixels ``[n, 32, 32, 3]``: as they are,
    without the person (``masked``), at a place that suggests no gender (``swapped``)."""
    found: list[Picture] = []
    pixels: dict[str, list[Drawn]] = {"": [], "masked": [], "swapped": []}
    for split, side, many in (("train", "train", n), ("test", "heldout", n_test)):
        for number in range(-(-many // len(scenes.GENDERS))):
            one = scenes.scene(seed, side, number)  # type: ignore[arg-type]
            for gender in scenes.GENDERS:
                found.append(_picture(one.as_(gender), split, languages, seed, context_bias, word_bias))
                shown = one.as_(gender)
                pixels[""].append(draw(shown))
                pixels["masked"].append(draw(shown, person=False))
                pixels["swapped"].append(draw(replace(shown, place=_neutral(one))))
    return Built(found, {}), {name: np.stack(each) for name, each in pixels.items()}


def _neutral(one: scenes.Scene) -> int:
    """A place that suggests no gender, for a control: each scene's own, by its number."""
    neutral = [i for i, place in enumerate(scenes.PLACES) if place.coded == "neutral"]
    return neutral[one.number % len(neutral)]


def words(languages: Sequence[str]) -> dict[str, list[list[str]]]:
    """The two attribute words of each language in all their forms."""
    arabic = [
        sorted({form for (word, _), form in scenes.ARABIC_LOOKS.items() if word == look}) for look in scenes.LOOKS
    ]
    forms = {"english": [[look] for look in scenes.LOOKS], "arabic": arabic}
    return {language: forms[language] for language in languages}


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
