"""Steering: what is added is what plain hooks add, controls are fair, and nothing is chosen where it is measured."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, Cli
from edited import random_prompts, reference, seen
from pieces import in_pieces
from small_models import VOCAB, build
from torch import Tensor

from circuits.data.keeper import Keeper
from circuits.data.prompts import Prompt, PromptSet
from circuits.errors import UserError
from circuits.interventions import steering, study
from circuits.interventions.ask import Ask, edit
from circuits.interventions.edits.steer import Steer
from circuits.interventions.generation import adding, distinct, generate, nll
from circuits.interventions.prompting import RIGHT, WANTED, demonstrations, prompted
from circuits.interventions.settings import Direction, Settings, check
from circuits.interventions.units import steer as steer_units
from circuits.interventions.units.sites import Sites
from circuits.models.load import LM

FAMILIES = ["gpt2", "llama", "gemma3_text", "gpt_neox"]


class Words:
    """A tokenizer for models that have none: enough of one for demonstrations and texts."""

    eos_token_id, unk_token_id, bos_token_id = 0, None, None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [7] if text == "\n" else []

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def asked(lm: LM, prompts: PromptSet, layers: tuple[int, ...] = (1,), **given: Any) -> Ask:
    """A question about prompts with a train and a test split."""
    settings = Settings(
        **{
            "units": "steer",
            "edit": "steer",
            "direction": Direction.denoising,
            "positions": "last",
            "controls": 6,
            "generate": 0,
            "shots": 0,
            "resamples": 200,
            "batch_size": 4,
            **given,
        }
    )
    return Ask(with_words(lm), prompts.only("test"), prompts.only("train"), layers, settings, {}, 3)


def with_words(lm: LM) -> LM:
    return replace(lm, tokenizer=Words())  # type: ignore[type-var]


def steered(ask: Ask) -> Steer:
    made = edit("steer", ask)
    assert isinstance(made, Steer)
    return made


# -- directions ------------------------------------------------------------------------------------------------------


def test_the_direction_is_the_difference_of_means_at_the_last_token_of_the_other_split() -> None:
    lm, prompts = build("llama"), random_prompts(9)
    found = steering.directions(asked(lm, prompts, (0, 2)), Sites("resid_post"))
    for layer, one in found.items():
        pairs = [(p.ids, p.corrupt_ids or ()) for p in prompts.only("train")]
        each = [seen(lm, a, "resid_post", layer)[0, -1] - seen(lm, b, "resid_post", layer)[0, -1] for a, b in pairs]
        torch.testing.assert_close(one.dom, torch.stack(each).mean(0), atol=1e-5, rtol=1e-5)


def test_controls_have_the_length_of_the_direction_and_orthogonal_ones_are_orthogonal() -> None:
    lm, prompts = build("gpt2"), random_prompts(9)
    ask = asked(lm, prompts, (0, 1), controls=30)
    found = steering.directions(ask, Sites("resid_post"))
    for one in found.values():
        for kind, vectors in one.controls.items():
            assert vectors.shape == (30, lm.dims.width)
            np.testing.assert_allclose(vectors.norm(dim=1), one.norm, rtol=1e-5)
            cosine = (vectors.double() @ one.dom.double()) / one.norm**2
            assert float(cosine.abs().max()) < 1e-6 if kind == "orthogonal" else float(cosine.abs().max()) > 1e-3
            assert len({tuple(v.tolist()) for v in vectors}) == 30
    assert not torch.equal(found[0].controls["random"], found[1].controls["random"]), "each layer draws its own"
    again = steering.directions(ask, Sites("resid_post"))
    assert torch.equal(again[1].controls["orthogonal"], found[1].controls["orthogonal"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "head_z"])
def test_every_unit_equals_plain_hooks_on_one_prompt(family: str, site: str) -> None:
    lm, prompts = build(family), random_prompts(8)
    for direction, layer in ((Direction.denoising, 1), (Direction.noising, 2)):
        ask = asked(lm, prompts, (layer,), site=site, direction=direction, controls=2, strengths=[0.5, 3])
        made, found = steered(ask), study.run(ask)
        assert found is not None
        effects = found.effects[0]
        assert effects.names == [f"L{layer}.dom", *(f"L{layer}.{k} {i}" for k in steering.CONTROLS for i in (0, 1))]
        for i, unit in enumerate(effects.units):
            change = made.changes[unit.name]
            for j, p in enumerate(ask.measured):
                ids = (p.corrupt_ids or ()) if direction is Direction.denoising else p.ids

                def add(x: Tensor, change: Tensor = change) -> Tensor:
                    new = x.clone()
                    new[:, -1] += change.view(x.shape[2:])
                    return new

                z, plain = reference(lm, ids, {(site, layer): add})[-1], reference(lm, ids, {})[-1]
                t, f = p.target_ids[0], p.foil_ids[0]
                assert effects.values["logit_diff"][i, j] == pytest.approx(float(z[t] - z[f]), abs=1e-5 * 20)
                assert effects.values["effect"][i, j] == pytest.approx(
                    float(z[t] - z[f] - plain[t] + plain[f]), abs=2e-5 * 20
                )


def test_a_strength_of_0_changes_nothing_at_all() -> None:
    found = study.run(asked(build("gemma3_text"), random_prompts(9), (0, 1, 2), strengths=[0]))
    assert found is not None
    values = found.effects[0].values
    for name in ("effect", "p_drop", "kl", "flip"):
        assert (values[name] == 0).all(), name
    assert all(row["wrong"] == 0 and row["strength"] == 0 for row in found.metrics["steering"])


# -- the strength ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", list(Direction))
def test_the_strength_is_the_best_of_the_other_split_and_never_sees_what_is_measured(direction: Direction) -> None:
    lm, prompts = build("llama"), random_prompts(12)
    ask = asked(lm, prompts, (0, 2), direction=direction, strengths=[0.25, 1, 5, 20])
    made = steered(ask)
    s = 1 if direction is Direction.denoising else -1
    for chosen in made.chosen.values():
        effects = [point["effect"] for point in chosen.curve]
        best = [0.25, 1.0, 5.0, 20.0][int(np.argmax([s * e for e in effects]))]
        assert chosen.strength == best and [point["n"] for point in chosen.curve] == [len(ask.others)] * 4
    other = tuple(
        p if p.split == "train" else replace(q, id=p.id, split="test", group=p.group)
        for p, q in zip(prompts, random_prompts(12, seed=77), strict=True)
    )
    changed = steered(asked(lm, PromptSet(other), (0, 2), direction=direction, strengths=[0.25, 1, 5, 20]))
    assert changed.chosen == made.chosen
    assert all(torch.equal(changed.changes[name], change) for name, change in made.changes.items())


def test_the_curve_is_what_a_study_of_the_other_split_would_measure() -> None:
    lm, prompts = build("gpt2"), random_prompts(10)
    curve = steered(asked(lm, prompts, strengths=[2])).chosen["L1.dom"].curve
    turned = PromptSet(tuple(replace(p, split="test" if p.split == "train" else "train") for p in prompts))
    ask = asked(lm, turned, strengths=[2])
    swapped = replace(ask, others=ask.measured)  # the same direction, measured where it was made
    found = study.run(swapped)
    assert found is not None
    assert curve[0]["effect"] == pytest.approx(found.metrics["steering"][0]["effect"], abs=1e-5)


# -- evidence --------------------------------------------------------------------------------------------------------


def planted(n: int = 24) -> tuple[LM, PromptSet]:
    """A model without attention and MLPs, whose answer is read off the last token: clean ends in a token of one class, corrupt in
    one of the other, and the classes' mean embeddings are apart along one direction, which target and foil read."""
    lm = build("gpt2")
    rng, width = np.random.default_rng(0), lm.dims.width
    with torch.no_grad():
        for block in lm.model.transformer.h:
            for part in (block.attn.c_proj, block.mlp.c_proj):
                part.weight.zero_()
                part.bias.zero_()
        lm.model.transformer.wpe.weight.zero_()
        lm.model.transformer.ln_f.weight.fill_(1)
        lm.model.transformer.ln_f.bias.zero_()
        embedding = lm.model.transformer.wte.weight
        embedding.copy_(torch.from_numpy(rng.normal(size=(VOCAB, width)) * 0.3))
        axis = torch.zeros(width)
        axis[:2] = torch.tensor([1.0, -1.0])
        embedding[10:20] += axis
        embedding[20:30] -= axis
        lm.model.lm_head.weight = torch.nn.Parameter(embedding.clone())
        lm.model.lm_head.weight[3], lm.model.lm_head.weight[4] = axis, -axis
    found = []
    for i in range(n):
        start = tuple(int(t) for t in rng.integers(30, VOCAB, size=4))
        ids = (*start, int(rng.integers(10, 20))), (*start, int(rng.integers(20, 30)))
        split = "train" if i % 2 else "test"
        found.append(Prompt(f"p{i}", f"t{i}", f"c{i}", "a", "b", "toy", split, f"g{i}", {}, ids[0], ids[1], (3,), (4,)))
    return lm, PromptSet(tuple(found))


@pytest.mark.parametrize("direction", list(Direction))
def test_a_planted_direction_beats_all_its_controls(direction: Direction) -> None:
    lm, prompts = planted()
    found = study.run(asked(lm, prompts, (1,), controls=30, direction=direction))
    assert found is not None
    (row,) = found.metrics["steering"]
    s = 1 if direction is Direction.denoising else -1
    assert s * row["effect"] > 2 and row["wrong"] == 0
    assert s * row["effect"] > 1.5 * max(s * row["random_best"], s * row["orthogonal_best"])
    assert row["p_random"] == row["p_orthogonal"] == pytest.approx(1 / 31)
    assert row["random_n"] == row["orthogonal_n"] == 30
    table = found.summary.set_index("unit")
    assert table.loc["L1.dom", "effect"] == pytest.approx(row["effect"]) and table.loc["L1.dom", "null_n"] == 60
    assert list(found.more["steering"]["unit"]) == ["L1.dom"]


# -- demonstrations in the prompt ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("answers", [(1, 1), (2, 3)])
def test_demonstrations_are_measured_as_the_prompt_with_them_before_it(bos: bool, answers: tuple[int, int]) -> None:
    lm, given = build("llama"), random_prompts(9, answers=answers)
    if bos:
        given = PromptSet(
            tuple(replace(p, ids=(1, *p.ids[1:]), corrupt_ids=(1, *(p.corrupt_ids or ())[1:])) for p in given),
            {"bos": True},
        )
    whole = answers != (1, 1)
    metric = {"metric": study.Metric.full_target} if whole else {}
    ask = asked(lm, given, shots=2, strengths=[1], **metric)
    shown = demonstrations(ask, 32 - 14)
    assert set(shown) == {WANTED, RIGHT} and shown[WANTED].samples == shown[RIGHT].samples
    by_id = {p.id: p for p in given}
    assert {by_id[name].split for before in shown.values() for name in before.samples} == {"train"}
    for kind, before in shown.items():
        expected: tuple[int, ...] = (1,) if bos else ()
        for name in before.samples:
            p = by_id[name]
            ids = (p.corrupt_ids or ()) if kind == WANTED else p.ids
            expected += ids[int(bos) :] + p.target_ids + (7,)
        assert before.ids == expected
    effects = prompted(ask, Sites("resid_post"), shown)
    assert effects is not None and effects.names == list(shown)
    compared = effects.facts["compared"]
    for k, before in enumerate(shown.values()):
        for j, p in enumerate(ask.measured):
            ids = before.ids + (p.corrupt_ids or ())[int(bos) :]
            scores = [answer_score(lm, ids, answer, whole) for answer in (p.target_ids, p.foil_ids)]
            assert effects.values[compared][k, j] == pytest.approx(scores[0] - scores[1], abs=1e-4)


@torch.no_grad()
def answer_score(lm: LM, ids: tuple[int, ...], answer: tuple[int, ...], whole: bool) -> float:
    logits = reference(lm, ids + answer[:-1], {})[len(ids) - 1 :]
    if not whole:
        return float(logits[0, answer[0]])
    return float(logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)].sum())


def test_as_many_demonstrations_as_fit_and_none_where_none_does() -> None:
    ask = asked(build("gpt2"), random_prompts(9), shots=4)
    assert demonstrations(ask, 0) == {} and prompted(ask, Sites("resid_post"), {}) is None
    some = demonstrations(ask, 12)[WANTED]
    assert 1 <= len(some.samples) < 4 and len(some.ids) <= 12


# -- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("everywhere", [False, True])
def test_text_is_written_one_token_at_a_time_under_the_edit(everywhere: bool) -> None:
    lm = with_words(build("llama"))
    starts = [tuple(p.ids) for p in random_prompts(5)]
    change = torch.from_numpy(np.random.default_rng(1).normal(size=lm.dims.width)).float() * 2
    columns = [None if everywhere else (len(ids) - 1,) for ids in starts]
    made = generate(
        lm, starts, 6, hooks=adding(Sites("resid_post"), ("resid_pre", 2), 1, change, columns, lm.device), batch_size=2
    )
    plain = generate(lm, starts, 6, batch_size=3)
    assert made != plain
    for start, texts in zip(starts, zip(made, plain, strict=True), strict=True):
        for text, edited in zip(texts, (True, False), strict=True):
            ids = start
            for token in (*text, None):
                if len(ids) - len(start) == 6:
                    break

                def add(x: Tensor, n: int = len(start)) -> Tensor:
                    new = x.clone()
                    new[:, slice(None) if everywhere else n - 1] += change
                    return new

                top = int(reference(lm, ids, {("resid_post", 1): add} if edited else {})[-1].argmax())
                assert top == (0 if token is None else token), "0 ends a text"
                ids += (top,)
    likely = nll(lm, starts, made, batch_size=2)
    for start, text, found in zip(starts, made, likely, strict=True):
        if text:
            assert found == pytest.approx(-answer_score(lm, start, text, True) / len(text), abs=1e-5)
        else:
            assert math.isnan(found)


def test_repetition_is_the_share_of_pairs_that_were_there_before() -> None:
    assert distinct((1, 2, 3, 4)) == 1 and distinct((1, 1, 1, 1)) == pytest.approx(1 / 3)
    assert math.isnan(distinct((1,)))


def test_what_was_written_and_prompted_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = asked(build("gpt2"), random_prompts(8), strengths=[0, 1], generate=3, controls=1)
    lens, calls, plain, along = Sites("resid_post"), [], steer_units.generate, steered(ask)
    monkeypatch.setattr(steer_units, "generate", lambda *a, **k: (calls.append(1), plain(*a, **k))[1])
    whole = steer_units.written(ask, lens, along, {})
    once = len(calls)

    def work(keeper: Keeper[str]) -> pd.DataFrame:
        return steer_units.written(replace(ask, keep=lambda name: keeper), lens, along, {})

    more = replace(ask, others=random_prompts(16))
    made = steering.mean_differences(more, lens)
    for which in ("prompt", "corrupt"):

        def read(keeper: Keeper[str], which: str = which) -> dict[int, Tensor]:
            kept = replace(more, keep=lambda name: keeper if name == f"directions {which}" else Keeper())
            return steering.mean_differences(kept, lens)

        found = in_pieces({"effects": tmp_path / which}, read, (1, 2))
        assert all(torch.equal(found[layer], made[layer]) for layer in made)
    calls.clear()
    again = in_pieces({"effects": tmp_path / "written"}, work, (1, 1))
    assert len(calls) == once > 2
    pd.testing.assert_frame_equal(again, whole)
    ask = replace(ask, settings=replace(ask.settings, shots=2))
    shown = demonstrations(ask, 18)
    effects = prompted(ask, lens, shown)
    pieces = in_pieces(
        {"effects": tmp_path / "prompted"},
        lambda keeper: prompted(replace(ask, keep=lambda name: keeper), lens, shown),
        (1,),
    )
    assert effects is not None
    for name, values in effects.values.items():
        np.testing.assert_array_equal(pieces.values[name], values)


# -- wrong input -----------------------------------------------------------------------------------------------------


def test_wrong_input_is_one_line_each() -> None:
    lm, prompts = build("gpt2"), random_prompts(8)
    same = PromptSet(tuple(replace(p, corrupt_ids=p.ids) for p in prompts))
    with pytest.raises(UserError, match="layer 1: clean and corrupt prompts have the same mean"):
        edit("steer", asked(lm, same))
    bare = PromptSet(tuple(replace(p, corrupt=None, corrupt_ids=None) for p in prompts))
    for direction in Direction:
        with pytest.raises(UserError, match="has no corrupt prompt"):
            edit("steer", asked(lm, bare, direction=direction))
    with pytest.raises(UserError, match="directions are made and strengths chosen on prompts that are not measured"):
        edit("steer", replace(asked(lm, prompts), others=PromptSet(())))
    with pytest.raises(UserError, match="split=test: no prompt is left in train"):
        study.sides(prompts.only("test"), Settings(units="steer", edit="steer"))
    with pytest.raises(UserError, match="in none of the prompts on which a strength"):
        edit("steer", asked(lm, prompts, positions=[-30]))
    good = Settings(units="steer", edit="steer")
    assert check(good, (1,)) == [] and good.fits
    for change, line in (
        ({"strengths": []}, "strengths=[]: no strength named"),
        ({"strengths": [1, -2]}, "strengths=-2: a number from 0"),
        ({"strengths": [True]}, "strengths=True: a number"),
        ({"strengths": [math.inf]}, "strengths=inf: a number"),
        ({"generate": -1}, "generate=-1: at least 0"),
        ({"shots": -1}, "shots=-1: at least 0"),
        ({"edit": "zero"}, "edit=zero: units=steer and edit=steer belong together"),
        ({"units": "heads"}, "edit=steer: units=steer and edit=steer belong together"),
        ({"split": study.Split.all}, "split=all: something is fitted"),
    ):
        (error,) = check(replace(good, **change), (1,))
        assert error.startswith(line), error


# -- the command line ------------------------------------------------------------------------------------------------


def test_a_study_of_the_embedded_model(warm: Cli) -> None:
    words = ("behaviour=ioi", "behaviour.n_samples=12", "behaviour.n_test=4", "behaviour.success_threshold=0", QUICK,
             "tracking=off", "cluster.workers=0")  # fmt: skip
    assert warm("task=baseline", *words).code == 0
    study_words = ("task=interventions", "intervention=steer", "layer=[1,2]", "intervention.controls=3",
                   "intervention.generate=4", *words)  # fmt: skip
    done = warm(*study_words)
    assert done.code == 0, done.out + done.err
    (made,) = warm.artifacts("interventions")
    assert "-steer-" in made.name and "steer-steer" not in made.name
    metrics = json.loads((made / "metrics.json").read_text())
    assert metrics["units"] == 2 and metrics["split"] == "test" and metrics["n"] == 4
    rows = pd.read_parquet(made / "steering.parquet").set_index("unit")
    assert list(rows.index) == ["L1.dom", "L2.dom"] and set(metrics["curves"]) == {"L1.dom", "L2.dom"}
    long = pd.read_parquet(made / "effects.parquet")
    assert {"L1.dom", "L1.random 2", "L2.orthogonal 0", WANTED, RIGHT, "(none)"} <= set(long["unit"])
    effect = long[(long["unit"] == "L2.dom") & (long["metric"] == "effect")]["value"]
    assert rows.loc["L2.dom", "effect"] == pytest.approx(effect.mean())
    assert rows.loc["L2.dom", "wrong"] == pytest.approx((effect < 0).mean())
    texts = pd.read_parquet(made / "generations.parquet")
    assert set(texts["unit"]) == {"(none)", "L1.dom", "L2.dom", "L1.random 0", "L2.random 0", WANTED}
    assert (texts.groupby("unit").size() == 4).all() and (texts["tokens"] <= 4).all()
    assert set(metrics["fluency"]) == set(texts["unit"]) and metrics["shots"][WANTED]
    again = warm(*study_words)
    assert again.code == 0 and "cached" in again.out
    wrong = warm(*study_words, "intervention.strengths=[]")
    assert wrong.code == 2 and wrong.errors == [
        "error: intervention.strengths=[]: no strength named, so that none can be chosen"
    ]
    unread = warm("task=interventions", "layer=1", "intervention.strengths=[1]", *words)
    assert unread.code == 2 and "intervention.units=steer" in unread.errors[0]
