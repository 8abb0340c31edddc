"""The whole program on a real language model: what it says of ten behaviours, an SAE on English and what its features are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli
from loudly import left_out_loudly

from circuits.data.behaviours import BEHAVIOURS
from circuits.model_input import ModelInput
from circuits.models.hooks import forward
from circuits.models.load import load_model
from circuits.store import places

SHOWS = {"facts": 0.9, "factual_recall": 0.9, "grammar_agreement": 0.8, "induction": 0.95, "ioi": 0.9}
"""Behaviours that the model has, and the least share of pairs that it gets right: below the lowest of seeds 0, 1 and 2, which
gave 0.97 (facts), 1.00 (factual_recall), 0.91 (grammar_agreement), 0.97 (induction) and 0.97 (ioi)."""


def metrics(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "metrics.json").read_text())
    return found


def test_the_preset_s_numbers_are_those_of_the_model(real_model: Path) -> None:
    preset = (places.CONF / "model" / "smollm2-135m.yaml").read_text()
    config = json.loads((real_model / "config.json").read_text())
    for line in (
        f"family: {config['model_type']}",
        f"layers: {config['num_hidden_layers']}",
        f"width: {config['hidden_size']}",
    ):
        assert line in preset
    assert f"/{real_model.name}\n" in preset


def test_what_is_captured_is_what_the_model_computes(real_model: Path) -> None:
    lm = load_model(str(real_model), dtype=torch.float32, device=torch.device("cpu"))
    ids = torch.tensor([lm.tokenizer("When Mary and John went to the store, John gave a drink to")["input_ids"]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        theirs = lm.model(ids, output_hidden_states=True)
        ours = forward(lm, ModelInput(ids, mask), capture={"resid_post": [3, 12]})
    for layer in (3, 12):
        torch.testing.assert_close(ours.sites["resid_post", layer], theirs.hidden_states[layer + 1])
    assert lm.tokenizer.decode([int(theirs.logits[0, -1].argmax())]) == " Mary"


@pytest.mark.soak
def test_ten_behaviours_are_told_apart_and_multi_token_answers_leave_by_themselves(real_model: Path, cli: Cli) -> None:
    few = ["behaviour.n_samples=24", "behaviour.n_test=8", "baseline.resamples=100"]
    words = [f"behaviour={','.join(sorted(BEHAVIOURS))}", f"pack={len(BEHAVIOURS)}", f"model={real_model}", *few]
    done = cli("task=baseline", *words, "tracking=off", timeout=900)
    assert done.code == 3 and not done.errors, (
        done.out + done.err
    )  # some behaviours this model lacks: their gate said no
    found = {path.name.split("-", 1)[0]: metrics(path) for path in cli.artifacts("baseline")}
    right = {name: found[name]["pair_acc"] for name in BEHAVIOURS}
    assert all(right[name] >= least for name, least in SHOWS.items()), right
    # Seeds 0, 1, 2 gave 0.41, 0.56, 0.44.
    assert right["logic"] < 0.7, "transitive comparison is beyond 135 M parameters"
    for name in ("cf", "factual_recall"):
        (log,) = (path.read_text() for path in cli.folder.glob(f"multirun/*/*/*behaviour={name}/run.log"))
        assert "draws were left out: an answer is of several tokens under this tokenizer (' Ankara' (2))" in log


@pytest.mark.soak
def test_an_sae_of_english_beats_its_control_and_its_features_are_named(
    real_model: Path, real_text: Path, cli: Cli
) -> None:
    sae = [
        "layer=4",
        f"model={real_model}",
        "data=text",
        f"data.path={real_text}",
        "data.context=64",
        "sae.expansion=4",
    ]
    short = ["sae.steps=100", "sae.warmup=10", "sae.block_rows=4096", "sae.heldout_sequences=16", "tracking=off"]
    done = cli("task=sae", *sae, *short, timeout=900)
    assert done.code == 0, done.out + done.err
    (made,) = cli.artifacts("sae")
    found = metrics(made)
    # Seeds 0, 1, 2 gave 0.93, 0.91, 0.89; their controls 0.23, 0.20, 0.24; CE scores of 0.97, 0.96, 0.97.
    assert found["explained_variance"] > 0.75, found
    assert found["explained_variance"] > found["control"]["explained_variance"] + 0.4, found
    assert found["ce_score"] > 0.85, found
    few = ["behaviour=grammar_agreement", "behaviour.n_samples=24", "behaviour.n_test=8", "interpret.n_sequences=128"]
    done = cli("task=interpret", *sae, *short, *few, timeout=900)
    assert done.code == 0, done.out + done.err
    (told,) = cli.artifacts("interpret")
    assert any(told.iterdir())


@pytest.mark.soak
def test_the_recommended_configuration_reconstructs_english(real_model: Path, real_text: Path, cli: Cli) -> None:
    done = cli(
        "task=sae", "layer=12", f"model={real_model}", "data=text", f"data.path={real_text}", "experiment=sae_real",
        "sae.max_steps=300", "tracking=off", timeout=3600, OMP_NUM_THREADS="2",
    )  # fmt: skip
    assert done.code == 0, done.out + done.err
    (made,) = cli.artifacts("sae")
    assert metrics(made)["explained_variance"] > 0.7


@pytest.mark.soak
def test_without_the_model_tests_are_left_out_loudly_or_fail_where_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("def test_one(real_model): pass\ndef test_two(real_model): pass\n")
    absent = {"CIRCUITS_REAL_MODEL": str(tmp_path / "none")}
    left_out_loudly(
        tmp_path,
        "real_fixtures",
        "CIRCUITS_NEED_REAL",
        "2 tests on a real language model were NOT RUN: no real model here",
        "no model.safetensors and config.json there",
        absent,
    )
