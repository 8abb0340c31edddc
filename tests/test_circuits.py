"""Circuits: the parts of every family add up, scores are the gradients they say, exact patching is what a forward written by
hand gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pieces import in_pieces
from small_models import MODELS, VOCAB, build
from torch import Tensor
from torch.nn import functional as F
from trained_models import NULL, prompts, trained

from circuits.activations.answers import Answers, Row, rows_of
from circuits.attribution import faithful
from circuits.attribution.ablated import ablated
from circuits.attribution.agreement import agreement, stability, wordings
from circuits.attribution.anatomy import Anatomy
from circuits.attribution.choose import connected, greedy, influence, random_like, ranked, top
from circuits.attribution.exact import exact_edges
from circuits.attribution.faithful import Values
from circuits.attribution.formats import from_mib, graphml, mib
from circuits.attribution.methods.base import Task
from circuits.attribution.nodes import Nodes
from circuits.attribution.pairs import Batch, Pairs, cuts
from circuits.attribution.passes import gradients, run
from circuits.attribution.scores import Slopes, changes, total_write, writes
from circuits.attribution.settings import Choice, Settings, check, methods
from circuits.attribution.study import Ask, matrix, method, score, verify
from circuits.data.keeper import Keeper
from circuits.data.prompts import Prompt, PromptSet
from circuits.errors import UserError
from circuits.interventions.edits.counterfactual import Counterfactual
from circuits.interventions.effects import effects_of
from circuits.interventions.engine import Engine
from circuits.interventions.units.base import Place, Unit
from circuits.interventions.units.heads import Heads
from circuits.model_input import padded

CPU = torch.device("cpu")


def batch(n: int = 3, seed: int = 1) -> Batch:
    """Pairs of random rows of unlike lengths."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(n):
        length = 8 - 2 * (i == 0)
        a, b = (tuple(torch.randint(3, VOCAB - 1, (length,), generator=g).tolist()) for _ in range(2))
        rows.append(Row(i, "both", a, length, (5, 9), b))
    answers = Answers.of(rows, CPU)
    base, other = padded([r.ids for r in rows]), padded([r.other or () for r in rows])
    return Batch(list(range(n)), base, other, answers, answers, None, None, None)


def some_edges(nodes: Nodes, n: int) -> list[tuple[int, int]]:
    g = np.random.default_rng(0)
    chosen = nodes.edges[g.choice(len(nodes.edges), n, replace=False)].tolist()
    last = len(nodes.readers) - 1
    return [*((int(u), int(v)) for u, v in chosen), (1, last), (len(nodes.writers) - 1, last)]


# -- every family ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MODELS)
def test_what_the_parts_add_is_the_stream_and_a_whole_circuit_is_the_model(family: str) -> None:
    anatomy = Anatomy(build(family))
    b, nodes = batch(), anatomy.nodes
    with torch.no_grad():
        base, other = run(anatomy, b.base, b.answers), run(anatomy, b.other, b.answers)
        assert float(total_write(anatomy, base)["error"]) < 1e-6
        plain = anatomy.lm.model(input_ids=b.base.ids, attention_mask=b.base.mask.long()).logits
        last = plain[torch.arange(3), b.base.last]
        assert torch.allclose(base.metric, last[:, 5] - last[:, 9], atol=1e-5)
        values, shape = writes(anatomy, other), (1, len(nodes.writers), len(nodes.readers))
        assert torch.equal(ablated(anatomy, b.base, b.answers, torch.zeros(shape), values)[0], base.metric)
        whole = ablated(anatomy, b.base, b.answers, torch.ones(shape), values)[0]
        assert torch.allclose(whole, other.metric, atol=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_one_patched_edge_is_one_cut_edge_and_several_share_a_pass(family: str) -> None:
    anatomy = Anatomy(build(family))
    b = batch()
    edges = some_edges(anatomy.nodes, 14)
    found = exact_edges(anatomy, b, edges, copies=5)
    assert torch.allclose(found, exact_edges(anatomy, b, edges, copies=1), atol=1e-6)
    cut = torch.zeros(len(edges), *anatomy.nodes.mask.shape)
    for i, (u, v) in enumerate(edges):
        cut[i, u, v] = 1
    with torch.no_grad():
        alone = ablated(anatomy, b.base, b.answers, cut, writes(anatomy, run(anatomy, b.other)))
        assert torch.allclose(found, (alone - run(anatomy, b.base, b.answers).metric).T, atol=1e-5)
    assert float(found.abs().max()) > 0.01


@pytest.mark.parametrize("family", MODELS)
def test_scores_are_finite_differences_of_single_edges(family: str) -> None:
    """The slope of the metric along any change of what one reader reads, in every family, at every kind of reader."""
    anatomy = Anatomy(build(family))
    b, nodes = batch(), anatomy.nodes
    done = run(anatomy, b.base, b.answers, graph=True)
    with torch.no_grad():
        mine = writes(anatomy, done)
    delta = torch.randn(mine.shape, generator=torch.Generator().manual_seed(3)) * mine.std()
    slopes = Slopes(anatomy, delta)
    slopes.add(done, gradients(anatomy, done, b.answers))
    scores = slopes.scores()
    parts = {reader.part: v for v, reader in enumerate(nodes.readers)}
    edges = [*some_edges(nodes, 6), *((0, v) for v in parts.values())]
    cut = torch.zeros(len(edges), *nodes.mask.shape)
    for i, (u, v) in enumerate(edges):
        cut[i, u, v] = 1
    step = 0.004
    with torch.no_grad():
        up, down = (ablated(anatomy, b.base, b.answers, cut, mine + sign * step * delta) for sign in (1, -1))
    slope = ((up - down) / (2 * step)).T
    told = torch.stack([scores[:, u, v] for u, v in edges], 1)
    assert torch.allclose(told, slope, rtol=0.03, atol=0.01 * float(slope.abs().max())), (told - slope).abs().max()
    assert not bool(scores[:, ~torch.from_numpy(nodes.mask)].any())


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("name", methods())
def test_a_method_does_not_depend_on_the_batch_and_leaves_the_model_as_it_was(family: str, name: str) -> None:
    anatomy = Anatomy(build(family))
    b = batch()
    before = anatomy.lm.model(input_ids=b.base.ids, attention_mask=b.base.mask.long()).logits
    together = method(name).scores(Task(anatomy, b, steps=2))
    alone = batch(1)
    one = method(name).scores(Task(anatomy, alone, steps=2))
    assert torch.allclose(together[:1], one, atol=2e-5 * float(together.abs().max()) + 1e-6)
    assert torch.equal(before, anatomy.lm.model(input_ids=b.base.ids, attention_mask=b.base.mask.long()).logits)
    by_position = method(name).scores(Task(anatomy, b, steps=2, by_position=True))
    assert torch.allclose(by_position.sum(1), together, atol=1e-5 * float(together.abs().max()) + 1e-6)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma3_text"])
def test_a_heads_edges_all_patched_are_the_head_patched_by_interventions(family: str) -> None:
    """To the stream after it the head's node is all of its edges; where a norm follows the attention, its scale is the run's
    own."""
    lm = build(family)
    anatomy, b = Anatomy(lm), batch()
    nodes = anatomy.nodes
    ps = PromptSet(
        tuple(
            Prompt(f"p{i}", "", "", "", "", "x", "test", str(i), {}, tuple(b.base.ids[i, :n].tolist()),
                   tuple(b.other.ids[i, :n].tolist()), (5,), (9,))
            for i, n in enumerate(b.base.lengths.tolist())
        )
    )  # fmt: skip
    units = [Unit(f"L{la}.H{h}", (Place(la, (h,)),)) for la in range(nodes.layers) for h in range(nodes.heads)]
    rows = rows_of(ps)
    engine = Engine(lm, ps, rows, Heads(), batch_size=3)
    readings = engine.measure(units, Counterfactual())
    found = effects_of(readings, units, "counterfactual", ps, rows).values["effect"]
    cut = torch.zeros(len(units), *nodes.mask.shape)
    for i, unit in enumerate(units):
        ((layer, head),) = unit.items()
        cut[i, nodes.writer(layer, head)] = torch.from_numpy(nodes.mask[nodes.writer(layer, head)])
    with torch.no_grad():
        base, other = run(anatomy, b.base, b.answers), run(anatomy, b.other)
        mine = torch.stack(
            [ablated(anatomy, b.base, b.answers, cut[i : i + 1], writes(anatomy, other))[0] for i in range(len(units))]
        )
        mine = (mine - base.metric).double().numpy()
    if family == "gemma3_text":
        assert np.corrcoef(mine.ravel(), found.ravel())[0, 1] > 0.9  # two scales of the norm after: near, not equal
    else:
        assert np.abs(mine - found).max() < 1e-5 * max(1.0, 2 * float(np.abs(found).max()))


# -- a forward pass written by hand ------------------------------------------------------------------------------------


def by_hand(lm: object, ids: Tensor, change: dict[str, Tensor], reader: str) -> Tensor:
    """GPT-2, written out head by head; what `reader` (``a1.h0<k>``, ``m0``, ``logits``) reads has `change` added."""
    t = lm.model.transformer  # type: ignore[attr-defined]
    heads, size = 4, 16
    x = t.wte(ids) + t.wpe(torch.arange(ids.shape[1]))

    def read(name: str, norm: object) -> Tensor:
        return norm(x + change[reader] if name == reader else x)  # type: ignore[operator]

    for layer, block in enumerate(t.h):
        w, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        total = block.attn.c_proj.bias
        for h in range(heads):
            q, k, v = (
                read(f"a{layer}.{'h' if part == 'q' else 'g'}{h}<{part}>", block.ln_1) @ w[:, at : at + size]
                + bias[at : at + size]
                for part, at in zip("qkv", (h * size, 64 + h * size, 128 + h * size), strict=True)
            )
            pattern = (q @ k.transpose(1, 2) / size**0.5).masked_fill(
                torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool(), float("-inf")
            )
            total = total + pattern.softmax(-1) @ v @ block.attn.c_proj.weight[h * size : (h + 1) * size]
        x = x + total
        inner = F.gelu(read(f"m{layer}", block.ln_2) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias, approximate="tanh")
        x = x + inner @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
    return read("logits", t.ln_f) @ lm.model.lm_head.weight.T  # type: ignore[attr-defined]


def test_exact_effects_match_a_forward_pass_written_by_hand() -> None:
    lm = trained("gpt2")
    ps = prompts(6)
    ask = Ask(lm, ps, Settings(verify_samples=6))
    nodes = ask.nodes
    _, found = verify(ask, np.arange(len(nodes.edges)), Keeper())
    worst = 0.0
    with torch.no_grad():
        for i, p in enumerate(ps):
            ids, other = torch.tensor([p.ids]), torch.tensor([p.corrupt_ids])
            read = lambda z, p=p: z[0, -1, p.target_ids[0]] - z[0, -1, p.foil_ids[0]]  # noqa: E731
            base = read(by_hand(lm, ids, {}, ""))
            delta = changes(
                ask.anatomy, run(ask.anatomy, padded([p.ids])), run(ask.anatomy, padded([p.corrupt_ids or ()]))
            )
            assert torch.allclose(by_hand(lm, other, {}, ""), lm.model(other).logits, atol=1e-4)
            for e in range(0, len(nodes.edges), 5):
                u, v = nodes.edges[e]
                name = nodes.reader_names[v]
                patched = read(by_hand(lm, ids, {name: delta[:, u]}, name))
                worst = max(worst, abs(float(patched - base) - found[i, e]))
    assert worst < 1e-4


# -- a trained model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studied() -> tuple[Ask, np.ndarray]:
    """The trained GPT-2, and the exact effect of every edge on its prompts."""
    ask = Ask(trained("gpt2"), prompts(24), Settings(verify_samples=24, batch_size=24))
    return ask, verify(ask, np.arange(len(ask.nodes.edges)), Keeper())[1]


@pytest.mark.parametrize("name", methods())
def test_heads_that_write_nothing_have_no_effect_by_any_method(name: str, studied: tuple[Ask, np.ndarray]) -> None:
    ask, exact = studied
    null = [i for i, (u, _) in enumerate(ask.nodes.edges) if ask.nodes.writers[u] in {f"a{la}.h{h}" for la, h in NULL}]
    found = score(Ask(ask.lm, ask.prompts, Settings(method=name, batch_size=24)), lambda _: Keeper())
    assert found is not None and np.abs(found.scores[:, null]).max() <= 1e-6 and np.abs(exact[:, null]).max() == 0


def test_integrated_gradients_agree_with_exact_patching(
    studied: tuple[Ask, np.ndarray],
) -> None:
    ask, exact = studied
    found = score(ask, lambda _: Keeper())
    assert found is not None
    mean, truth = found.scores.mean(0, dtype=np.float64), exact.mean(0)
    facts = agreement(mean, truth)
    assert facts["pearson"] >= 0.9 and facts["pearson_without_largest"] >= 0.85
    large = np.abs(truth) > 1
    assert large.sum() >= 3 and (np.sign(mean[large]) == np.sign(truth[large])).all()


@pytest.mark.parametrize("family", ["qwen2", "mistral", "gemma3_text"])
def test_in_trained_models_of_other_families_scores_of_all_edges_agree_too(family: str) -> None:
    ask = Ask(trained(family), prompts(24), Settings(verify_samples=24, batch_size=24))
    exact = verify(ask, np.arange(len(ask.nodes.edges)), Keeper())[1].mean(0)
    found = score(ask, lambda _: Keeper())
    assert found is not None
    facts = agreement(found.scores.mean(0, dtype=np.float64), exact)
    assert facts["pearson"] >= 0.9 and facts["pearson_without_largest"] >= 0.9, facts


def test_the_circuit_alone_does_the_task_and_random_ones_do_not(studied: tuple[Ask, np.ndarray]) -> None:
    ask, _ = studied
    found = score(ask, lambda _: Keeper())
    assert found is not None
    nodes, rows = ask.nodes, ask.pairs(prompts(16, seed=9))
    mean = matrix(nodes, found.scores.mean(0))
    rng = np.random.default_rng(0)
    kept = ranked(mean, nodes, Choice.greedy, round(0.4 * len(nodes.edges)))
    masks = [kept, nodes.mask, np.zeros_like(nodes.mask), *(random_like(kept, nodes, rng) for _ in range(5))]
    got = faithful.alone(ask.anatomy, rows, masks, Values("counterfactual"), batch_size=16, keeper=Keeper(), facts={})
    f = [faithful.faithfulness(m, got.model, got.empty) for m in got.circuits]
    assert f[1] == pytest.approx(1, abs=1e-5) and f[2] == pytest.approx(0, abs=1e-5)
    assert f[0] > 0.85 > max(f[3:]) + 0.1, f


@pytest.mark.parametrize("ablation", ["zero", "mean", "optimal"])
def test_other_ablations_have_their_ends_right_and_constants_learn(
    ablation: str, studied: tuple[Ask, np.ndarray]
) -> None:
    ask, _ = studied
    nodes, rows = ask.nodes, ask.pairs(prompts(12, seed=9))
    constant = None if ablation == "zero" else faithful.mean_writes(ask.anatomy, rows, 12)
    half = [random_like(np.triu(nodes.mask, -60) & nodes.mask, nodes, np.random.default_rng(0))]
    half[0] &= np.random.default_rng(1).random(half[0].shape) < 0.7
    start = constant
    if ablation == "optimal" and constant is not None:
        constant = faithful.fit_constants(ask.anatomy, rows, constant, half, steps=15, batch_size=12)
    masks = [nodes.mask, *half]
    got = faithful.alone(ask.anatomy, rows, masks, Values(ablation, constant), batch_size=12, keeper=Keeper(), facts={})
    assert faithful.faithfulness(got.circuits[0], got.model, got.empty) == pytest.approx(1, abs=1e-5)
    if ablation == "optimal":
        mean = faithful.alone(ask.anatomy, rows, masks, Values("mean", start), batch_size=12, keeper=Keeper(), facts={})
        assert np.square(got.circuits[1] - got.model).mean() < np.square(mean.circuits[1] - mean.model).mean()


# -- choosing, stability, files ----------------------------------------------------------------------------------------

SMALL = Nodes(2, 2, 1)


def test_edges_are_numbered_named_and_found_again() -> None:
    assert SMALL.writers == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
    assert SMALL.reader_names[:5] == ["a0.h0<q>", "a0.h1<q>", "a0.g0<k>", "a0.g0<v>", "m0"]
    assert [SMALL.find(name) for name in SMALL.edge_names] == [tuple(e) for e in SMALL.edges.tolist()]
    assert SMALL.find("a0.h1->a1.h1<k>") == SMALL.find("a0.h1->a1.g0<k>")
    assert "a0.h1->m0" in SMALL.edge_names and "a0.h1->m0" not in Nodes(2, 2, 1, parallel=True).edge_names
    for name in ("a0.h9->m1", "m1->m0", "a0.h0", "m0->a1.h7<q>"):
        with pytest.raises(UserError, match="edge '"):
            SMALL.find(name)


def test_ways_of_choosing() -> None:
    scores = np.zeros(SMALL.mask.shape)
    for name, value in {
        "input->a0.h0<v>": 3,
        "a0.h0->a1.h0<q>": -2,
        "a1.h0->logits": 1,
        "input->m1": 5,
        "m0->logits": 0.1,
    }.items():
        scores[SMALL.find(name)] = value
    assert top(np.abs(scores), SMALL, 1)[SMALL.find("input->m1")]
    kept = greedy(scores, SMALL, 3)
    assert (
        kept[SMALL.find("a1.h0->logits")] and kept[SMALL.find("a0.h0->a1.h0<q>")] and not kept[SMALL.find("input->m1")]
    )
    whole = ranked(scores, SMALL, Choice.top_n, 4)
    live = connected(whole, SMALL)
    assert whole[SMALL.find("input->m1")] and not live[SMALL.find("input->m1")]  # leads to nothing that is kept
    share = influence(scores, SMALL)
    assert share[SMALL.find("a1.h0->logits")] == pytest.approx(1 / 1.1)
    assert share[SMALL.find("a0.h0->a1.h0<q>")] == pytest.approx(1 / 1.1) and share[SMALL.find("input->m1")] == 0
    rng = np.random.default_rng(0)
    assert random_like(whole, SMALL, rng).sum() == 4
    degree = random_like(whole, SMALL, rng, by_degree=True)
    assert (degree.sum(0) == whole.sum(0)).all()


def test_stability_is_what_a_slow_loop_says() -> None:
    rng = np.random.default_rng(0)
    edges = len(SMALL.edges)
    scores = (rng.normal(size=(12, edges)) + np.linspace(0, 2, edges)).astype(np.float32)
    names = [str(i // 2) for i in range(12)]
    found = stability(scores, SMALL, 5, names, resamples=300, seed=4)
    drawn = np.random.default_rng(4)
    count = np.zeros(edges)
    for size in (50,) * 6:
        for counts in drawn.multinomial(6, np.full(6, 1 / 6), size=size):
            mean = np.average(scores, axis=0, weights=np.repeat(counts, 2))
            count[np.argsort(-np.abs(mean), kind="stable")[:5]] += 1
    assert np.abs(found.edges - count / 300).max() < 0.01 and 0 < (found.jaccard or 0) < 1
    facts = wordings(scores, [{"opening": "ab"[i % 2], "id": str(i)} for i in range(12)], 5)
    assert [f["factor"] for f in facts] == ["opening"] and 0 <= facts[0]["jaccard"] <= 1


def test_agreement_stands_without_the_edge_that_makes_it() -> None:
    rng = np.random.default_rng(0)
    score_, exact = rng.normal(size=50), rng.normal(size=50)
    score_[0] = exact[0] = 100.0
    facts = agreement(score_, exact, np.arange(50) >= 25, rest=1000)
    assert facts["pearson"] > 0.98 and abs(facts["pearson_without_largest"]) < 0.4
    assert facts["hidden"]["share_larger"] == pytest.approx(3 / 25) and facts["hidden"]["total_at_most"] > 0


def test_areas_of_known_curves() -> None:
    assert faithful.areas([0.0, 1.0], [1, 1]) == (1.0, 0.0)
    assert faithful.areas([0.0, 1.0], [0, 1]) == (0.5, 0.5)
    assert faithful.areas([0.0, 0.5, 1.0], [2, 1, 1]) == (1.25, 0.25)
    with pytest.raises(UserError, match="faithfulness is undefined"):
        faithful.span(np.array([1.0, 2.0]), np.array([2.0, 1.0]))


def test_a_circuit_goes_to_mib_and_back() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=len(SMALL.edges))
    kept = rng.random(len(scores)) < 0.4
    told = mib(SMALL, scores, kept, 8)
    assert "a0.h0->a1.h1<k>" in told["edges"] and told["nodes"]["logits"]["in_graph"] in (True, False)
    again, inside = from_mib(told, SMALL)
    assert np.allclose(again, scores) and (inside == kept).all()
    assert "<graphml" in graphml(SMALL, scores, kept)
    for wrong, said in (({}, "no 'edges'"), ({"edges": {"a7.h0->m1": {"score": 1}}}, "a7.h0"),
                        ({"edges": {"a0.h0->m1": {"score": float("nan")}}}, "finite")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            from_mib(wrong, SMALL)


def test_a_model_with_something_else_in_its_stream_is_refused() -> None:
    lm = build("qwen2")
    handle = lm.model.model.layers[1].register_forward_hook(lambda m, args, out: out + 1)  # type: ignore[union-attr,operator,index]
    try:
        with pytest.raises(UserError, match="something else adds to it"):
            score(Ask(lm, prompts(2), Settings(method="eap")), lambda _: Keeper())
    finally:
        handle.remove()


# -- positions -----------------------------------------------------------------------------------------------------------


def test_pairs_are_cut_where_they_differ_and_matched_from_a_pieces_end() -> None:
    assert cuts([1, 2, 3, 4], [1, 9, 3, 4]) == ([0, 1, 2, 3], [0, 1, 2, 3], ["same 1", "differing 1", "same 2", "last"])
    assert cuts([1, 2, 2, 3, 4], [1, 9, 3, 4])[0] == [0, 1, 3, 4]
    lm = trained("gpt2")
    ps = prompts(6)
    longer = tuple(
        Prompt(**{**p.__dict__, "corrupt_ids": (*(p.corrupt_ids or ())[:2], *(p.corrupt_ids or ())[1:])}) for p in ps
    )
    with pytest.raises(UserError, match="unlike lengths"):
        Ask(lm, PromptSet(longer), Settings()).pairs(PromptSet(longer))
    one = PromptSet(longer[:1])
    found = score(Ask(lm, one, Settings(positions="spans", steps=2)), lambda _: Keeper())
    assert found is not None and found.by_piece is not None and found.pieces[-1] == "last"
    assert np.allclose(found.by_piece.sum(0), found.scores[0], atol=1e-4)


def test_only_the_last_token_counts_where_that_is_asked() -> None:
    ask = Ask(trained("gpt2"), prompts(4), Settings(positions="last", batch_size=4, steps=2))
    found = score(ask, lambda _: Keeper())
    names = ask.nodes.edge_names
    assert found is not None
    into_keys = [i for i, name in enumerate(names) if name.endswith("<k>") and name.startswith("input->a0")]
    assert np.abs(found.scores[:, into_keys]).max() < 1e-5  # clean and corrupt have the same last token


# -- refusals ------------------------------------------------------------------------------------------------------------


def test_settings_that_make_no_sense_are_one_line_each() -> None:
    assert "did you mean eap_ig_inputs" in check(Settings(method="eap_ig_input"))[0]
    for wrong, said in (({"edges": 0}, "edges=0"), ({"edges": 2.5}, "edges=2.5"), ({"steps": 0}, "steps=0"),
                        ({"positions": "first"}, "positions=first"), ({"samples": 0}, "samples=0")):  # fmt: skip
        assert said in check(Settings(**wrong))[0]


def test_a_prompt_of_several_wordings_sums_whole_answers() -> None:
    """With whole answers a prompt has two rows, one for each answer; its score is their sum."""
    ps = prompts(4)
    two = PromptSet(
        tuple(Prompt(**{**p.__dict__, "target_ids": (*p.target_ids, 3), "foil_ids": (*p.foil_ids, 4)}) for p in ps)
    )
    rows = Pairs(two, span=True)
    assert len(rows) == 8 and [row.answer for row in rows.rows[:2]] == ["target", "foil"]
    from circuits.interventions.settings import Metric

    found = score(
        Ask(trained("gpt2"), two, Settings(metric=Metric.full_target, steps=1, method="eap")), lambda _: Keeper()
    )
    assert found is not None and found.scores.shape == (
        4,
        len(rows and Ask(trained("gpt2"), two, Settings()).nodes.edges),
    )
    assert (found.base > found.other).all()


def test_constants_are_the_same_in_one_go_and_in_pieces(studied: tuple[Ask, np.ndarray], tmp_path: Path) -> None:
    ask, _ = studied
    anatomy, rows = ask.anatomy, ask.pairs(prompts(12, seed=9))
    half = [ask.nodes.mask & (np.random.default_rng(i).random(ask.nodes.mask.shape) < 0.7) for i in range(2)]
    whole = faithful.mean_writes(anatomy, rows, 2)
    kept = {"effects": tmp_path / "means"}
    assert torch.equal(in_pieces(kept, lambda keeper: faithful.mean_writes(anatomy, rows, 2, keeper), (1, 3)), whole)

    def fitted(keeper: Keeper[str]) -> torch.Tensor:
        return faithful.fit_constants(anatomy, rows, whole, half, steps=7, batch_size=4, keeper=keeper)

    assert torch.equal(in_pieces({"effects": tmp_path / "constants"}, fitted, (2, 3)), fitted(Keeper()))
