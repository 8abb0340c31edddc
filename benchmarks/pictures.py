"""The picture study's speed lines: capture beside plain forwards, and group statistics at the size of Gemma 3 4B.

    python benchmarks/pictures.py [--layers 34] [--features 20480] [--pictures 2000]

* statistics: layers × features × pictures, one feature in eight active, twins, 20 shuffles, tests on held-out pictures. Goal: under
  3 minutes and 4 GB on 2 cores. Making the numbers is not counted.
* capture: all layers, both languages, of the embedded vision-language model (untrained) beside calls of the transformers model
  over the same batches, without the unembedding. Goal: at most 1.05 times.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from circuits.activations.capture import WINDOW, Plan, capture
from circuits.activations.pictures import PictureRows, PictureSamples
from circuits.data.pictures import saved
from circuits.features import bias
from circuits.model_input import made
from circuits.models.load import wrap
from circuits.tiny.vision import spec
from circuits.tiny.vision.pictures import drawn, words
from circuits.tiny.vision.train import new_model

LANGUAGES = ("english", "arabic")


def group_statistics(layers: int, features: int, pictures: int) -> tuple[float, float]:
    """Seconds and the process's peak in GB."""
    rng, spent, tested = np.random.default_rng(0), 0.0, []
    male = np.arange(pictures) % 2 == 0
    label = np.where(male, "male", "female").astype(object)
    split = np.where(np.arange(pictures) // 2 % 3 == 2, "test", "train").astype(object)
    labelled = bias.Labelled(label, split, (np.arange(pictures) // 2).astype(str).astype(object), label)
    values = sparse.random(pictures, features, density=0.125, format="csc", dtype=np.float32, random_state=0)
    present, s = np.ones(pictures, bool), bias.Settings()
    for layer in range(layers):
        mixed = values[:, rng.permutation(features)].tocsc()
        begun = time.perf_counter()
        tested.append(bias.test(mixed, labelled, present, layer, "english", s, 0))
        spent += time.perf_counter() - begun
    begun = time.perf_counter()
    bias.together(tested, s)
    return spent + time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def captured(n: int, rounds: int) -> list[float]:
    """Capture over plain forwards, round by round; pictures and tokens are made before."""
    small = spec.VisionSpec(layers=8, width=256, mlp=1024, vision_width=128, vision_layers=4)
    lm = wrap(new_model(small), spec.build_tokenizer(64), "tiny_vlm", spec.build_processor(64))
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        built, pixels = drawn(LANGUAGES, n, 3, 0, 0.6, 0.6)
        place = Path(folder) / "set"
        place.mkdir()
        saved.write(place, built.pictures, {"languages": list(LANGUAGES), "words": words(LANGUAGES)}, pixels)
        rows = PictureRows(saved.read(place), lm)
        plan = Plan(batch_size=16)
        samples = {language: PictureSamples(rows, language) for language in LANGUAGES}
        for one in samples.values():
            one.window(0, len(one))
        inner = lm.model.model
        keys = [("resid_post", layer) for layer in range(lm.dims.layers)]
        for number in range(rounds):
            took = {}
            for what in ("plain", "capture") if number % 2 else ("capture", "plain"):
                begun = time.perf_counter()
                for language, one in samples.items():
                    if what == "capture":
                        partials = {key: Path(folder) / f"{number}-{language}-{key[1]}" for key in keys}
                        capture(lm, one, partials, plan)
                        continue
                    size = WINDOW * plan.batch_size
                    for start in range(0, len(one), size):
                        tokens = one.window(start, min(start + size, len(one)))
                        for batch in range(0, len(tokens), plan.batch_size):
                            rows = tokens.take(slice(batch, batch + plan.batch_size))
                            given = {name: made(tensor) for name, tensor in rows.extra.items()}
                            with torch.no_grad():
                                inner(input_ids=rows.ids, attention_mask=rows.mask.long(), use_cache=False, **given)
                took[what] = time.perf_counter() - begun
            ratios.append(took["capture"] / took["plain"])
    return ratios


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=34)
    parser.add_argument("--features", type=int, default=20_480)
    parser.add_argument("--pictures", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    seconds, peak = group_statistics(given.layers, given.features, given.pictures)
    ratios = captured(1_000, given.rounds)
    size = f"{given.layers} layers × {given.features:,} features × {given.pictures:,} pictures"
    met = "met" if seconds < 180 and peak < 4 else "missed"
    print("| | measured | goal |\n|---|---|---|")
    print(f"| group statistics, {size} | {seconds:.0f} s, {peak:.1f} GB | < 180 s, 4 GB {met} |")
    middle = statistics.median(ratios)
    met = "met" if middle <= 1.05 else "missed"
    spread = f"{middle:.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
    print(f"| capture of 8 layers, both languages / plain forwards | {spread} | ≤ 1.05 {met} |")


if __name__ == "__main__":
    main()
