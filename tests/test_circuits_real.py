"""Circuits of a real language model: its parts add up, and scores agree with exact patching."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from test_interventions_real import prompts_of

from circuits.attribution import faithful
from circuits.attribution.agreement import agreement
from circuits.attribution.anatomy import Anatomy
from circuits.attribution.choose import ranked
from circuits.attribution.exact import exact_edges
from circuits.attribution.faithful import Values
from circuits.attribution.passes import run
from circuits.attribution.scores import total_write
from circuits.attribution.settings import Choice, Settings
from circuits.attribution.study import Ask, matrix, score, verify
from circuits.data.behaviours import BEHAVIOURS
from circuits.data.keeper import Keeper
from circuits.data.prompts import Prompt, PromptSet
from circuits.models.load import LM, load_model


def opened(directory: Path) -> LM:
    return load_model(str(directory), dtype=torch.float32, device=torch.device("cpu"))


def drawn(lm: LM, n: int, seed: int = 0) -> PromptSet:
    """IOI pairs of one length each."""
    rng, found = np.random.default_rng(seed), []

    def ids(text: str) -> tuple[int, ...]:
        return tuple(lm.tokenizer(text)["input_ids"])

    while len(found) < n:
        e = BEHAVIOURS["ioi"].generator("natural")(rng)
        clean, corrupt, target, foil = ids(e.clean), ids(e.corrupt), ids(e.target), ids(e.foil)
        if len(clean) == len(corrupt) and len(target) == len(foil) == 1:
            found.append(
                Prompt(f"p{len(found)}", e.clean, e.corrupt, e.target, e.foil, "ioi", "test", str(len(found)), {}, clean,
                       corrupt, target, foil)
            )  # fmt: skip
    return PromptSet(tuple(found))


def test_the_writes_of_a_real_model_sum_to_its_stream(real_model: Path) -> None:
    lm = opened(real_model)
    anatomy, ps = Anatomy(lm), prompts_of(lm)
    batch = Ask(lm, ps, Settings()).pairs(ps).batch([0, 1, 2, 3], lm.device)
    with torch.no_grad():
        done = run(anatomy, batch.base, batch.answers)
        assert float(total_write(anatomy, done)["error"]) < 1e-6
        logits = lm.model(input_ids=batch.base.ids, attention_mask=batch.base.mask.long()).logits
    for i, p in enumerate(ps):
        plain = logits[i, len(p.ids) - 1]
        assert float(done.metric[i]) == pytest.approx(float(plain[p.target_ids[0]] - plain[p.foil_ids[0]]), abs=1e-4)  # type: ignore[index]
    last: Sequence[tuple[int, int]] = [(0, len(anatomy.nodes.readers) - 1), (300, len(anatomy.nodes.readers) - 1)]
    assert exact_edges(anatomy, batch, last, copies=2).isfinite().all()


@pytest.mark.soak
def test_scores_of_a_real_models_edges_agree_with_exact_patching_and_the_circuit_stands_alone(real_model: Path) -> None:
    """300 edges, the largest and random ones; then 5% of the edges on other prompts (minutes)."""
    lm = opened(real_model)
    ask = Ask(lm, drawn(lm, 24), Settings(verify_samples=8))
    found = score(ask, lambda _: Keeper())
    assert found is not None
    mean = found.scores.mean(0, dtype=np.float64)
    rng = np.random.default_rng(0)
    order = np.argsort(-np.abs(mean))
    chosen = np.concatenate([order[:150], rng.choice(order[150:], 150, replace=False)])
    exact = verify(ask, chosen, Keeper())[1].mean(0)
    facts = agreement(found.scores[:8][:, chosen].mean(0, dtype=np.float64), exact)
    assert facts["pearson"] >= 0.95 and facts["pearson_without_largest"] >= 0.94, facts
    kept = ranked(matrix(ask.nodes, mean), ask.nodes, Choice.top_n, round(0.05 * len(mean)))
    rows = ask.pairs(drawn(lm, 8, seed=7))
    got = faithful.alone(ask.anatomy, rows, [kept], Values("counterfactual"), batch_size=8, keeper=Keeper(), facts={})
    assert faithful.faithfulness(got.circuits[0], got.model, got.empty) >= 0.8
