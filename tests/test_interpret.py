"""task=interpret: planted features are found, the stream equals the naive sort, controls find nothing, bad input, labels."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from configs import key, plan
from conftest import QUICK, Cli
from scipy.stats import kruskal, mannwhitneyu
from small_models import build, rows
from torch import Tensor

import circuits
from circuits.data.prompts import Prompt, PromptSet
from circuits.errors import UserError
from circuits.features import association, labels
from circuits.features.collect import BINS, EDGES, Collected, Collector, Fresh
from circuits.features.logits import final_norm, residual_rows, token_effects, why_none
from circuits.features.pooling import pooled
from circuits.features.tables import describe, wanted_tokens
from circuits.features.texts import token_texts
from circuits.model_input import ModelInput, joined
from circuits.models.hooks import forward
from circuits.models.modules import module_at
from circuits.report.cards import histogram
from circuits.sae.modules import SAE, SAEConfig, architectures

QUICKLY = [QUICK, "sae.steps=20", "sae.heldout_sequences=16", "sae.block_rows=2048", "tracking=off"]
SHORT = [*QUICKLY, "interpret.n_sequences=128", "interpret.max_features=200", "interpret.shuffles=5"]


def planted(d: int, features: dict[int, Tensor], d_sae: int = 12, threshold: float = 0.5) -> SAE:
    """A ReLU SAE whose feature j is active along a direction above a threshold; the others never are."""
    sae = architectures()["relu"].sae(SAEConfig(d, d_sae))
    sae.b_enc.fill_(-1e4)  # type: ignore[operator]
    for j, direction in features.items():
        sae.W_enc[:, j] = sae.W_dec[j] = direction
        sae.b_enc[j] = -threshold  # type: ignore[index]
    return sae


def text(n: int = 40, pos: int = 9, seed: int = 0) -> tuple[ModelInput, Tensor]:
    """Random tokens (0-19) of different lengths, and activations that are one-hot in the token with a random size."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 20, (n, pos), generator=g)
    mask = torch.arange(pos) < torch.randint(2, pos + 1, (n, 1), generator=g)
    x = torch.nn.functional.one_hot(ids, 20).float() * (1 + torch.rand(n, pos, 1, generator=g))
    return ModelInput(ids, mask, torch.arange(100, 100 + n)), torch.where(mask[..., None], x, float("nan"))


def collected(sae: SAE, tokens: ModelInput, x: Tensor, cuts: list[int], **options: Any) -> Collected:
    collector = Collector(sae, torch.arange(sae.cfg.d_sae), **{"top_k": 5, "window": 2, **options})
    fresh = Fresh()
    for start, stop in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        part = slice(start, stop)
        collector.add(x[part], tokens.mask[part], fresh(tokens.ids[part], tokens.mask[part]))
    return collector.result()


# -- examples --------------------------------------------------------------------------------------------------------


def test_a_feature_of_one_token_has_that_token_as_every_example() -> None:
    tokens, x = text()
    found = collected(planted(20, {3: torch.eye(20)[7]}), tokens, x, [])
    table = describe(found, tokens, {i: f" w{i}" for i in range(20)}, None, pd.DataFrame({"feature": [], "factor": [],
                     "difference": [], "significant": [], "q": []}), {})  # fmt: skip
    mine = table.examples[table.examples["feature"] == 3]
    assert len(mine) == 5 and set(mine["rank"]) == set(range(5))
    for row in mine.to_dict("records"):
        sequence = row["sample"] - 100
        assert row["tokens"][row["peak"]] == " w7" and int(tokens.ids[sequence, row["position"]]) == 7
        first, n = row["first"], len(row["tokens"])
        assert row["token_ids"] == tokens.ids[sequence, first : first + n].tolist()
        assert bool(tokens.mask[sequence, first : first + n].all()), "no padding is shown"
        assert row["activations"][row["peak"]] == pytest.approx(row["activation"])
        assert all((a > 0) == (token == 7) for a, token in zip(row["activations"], row["token_ids"], strict=True))
    feature = table.features.set_index("feature").loc[3]
    assert feature["peak_token"] == " w7" and feature["peak_token_share"] == 1
    assert feature["suggestion"] == "token 'w7'"
    assert feature["density"] == pytest.approx(float((tokens.ids[tokens.mask] == 7).float().mean()))
    assert table.features.set_index("feature").loc[4, "n_active"] == 0, "a dead feature is listed, without examples"


def test_the_stream_equals_a_naive_sort_however_it_is_cut() -> None:
    g = torch.Generator().manual_seed(1)
    sae = architectures()["relu"].sae(SAEConfig(20, 30))
    sae.W_enc.copy_(torch.randn(20, 30, generator=g).round())  # whole numbers: many equal activations
    tokens, x = text(60)
    x = torch.where(tokens.mask[..., None], torch.nn.functional.one_hot(tokens.ids, 20).float(), float("nan"))
    whole = collected(sae, tokens, x, [])
    active = torch.relu(torch.nan_to_num(x) @ sae.W_enc) * tokens.mask[..., None]
    fresh = Fresh()(tokens.ids, tokens.mask)
    for f in range(30):
        best = [(-float(active[s, :, f].max()), s) for s in range(60) if fresh[s] and active[s, :, f].max() > 0]
        expected = sorted(best)[:5]
        n = len(expected)
        assert whole.sequence[f, :n].tolist() == [s for _, s in expected] and (whole.sequence[f, n:] == -1).all()
        assert whole.values[f, :n].tolist() == [-v for v, _ in expected]
        values = active[..., f][active[..., f] > 0].numpy()
        assert whole.n_active[f] == len(values) and whole.histogram[f].sum() == len(values)
        assert np.array_equal(whole.histogram[f], np.histogram(values, EDGES)[0])
    for cuts in ([1, 2, 3], [20, 40], list(range(1, 60))):
        again = collected(sae, tokens, x, cuts)
        for name in Collected.__dataclass_fields__:
            assert np.allclose(getattr(again, name), getattr(whole, name), atol=1e-12), name


def test_a_sequence_that_comes_again_counts_but_gives_no_second_example() -> None:
    tokens, x = text(10)
    twice = ModelInput(tokens.ids.repeat(2, 1), tokens.mask.repeat(2, 1), torch.arange(20))
    found = collected(planted(20, {0: torch.ones(20)}), twice, x.repeat(2, 1, 1), [], top_k=20)
    assert found.repeated == 10 and set(found.sequence[0].tolist()) - {-1} == set(range(10))
    assert found.n_active[0] == int(twice.mask.sum())


def test_chunks_of_different_width_make_one_block() -> None:
    tokens, _ = text(12)
    parts = [tokens.take(slice(0, 5)), tokens.take(slice(5, 12))]
    whole = joined(parts)
    assert torch.equal(whole.mask, tokens.mask[:, : whole.mask.shape[1]])
    assert torch.equal(whole.ids[whole.mask], tokens.ids[tokens.mask])


@pytest.mark.parametrize(
    ("features", "top_k", "told"), [([12], 3, "feature 12: the SAE has 12 features"), ([0], 0, "top_k=0")]
)
def test_the_library_refuses_what_there_is_not(features: list[int], top_k: int, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Collector(planted(20, {}), torch.tensor(features), top_k=top_k, window=1)


# -- promoted tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma3_text"])
def test_promoted_tokens_are_those_whose_logits_rise_along_the_decoder_row(family: str) -> None:
    lm = build(family)
    sae = planted(
        32, {0: torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(2)), dim=0)}
    )
    effects = token_effects(lm, sae, torch.tensor([0]), "resid_post", 2, 5)
    assert effects is not None
    # The truth: push the stream entering the final norm far along the row; what remains is the row's own reading.
    norm, head = module_at(lm.model, lm.family.final_norm), module_at(lm.model, lm.family.lm_head)
    with torch.no_grad():
        up, down = (head(norm(sign * 1e4 * sae.W_dec[:1]))[0] for sign in (1, -1))
    order = (up - down).argsort(descending=True)
    assert effects.promoted[0].tolist() == order[:5].tolist()
    assert effects.suppressed[0].tolist() == order.flip(0)[:5].tolist()
    norm = final_norm(lm)
    assert norm.centred == (family == "gpt2") and norm.scale.shape == (32,)


def test_a_row_at_an_inner_site_goes_through_the_output_projection() -> None:
    lm = build("gpt2")
    row = torch.randn(1, lm.dims.mlp_width, generator=torch.Generator().manual_seed(3))
    projection = lm.model.transformer.h[1].mlp.c_proj
    assert torch.allclose(residual_rows(lm, row, "mlp_act", 1), row @ projection.weight, atol=1e-5)
    assert why_none(lm, "mlp_in") and why_none(lm, "resid_mid") is None
    assert "norm" in str(why_none(build("gemma3_text"), "mlp_act"))


def test_a_planted_decoder_row_is_read_as_its_token() -> None:
    lm = build("qwen2")
    head = module_at(lm.model, lm.family.lm_head).weight
    scale = final_norm(lm).scale
    wanted = torch.linalg.lstsq(
        head[:, :] * scale, torch.nn.functional.one_hot(torch.tensor(17), len(head)).float()[:, None]
    )
    sae = planted(32, {5: torch.nn.functional.normalize(wanted.solution[:, 0], dim=0)})
    effects = token_effects(lm, sae, torch.tensor([5]), "resid_post", 1, 3)
    assert effects is not None and int(effects.promoted[0, 0]) == 17


# -- association -----------------------------------------------------------------------------------------------------


def labelled(n: int = 120, seed: int = 0) -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """Activations of 200 features, of which feature 7 tells `number` apart and feature 9 one colour; half are sparse."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"number": rng.choice(["singular", "plural"], n), "colour": rng.choice(list("rgby"), n)})
    values = np.maximum(rng.normal(size=(n, 200)), 0)
    values[:, 100:] *= rng.random((n, 100)) < 0.06
    values[:, 7] += 3 * (table["number"] == "plural")
    values[:, 9] = 2 * (table["colour"] == "g") * (rng.random(n) < 0.8)
    return values, table, np.arange(n) < 90


def test_a_planted_association_is_found_and_none_with_shuffled_labels() -> None:
    values, table, train = labelled()
    factors, left_out = association.factors_of(table.assign(copy=table["number"], one="x"), train, 5)
    assert [f.name for f in factors] == ["number", "colour"]
    assert left_out["copy"] == "divides the prompts as number does" and "two levels" in left_out["one"]
    found, summary = association.associate(values, range(200), factors, train, shuffles=40)
    hits = association.strongest(found[found["significant"]])
    assert {(7, "number"), (9, "colour")} <= set(zip(hits["feature"], hits["factor"], strict=True)) and len(hits) <= 3
    seven = found[(found["feature"] == 7) & (found["level"] == "plural")].iloc[0]
    assert seven["difference"] > 2 and seven["auc"] > 0.95 and seven["difference_test"] > 2 and seven["n"] < 90
    nine = hits[hits["feature"] == 9].iloc[0]
    assert nine["level"] == "g" and nine["difference"] > 0
    assert summary["tested"] <= 400 and summary["significant"] == len(hits)
    assert summary["shuffled_share"] < 0.001 and summary["shuffled_any"] <= 0.15
    assert summary["shuffled_p_below_05"] < 0.06 and summary["replicated"] >= 0.6


def test_the_rank_test_is_scipys() -> None:
    values, table, train = labelled()
    factors, _ = association.factors_of(table, train, 5)
    for factor in factors:
        codes, dense = factor.codes[train], values[train][:, :100]
        p = association.LevelTest(dense, codes).p(codes)
        for f in (0, 7, 30):
            groups = [dense[codes == level, f] for level in range(len(factor.levels))]
            assert p[f] == pytest.approx(kruskal(*groups).pvalue)
            if len(groups) == 2:
                plain = mannwhitneyu(*groups, use_continuity=False, method="asymptotic").pvalue
                assert p[f] == pytest.approx(plain)


def test_where_few_prompts_activate_a_feature_the_test_is_still_valid() -> None:
    rng = np.random.default_rng(4)
    codes = np.repeat([0, 1], [75, 5])
    values = np.zeros((80, 300))
    for f in range(300):
        values[rng.permutation(80)[:3], f] = 1 + rng.random(3)
    test = association.LevelTest(values, codes)
    drawn = np.concatenate([test.p(rng.permutation(codes)) for _ in range(100)])
    for alpha in (0.01, 0.001):
        assert (drawn <= alpha).mean() <= 1.2 * alpha


def test_nothing_varies_nothing_is_tested() -> None:
    _, table, train = labelled()
    factors, _ = association.factors_of(table, train, 5)
    found, summary = association.associate(np.zeros((120, 3)), range(3), factors, train, shuffles=2)
    assert summary["tested"] == 0 and summary["significant_share"] is None and not found["significant"].any()
    empty, none = association.associate(np.zeros((0, 3)), range(3), [], np.zeros(0, bool))
    assert len(empty) == 0 and none["tested"] == 0


@pytest.mark.parametrize("how", ["max", "mean", "last"])
def test_a_prompts_number_does_not_depend_on_the_batch_that_it_is_in(how: Any) -> None:
    lm, lengths = build("qwen2"), (4, 9, 6, 5, 9, 3)
    ids, mask = rows(*lengths)
    prompts = PromptSet(tuple(
        Prompt(f"p{i}", "", None, "", "", "b", "train", "g", {}, tuple(ids[i, : lengths[i]].tolist()), None, (1,), (2,))
        for i in range(len(lengths))
    ))  # fmt: skip
    sae = architectures()["relu"].sae(SAEConfig(32, 10))
    sae.W_enc.copy_(torch.randn(32, 10, generator=torch.Generator().manual_seed(5)))
    features = torch.tensor([1, 4, 8])
    options = {"site": "resid_post", "how": how, "skip_first": 1}
    found = [pooled(lm, {1: sae}, {1: features}, prompts, batch_size=n, **options)[1] for n in (1, 2, 100)]
    assert np.allclose(found[0], found[1], atol=1e-4) and np.allclose(found[0], found[2], atol=1e-4)
    x = forward(lm, ModelInput(ids, mask), capture=[("resid_post", 1)]).sites["resid_post", 1]
    for i, n in enumerate(lengths):
        active = torch.relu(x[i, 1:n] @ sae.W_enc)[:, features]
        naive = {"max": active.amax(0), "mean": active.mean(0), "last": active[-1]}[how]
        assert np.allclose(found[1][i], naive.numpy(), atol=1e-4)
    with pytest.raises(UserError, match="prompt p5 has no token after the first"):
        pooled(lm, {1: sae}, {1: features}, prompts, batch_size=2, **{**options, "skip_first": 3})


# -- labels ----------------------------------------------------------------------------------------------------------


def test_a_labels_file_is_edited_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "labels-L3.csv"
    labels.write_template(path, 3, {4: "token 'of'", 9: "number: plural, or not"}, {9: 'the "plural", يجمع'})
    assert labels.read(path, 3) == {9: 'the "plural", يجمع'} and labels.read(path, 2) == {}
    path.write_bytes(b"\xef\xbb\xbffeature,label\r\n4,of\r\n\r\n5,\r\n")
    assert labels.read(path, 3, d_sae=10) == {4: "of"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("feature;label\n1;x\n", "line 1: the columns are feature;label"),
        ("", "line 1: the columns are none"),
        ("feature,label\n1,a\nx,b\n", "line 3: feature 'x' is no number"),
        ("feature,label\n1,a\n1,b\n", "line 3: feature 1 is labelled before, in line 2"),
        ("feature,label\n1,a,b\n", "line 2: 3 cells under 2 columns"),
        ("feature,label\n12,a\n", "line 2: feature 12 is out of range: the SAE has 12 features"),
        ('feature,label\n1,"a\n', "not CSV"),
        ("feature,label\n1,\udcff\n", "line 2: not UTF-8"),
    ],
)
def test_a_malformed_labels_file_is_named_by_line(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as caught:
        labels.read(path, 3, d_sae=12)
    assert told in caught.value.messages[0] and str(path) in caught.value.messages[0]


# -- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["interpret.top_k=0"], "interpret.top_k=0: at least 1"),
        (["interpret.features=[3,1024]"], "feature 1024 is out of range: the SAE has 1024 features (0-1023)"),
        (["interpret.features=[-1]"], "interpret.features=-1: feature numbers are whole numbers from 0"),
        (["interpret.labels=nowhere.csv"], "interpret.labels: nowhere.csv: cannot be read"),
    ],
)
def test_wrong_input_is_told_before_anything_starts(words: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        plan("task=interpret", "layer=1", f"outputs={tmp_path}/outputs", *words, base=tmp_path)
    assert any(told in message for message in caught.value.messages), caught.value.messages


def test_the_key_follows_the_sae_and_not_the_batch_or_the_labels() -> None:
    def of(*words: str) -> str:
        return key("task=interpret", *words, kind="interpret").hash

    plain = of()
    assert plain == of("interpret.batch_size=3", "interpret.labels=any.csv")
    others = [of(word) for word in ("sae.k=8", "interpret.top_k=4", "behaviour=ioi", "interpret.associate=false")]
    assert len({plain, *others}) == 5
    untested = of("interpret.associate=false")
    for word in (
        "behaviour=ioi",
        "interpret.pool=mean",
        "interpret.shuffles=3",
        "interpret.fdr=0.1",
        "interpret.min_prompts=9",
    ):
        assert untested == of("interpret.associate=false", word), word
    named = of("interpret.features=[1,3]")
    assert named == of("interpret.features=[3,1,3]") == of("interpret.features=[1,3]", "interpret.max_features=7")
    assert len({named, plain, of("interpret.features=3"), of("interpret.pool=mean")}) == 4


class Texts(HTMLParser):
    """The attributes of every element of a class."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.found = name, []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if self.name in (values.get("class") or "").split():
            self.found.append(values)


def test_from_the_sae_to_the_page_and_back_with_labels(warm: Cli) -> None:
    missing = warm("task=interpret", "layer=2", *SHORT)
    (error,) = missing.errors
    assert missing.code == 2 and "make it with: python launch.py task=sae layer=2" in error

    assert "there is no artifact of kind sae in" in error

    assert warm("task=sae", "layer=2", *QUICKLY).code == 0
    (other,) = warm("task=interpret", "layer=2", "sae.k=16", *SHORT).errors
    (there,) = warm.artifacts("sae")
    assert f"which does not exist; nearest there: sae/{there.name} (sae.k=32, not 16); make it with: " in other
    done = warm("task=interpret", "layer=2", *SHORT)
    assert done.code == 0, done.out + done.err
    (artifact,) = warm.artifacts("interpret")
    run = max((warm.outputs / "runs").glob("*/interpret-*"), key=lambda path: path.stat().st_mtime)
    template = run / "labels-L2.csv"
    assert template.read_text().startswith("layer,feature,label,suggestion\n")
    assert (artifact / "labels.csv").read_text() == template.read_text(), "also for those who find it in the store"

    options = {
        "model__embedded__steps": 10,
        "sae__steps": 20,
        "sae__heldout_sequences": 16,
        "sae__block_rows": 2048,
        "outputs": warm.outputs,
    }
    own = {"interpret__n_sequences": 128, "interpret__max_features": 200, "interpret__shuffles": 5}
    found = circuits.open("interpret", layer=2, **options, **own)
    assert len(found.features) == 200 and found.metrics["layer"] == 2 and found.metrics["n_rows"] > 500
    assert set(found.examples["feature"]) <= set(found.features["feature"])
    sae, lm = (
        circuits.open("sae", layer=2, **options),
        circuits.open("tiny", **{k: options[k] for k in list(options)[:1]}, outputs=warm.outputs),
    )
    row = found.examples.iloc[0]
    ids = torch.tensor([[int(i) for i in row["token_ids"]]])
    if row["first"] == 0:  # the whole of what came before the peak: the activation follows from model and SAE alone
        x = forward(lm, ModelInput(ids, torch.ones_like(ids, dtype=torch.bool)), capture=[("resid_post", 2)]).sites[
            "resid_post", 2
        ]
        assert float(sae.encode(x)[0, row["peak"], row["feature"]]) == pytest.approx(row["activation"], rel=1e-4)
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["inputs"]["sae"]["content"] and manifest["inputs"]["prompts"]["content"]

    feature = int(found.features["feature"].iloc[5])
    edited = template.read_text().replace(f"2,{feature},,", f'2,{feature},"<b>my, label</b>",')
    (warm.folder / "mine.csv").write_text(edited)
    labelled = warm("task=interpret", "layer=2", *SHORT, "interpret.labels=mine.csv")
    assert labelled.code == 0 and "layer=2  cached" in labelled.out, labelled.out + labelled.err
    report = max((warm.outputs / "runs").glob("*/interpret-*/report.html"), key=lambda path: path.stat().st_mtime)
    page = report.read_text()
    assert "&lt;b&gt;my, label&lt;/b&gt;" in page and "<b>my" not in page and len(page) < 10_000_000
    shown = Texts("a")
    shown.feed(page)
    assert len(shown.found) > 50 and all(0 <= float(str(a["style"]).split(":")[1]) <= 1 for a in shown.found)
    assert 0 < page.count('<article class="card">') <= 12

    assert warm("task=interpret", "layer=2", *SHORT, "interpret.top_k=3,4", "pack=2").code == 0
    logs = [path.read_text() for path in sorted((warm.folder / "multirun").glob("*/interpret-*/*/run.log"))]
    assert [log.count("loading the model") for log in logs] == [1, 0], "a pack reads the model once"


# -- small parts -----------------------------------------------------------------------------------------------------


def test_tokens_keep_their_space(warm: Cli) -> None:
    lm = circuits.open("tiny", model__embedded__steps=10, outputs=warm.outputs)
    (ids,) = lm.tokenizer(["the cat, near"], add_special_tokens=False)["input_ids"]
    texts = token_texts(lm.tokenizer, ids)
    assert "".join(texts[i] for i in ids) == " the cat, near"
    assert wanted_tokens(
        ModelInput(torch.tensor([[5, 6]]), torch.tensor([[True, False]]), torch.tensor([0])), None
    ) == {5}


def test_a_histogram_shows_the_bins_that_hold_something() -> None:
    counted = [0] * BINS
    counted[20], counted[22] = 5, 10
    drawn = histogram(EDGES.tolist(), counted)
    assert [bar.height for bar in drawn.bars] == [0.5, 1.0] and drawn.low == "1" and len(drawn.bars) == 2
    assert histogram(EDGES.tolist(), [0] * BINS).bars == ()
    assert rows(3)[0].shape == (1, 3)
