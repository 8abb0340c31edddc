"""Circuits of the trained embedded model are those that its attention patterns say, and do the behaviour alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_interventions_known import attention, drawn

from circuits.attribution import faithful
from circuits.attribution.agreement import agreement
from circuits.attribution.choose import random_like, ranked
from circuits.attribution.faithful import Values
from circuits.attribution.settings import Choice, Settings, count
from circuits.attribution.study import Ask, matrix, score, verify
from circuits.data.keeper import Keeper
from circuits.data.prompts import PromptSet
from circuits.models.load import LM, load_model

HEADS = 4


@pytest.fixture(scope="module")
def lm(tiny_dir: Path) -> LM:
    found = load_model(str(tiny_dir), dtype=torch.float32, device=torch.device("cpu"))
    found.model.set_attn_implementation("eager")  # type: ignore[operator]
    return found


def other_words_before(prompts: PromptSet) -> PromptSet:
    """The same prompts, corrupted by swapping the words before target and foil in the first pass: only what a key says of the token
    before it tells the two apart, not the query, not the values."""
    found = []
    for p in prompts:
        ids = list(p.ids)
        asked, other = ids.index(ids[-1]), ids.index(p.foil_ids[0]) - 1
        if other > 0 and other != asked and ids[other] not in ids[-2:]:
            ids[asked], ids[other] = ids[other], ids[asked]
            found.append(replace(p, corrupt_ids=tuple(ids)))
    assert len(found) >= 8
    return PromptSet(found)


def test_the_induction_circuit_is_composed_of_keys(lm: LM) -> None:
    """Exact effects: the induction heads read their keys from the head that looks at the token before, and scores say so."""
    prompts = drawn(lm, "induction", 16)
    looks, before = np.zeros((HEADS, HEADS)), np.zeros((HEADS, HEADS))
    for p in prompts:
        first = [j for j in range(len(p.ids) - 1) if p.ids[j] == p.ids[-1]]
        looks += attention(lm, p, len(p.ids) - 1, [j + 1 for j in first]) / len(prompts)
        before += attention(lm, p, first[0] + 1, [first[0]]) / len(prompts)
    previous = int(before[1].argmax())
    induction = [h for h in range(HEADS) if looks[2, h] > 0.9]
    ask = Ask(lm, other_words_before(prompts), Settings(verify_samples=16, batch_size=16))
    names = ask.nodes.edge_names
    exact = verify(ask, np.arange(len(names)), Keeper())[1].mean(0)
    found = score(ask, lambda _: Keeper())
    assert found is not None
    mean = found.scores.mean(0, dtype=np.float64)
    group = ask.nodes.heads // ask.nodes.kv_heads
    composed = {f"a1.h{previous}->a2.g{h // group}<k>" for h in induction}
    into_keys = [
        i for i in np.argsort(-np.abs(exact)) if names[i].startswith("a") and "->a2" in names[i] and "<k>" in names[i]
    ]
    assert {names[i] for i in into_keys[: len(composed)]} == composed, [names[i] for i in into_keys[:4]]
    assert np.abs(exact[into_keys[0]]) > 3 * np.abs(exact[into_keys[len(composed)]]), "and no other comes near"
    large = np.abs(exact) > 1
    assert agreement(mean, exact)["pearson"] >= 0.85 and (np.sign(mean[large]) == np.sign(exact[large])).all()


@pytest.mark.parametrize("behaviour", ["induction", "ioi", "grammar_agreement"])
def test_a_fifth_of_the_edges_does_the_behaviour_on_other_prompts_and_random_ones_do_not(
    behaviour: str, lm: LM
) -> None:
    every = drawn(lm, behaviour, 48)
    chosen_on, judged = PromptSet(every.prompts[:32]), PromptSet(every.prompts[32:])
    ask = Ask(lm, chosen_on, Settings(batch_size=32))
    found = score(ask, lambda _: Keeper())
    assert found is not None
    nodes = ask.nodes
    scores, rng = matrix(nodes, found.scores.mean(0)), np.random.default_rng(0)
    shares = [0.02, 0.05, 0.1, 0.2]
    kept = [ranked(scores, nodes, Choice.top_n, count(share, len(nodes.edges))) for share in shares]
    random = [random_like(mask, nodes, rng, by_degree=bool(i % 2)) for mask in kept for i in range(4)]
    got = faithful.alone(
        ask.anatomy,
        ask.pairs(judged),
        [*kept, *random],
        Values("counterfactual"),
        batch_size=16,
        keeper=Keeper(),
        facts={},
    )
    f = [faithful.faithfulness(m, got.model, got.empty) for m in got.circuits]
    assert f[3] >= 0.85, f[:4]
    for i, share in enumerate(shares):
        others = max(f[4 + 4 * i : 8 + 4 * i])
        assert f[i] > others or (share < 0.05 and abs(f[i] - others) < 0.01), (
            share,
            f,
        )  # seven edges do nothing, whichever they are
