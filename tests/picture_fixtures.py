"""An untrained embedded vision-language model and drawn pictures, for tests of what is done with pictures."""

from __future__ import annotations

import pytest

from circuits.data.pictures import saved
from circuits.models.load import LM, wrap
from circuits.tiny.vision import spec
from circuits.tiny.vision.pictures import drawn, words
from circuits.tiny.vision.train import new_model

BOTH = ("english", "arabic")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> tuple[LM, saved.PictureSet]:
    """An untrained embedded vision-language model, and a set of drawn pictures."""
    small = spec.VisionSpec(layers=2)
    lm = wrap(new_model(small), spec.build_tokenizer(64), "tiny_vlm", spec.build_processor(64))
    folder = tmp_path_factory.mktemp("set")
    built, pixels = drawn(BOTH, 30, 12, 0, 0.6, 0.6)
    saved.write(folder, built.pictures, {"languages": list(BOTH), "words": words(BOTH)}, pixels)
    return lm, saved.read(folder)
