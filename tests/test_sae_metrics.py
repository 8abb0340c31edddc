"""Held-out metrics against the plain formulas, intervals over sequences, the spliced model, the bootstrap."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.errors import NonFinite, RunError
from circuits.model_input import ModelInput
from circuits.models.hooks import forward
from circuits.models.load import LM, wrap
from circuits.sae.evaluate import require_finite
from circuits.sae.metrics import Evaluator
from circuits.sae.modules import SAE, SAEConfig, architectures
from circuits.sae.splice import splice_losses, splice_sums
from circuits.stats.bootstrap import ratio_interval, resampled_ratios


def some_sae(name: str, d_in: int = 8, d_sae: int = 32) -> SAE:
    sae = architectures()[name].sae(SAEConfig(d_in, d_sae, k=4 if name == "topk" else None))
    g = torch.Generator().manual_seed(3)
    sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=g), dim=1))
    sae.W_enc.copy_(0.4 * sae.W_dec.T)
    for bias in sae.pre_biases:
        getattr(sae, bias).copy_(0.1 * torch.randn(d_sae, generator=g) - 0.2)
        getattr(sae, bias)[5] = -1e4  # never fires
    sae.b_dec.fill_(9.0)
    return sae


def sequences(n: int = 30, pos: int = 7, d: int = 8) -> tuple[Tensor, Tensor]:
    """Activations far from zero, of different lengths, with NaN where nothing may look."""
    g = torch.Generator().manual_seed(6)
    x = 10 + torch.randn(n, pos, d, generator=g) * (1 + torch.rand(n, 1, 1, generator=g))
    keep = torch.arange(pos) < torch.randint(1, pos + 1, (n, 1), generator=g)
    return torch.where(keep[..., None], x, float("nan")), keep


@pytest.mark.parametrize("name", ["topk", "relu", "gated", "jumprelu"])
def test_metrics_equal_the_plain_formulas_however_the_data_is_cut(name: str) -> None:
    sae, (x, keep) = some_sae(name), sequences()
    whole, cut = Evaluator(sae), Evaluator(sae)
    whole.add(x, keep)
    for start, stop in ((0, 11), (11, 12), (12, 30)):
        cut.add(x[start:stop], keep[start:stop])
    found = whole.result()
    rows = x[keep].double()
    f = sae.encode(rows.float())
    error, mean = rows - sae.decode(f).double(), rows.mean(0)
    expected = 1 - error.square().sum() / (rows - mean).square().sum()
    assert found["explained_variance"] == pytest.approx(float(expected), rel=1e-5)
    assert found["mse"] == pytest.approx(float(error.square().mean()), rel=1e-5)
    assert found["l0"] == pytest.approx(float((f > 0).sum(1).float().mean()))
    assert found["dead_fraction"] == pytest.approx(float((~(f > 0).any(0)).float().mean())) and f[:, 5].max() == 0
    assert torch.allclose(whole.firing_rate(), (f > 0).float().mean(0))
    assert found["n_rows"] == int(keep.sum()) and found["n_sequences"] == 30
    density = found["density"]
    assert sum(density["counts"]) + density["never"] == 32 and density["never"] >= 1
    assert len(density["edges"]) == len(density["counts"]) + 1
    assert found["ce_score"] is None
    rate = (f > 0).double().mean(0)
    assert found["dense_fraction"] == pytest.approx(float((rate > 0.1).double().mean()))
    wanted, got = rows - sae.b_dec, sae.decode(f).double() - sae.b_dec
    assert found["norm_ratio"] == pytest.approx(float(got.norm(dim=1).sum() / wanted.norm(dim=1).sum()), rel=1e-5)
    scales = torch.linspace(0.5, 2, 3001).double()
    by_hand = scales[torch.stack([(got / s - wanted).square().sum() for s in scales]).argmin()]
    assert found["relative_bias"] == pytest.approx(float(by_hand), abs=1e-3) or not 0.5 < by_hand < 2
    cosine = sae.W_dec @ sae.W_dec.T - 2 * torch.eye(32)
    assert found["decoder_cosine"] == pytest.approx(float(cosine.amax(1).mean()), abs=1e-5)
    json.dumps(found, allow_nan=False)
    assert _close(cut.result(), found)


def _close(a: dict[str, Any], b: dict[str, Any]) -> bool:
    scalars = [key for key, value in b.items() if isinstance(value, float | int)]
    return all(a[key] == pytest.approx(b[key], rel=1e-5) for key in scalars) and a["density"] == b["density"]


def test_intervals_are_over_sequences_not_tokens() -> None:
    """Sequences that repeat one row 50 times are as many independent observations as sequences of one row."""
    sae = some_sae("relu")
    x = 9 + torch.randn(40, 1, 8, generator=torch.Generator().manual_seed(1))
    once, often = Evaluator(sae), Evaluator(sae)
    once.add(x, torch.ones(40, 1, dtype=torch.bool))
    often.add(x.expand(-1, 50, -1), torch.ones(40, 50, dtype=torch.bool))
    a, b = once.result(), often.result()
    assert a["explained_variance_ci"] == pytest.approx(b["explained_variance_ci"], rel=1e-5)
    low, high = a["l0_ci"]
    assert low < a["l0"] < high


def test_metrics_that_have_no_meaning_are_refused_or_none() -> None:
    sae = some_sae("relu")
    with pytest.raises(RunError, match="no held-out activations"):
        Evaluator(sae).result()
    constant = Evaluator(sae)
    constant.add(torch.ones(3, 2, 8), torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(RunError, match="all equal"):
        constant.result()
    single = Evaluator(sae)
    single.add(torch.randn(1, 5, 8), torch.ones(1, 5, dtype=torch.bool))
    assert single.result()["explained_variance_ci"] is None


def test_bootstrap_equals_drawing_units_one_by_one_in_distribution() -> None:
    rng = np.random.default_rng(0)
    top, bottom = rng.normal(3, 1, 60), rng.uniform(1, 2, 60)
    found = resampled_ratios(top, bottom, seed=1, resamples=4000)
    picks = rng.integers(0, 60, size=(4000, 60))
    slow = top[picks].sum(1) / bottom[picks].sum(1)
    assert np.percentile(found, [2.5, 50, 97.5]) == pytest.approx(np.percentile(slow, [2.5, 50, 97.5]), abs=0.02)
    assert ratio_interval(top, bottom, seed=1) == ratio_interval(top, bottom, seed=1)
    assert ratio_interval([1.0], [2.0], seed=0) is None and ratio_interval([1, 2], [0, 0], seed=0) is None


def test_bootstrap_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for seed in range(200):
        bottom = rng.uniform(0.5, 1.5, 80)
        interval = ratio_interval(2 * bottom + rng.normal(0, 1, 80), bottom, seed=seed, resamples=400)
        assert interval is not None
        hits += interval[0] <= 2 <= interval[1]
    assert 180 <= hits <= 198


def test_splice_losses_equal_cross_entropy_and_kl() -> None:
    g = torch.Generator().manual_seed(2)
    clean, spliced, zero = (torch.randn(3, 6, 11, generator=g) for _ in range(3))
    ids, mask = torch.randint(0, 11, (3, 6), generator=g), torch.arange(6) < torch.tensor([[6], [4], [1]])
    found = splice_losses(clean, spliced, zero, ids, mask)
    assert found.tokens.tolist() == [5, 3, 0]
    expected = torch.nn.functional.cross_entropy(spliced[1, :3], ids[1, 1:4], reduction="sum")
    assert float(found.ce_spliced[1]) == pytest.approx(float(expected), rel=1e-5)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=clean[0, :5]), torch.distributions.Categorical(logits=spliced[0, :5])
    )
    assert float(found.kl[0]) == pytest.approx(float(kl.sum()), rel=1e-5)
    assert splice_losses(clean, clean, zero, ids, mask).kl.abs().max() < 1e-6


def test_tokens_that_the_model_excludes_add_nothing_and_a_divergence_that_is_no_number_is_told() -> None:
    clean, ids, mask = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
    clean[..., 3] = -torch.inf  # padded rows of a vocabulary, as some models mask them
    found = splice_losses(clean, clean.clone(), clean, ids, mask)
    assert found.kl.tolist() == [0, 0]
    require_finite(found, torch.tensor([7, 8]), 1)
    spliced = clean.clone()
    spliced[1, 0, 2] = -torch.inf  # which the model itself does not exclude; the cross-entropies are finite
    lost = splice_losses(clean, spliced, clean, ids, mask)
    assert lost.ce_spliced.isfinite().all()
    with pytest.raises(NonFinite, match="layer 1, which excludes what the model itself does not, held-out sample 8"):
        require_finite(lost, torch.tensor([7, 8]), 1)


@pytest.fixture(scope="module")
def lm() -> LM:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return wrap(Qwen2ForCausalLM(config))


class Exact(SAE):
    """x̂ = x."""

    architecture = "exact"

    def activate(self, pre: Tensor) -> Tensor:
        return pre

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "head_z", "mlp_act"])
def test_splicing_replaces_kept_positions_only(lm: LM, site: str) -> None:
    g = torch.Generator().manual_seed(1)
    ids, mask = torch.randint(0, 50, (5, 8), generator=g), torch.arange(8) < torch.tensor([[8], [8], [5], [3], [2]])
    keep = mask.clone()
    keep[:, 0] = False
    width = 64 if site == "mlp_act" else 32
    exact, bad = Exact(SAEConfig(width, 4)), some_sae("relu", width, 40)
    found = splice_sums(lm, {0: exact, 1: bad}, ModelInput(ids, mask), dict.fromkeys((0, 1), keep), site=site)
    assert torch.equal(found[0].ce_clean, found[0].ce_spliced) and found[0].kl.abs().max() < 1e-5
    assert (found[0].ce_zero - found[0].ce_clean).abs().max() > 1e-3
    assert torch.equal(found[0].ce_clean, found[1].ce_clean) and found[1].kl.sum() > 0.01
    nothing = splice_sums(lm, {1: bad}, ModelInput(ids, mask), {1: torch.zeros_like(mask)}, site=site)[1]
    assert torch.equal(nothing.ce_clean, nothing.ce_spliced) and torch.equal(nothing.ce_clean, nothing.ce_zero)
    evaluator = Evaluator(bad)
    x = forward(lm, ModelInput(ids, mask), capture=[(site, 1)]).sites[site, 1].flatten(2)
    evaluator.add(x, keep)
    evaluator.add_splice(found[1])
    result = evaluator.result()
    score = (found[1].ce_zero - found[1].ce_spliced).sum() / (found[1].ce_zero - found[1].ce_clean).sum()
    assert result["ce_score"] == pytest.approx(float(score)) and len(result["ce_score_ci"]) == 2
    assert result["kl"] == pytest.approx(float(found[1].kl.sum() / found[1].tokens.sum()))
