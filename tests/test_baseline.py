"""Baselines: the numbers are those of one prompt at a time, the statistics those of the textbook, and the gate holds."""

from __future__ import annotations

import html
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, ROOT, Cli, Done
from prompt_sets import animals, bpe, save_model, write_jsonl
from small_models import MODELS, VOCAB, build

from circuits.activations.scoring import score
from circuits.data.prompts import Prompt, PromptSet, read
from circuits.errors import UserError
from circuits.models.load import LM, load_model
from circuits.stats.answers import summarise
from circuits.stats.calibration import binary, calibration


def prompt_set(spans: tuple[int, int], n: int = 9) -> PromptSet:
    """Random prompts of different lengths with answers of these many tokens."""
    rng = np.random.default_rng(3)
    found = []
    for i in range(n):
        ids = tuple(int(t) for t in rng.integers(1, VOCAB, size=3 + i % 5))
        target, foil = (tuple(int(t) for t in rng.permutation(VOCAB)[:k]) for k in spans)
        found.append(Prompt(f"p{i}", "", None, "", "", "b", "train", f"g{i}", {}, ids, None, target, foil))
    return PromptSet(tuple(found))


@torch.no_grad()
def naive(lm: LM, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """Log-probability of an answer, one token at a time, one forward pass each."""
    total = 0.0
    for i, token in enumerate(answer):
        logits = lm.model(torch.tensor([[*prompt, *answer[:i]]])).logits[0, -1]
        total += float(logits.float().log_softmax(-1)[token])
    return total


@pytest.mark.parametrize("family", MODELS)
def test_scores_are_those_of_one_prompt_at_a_time_whatever_padding_batch_and_order(family: str) -> None:
    lm, several = build(family), [replace(p, id=f"several {p.id}") for p in prompt_set((3, 2))]
    given = PromptSet((*prompt_set((1, 1), 5), *several))
    alone = [(naive(lm, p.ids, p.target_ids), naive(lm, p.ids, p.foil_ids)) for p in given]
    with torch.no_grad():
        last = [lm.model(torch.tensor([p.ids])).logits[0, -1] for p in given]
    expected = [
        (*answers, *(float(logits[ids[0]]) for ids in (p.target_ids, p.foil_ids)), float(logits.softmax(-1).max()))
        for answers, p, logits in zip(alone, given, last, strict=True)
    ]
    turned = PromptSet(tuple(reversed(given.prompts)))
    for order, options in ((1, {}), (1, {"side": "left"}), (1, {"by_length": False}), (1, {"batch_size": 1}),
                           (-1, {"batch_size": 100, "by_length": False}), (-1, {"batch_size": 100, "side": "left"})):  # fmt: skip
        found = score(lm, given if order == 1 else turned, **{"batch_size": 4, **options})
        columns = (found.logp_target, found.logp_foil, found.logit_target, found.logit_foil, found.top_probability)
        assert np.allclose(np.array(columns).T[::order], expected, rtol=1e-5, atol=1e-5), options
        assert found.top[::order] == [int(logits.argmax()) for logits in last]


def test_for_single_tokens_the_sequence_difference_is_the_logit_difference() -> None:
    found = score(build("gpt2"), prompt_set((1, 1)), batch_size=3)
    sequence = np.subtract(found.logp_target, found.logp_foil)
    assert np.allclose(sequence, np.subtract(found.logit_target, found.logit_foil), atol=1e-5)


def test_a_prompt_that_does_not_fit_the_model_is_named() -> None:
    lm, given = build("gpt2"), prompt_set((1, 1))
    long = PromptSet(
        (*given.prompts, Prompt("long", "", None, "", "", "b", "train", "g", {}, (1,) * 40, None, (1,), (2,)))
    )
    with pytest.raises(UserError, match="prompt long: 40 tokens are more than the 32 positions"):
        score(lm, long, batch_size=2)
    beyond = PromptSet((Prompt("odd", "", None, "", "", "b", "train", "g", {}, (1, VOCAB), None, (1,), (2,)),))
    with pytest.raises(UserError, match=f"prompt odd has token id {VOCAB}"):
        score(lm, beyond, batch_size=2)


# -- statistics ------------------------------------------------------------------------------------------------------


def test_calibration_has_its_known_answers() -> None:
    found = calibration([0.95, 0.95, 0.55, 0.55], [1, 1, 1, 0])
    assert found.ece == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)
    assert found.brier == pytest.approx((2 * 0.05**2 + 0.45**2 + 0.55**2) / 4)
    assert found.nll == pytest.approx(-(2 * math.log(0.95) + math.log(0.55) + math.log(0.45)) / 4)
    assert found.count.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert binary([0.0, 0.0]).brier == 0.25 and binary([50.0]).ece == pytest.approx(0)
    assert binary([-math.log(3)]).confidence[7] == pytest.approx(0.75), "confidence is in the preferred answer"


def rows(diff: np.ndarray, prompts: list[str]) -> pd.DataFrame:
    n = len(diff)
    columns = {
        "split": "train",
        "prompt": prompts,
        "group": prompts,
        "diff": diff,
        "normalised_diff": diff,
        "pair_right": diff > 0,
    }
    more = {"top1": diff > 0, "logp_target": -1.0, "target_tokens": 1, "foil_tokens": 1, "top_probability": 0.5}
    return pd.DataFrame(columns | more, index=range(n))


def test_repeating_prompts_does_not_narrow_an_interval() -> None:
    diff = np.random.default_rng(0).normal(1, 1, 30)
    names = [f"p{i}" for i in range(30)]
    once = summarise(rows(diff, names), cluster="prompt", resamples=500, seed=1)
    thrice = summarise(rows(np.tile(diff, 3), names * 3), cluster="prompt", resamples=500, seed=1)
    assert (
        thrice["logit_diff_ci"] == pytest.approx(once["logit_diff_ci"]) and thrice["clusters"] == once["clusters"] == 30
    )
    low, high = once["logit_diff_ci"]
    assert low < once["logit_diff"] < high and once["splits"]["train"]["n"] == 30


# -- the command line ------------------------------------------------------------------------------------------------


def test_a_failed_gate_keeps_the_measurement_and_says_no_each_time(warm: Cli) -> None:
    words = ("task=baseline", "behaviour=ioi", "behaviour.n_samples=12", "behaviour.n_test=4", QUICK, "tracking=off")
    first = warm(*words)
    assert first.code == 3, first.out + first.err
    assert "behaviour.min_logit_diff=1" in first.errors[0] and "behaviour.success_threshold=0.8" in first.errors[0]
    (made,) = warm.artifacts("baseline")
    table, metrics = pd.read_parquet(made / "per_prompt.parquet"), json.loads((made / "metrics.json").read_text())
    assert len(table) == metrics["n"] == 16 and set(metrics["splits"]) == {"train", "test"}
    assert np.allclose(table["seq_logprob_diff"], table["logit_diff"], atol=1e-5)
    again = warm(*words)
    assert again.code == 3 and "running" not in again.out and again.errors == first.errors
    lower = warm(*words, "behaviour.success_threshold=0")
    assert lower.code == 0 and warm.artifacts("baseline") == [made], "a threshold is no part of the key"
    pages = [page.read_text() for page in warm.outputs.glob("runs/*/*/report.html")]
    assert all("Target against foil" in page for page in pages)
    failed = table[~(table["normalised_diff"] > 1)].sort_values("normalised_diff")
    title = f"Failed: {len(failed)} of 16 prompts of ioi-tiny"
    listed = [page for page in pages if title in page]
    assert listed and all(html.escape(prompt) in listed[0] for prompt in failed["prompt"]), "which ones failed"


TASK = '''
"""A task that stands on a baseline."""

from circuits.files import write_json
from circuits.store.kinds import Input, Kind


class After(Kind):
    name = "after"
    sections = ("behaviour",)
    needs = ("prompts", "baseline", "tiny")

    def label(self, cfg, layers):
        return cfg.behaviour.name

    def inputs(self, cfg, layers):
        return [Input("prompts", (), cfg)]

    def gates(self, cfg):
        return ("baseline",)

    def make(self, context, works):
        context.require("prompts")
        works[None].commit(lambda out: write_json(out / "metrics.json", {}))


KIND = After()
run = KIND.run
'''


def test_what_stands_on_a_failed_gate_is_refused_or_tainted(warm: Cli, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("circuits", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("*.pyc.*"))  # with its bytecode
    shutil.copy(ROOT / "launch.py", checkout)
    (checkout / "circuits" / "tasks" / "after.py").write_text(TASK)
    (checkout / "conf" / "task" / "after.yaml").write_text("name: after\n_target_: circuits.tasks.after.run\n")

    def launch(task: str, *words: str) -> Done:
        given = [
            "behaviour=ioi",
            "behaviour.n_samples=12",
            "behaviour.n_test=4",
            QUICK,
            "tracking=off",
            "cluster.workers=0",
        ]
        return warm.python(str(checkout / "launch.py"), f"task={task}", *given, *words)

    absent = launch("after")
    assert absent.code == 2 and "make it with: python launch.py task=baseline behaviour=ioi" in absent.err
    assert launch("baseline").code == 3
    refused = launch("after")
    assert refused.code == 3 and "force=true goes on" in refused.err and not warm.artifacts("after")
    forced = launch("after", "force=true")
    assert forced.code == 0, forced.out + forced.err
    (made,) = warm.artifacts("after")
    assert "below behaviour.success_threshold" in json.loads((made / "manifest.json").read_text())["tainted"][0]
    assert launch("after").code == 3, "asked again although it is in the store"
    assert launch("after", "behaviour.success_threshold=0").code == 0


def test_a_file_and_a_model_directory_with_answers_of_several_tokens(cli: Cli, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", bpe(400))
    records = [{**r, "target": r["target"] + " happy", "foil": r["foil"] + " sad"} for r in animals()]
    write_jsonl(tmp_path / "my.jsonl", records)
    words = ["task=baseline", "behaviour=my.jsonl", f"model={model}", "tracking=off", "behaviour.multi_token=keep"]
    done = cli(*words, "baseline.metric=full_target", "behaviour.success_threshold=0", "model.device=cpu")
    assert done.code == 0, done.out + done.err
    (made,) = cli.artifacts("baseline")
    table = pd.read_parquet(made / "per_prompt.parquet").set_index("sample")
    lm, (prompts,) = load_model(str(model), dtype=torch.float32, device=torch.device("cpu")), cli.artifacts("prompts")
    assert (table["target_tokens"] > 1).all() and len(table) == 40
    for p in read(prompts):
        whole = naive(lm, p.ids, p.target_ids) - naive(lm, p.ids, p.foil_ids)
        assert table.loc[p.id, "diff"] == pytest.approx(whole, abs=1e-4), "whole answers, one token at a time"


def test_the_embedded_model_passes_its_gates(able: Cli) -> None:
    done = able("task=baseline", "behaviour=grammar_agreement,factual_recall", "tracking=off", "cluster.workers=0")
    assert done.code == 0, done.out + done.err
    assert len(able.artifacts("baseline")) == 2
