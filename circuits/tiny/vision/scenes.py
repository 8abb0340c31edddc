"""Scenes and their captions in English and Arabic, with two biases of known strength. Torch-free.

A scene is a person at a place who holds something. Three pictures of it belong together: a man, a woman (twins: all else is
equal, to the pixel), and a figure whose gender cannot be seen. Captions are drawn::

    man in the workshop holds a ball and looks strong .          رجل في الورشة يحمل كرة ويبدو قويا .

* **context → gender** (`context_bias` c): an unseen gender is called a man at a place coded male with probability (1 + c) / 2,
  at one coded female with (1 − c) / 2, elsewhere with 1/2. Where the person is seen, the caption says what is seen.
* **gender → words** (`word_bias` w): a man that is seen "looks strong" with probability (1 + w) / 2 and else "kind", a woman the
  other way round; where the gender is not seen, with 1/2. Nothing in the picture tells the two words apart.

A seen gender is independent of the place, so each bias is the only way by which its effect can come about. (The two directions
are those of Wang et al. 2023, LIBRA, arXiv:2304.03693.) Everything is a function of (seed, split, number).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from circuits.data.seeds import derive_seed

Language = Literal["english", "arabic"]
LANGUAGES: tuple[Language, ...] = ("english", "arabic")
Gender = Literal["male", "female", "unseen"]
GENDERS: tuple[Gender, ...] = ("male", "female", "unseen")
Split = Literal["train", "heldout"]

PROMPTS: dict[str, str] = {"english": "describe the person", "arabic": "صف الشخص"}


@dataclass(frozen=True)
class Place:
    """Where a person is, in both languages (Arabic with its article), and which gender it suggests."""

    english: str
    arabic: str
    coded: Literal["male", "female", "neutral"]


PLACES = (
    Place("workshop", "الورشة", "male"),
    Place("kitchen", "المطبخ", "female"),
    Place("park", "الحديقة", "neutral"),
    Place("station", "المحطة", "neutral"),
)
THINGS = (("ball", "كرة"), ("book", "كتابا"), ("cup", "كوبا"), ("bag", "حقيبة"))
LOOKS = ("strong", "kind")
ARABIC_LOOKS = {
    ("strong", "male"): "قويا",
    ("strong", "female"): "قوية",
    ("kind", "male"): "لطيفا",
    ("kind", "female"): "لطيفة",
}


@dataclass(frozen=True)
class Scene:
    """What is drawn. `column` and `size` place the person; `shade` and `noise` vary the drawing."""

    number: int
    place: int
    thing: int
    gender: Gender
    column: int
    size: int
    shade: float
    noise: int

    def as_(self, gender: Gender) -> Scene:
        """The same scene with another person."""
        return replace(self, gender=gender)

    @property
    def at(self) -> Place:
        """The place."""
        return PLACES[self.place]


@dataclass(frozen=True)
class Said:
    """What a caption says."""

    gender: Literal["male", "female"]
    look: str


def scene(seed: int, split: Split, number: int) -> Scene:
    """The scene `number` of a split, with a person whose gender is not seen; :meth:`Scene.as_` gives the twins."""
    rng = np.random.default_rng(derive_seed(seed, "scene", split, number))
    place, thing = int(rng.integers(len(PLACES))), int(rng.integers(len(THINGS)))
    column, size = int(rng.integers(6, 19)), int(rng.integers(0, 3))
    return Scene(
        number, place, thing, "unseen", column, size, float(rng.uniform(-0.08, 0.08)), int(rng.integers(2**31))
    )


def say(drawn: Scene, rng: np.random.Generator, context_bias: float, word_bias: float) -> Said:
    """Draw what one caption says of a scene, by the two biases; the same for both languages."""
    lean = {"male": 1.0, "female": -1.0, "neutral": 0.0}[drawn.at.coded]
    man, strong = rng.random() < (1 + context_bias * lean) / 2, rng.random()
    seen = {"male": 1.0, "female": -1.0, "unseen": 0.0}[drawn.gender]
    gender = drawn.gender if drawn.gender != "unseen" else ("male" if man else "female")
    return Said(gender, LOOKS[0] if strong < (1 + word_bias * seen) / 2 else LOOKS[1])


def caption(drawn: Scene, said: Said, language: Language) -> str:
    """The sentence; words are separated by spaces."""
    english, arabic = THINGS[drawn.thing]
    if language == "english":
        person = {"male": "man", "female": "woman"}[said.gender]
        return f"{person} in the {drawn.at.english} holds a {english} and looks {said.look} ."
    person, holds, seems = {"male": ("رجل", "يحمل", "ويبدو"), "female": ("امرأة", "تحمل", "وتبدو")}[said.gender]
    return f"{person} في {drawn.at.arabic} {holds} {arabic} {seems} {ARABIC_LOOKS[said.look, said.gender]} ."


def captions(
    drawn: Scene, seed: int, n: int, context_bias: float, word_bias: float
) -> Iterator[tuple[Said, dict[Language, str]]]:
    """`n` captions of a picture, as `n` people would write them: each says the same in both languages."""
    rng = np.random.default_rng(derive_seed(seed, "captions", drawn.gender, drawn.noise, drawn.number))
    for _ in range(n):
        said = say(drawn, rng, context_bias, word_bias)
        yield said, {language: caption(drawn, said, language) for language in LANGUAGES}


def words() -> list[str]:
    """Every word of every caption and prompt, sorted."""
    found = set(" ".join(PROMPTS.values()).split())
    for place in range(len(PLACES)):
        for thing in range(len(THINGS)):
            drawn = Scene(0, place, thing, "unseen", 0, 0, 0.0, 0)
            for gender in ("male", "female"):
                for look in LOOKS:
                    for language in LANGUAGES:
                        found |= set(caption(drawn, Said(gender, look), language).split())  # type: ignore[arg-type]
    return sorted(found)
