"""Pictures as a model's input: prompts with their picture for capture, captioned pictures as the stream that SAEs are trained on.

A row is what the model's own chat template and processor make of a picture and a prompt (and the caption as the answer, where it is
trained on). How many tokens stand for a picture is fixed by the model (256 of Gemma 3), so token ids depend on the text alone and
are made once a text; pixels are made when a pass needs them, and kept while they fit into `PIXELS_BYTES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.data.pictures.saved import PictureSet
from circuits.data.seeds import derive_seed
from circuits.errors import UserError
from circuits.model_input import Later, ModelInput, padded
from circuits.models.load import LM

PIXELS_BYTES = 512 << 20


def image_token(lm: LM) -> int:
    """The id that stands for a part of a picture.

    Raises:
        UserError: the model takes no pictures.
    """
    config: Any = lm.model.config
    found = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    if lm.processor is None or found is None:
        raise UserError(
            f"{lm.name}: a language model that takes no pictures; choose a vision-language model (model=tiny_vlm, "
            "gemma-3-4b-it), or a behaviour of text"
        )
    return int(found)


class PictureRows:
    """Rows of a set of pictures, for one model; `control`: with other pictures in their place (:meth:`PictureSet.image`)."""

    def __init__(self, pictures: PictureSet, lm: LM, control: str | None = None) -> None:
        if not len(pictures):
            raise UserError("no picture in the set")
        self.pictures, self._processor, self._token = pictures, lm.processor, image_token(lm)
        self._ids: dict[str, list[int]] = {}
        self._control = control
        self._pixels: dict[int, Tensor] = {}

    def text(self, picture: int, language: str, caption: str | None = None) -> str:
        """The conversation: the picture and its prompt, and the caption as the answer where there is one."""
        one = self.pictures[picture]
        asked = [{"type": "image"}, {"type": "text", "text": one.prompts[language]}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": asked}]
        if caption is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": caption}]})
        found: str = self._processor.apply_chat_template(messages, add_generation_prompt=caption is None)
        return found

    def rows(self, texts: Sequence[str], pictures: Sequence[int], samples: Sequence[int] | None = None) -> ModelInput:
        """These conversations with their pictures, padded on the right."""
        return self.of_ids([self.ids(text) for text in texts], pictures, samples)

    def of_ids(
        self, sequences: Sequence[Sequence[int]], pictures: Sequence[int], samples: Sequence[int] | None = None
    ) -> ModelInput:
        """The same of token ids: conversations that are being written."""
        found = padded(sequences, samples)
        shown = (found.ids == self._token) & found.mask
        extra: dict[str, Tensor | Later] = {
            "pixel_values": Later(self._stacked, pictures),
            "token_type_ids": shown.long(),
        }
        return ModelInput(found.ids, found.mask, found.samples, extra, shown)

    def _stacked(self, pictures: Sequence[int]) -> Tensor:
        return torch.stack([self.pixels(picture) for picture in pictures])

    def without_pictures(self, sequences: Sequence[Sequence[int]]) -> ModelInput:
        """The same without pixels, for a pass that goes on from what the model has already seen."""
        found = padded(sequences)
        shown = (found.ids == self._token) & found.mask
        return ModelInput(found.ids, found.mask, found.samples, {"token_type_ids": shown.long()}, shown)

    def ids(self, text: str) -> list[int]:
        """The token ids of a conversation."""
        if text not in self._ids:
            from PIL import Image

            made = self._processor(text=[text], images=[[Image.new("RGB", (32, 32))]], return_tensors="pt")
            ids = made["input_ids"][0]
            if not torch.equal(made.get("token_type_ids", ids[None])[0], (ids == self._token).long()):
                raise UserError(
                    f"{type(self._processor).__name__}: its token types are not those of image tokens, as Gemma 3's are; such "
                    "models are not read yet"
                )
            self._ids[text] = ids.tolist()
        return self._ids[text]

    def pixels(self, picture: int) -> Tensor:
        """``[channels, height, width]`` as the model takes them."""
        if picture in self._pixels:
            return self._pixels[picture]
        image = self.pictures.image(picture, self._control)
        found: Tensor = self._processor.image_processor(images=[[image]], return_tensors="pt")["pixel_values"][0]
        if len(self._pixels) * found.nbytes < PIXELS_BYTES:
            self._pixels[picture] = found
        return found


class PictureSamples:
    """Every picture of a set with its prompt in one language, in the set's order: what is captured of a behaviour."""

    name = "the pictures"

    def __init__(self, rows: PictureRows, language: str) -> None:
        if language not in rows.pictures.languages:
            raise UserError(
                f"activations.language={language}: the pictures are asked in {' '.join(rows.pictures.languages)}"
            )
        self.made, self.pictures, self.language = rows, rows.pictures, language
        self._factors = sorted({factor for one in self.pictures for factor in one.factors})

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(self.made.ids(text)) for text in {self.made.text(i, self.language) for i in range(len(self))})

    def window(self, start: int, stop: int) -> ModelInput:
        numbers = range(start, stop)
        return self.made.rows([self.made.text(i, self.language) for i in numbers], numbers, numbers)

    def names(self, start: int, stop: int) -> list[str]:
        return [f"{one.id}/{self.language}" for one in self.pictures.pictures[start:stop]]

    def columns(self, start: int, stop: int) -> dict[str, list[Any]]:
        chosen = self.pictures.pictures[start:stop]
        columns: dict[str, list[Any]] = {
            "sample_id": [one.id for one in chosen],
            "split": [one.split for one in chosen],
            "group": [one.group for one in chosen],
            "language": [self.language] * len(chosen),
            "factor.label": [one.label for one in chosen],
        }
        for factor in self._factors:
            columns[f"factor.{factor}"] = [one.factors.get(factor) for one in chosen]
        return columns


class PictureSource:
    """A :class:`circuits.data.tokens.TokenSource`: training pictures with their captions, in every language alike, endlessly.

    Each pass goes through every (picture, language) once, in an order of its own, with a caption drawn anew. Held-out sequences are
    the test pictures, language by language within a picture, with their first caption.
    """

    def __init__(self, rows: PictureRows, seed: int) -> None:
        self._rows, self._seed = rows, seed
        languages = rows.pictures.languages
        self._train = [(i, language) for i in rows.pictures.where("train") for language in languages]
        splits = {one.split for one in rows.pictures}
        self._test = [(i, lang) for i in rows.pictures.where("test") for lang in languages] if "test" in splits else []
        self.name = f"{len(rows.pictures)} pictures with captions ({' '.join(languages)})"

    @cached_property
    def context(self) -> int:
        """Tokens of the longest sequence."""
        shown = self._rows.pictures
        texts = {self._rows.text(i, lang, text) for i, lang in self._train for text in shown[i].captions[lang][:1]}
        return max(len(self._rows.ids(text)) for text in texts)

    def block(self, index: int, n: int) -> ModelInput:
        """Sequences ``index * n … (index + 1) * n - 1``; a sample is the place of its picture in the set."""
        first, total = index * n, len(self._train)
        chosen = []
        for turn in range(first // total, (first + n - 1) // total + 1):
            rng = np.random.default_rng(derive_seed(self._seed, "pictures", "block", turn))
            order, captions = rng.permutation(total), rng.random(total)
            here = range(max(first - turn * total, 0), min(first + n - turn * total, total))
            chosen += [(*self._train[order[i]], float(captions[i])) for i in here]
        return self._sequences(chosen)

    def heldout(self, n: int) -> ModelInput:
        """The first `n` sequences of test pictures."""
        if not self._test:
            raise UserError("no test picture to measure on; raise behaviour.n_test")
        return self._sequences([(*one, 0.0) for one in self._test[:n]])

    def passes(self, index: int, n: int) -> float:
        """How often the training pictures were gone through before ``block(index, n)``."""
        return index * n / len(self._train)

    def describe(self, sample: int) -> str:
        """The picture's own name."""
        return self._rows.pictures[sample].id

    def _sequences(self, chosen: Sequence[tuple[int, str, float]]) -> ModelInput:
        texts = []
        for picture, language, draw in chosen:
            captions = self._rows.pictures[picture].captions[language]
            caption = captions[int(draw * len(captions))] if captions else None
            texts.append(self._rows.text(picture, language, caption))
        numbers = [picture for picture, *_ in chosen]
        found = self._rows.rows(texts, numbers, numbers)
        questions = [len(self._rows.ids(self._rows.text(picture, language))) for picture, language, _ in chosen]
        return replace(found, asked=torch.arange(found.ids.shape[1]) < torch.tensor(questions)[:, None])
