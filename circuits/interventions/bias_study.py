"""What a model says of pictures when its gender-biased features are ablated, amplified or projected out, beside matched controls.

Features are chosen on training pictures (``bias_stats``), effects measured on test pictures: at each layer the sets ``male``,
``female`` (the first of each side) and ``both``. Two measurements that are never mixed:

* **reconstruction**: per picture the mean over tokens of ‖decode(f) − decode(f with the set scaled)‖₂, and the same over ‖x‖, since
  norms grow with depth. It says how much of the stream the features write, nothing of what the model does.
* **causal**: preferences and captions (:mod:`circuits.interventions.captioning`) with the edit in the model. Over *open* pictures
  (whose gender is not to be seen): the distance to parity |P(male) − 1/2|, and how much the place still decides. Over *seen* ones:
  agreement with the picture, and P of what is seen. Text: the rate of gender words, −log p a token under the model without edits.

Controls are random sets of equal size, drawn among the features nearest in activation to each of the set's, measured the same way.
An effect's p is the larger of two: paired over pictures (Wilcoxon, two-sided) and among the controls, (1 + hits) / (R + 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import wilcoxon
from torch import Tensor

from circuits.activations.pictures import PictureRows
from circuits.data.journal import Journal
from circuits.data.pictures.saved import PictureSet
from circuits.data.seeds import derive_seed
from circuits.interventions import captioning, feature_edits
from circuits.interventions.captioning import Asked, Hooks
from circuits.interventions.generation import nll
from circuits.model_input import ModelInput
from circuits.models.hooks import Edit, forward
from circuits.models.load import LM
from circuits.sae.modules import SAE
from circuits.stats.groups import difference_intervals
from circuits.stats.many import Clustered, corrected, intervals

SETS = ("male", "female", "both")
NEAREST = 30
"""Features nearest in activation, among which a control is drawn."""


@dataclass(frozen=True)
class Condition:
    """One edit."""

    layers: tuple[int, ...]
    which: str
    """``male``, ``female`` or ``both``."""
    kind: str
    factor: float
    features: Mapping[int, tuple[int, ...]]
    control: int = 0
    """0: what is studied; 1 … R: a random set in its place."""

    @property
    def name(self) -> str:
        """``L2 both ×0``."""
        at = f"L{self.layers[0]}" if len(self.layers) == 1 else f"L{self.layers[0]}-{self.layers[-1]}"
        return f"{at} {self.which} {'projected' if self.kind == 'project' else f'×{self.factor:g}'}"


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


def matched(
    chosen: Sequence[int], activation: NDArray[np.float64], barred: set[int], draws: int, seed: int
) -> list[tuple[int, ...]]:
    """`draws` random sets, each with a feature near in mean activation for every one of `chosen`; none that is `barred`.

    Raises:
        ValueError: too few features are active.
    """
    rng = np.random.default_rng(seed)
    able = np.array([i for i in np.flatnonzero(activation > 0) if i not in barred and i not in chosen], np.int64)
    if len(able) < len(chosen) + 1:
        raise ValueError(f"{len(able)} features are left for controls of {len(chosen)}; too few are active")
    found = []
    for _ in range(draws):
        taken: list[int] = []
        for one in chosen:
            near = able[np.argsort(np.abs(np.log(activation[able]) - np.log(max(activation[one], 1e-9))))]
            free = [int(i) for i in near[: max(NEAREST, len(chosen) + 1)] if int(i) not in taken]
            taken.append(int(rng.choice(free)))
        found.append(tuple(taken))
    return found


def conditions(
    layer_sets: Sequence[tuple[int, ...]],
    chosen: Mapping[int, Mapping[str, Sequence[int]]],
    activation: Mapping[int, NDArray[np.float64]],
    barred: Mapping[int, set[int]],
    edits: Sequence[tuple[str, float]],
    controls: int,
    seed: int,
) -> list[Condition]:
    """Every layer set × male, female, both × edit, each with its controls."""
    found = []
    for layers in layer_sets:
        for which in SETS:
            sides = SETS[:2] if which == "both" else (which,)
            sets = {layer: tuple(dict.fromkeys(f for side in sides for f in chosen[layer][side])) for layer in layers}
            if not all(sets.values()):
                continue
            drawn = {
                layer: matched(
                    sets[layer], activation[layer], barred[layer], controls, derive_seed(seed, "controls", layer, which)
                )
                for layer in layers
            }
            for kind, factor in edits:
                found.append(Condition(layers, which, kind, factor, sets))
                for r in range(controls):
                    random = {layer: drawn[layer][r] for layer in layers}
                    found.append(Condition(layers, which, kind, factor, random, r + 1))
    return found


def run(study: Study, languages: Sequence[str], wanted: Sequence[Condition]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Effects (a row for each condition, language and picture) and captions; of controls preferences alone."""
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
        for number, (one, found) in enumerate(zip(wanted, measured, strict=True)):
            frame = _frame(asked, one, base, found)
            if not one.control:
                name = f"{language}/{number}"
                said = captioning.captions(
                    study.lm, study.rows, asked.pictures, asked.starts, study.steps, study.batch_size, study.hooks(one),
                    journal, name,
                )  # fmt: skip
                texts.append(_texts(study, asked, one, said, name))
                if one.kind == "scale":
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
        counted = rows.mask & (rows.positions >= study.skip_first)
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


def summarise(
    effects: pd.DataFrame, texts: pd.DataFrame, pictures: PictureSet, *, alpha: float, resamples: int, seed: int
) -> pd.DataFrame:
    """A row for each condition (both languages together, and each) with its effects, intervals, controls and q."""
    seen = np.array(
        [p.factors.get("seen") or ("unseen" if p.label in ("mixed", "unknown") else p.label) for p in pictures]
    )
    groups = np.array([p.group for p in pictures])
    coded = np.array([p.factors.get("coded", "") for p in pictures])
    texts = texts.assign(seen=seen[texts["picture"]])
    effects = effects.assign(
        seen=seen[effects["picture"]], group=groups[effects["picture"]], coded=coded[effects["picture"]]
    )
    effects["parity"] = (effects["preference"] - 0.5).abs()
    effects["base_parity"] = (effects["base"] - 0.5).abs()
    right = np.where(effects["seen"] == "male", effects["preference"], 1 - effects["preference"])
    effects["agrees"] = np.where(
        effects["seen"].isin(["male", "female"]) & effects["preference"].notna(), right > 0.5, np.nan
    )
    rows = []
    keys = ["condition", "layers", "which", "kind", "factor"]
    studied = effects[(effects["control"] == 0) & (effects["condition"] != "none")]
    plain = _text_facts(texts[texts["condition"] == "none"])
    for name, mine in studied.groupby(keys, sort=False):
        whole = dict(zip(keys, name, strict=True))
        controls = effects[(effects["control"] > 0) & (effects["condition"] == whole["condition"])]
        own = _row(mine, controls, resamples, seed)
        text = _text_facts(texts[texts["condition"] == whole["condition"]])
        rows.append(whole | own | text | {f"base_{key}": value for key, value in plain.items()})
    table = pd.DataFrame(rows)
    if len(table):
        table["q"] = corrected(table["p"].to_numpy())
        table["significant"] = table["q"] < alpha
    return table


def _row(mine: pd.DataFrame, controls: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    open_ = mine[(mine["seen"] == "unseen") & mine["preference"].notna()]
    seen = mine[mine["agrees"].notna()]
    # One number a picture, both languages together: the picture is the unit.
    per = open_.groupby("picture").agg(base=("base_parity", "mean"), now=("parity", "mean"), group=("group", "first"))
    moved = (per["now"] - per["base"]).to_numpy()
    between = Clustered.of(moved[None], per["group"].tolist()) if len(per) else None
    low, high = intervals(between, seed=seed, resamples=resamples) if between is not None else ([np.nan], [np.nan])
    paired = _wilcoxon(moved)
    null = _by_control(controls[(controls["seen"] == "unseen")], "parity")
    base = float(per["base"].mean()) if len(per) else np.nan
    reduction = 1 - float(per["now"].mean()) / base if len(per) and base > 0 else np.nan
    null_reduction = 1 - null / base if base > 0 else null
    among = (
        (1 + int((np.abs(null_reduction) >= abs(reduction) - 1e-12).sum())) / (len(null) + 1) if len(null) else np.nan
    )
    agrees = float(seen["agrees"].mean()) if len(seen) else np.nan
    before = (
        float((np.where(seen["seen"] == "male", seen["base"], 1 - seen["base"]) > 0.5).mean()) if len(seen) else np.nan
    )
    null_agrees = _by_control(controls, "agrees")
    found = {
        **_context(open_, controls, resamples, seed),
        "n_open": len(per),
        "n_seen": int(seen["picture"].nunique()),
        "base_parity": base,
        "parity": float(per["now"].mean()) if len(per) else np.nan,
        "parity_change": float(moved.mean()) if len(per) else np.nan,
        "parity_low": float(low[0]),
        "parity_high": float(high[0]),
        "reduction": reduction,
        "control_reduction": float(null_reduction.mean()) if len(null) else np.nan,
        "control_reduction_95": float(np.quantile(null_reduction, 0.95)) if len(null) else np.nan,
        "controls": len(null),
        "p_paired": paired,
        "p_controls": among,
        "p": float(np.nanmax([paired, among])) if not np.isnan([paired, among]).all() else np.nan,
        "base_agreement": before,
        "agreement": agrees,
        "control_agreement": float(null_agrees.mean()) if len(null_agrees) else np.nan,
    }
    if "recon" in mine and mine["recon"].notna().any():
        for side in ("male", "female"):
            part = mine[mine["seen"] == side]
            found |= {f"recon_{side}_mean": part["recon"].mean(), f"recon_{side}_std": part["recon"].std()}
        found["recon_share"] = float(mine["recon_share"].mean())
    return found


def _context(open_: pd.DataFrame, controls: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    """P(male) at places coded male minus that at places coded female, before and under the edit, beside the controls."""
    mine = open_[open_["coded"].isin(["male", "female"])]
    per = mine.groupby("picture").agg(
        base=("base", "mean"), now=("preference", "mean"), coded=("coded", "first"), group=("group", "first")
    )
    male = (per["coded"] == "male").to_numpy()
    if min(int(male.sum()), int((~male).sum())) < 2:
        return {}
    _, code = np.unique(per["group"].astype(str), return_inverse=True)
    moved = (per["now"] - per["base"]).to_numpy()[:, None]
    low, high = difference_intervals(moved, male, code, seed=seed, resamples=resamples)
    before = float(per["base"][male].mean() - per["base"][~male].mean())
    now = float(per["now"][male].mean() - per["now"][~male].mean())
    null = []
    for _, one in controls[(controls["seen"] == "unseen") & controls["coded"].isin(["male", "female"])].groupby(
        "control"
    ):
        means = one.groupby("coded")["preference"].mean()
        null.append(1 - float(means["male"] - means["female"]) / before if before else np.nan)
    return {
        "base_context": before,
        "context": now,
        "context_change_low": float(low[0]),
        "context_change_high": float(high[0]),
        "context_reduction": 1 - now / before if before else np.nan,
        "control_context_reduction": float(np.mean(null)) if null else np.nan,
        "control_context_reduction_95": float(np.quantile(null, 0.95)) if null else np.nan,
        "p_context_controls": (1 + sum(abs(one) >= abs(1 - now / before) for one in null)) / (len(null) + 1)
        if null and before
        else np.nan,
    }


def _by_control(controls: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """The mean over pictures of each random set."""
    known = controls[controls[column].notna()]
    per = known.groupby(["control", "picture"])[column].mean().groupby("control").mean()
    return np.asarray(per.to_numpy(), np.float64)


def _wilcoxon(moved: NDArray[np.float64]) -> float:
    if len(moved) < 6 or not np.any(moved):
        return float("nan") if len(moved) < 6 else 1.0
    return float(wilcoxon(moved, zero_method="pratt", method="approx").pvalue)


def _text_facts(texts: pd.DataFrame) -> dict[str, float]:
    if not len(texts):
        return {}
    clear = texts[texts["seen"].isin(["male", "female"])]
    open_ = texts[texts["seen"] == "unseen"]
    return {
        "gender_rate": float(texts["gender_words"].sum() / max(1, texts["tokens"].sum())),
        "says_seen": float((clear["says"] == clear["seen"]).mean()) if len(clear) else float("nan"),
        "says_male_open": float((open_["says"] == "male").mean()) if len(open_) else float("nan"),
        "caption_nll": float(texts["nll"].mean()),
    }
