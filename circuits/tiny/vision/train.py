"""Training of the embedded vision-language model: next-token loss on the captions of drawn scenes, both languages alike.

Each step draws pictures from a pool of training scenes and a caption for each anew, so that a bias is learned as a probability and
not as the caption of a picture. Loss counts on the caption's tokens alone. AdamW, linear warm-up, a constant rate, linear decay to
zero, gradient norm clipped at 1. Every draw comes from generators derived from `spec.seed`; with equal numbers of threads two
trainings are equal bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from circuits.data.keeper import Keeper, State
from circuits.data.seeds import derive_seed
from circuits.errors import NonFinite
from circuits.files import write_json
from circuits.model_input import ModelInput
from circuits.tiny.keeping import Progress, adam_state, quiet_saving, run, take_up
from circuits.tiny.vision import scenes
from circuits.tiny.vision.drawing import draw
from circuits.tiny.vision.measure import measure
from circuits.tiny.vision.rows import Writer, pixels
from circuits.tiny.vision.spec import (
    VERSION,
    VisionSpec,
    build_processor,
    hf_config,
)


class Fit:
    """A training of `model` in place, that can be taken up at any step."""

    def __init__(self, model: Any, spec: VisionSpec) -> None:
        self.model, self.spec, self.writer, self.taken = model, spec, Writer(), 0
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=spec.lr, betas=(0.9, 0.98), weight_decay=spec.weight_decay, fused=True
        )
        self._drawn = [
            one.as_(gender)
            for number in range(spec.pool)
            for one in [scenes.scene(spec.seed, "train", number)]
            for gender in scenes.GENDERS
        ]
        self._pixels = pixels([draw(one) for one in self._drawn])

    @property
    def end(self) -> int:
        """Steps in all."""
        return self.spec.steps

    def batch(self, step: int) -> tuple[ModelInput, Tensor]:
        """The rows of a step, and which of their tokens count."""
        spec = self.spec
        rng = np.random.default_rng(derive_seed(spec.seed, "tiny_vlm", "batch", step))
        chosen = rng.choice(len(self._drawn), spec.batch)
        sequences, begins = [], []
        for i, number in enumerate(chosen):
            one, language = self._drawn[number], scenes.LANGUAGES[i % len(scenes.LANGUAGES)]
            said = scenes.say(one, rng, spec.context_bias, spec.word_bias)
            start = self.writer.starts[language]
            sequences.append(start + self.writer.caption(scenes.caption(one, said, language)))
            begins.append(len(start))
        rows = self.writer.rows(sequences, self._pixels[chosen])
        return rows, rows.mask & (torch.arange(rows.ids.shape[1]) >= torch.tensor(begins)[:, None])

    def step(self) -> dict[str, float]:
        """One step; its loss."""
        spec, step = self.spec, self.taken
        rows, counted = self.batch(step)
        logits = self.model(
            input_ids=rows.ids,
            attention_mask=rows.mask.long(),
            position_ids=rows.positions,
            use_cache=False,
            **rows.extra,
        ).logits
        loss = F.cross_entropy(logits[:, :-1][counted[:, 1:]], rows.ids[:, 1:][counted[:, 1:]])
        value = loss.item()
        if not math.isfinite(value):
            raise NonFinite(f"loss of the embedded model is {value} at step {step}; lower its lr ({spec.lr})")
        for group in self.optimizer.param_groups:
            group["lr"] = spec.lr * min(1.0, (step + 1) / spec.warmup, (spec.steps - step) / spec.decay)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.taken += 1
        return {"loss": value}

    def state(self) -> State:
        """What :meth:`load` takes."""
        return adam_state(self.model, self.optimizer), {"taken": self.taken}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`, bit by bit."""
        take_up(self.model, self.optimizer, tensors)
        self.taken = int(facts["taken"])


@dataclass(frozen=True)
class Trained:
    """The trained model, its processor, and what was measured of it."""

    model: Any
    processor: Any
    measured: dict[str, Any]

    def save(self, out: Path) -> None:
        """A model's directory, with accuracy.json."""
        out.mkdir(parents=True, exist_ok=True)
        with quiet_saving():
            self.model.save_pretrained(out)
            self.processor.save_pretrained(out)
        write_json(out / "accuracy.json", self.measured)

    def told(self) -> str:
        """What was measured, in a line."""
        return "  ".join(f"{name} {value:.3f}" for name, value in self.measured.items())


def new_model(spec: VisionSpec) -> Any:
    """The model at its random start; the caller's random state is left as it was."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(spec.seed, "tiny_vlm", "init"))
        return Gemma3ForConditionalGeneration(Gemma3Config(**hf_config(spec))).float()


def train(spec: VisionSpec, *, progress: Progress | None = None, keeper: Keeper[str] | None = None) -> Trained:
    """Train the model and measure it, with as many threads as torch is set to.

    `progress` gets (steps done, steps in all, {"loss": …}); `keeper`: where the training is kept ("training"), it may end it.
    """
    model, keeper = new_model(spec), keeper or Keeper()
    training = Fit(model, spec)
    run(training, {**asdict(spec), "version": VERSION}, progress, keeper)
    with keeper.cutting():
        measured = measure(model, training.writer, spec)
    return Trained(model, build_processor(spec.max_positions), measured)
