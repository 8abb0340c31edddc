"""Drawn pictures, prompts and captions as the embedded model's input, without a processor: for training and measuring it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.model_input import ModelInput, padded
from circuits.tiny.vision import scenes
from circuits.tiny.vision.drawing import Picture
from circuits.tiny.vision.spec import END_TURN, IMAGE, build_processor, vocabulary


def pixels(pictures: Sequence[Picture]) -> Tensor:
    """``[n, 3, 32, 32]`` in -1 … 1: as the processor makes them."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


class Writer:
    """Prompts and captions as token ids."""

    def __init__(self) -> None:
        words = vocabulary()
        self._ids = {word: i for i, word in enumerate(words)}
        processor = build_processor(64)
        self.starts: dict[str, list[int]] = {}
        for language, prompt in scenes.PROMPTS.items():
            text = processor.apply_chat_template(asking(prompt), add_generation_prompt=True)
            text = text.replace(processor.boi_token, processor.full_image_sequence)
            self.starts[language] = processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def caption(self, text: str) -> list[int]:
        """Ids of a caption, with the end of the turn."""
        return [*(self._ids[word] for word in text.split()), self._ids[END_TURN]]

    def rows(self, sequences: Sequence[list[int]], pictures: Tensor) -> ModelInput:
        """Padded rows with their pictures."""
        found = padded(sequences)
        kinds = (found.ids == self._ids[IMAGE]).long()
        return ModelInput(found.ids, found.mask, found.samples, {"pixel_values": pictures, "token_type_ids": kinds})


def asking(prompt: str) -> list[dict[str, Any]]:
    """A conversation in which a picture is shown and `prompt` asked."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
