"""Every metric of an edit equals its definition on logits from plain hooks; a stopped study does nothing twice."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pieces import Stop, stopping_after
from small_models import build
from test_interventions import HEADS, LAYERS, every_head, measured, put, random_prompts, reference

from circuits.activations.answers import rows_of
from circuits.data.keeper import Keeper
from circuits.interventions.ask import Ask
from circuits.interventions.ask import edit as make_edit
from circuits.interventions.choice import _near, random_sets, signature
from circuits.interventions.edits.zero import Zero
from circuits.interventions.engine import Engine
from circuits.interventions.settings import Settings
from circuits.interventions.units.base import Place, Unit
from circuits.interventions.units.heads import Heads

LAYER, HEAD = 2, 1


def logp(lm, ids: tuple[int, ...], edited: bool) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Log-probabilities by position, with one head zeroed or as the model is."""
    edits = {("head_z", LAYER): lambda x: put(x, HEAD, 0.0)} if edited else {}
    return reference(lm, ids, edits).double().log_softmax(-1)


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "gpt2"])
def test_metrics_of_first_tokens(family: str) -> None:
    lm, prompts = build(family), random_prompts()
    found = measured(lm, prompts, Heads(), every_head(), Zero())
    unit = LAYER * HEADS + HEAD
    for i, p in enumerate(prompts):
        c, a = (logp(lm, p.ids, edited)[len(p.ids) - 1] for edited in (False, True))
        target, foil = p.target_ids[0], p.foil_ids[0]
        expected = {
            "logit_diff": a[target] - a[foil],
            "effect": (a[target] - a[foil]) - (c[target] - c[foil]),
            "p_drop": c[target].exp() - a[target].exp(),
            "kl": (c.exp() * (c - a)).sum(),
            "top1_error": a.argmax() != target,
            "flip": (c.argmax() == target) & (a.argmax() != target),
            "pair_right": a[target] > a[foil],
            "top_probability": a.max().exp(),
        }
        assert expected.keys() == found.values.keys(), "a metric without a definition here"
        for name, value in expected.items():
            assert found.values[name][unit, i] == pytest.approx(float(value), abs=2e-4), (name, i)


def test_metrics_of_whole_answers() -> None:
    lm, prompts = build("mistral"), random_prompts(answers=(2, 3))
    found = measured(lm, prompts, Heads(), every_head(), Zero(), span=True)
    unit = LAYER * HEADS + HEAD
    for i, p in enumerate(prompts):
        at = len(p.ids) - 1

        def total(answer: tuple[int, ...], edited: bool, ids: tuple[int, ...] = p.ids, at: int = at) -> float:
            found = logp(lm, ids + answer, edited)
            return sum(float(found[at + j, token]) for j, token in enumerate(answer))

        t, f = p.target_ids, p.foil_ids
        c, a = (logp(lm, p.ids + t, edited)[at : at + len(t)] for edited in (False, True))
        before, after = ({s: total(s, edited) for s in (t, f)} for edited in (False, True))
        expected = {
            "seq_logprob_diff": after[t] - after[f],
            "effect": (after[t] - after[f]) - (before[t] - before[f]),
            "seq_p_drop": before[t] - after[t],
            "kl": float((c.exp() * (c - a)).sum(-1).mean()),
            "pair_right": float(after[t] > after[f]),
            "p_drop": float(c[0, t[0]].exp() - a[0, t[0]].exp()),
        }
        for name, value in expected.items():
            assert found.values[name][unit, i] == pytest.approx(value, abs=3e-4), (name, i)


def test_a_stopped_measurement_does_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, prompts, units = build("llama"), random_prompts(9), every_head()
    engine, passed = Engine(lm, prompts, rows_of(prompts), Heads(), batch_size=4), []
    count = lm.model.register_forward_pre_hook(lambda *_: passed.append(1))
    whole = engine.measure(units, Zero())
    once = len(passed)
    with pytest.raises(Stop):
        engine.measure(units, Zero(), keeper=stopping_after(6, {"effects": tmp_path / "kept"}))
    passed.clear()
    again = engine.measure(units, Zero(), keeper=Keeper({"effects": tmp_path / "kept"}))
    count.remove()
    assert 0 < len(passed) < once
    for name, values in whole.values.items():
        np.testing.assert_array_equal(again.values[name], values)


def test_random_sets_hold_no_studied_head_are_alike_and_enumerated_where_they_are_few() -> None:
    lm, prompts = build("qwen2"), random_prompts()
    settings = Settings(units="head_groups", controls=4)
    ask = Ask(lm, prompts, random_prompts(6, seed=9), tuple(range(LAYERS)), settings)
    lens, pair = Heads(), lambda name, layers: Unit(name, tuple(Place(*one) for one in layers))
    studied = [pair("two of a layer", [(1, (0, 2))]), pair("two layers", [(0, (1,)), (2, (3,))])]
    names = {item for unit in studied for item in unit.items()}
    drawn = random_sets(ask, lens, studied)
    for unit in studied:
        alike = [c for c in drawn if signature(c) == signature(unit)]
        free = [HEADS - sum(1 for layer, _ in names if layer == place.layer) for place in unit.places]
        possible = math.prod(math.comb(n, len(p.items)) for n, p in zip(free, unit.places, strict=True))
        assert len(alike) == min(4, possible), (unit.name, possible)
        assert len({tuple(c.items()) for c in alike}) == len(alike), "each set once"
    assert not any(item in names for control in drawn for item in control.items())


def test_matched_features_are_of_like_size_and_not_studied() -> None:
    sizes = torch.tensor([0.0, 1.0, 1.1, 5.0, 5.2, 4.9, 20.0, 21.0, 19.0, 22.0])
    rng = np.random.default_rng(0)
    near = {_near(sizes, 3, 0, {(0, 3), (0, 4)}, rng) for _ in range(50)}
    assert near.isdisjoint({0, 3, 4}), "no dead one, none that is studied"
    few = {_near(sizes.repeat(40), 3, 0, {(0, 3)}, rng) for _ in range(200)}
    assert max(abs(float(sizes.repeat(40)[i]) - 5.0) for i in few) < 1, "among many only those of like size"
    assert _near(torch.tensor([1.0, 0.0]), 0, 0, {(0, 0)}, rng) == -1


@pytest.mark.parametrize("edit", ["mean", "optimal"])
def test_a_stop_is_heard_while_an_edit_is_prepared(edit: str) -> None:
    lm, prompts, told = build("llama"), random_prompts(6), []

    def stop() -> None:
        raise Stop

    def keep(name: str) -> Keeper[str]:
        return Keeper(stopping=lambda: True, stop=stop, tell=lambda done, total: told.append((name, done, total)))

    settings = Settings(units="heads", edit=edit, batch_size=2)
    ask = Ask(lm, prompts, random_prompts(7, seed=9), tuple(range(LAYERS)), settings, keep=keep)
    engine = Engine(lm, prompts, rows_of(prompts), Heads(), batch_size=2)
    with pytest.raises(Stop):
        engine.measure(every_head(), make_edit(edit, ask))
    assert told == [("means", 2, 7)], "between two passes"
