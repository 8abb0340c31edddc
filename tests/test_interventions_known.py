"""On the trained embedded model the heads that edits find are those whose attention says so, and heads that stand in for each other
are super-additive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from circuits.activations.answers import rows_of
from circuits.data.behaviours import BEHAVIOURS
from circuits.data.prompts import Prompt, PromptSet
from circuits.interventions.edits.zero import Zero
from circuits.interventions.effects import Effects, effects_of
from circuits.interventions.engine import Engine
from circuits.interventions.groups import synergies
from circuits.interventions.units.base import Place, Unit
from circuits.interventions.units.heads import Heads
from circuits.models.load import LM, load_model

LAYERS = HEADS = 4


@pytest.fixture(scope="module")
def lm(tiny_dir: Path) -> LM:
    found = load_model(str(tiny_dir), dtype=torch.float32, device=torch.device("cpu"))
    found.model.set_attn_implementation("eager")  # type: ignore[operator]
    return found


def drawn(lm: LM, behaviour: str, n: int = 40) -> PromptSet:
    rng = np.random.default_rng(0)

    def ids(text: str, answer: bool = False) -> tuple[int, ...]:
        found = tuple(lm.tokenizer(text)["input_ids"])
        return found[1:] if answer else found  # without the BOS token

    prompts = []
    for i in range(n):
        e = BEHAVIOURS[behaviour].draw(rng)
        prompts.append(
            Prompt(f"p{i}", e.clean, e.corrupt, e.target, e.foil, behaviour, "test", str(i), e.factors,
                   ids(e.clean), ids(e.corrupt), ids(e.target, True), ids(e.foil, True))
        )  # fmt: skip
    return PromptSet(tuple(prompts))


def zeroed(lm: LM, prompts: PromptSet, more: tuple[Unit, ...] = ()) -> Effects:
    rows = rows_of(prompts)
    units = [Unit(f"L{la}.H{h}", (Place(la, (h,)),)) for la in range(LAYERS) for h in range(HEADS)]
    engine = Engine(lm, prompts, rows, Heads(), batch_size=40)
    return effects_of(engine.measure([*units, *more], Zero()), [*units, *more], "zero", prompts, rows)


@torch.no_grad()
def attention(lm: LM, p: Prompt, at: int, to: list[int]) -> np.ndarray:
    """How much each head looks from position `at` to the positions `to`: [layers, heads]."""
    found = lm.model(torch.tensor([p.ids]), output_attentions=True).attentions
    return np.stack([layer[0, :, at, to].sum(-1).numpy() for layer in found])


def test_induction_heads_are_those_that_look_where_induction_looks(lm: LM) -> None:
    prompts = drawn(lm, "induction")
    looks, before = np.zeros((LAYERS, HEADS)), np.zeros((LAYERS, HEADS))
    for p in prompts:
        first = [j for j in range(len(p.ids) - 1) if p.ids[j] == p.ids[-1]]
        looks += attention(lm, p, len(p.ids) - 1, [j + 1 for j in first]) / len(prompts)
        before += attention(lm, p, first[0] + 1, [first[0]]) / len(prompts)
    pair = Unit("L2.H0+L2.H1", (Place(2, (0, 1)),))
    effects = zeroed(lm, prompts, (pair,))
    mean = effects.values["effect"][: LAYERS * HEADS].mean(1).reshape(LAYERS, HEADS)
    heads = {h for h in range(HEADS) if looks[2, h] > 0.9}
    assert heads == {0, 1} and heads == set(np.argsort(mean[2])[:2].tolist()) and mean[2][list(heads)].max() < -0.5
    assert np.unravel_index(before[1:].argmax(), before[1:].shape) == (0, 0)  # L1.H0 looks at the token before …
    assert np.unravel_index(mean.argmin(), mean.shape) == (1, 0)  # … and nothing matters more
    (row,) = synergies(effects, cluster=range(len(prompts)), seed=0, resamples=1000).to_dict("records")
    assert row["super_additive"] and row["q"] < 0.01 and row["additivity"] > 1.2, row  # each stands in for the other


def test_the_agreement_head_is_the_one_that_looks_at_the_subject(lm: LM) -> None:
    prompts = drawn(lm, "grammar_agreement")
    looks = np.zeros((LAYERS, HEADS))
    for p in prompts:
        subject = [i for i, (a, b) in enumerate(zip(p.ids, p.corrupt_ids or (), strict=True)) if a != b]
        looks += attention(lm, p, len(p.ids) - 1, subject) / len(prompts)
    mean = zeroed(lm, prompts).values["effect"].mean(1).reshape(LAYERS, HEADS)
    layer, head = np.unravel_index(looks.argmax(), looks.shape)
    assert looks[layer, head] > 0.8 and mean[layer, head] < -0.8
