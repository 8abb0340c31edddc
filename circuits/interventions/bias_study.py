"""What a model says of pictures when its gender-biased features are ablated, amplified or projected out, beside matched controls.

Features are chosen on training pictures (:mod:`circuits.interventions.bias_choice`), effects measured on test pictures and put
together in :mod:`circuits.interventions.bias_effects`. Two measurements that are never mixed:

* **reconstruction**: per picture the mean over tokens of ‖decode(f) − decode(f with the set scaled)‖₂, and the same over ‖x‖, since
  norms grow with depth. It says how much of the stream the features write, nothing of what the model does.
* **causal**: preferences and captions (:mod:`circuits.interventions.captioning`) with the edit in the model. Over *open* pictures
  (whose gender is not to be seen): the distance to parity |P(male) − 1/2|, and how much the place still decides. Over *seen* ones:
  agreement with the picture, and P of what is seen. Text: the rate of gender words, −log p a token under the model without edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from circuits.activations.pictures import PictureRows
from circuits.data.journal import Journal
from circuits.interventions import captioning, feature_edits
from circuits.interventions.bias_choice import Condition
from circuits.interventions.captioning import Asked, Hooks
from circuits.interventions.generation import nll
from circuits.model_input import ModelInput
from circuits.models.hooks import Edit, forward
from circuits.models.load import LM
from circuits.sae.modules import SAE


@dataclass
class Study:
    """What a study works on."""

    lm: LM
    rows: PictureRows
    pictures: tuple[int, ...]
    saes: dict[int, SAE]
    site: str
    skip_first: int
    batch_size: int
    seed: int
    steps: int
    caption_controls: int = 0
    """Random sets of each edit under which captions are written, beside the edit itself."""
    resamples: int = 1000
    journal: Journal = field(default_factory=Journal)

    def hooks(self, one: Condition) -> Hooks:
        """The condition's edits, for any rows."""

        def made(rows: ModelInput) -> list[Edit]:
            chosen = {layer: one.features[layer] for layer in one.layers}
            return feature_edits.edits(
                self.saes, dict(chosen), self.site, rows, kind=one.kind, factor=one.factor, skip_first=self.skip_first
            )

        return made


def run(study: Study, languages: Sequence[str], wanted: Sequence[Condition]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Effects (a row for each condition, language and picture) and captions; of controls preferences, and captions of the first."""
    effects, texts, journal = [], [], study.journal
    for language in languages:
        asked = captioning.ask(
            study.lm, study.rows, study.pictures, language, study.steps, study.batch_size, journal, language
        )
        base = captioning.preferences(study.lm, study.rows, asked, study.batch_size, journal, language)
        effects.append(_frame(asked, None, base, base))
        texts.append(_texts(study, asked, None, asked.said, language))
        ways = [(min(one.layers), study.hooks(one)) for one in wanted]
        measured = captioning.preferences_under(
            study.lm, study.rows, asked, study.batch_size, ways, journal, f"{language}/edited"
        )
        names = {n: f"{language}/{n}" for n, one in enumerate(wanted) if one.control <= study.caption_controls}
        said = captioning.captions(
            study.lm, study.rows, asked.pictures, asked.starts, study.steps, study.batch_size,
            [(name, study.hooks(wanted[n])) for n, name in names.items()], journal,
        )  # fmt: skip
        written = dict(zip(names, said, strict=True))
        for number, (one, found) in enumerate(zip(wanted, measured, strict=True)):
            frame = _frame(asked, one, base, found)
            if number in names:
                name = names[number]
                texts.append(_texts(study, asked, one, written[number], name))
                if one.kind == "scale" and not one.control:
                    frame["recon"], frame["recon_share"] = reconstruction_change(study, asked, one, name)
            effects.append(frame)
    journal.end()
    return pd.concat(effects, ignore_index=True), pd.concat(texts, ignore_index=True)


@torch.inference_mode()
def reconstruction_change(
    study: Study, asked: Asked, one: Condition, name: str = ""
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per picture: the mean over its prompt's tokens of the change's norm, and of its share of the stream's; summed over layers."""

    def some(part: range) -> Tensor:
        total, share = np.zeros(len(part)), np.zeros(len(part))
        rows = study.rows.of_ids([asked.starts[i] for i in part], [asked.pictures[i] for i in part])
        found = forward(study.lm, rows, capture=[(study.site, layer) for layer in one.layers]).sites
        counted = rows.after(study.skip_first)
        for layer in one.layers:
            sae, x = study.saes[layer], found[study.site, layer].flatten(2)
            flat = x[counted.to(x.device)].float()
            moved = feature_edits.change(sae, one.features[layer], one.factor, flat.to(sae.W_enc.device))
            size = moved.float().norm(dim=-1).cpu().double().numpy()
            owner = counted.nonzero()[:, 0].numpy()
            n = np.bincount(owner, minlength=len(part))
            total += np.bincount(owner, weights=size, minlength=len(part)) / n
            relative = size / flat.norm(dim=-1).cpu().double().numpy()
            share += np.bincount(owner, weights=relative, minlength=len(part)) / n
        return torch.from_numpy(np.stack([total, share]))

    parts = [study.journal.step(f"{name}/recon/{part.start}", partial(some, part)) for part in _parts(study, asked)]
    total, share = torch.cat(parts, 1).numpy()
    return total, share


def _parts(study: Study, asked: Asked) -> list[range]:
    """The pictures of each batch."""
    n, size = len(asked.pictures), study.batch_size
    return [range(first, min(first + size, n)) for first in range(0, n, size)]


def _named(one: Condition | None) -> dict[str, Any]:
    if one is None:
        return {"condition": "none", "layers": "", "which": "", "kind": "none", "factor": 1.0, "control": 0}
    return {
        "condition": one.name,
        "layers": "+".join(map(str, one.layers)),
        "which": one.which,
        "kind": one.kind,
        "factor": one.factor,
        "control": one.control,
    }


def _frame(asked: Asked, one: Condition | None, base: NDArray[np.float64], found: NDArray[np.float64]) -> pd.DataFrame:
    return pd.DataFrame(
        {**_named(one), "language": asked.language, "picture": asked.pictures, "base": base, "preference": found}
    )


def _texts(
    study: Study, asked: Asked, one: Condition | None, said: Sequence[tuple[int, ...]], name: str
) -> pd.DataFrame:
    shown = [captioning.decoded(study.lm, ids) for ids in said]
    fluency = _nll(study, asked, said, name)
    return pd.DataFrame(
        {
            **_named(one),
            "language": asked.language,
            "picture": asked.pictures,
            "caption": shown,
            "says": [captioning.lexicon.label(text, asked.language) for text in shown],
            "gender_words": [sum(captioning.lexicon.counts(text, asked.language).values()) for text in shown],
            "tokens": [len(ids) for ids in said],
            "nll": fluency,
        }
    )


def _nll(study: Study, asked: Asked, said: Sequence[tuple[int, ...]], name: str) -> list[float]:
    def some(part: range) -> Tensor:
        def inputs(numbers: Sequence[int], sequences: Sequence[tuple[int, ...]]) -> ModelInput:
            return study.rows.of_ids(sequences, [asked.pictures[part[i]] for i in numbers], numbers)

        starts, texts = [asked.starts[i] for i in part], [said[i] for i in part]
        return torch.tensor(nll(study.lm, starts, texts, inputs=inputs, batch_size=len(part)), dtype=torch.float64)

    parts = [study.journal.step(f"{name}/nll/{part.start}", partial(some, part)) for part in _parts(study, asked)]
    return [float(x) for part in parts for x in part]
