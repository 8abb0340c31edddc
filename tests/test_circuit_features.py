"""Graphs of features: with transcoders the sources of a target sum to it, contributions are slopes, removals are real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pieces import Stop, stopping_after
from small_models import VOCAB, build

from circuits.attribution.anatomy import Anatomy
from circuits.attribution.features import drawn, study
from circuits.attribution.features.dictionaries import CrossLayer, Dictionaries
from circuits.attribution.features.effects import contributions, observe, removed
from circuits.attribution.features.graph import Target, trace
from circuits.attribution.features.local import Local
from circuits.attribution.settings import Explained, Level, Reference, Settings
from circuits.attribution.study import Ask
from circuits.data.keeper import Keeper
from circuits.data.prompts import Prompt, PromptSet
from circuits.errors import UserError
from circuits.models.hooks import Edit, forward
from circuits.models.load import LM
from circuits.sae.cross_layer import CrossLayerTranscoder
from circuits.sae.massive import Massive
from circuits.sae.modules import SAEConfig
from circuits.sae.modules.topk import TopKSAE

IDS, OTHER = (3, 7, 11, 5, 9), (3, 7, 12, 5, 9)
WHERE = {
    "transcoder": ("mlp_in", "mlp_out"),
    "skip transcoder": ("mlp_in", "mlp_out"),
    "sae": ("resid_post", "resid_post"),
    "clt": ("mlp_in", "mlp_out"),
    "clt in a band": ("mlp_in", "mlp_out"),
}


def dictionaries(kind: str, layers: tuple[int, ...] = (0, 1, 2)) -> Dictionaries:
    """Random SAEs of width 32 with 40 features, 6 of them active; of a cross-layer transcoder about as many."""
    site, target = WHERE[kind]
    if kind.startswith("clt"):
        n, band = len(layers), 2 if "band" in kind else None
        clt = CrossLayerTranscoder(SAEConfig(32 * n, 40 * n, None, 32 * n, blocks=n, band=band))
        g = torch.Generator().manual_seed(0)
        for parameter in clt.parameters():
            parameter.data = torch.randn(parameter.shape, generator=g) * 0.2
        clt.threshold.data = torch.full_like(clt.threshold, 0.9)
        return CrossLayer({}, site, target, clt, layers)
    saes = {}
    for layer in layers:
        sae = TopKSAE(SAEConfig(32, 40, k=6, d_out=None if kind == "sae" else 32, skip=kind == "skip transcoder"))
        g = torch.Generator().manual_seed(layer)
        for parameter in sae.parameters():
            parameter.data = torch.randn(parameter.shape, generator=g) * 0.2
        saes[layer] = sae
    return Dictionaries(saes, site, target)


def difference(lm: LM, a: int = 5, b: int = 9) -> torch.Tensor:
    head = lm.model.get_output_embeddings().weight  # type: ignore[operator]
    return (head[a] - head[b]).float()


def prompts(n: int = 4) -> PromptSet:
    g = torch.Generator().manual_seed(3)
    rows = [tuple(torch.randint(3, VOCAB - 1, (6,), generator=g).tolist()) for _ in range(2 * n)]
    return PromptSet(
        tuple(
            Prompt(f"p{i}", f"text {i}", "", "", "", "x", "train", str(i), {}, rows[i], rows[n + i], (5,), (9,)) for i in range(n)
        )
    )  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("kind", ["transcoder", "skip transcoder", "clt", "clt in a band"])
def test_without_biases_the_sources_sum_to_the_target(family: str, kind: str) -> None:
    lm, d = build(family), dictionaries(kind)
    for sae in [d.clt] if isinstance(d, CrossLayer) else d.saes.values():
        sae.b_dec.data.zero_()  # type: ignore[operator, union-attr]
    local = Local(Anatomy(lm), d, IDS, copies=4)
    row = local.logit_rows(difference(lm)[None])
    plain = forward(lm, tokens_of(IDS), logits="last").read[0]
    assert float(row.sum()) == pytest.approx(float(plain[5] - plain[9]), abs=1e-5)
    a = local.active[2]
    chosen = [int(i) for i in a.value.argsort(descending=True)[:5]]
    rows = local.feature_rows([2] * 5, [int(a.position[i]) for i in chosen], [int(a.feature[i]) for i in chosen])
    b_enc = d.clt.b_enc[2] if isinstance(d, CrossLayer) else d.saes[2].b_enc
    told = torch.stack([a.value[i] - b_enc[a.feature[i]] for i in chosen])  # type: ignore[index]
    assert torch.allclose(rows.sum(1), told, atol=1e-4)
    later = len(local.active[0].value) + len(local.active[1].value)
    assert not bool(rows[:, later : later + len(a.value)].any()), "no feature of a layer reads its own layer"


def tokens_of(ids: tuple[int, ...]):  # type: ignore[no-untyped-def]
    from circuits.model_input import padded

    return padded([ids])


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("kind", list(WHERE))
def test_a_contribution_is_the_slope_of_the_metric_along_the_feature(family: str, kind: str) -> None:
    lm, d = build(family), dictionaries(kind, (0, 1))
    anatomy, p = Anatomy(lm), prompts(1)[0]
    c = contributions(anatomy, d, p, 1, corrupt=False)
    first = 0 if kind.startswith("clt") else 1  # its features write to more than their own layer
    a, step = c.active[first], 0.01
    for i in c.alpha[first].abs().argsort(descending=True)[:3].tolist():
        at, feature = int(a.position[i]), [int(a.feature[i])]
        writes = {t: a.value[i] * r[0] for t in (0, 1) if (r := d.rows(first, t, feature)) is not None}

        def edits(sign: float, at: int = at, writes: dict[int, torch.Tensor] = writes) -> list[Edit]:
            def moved(y: torch.Tensor, write: torch.Tensor) -> torch.Tensor:
                y[:, at] += sign * step * write
                return y

            return [Edit(d.target, t, lambda y, w=w: moved(y, w)) for t, w in writes.items()]

        read = [forward(lm, tokens_of(p.ids), edits=edits(s), logits="last").read[0] for s in (1.0, -1.0)]
        slope = ((read[0][5] - read[0][9]) - (read[1][5] - read[1][9])) / (2 * step)
        assert float(c.alpha[first][i]) == pytest.approx(float(slope), rel=0.02, abs=2e-3)


def test_a_feature_taken_out_is_taken_out_and_the_others_stay() -> None:
    lm, d = build("qwen3"), dictionaries("sae", (0, 1))
    anatomy, p = Anatomy(lm), prompts(1)[0]
    active, metric = observe(anatomy, d, p.ids, read_of(p))
    key = (1, int(active[1].feature[0]))
    (change,) = removed(anatomy, d, p, [[key]])
    sae = d.saes[1]

    def without(y: torch.Tensor) -> torch.Tensor:
        return y - (sae.encode(y)[..., [key[1]]] @ sae.W_dec[[key[1]]])

    read = forward(lm, tokens_of(p.ids), edits=[Edit("resid_post", 1, without)], logits="last").read[0]
    assert change == pytest.approx(float(read[5] - read[9]) - metric, abs=1e-5)
    absent = next(f for f in range(40) if f not in active[1].feature.tolist())
    assert removed(anatomy, d, p, [[(1, absent)], [key]]) == pytest.approx([0.0, change], abs=1e-6)


def test_a_cross_layer_feature_is_taken_out_wherever_it_writes() -> None:
    lm, d = build("qwen3"), dictionaries("clt")
    assert isinstance(d, CrossLayer)
    anatomy, p = Anatomy(lm), prompts(1)[0]
    active, metric = observe(anatomy, d, p.ids, read_of(p))
    key, f = (0, int(active[0].feature[0])), torch.zeros(len(p.ids))
    mine = active[0].feature == key[1]
    f[active[0].position[mine]] = active[0].value[mine]
    written = d.clt.decoders[0][key[1]].view(3, 32)  # to layers 0, 1 and 2
    edits = [Edit("mlp_out", t, lambda y, t=t: y - f[:, None] * written[t]) for t in range(3)]
    read = forward(lm, tokens_of(p.ids), edits=edits, logits="last").read[0]
    assert removed(anatomy, d, p, [[key]]) == pytest.approx([float(read[5] - read[9]) - metric], abs=1e-5)


def test_layer_by_layer_a_cross_layer_transcoder_is_what_it_is_as_a_whole() -> None:
    """Activations and reconstructions, and no feature where its own layer's row is massive."""
    d = dictionaries("clt in a band")
    assert isinstance(d, CrossLayer)
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(1))
    parts = dict(enumerate(x.chunk(3, dim=1)))
    f = {layer: d.encode(layer, part) for layer, part in parts.items()}
    whole = d.clt.encode(x)
    assert torch.allclose(torch.cat(list(f.values()), 1), whole, atol=1e-6) and bool((whole > 0).any())
    made = torch.cat([d.made(layer, f, part) for layer, part in parts.items()], 1)
    assert torch.allclose(made, d.clt.decode(whole), atol=1e-5)
    d.clt.massive = Massive((32,) * 6, (1.0, *[float("inf")] * 5))
    assert not bool(d.encode(0, parts[0]).any()) and torch.equal(d.encode(1, parts[1]), f[1])


def read_of(p: Prompt):  # type: ignore[no-untyped-def]
    from circuits.attribution.features.effects import answers_of

    return answers_of(p, torch.device("cpu"))


@pytest.mark.parametrize("kind", list(WHERE))
def test_a_graph_is_whole_and_pruning_keeps_what_it_says(kind: str) -> None:
    lm, d = build("qwen3"), dictionaries(kind, (0, 1))
    local = Local(Anatomy(lm), d, IDS, copies=8)
    how = {"max_features": 60, "top_k": 0, "threshold": 0.0}
    target = [Target(5, "five − nine", difference(lm), 1.0)]
    whole = trace(local, target, node_share=1.0, edge_share=1.0, **how)  # type: ignore[arg-type]
    part = trace(local, target, node_share=0.5, edge_share=0.8, **how)  # type: ignore[arg-type]
    ids = whole.ids()
    assert len(set(ids)) == len(ids) and whole.facts["kept_mass"] == pytest.approx(1)
    assert part.kept.sum() < whole.kept.sum() and len(part.weight) < len(whole.weight)
    assert 0 < part.facts["replacement"] <= 1 and 0 < part.facts["completeness"] <= 1
    few = trace(local, target, node_share=1.0, edge_share=1.0, max_features=60, top_k=2, threshold=0.0)
    assert np.bincount(few.target).max() <= 2
    nodes, links = part.tables("p", ["a", "b", "c", "d", "e"], lambda layer, feature: f"L{layer} F{feature}")
    assert set(links["source"]) | set(links["target"]) <= set(nodes["node"])
    assert nodes[nodes["kind"] == "feature"]["label"].str.startswith("L").all()


@pytest.mark.parametrize("reference", list(Reference))
def test_a_study_has_its_tables_and_says_how_good_it_is(reference: Reference) -> None:
    lm, d = build("qwen3"), dictionaries("sae", (0, 1))
    s = Settings(level=Level.features, method="eap", graphs=2, max_features=20, min_explained=-1e9, verify_samples=3,
                 reference=reference, logits=Explained.top)  # fmt: skip
    ask = Ask(lm, prompts(), s)
    found = study.run(ask, d, lambda _: Keeper(), {0: {0: "zero"}})
    m = found.metrics
    assert m["n"] == 4 and set(m["samples"]) == {"p0", "p1"} and m["level"] == "features"
    one = found.features[(found.features["layer"] == 0)].iloc[0]
    by = [contributions(ask.anatomy, d, p, 1, reference is Reference.corrupt).by_feature() for p in ask.prompts]
    told = np.mean([c.get((0, int(one["feature"])), 0.0) for c in by])
    assert float(one["effect_mean"]) == pytest.approx(float(told), abs=1e-6)
    assert bool(m["checks"]) == (reference is Reference.zero)
    with pytest.raises(UserError, match="explain too little of these prompts"):
        study.run(Ask(lm, prompts(), Settings(level=Level.features, method="eap")), d, lambda _: Keeper())


def test_a_study_that_is_cut_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, d = build("qwen3"), dictionaries("sae", (0, 1))
    s = Settings(level=Level.features, method="eap", graphs=3, max_features=20, min_explained=-1e9, verify_samples=3)
    ask, traced = Ask(lm, prompts(), s), []
    whole = study.run(ask, d, lambda _: Keeper())
    counted = drawn._graph
    monkeypatch.setattr(drawn, "_graph", lambda *given: (traced.append(given[2].id), counted(*given))[1])

    def run(cut: str, after: int) -> study.Features:
        def keeper(name: str) -> Keeper[str]:
            path = {"effects": tmp_path / name}
            return stopping_after(after, path) if name == cut else Keeper(path)

        def tell(done: int, total: int) -> None:
            if cut == "graphs" and done == after:
                raise Stop

        return study.run(ask, d, keeper, None, lambda text: None, tell, tmp_path)

    for cut, after in (("contributions-000000", 2), ("checks", 2), ("graphs", 2)):
        with pytest.raises(Stop):
            run(cut, after)
    again = run("", 0)
    assert traced == ["p0", "p1", "p2"], "each graph is traced once"
    for name in ("features", "nodes", "links"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(whole, name))
    assert again.metrics == whole.metrics
