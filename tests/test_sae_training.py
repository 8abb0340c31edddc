"""Training: gradients against autograd, the decoder's norm, the folding at export, bit-exact resume, planted features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from configs import plan
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from circuits.errors import NonFinite, RunError, UserError
from circuits.sae import checkpoint
from circuits.sae.modules import architecture, architectures, products, support
from circuits.sae.modules.gradients import buffer
from circuits.sae.modules.selection import BatchSelection, largest_of_rows, without_waiting
from circuits.sae.normalise import Units
from circuits.sae.spec import TrainSpec
from circuits.sae.training import Trainer
from circuits.schema.sae import dead_rows, settled

CPU = torch.device("cpu")
OPTIONS: dict[str, dict[str, Any]] = {
    "topk": {"k": 6},
    "batchtopk": {"k": 6, "threshold_rate": 0.05},
    "matryoshka": {"k": 6, "groups": 4},
    "relu": {"l1": 0.1, "l1_warmup": 20},
    "gated": {"l1": 0.1, "l1_warmup": 20},
    "jumprelu": {"l0_coefficient": 0.01, "l0_warmup": 20, "bandwidth": 0.6, "threshold": 0.7},
}
EVERY = sorted(OPTIONS)
TOPK_FAMILY = ["batchtopk", "matryoshka", "topk"]


def small(name: str, **changes: Any) -> TrainSpec:
    """A spec in whose first 200 steps features die and are revived."""
    spec = TrainSpec(
        architecture=name,
        d_in=16,
        d_sae=128,
        lr=3e-3,
        batch_size=32,
        steps=200,
        warmup=10,
        decay=0.2,
        dead_after=640,
        resample_every=40,
        layer=3,
        **OPTIONS[name],
    )
    return replace(spec, **changes)


def rows(index: int, n: int = 32, d: int = 16) -> Tensor:
    """Batch `index` of an endless stream: sparse sums of few directions around a large offset."""
    g = torch.Generator().manual_seed(1000 + index)
    directions = F.normalize(torch.randn(24, d, generator=torch.Generator().manual_seed(99)), dim=1)
    active = (torch.rand(n, 24, generator=g) < 0.15) * torch.rand(n, 24, generator=g)
    return 7.0 + 3 * active @ directions


def trained(spec: TrainSpec, steps: int, device: torch.device = CPU) -> Trainer:
    trainer = Trainer(spec, device, rows(-1, 256))
    for i in range(steps):
        trainer.train_step(rows(i))
    return trainer


def test_the_registry_is_filled_from_the_files() -> None:
    assert sorted(architectures()) == EVERY
    with pytest.raises(UserError, match="unknown SAE architecture topj; did you mean topk"):
        architecture("topj")


@pytest.mark.parametrize("dead", [None, 5, 40])
@pytest.mark.parametrize("name", EVERY)
def test_fast_gradients_equal_autograd(name: str, dead: int | None) -> None:
    """Also with an auxiliary loss on few (all used) and many (only the k_aux largest) dead features."""
    trainer = trained(small(name), 30)
    agree_with_autograd(trainer, dead)


def agree_with_autograd(trainer: Trainer, dead: int | None, n: int = 32) -> float:
    """The written-out gradients and the loss of n rows are those of the plain version. How many features were active."""
    w, (x, y) = trainer.weights, trainer._rows(rows(77, n, 16 + (trainer.spec.d_out or 0)))
    index = None if dead is None else torch.randperm(128, generator=torch.Generator().manual_seed(0))[:dead]
    reference = {key: nn.Parameter(p.detach().clone()) for key, p in w.items()}
    loss = trainer.objective.loss(reference, x, y, 10, index)
    loss.backward()
    with torch.no_grad():
        outcome = trainer.objective.gradients(w, x, y, 10, index)
    assert torch.allclose(outcome.error.square().sum(1).mean() + sum(outcome.parts.values()), loss, rtol=1e-5)
    for key, p in reference.items():
        assert p.grad is not None
        assert (buffer(w[key]) - p.grad).norm() <= 2e-6 * p.grad.norm(), key
    if outcome.along is not None:
        exact = (reference["W_dec"].grad * reference["W_dec"]).sum(1)
        assert (outcome.along - exact).norm() <= 1e-5 * exact.norm()
    assert len(x) * trainer.spec.d_sae >= outcome.active >= (outcome.fired > 0).sum() > 0
    return float(outcome.active)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("name", EVERY)
def test_sums_over_entries_and_dense_products_are_the_same(name: str, share: float, monkeypatch: Any) -> None:
    """Which of them is taken depends on how many features are active, and on the device."""
    monkeypatch.setattr(support, "SPARSE_SHARE", share)
    for dead in (None, 5):
        trainer = trained(small(name), 30)
        active = agree_with_autograd(trainer, dead)
        x, _ = trainer._rows(rows(77, d=16 + (trainer.spec.d_out or 0)))
        if name.startswith("relu"):
            w = trainer.weights
            assert active == ((trainer.objective.centred(w, x) @ w["W_enc"].T + w["b_enc"]) > 0).sum()


@pytest.mark.parametrize("n", [8, 32])
@pytest.mark.parametrize("onednn", [False, products.ONEDNN])
@pytest.mark.parametrize("name", EVERY)
def test_dense_products_of_either_library_and_of_few_rows_are_the_same(
    name: str, onednn: bool, n: int, monkeypatch: Any
) -> None:
    """Fewer rows than the site is wide: there the step itself finds the decoder's parallel gradient."""
    monkeypatch.setattr(support, "SPARSE_SHARE", 0.0)
    monkeypatch.setattr(products, "ONEDNN", onednn)
    agree_with_autograd(trained(small(name), 30), None, n)


@pytest.mark.parametrize("onednn", [False, products.ONEDNN])
def test_a_weight_or_a_row_that_is_no_number_is_not_lost_in_a_product(onednn: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(products, "ONEDNN", onednn)
    x, table, bias = torch.randn(64, 32), torch.randn(128, 32), torch.zeros(128)
    x[5], table[7] = torch.nan, torch.nan
    found = products.project(x, table, bias, "pre").isnan()
    assert found[5].all() and found[:, 7].all() and found.sum() == 128 + 64 - 1
    assert products.combine(found.float(), table, bias[:32]).isnan().all(), "0 times NaN too"


@pytest.mark.parametrize("name", EVERY)
def test_sums_without_the_sparse_kernels_of_a_cpu_are_the_same(name: str, monkeypatch: Any) -> None:
    """``embedding_bag`` does all three on accelerators, and on CPUs without MKL."""
    monkeypatch.setattr(support, "SPARSE_SHARE", 1.0)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    agree_with_autograd(trained(small(name), 30), 5)


def test_selection_finds_the_largest_of_rows_and_of_the_batch() -> None:
    g = torch.Generator().manual_seed(0)
    select = BatchSelection()
    for scale in (1.0, 1.0, 0.3, 5.0, 1.0):  # the bound that is remembered is too low, too high
        pre = scale * torch.randn(64, 512, generator=g)
        values, index = largest_of_rows(pre, 8)
        expected = pre.topk(8).values
        assert torch.equal(values.sort(descending=True).values, expected)
        assert torch.equal(pre.gather(1, index), values)
        values, index = select(pre, 512)
        assert torch.equal(values.sort(descending=True).values, pre.flatten().topk(512).values)
        assert torch.equal(pre.flatten()[index], values) and (index.diff() > 0).all()
        assert all(torch.equal(a, b) for a, b in zip((values, index), without_waiting(pre, 512), strict=True))
    few = torch.full((4, 32), -1.0)
    few[2, 3] = 0.5
    assert select(few, 40)[1].tolist() == [2 * 32 + 3], "what is not positive is not active"
    assert without_waiting(few, 40)[0].sum() == 0.5


@pytest.mark.parametrize("name", [name for name in EVERY if name != "gated"])
def test_a_transcoder_has_the_gradients_of_autograd_and_folds_both_units(name: str) -> None:
    spec = small(name, d_out=24, d_sae=128)
    trainer = Trainer(spec, CPU, rows(-1, 256, d=40))
    for i in range(60):
        trainer.train_step(rows(i, d=40))
    agree_with_autograd(trainer, None if name in ("relu", "jumprelu") else 5)
    sae, both = trainer.export(), rows(500, d=40)
    x, _ = trainer._rows(both)
    w = trainer.weights
    pre = x @ w["W_enc"].T + w["b_enc"]
    f = sae.encode(both[:, :16]) * trainer.write.scale
    assert torch.allclose(f[f > 0], pre[f > 0], atol=1e-4) and sae(both[:, :16]).shape == (32, 24)
    reconstruction = (f @ w["W_dec"] + w["b_dec"]) / trainer.write.scale + trainer.write.mean
    assert torch.allclose(sae(both[:, :16]), reconstruction, atol=1e-4)
    with pytest.raises(UserError, match="a gated SAE cannot be trained from one site to another"):
        Trainer(small("gated", d_out=24), CPU, rows(-1, 256, d=40))


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(name: str) -> None:
    """BatchTopK then chooses within each part, so only the others are equal."""
    if name in ("batchtopk", "matryoshka"):
        assert trained(small(name, accumulate=4), 40).metrics()["l0"] == pytest.approx(6, abs=0.2)
        return
    whole, parts = trained(small(name), 40), trained(small(name, accumulate=4), 40)
    for key, p in whole.weights.items():
        assert torch.allclose(p, parts.weights[key], atol=2e-3), key
    assert parts.metrics()["l0"] == pytest.approx(whole.metrics()["l0"], rel=0.05)


@pytest.mark.parametrize("name", EVERY)
def test_decoder_rows_have_unit_norm_after_every_step_and_after_export(name: str) -> None:
    trainer = Trainer(small(name), CPU, rows(-1, 256))
    for i in range(60):
        trainer.train_step(rows(i))
        assert torch.allclose(trainer.weights["W_dec"].norm(dim=1), torch.ones(128), atol=1e-5)
    assert torch.allclose(trainer.export().W_dec.norm(dim=1), torch.ones(128), atol=1e-5)


@pytest.mark.parametrize("normalize", ["standard", "rms", "none"])
@pytest.mark.parametrize("name", EVERY)
def test_export_folds_the_input_normalisation(name: str, normalize: str) -> None:
    """The exported SAE on raw rows is the trained one on normalised rows: its export with units of 1."""
    trainer = trained(small(name, normalize=normalize), 50)
    sae, x, w = trainer.export(), rows(500), trainer.weights
    normalised, scale, mean = trainer._rows(x)[0], trainer.read.scale, trainer.read.mean
    if normalize != "none":
        assert normalised.square().sum(1).mean() == pytest.approx(16, rel=0.2)
    else:
        assert torch.equal(normalised, x)
    plain, one = trainer.export(), Units(torch.zeros(16), 1.0)
    trainer.objective.export(plain, w, one, one)
    assert torch.allclose(sae.encode(x), plain.encode(normalised) / scale, atol=1e-4)
    assert torch.allclose(sae(x), plain(normalised) / scale + mean, atol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_resume_is_bit_exact_with_features_dying_and_revived(name: str, tmp_path: Path) -> None:
    """200 steps at once equal 120, a file, and 80 more: weights, moments, counters, generators, running metrics."""
    events: dict[str, Any] = {"d_sae": 256, "dead_after": 320, "l1": 0.3, "resample_every": 20, "decay": 0.1}
    resampled = {**events, "bandwidth": 0.3, "l0_coefficient": 0.1} if name == "jumprelu" else events
    family = {"dead_after": 320} if name == "batchtopk" else {}
    spec = small(name, **(family if name in TOPK_FAMILY else resampled))
    straight = Trainer(spec, CPU, rows(-1, 256))
    dead_seen = {}
    for i in range(200):
        straight.train_step(rows(i))
        dead_seen[i] = int((straight.since_fired >= spec.dead_after).sum())
    assert any(dead_seen[i] for i in range(100, 120)) and any(dead_seen[i] for i in range(120, 160))

    first = trained(spec, 120)
    checkpoint.save(path := checkpoint.path_for(tmp_path, 120), *first.state())
    first.train_step(rows(0))  # a saved state does not follow the live one
    again = Trainer.resume(spec, *checkpoint.load(path), CPU)
    for i in range(120, 200):
        again.train_step(rows(i))
    (expected, meta), (found, meta_found) = straight.state(), again.state()
    assert meta == meta_found and expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert straight.metrics() == again.metrics()


def test_resume_refuses_other_settings() -> None:
    tensors, meta = trained(small("topk"), 3).state()
    with pytest.raises(UserError, match=r"made with lr = 0.003, now lr = 0.1"):
        Trainer.resume(small("topk", lr=0.1), tensors, meta, CPU)
    with pytest.raises(
        UserError, match=r"made with lr = 0.003, k = 6, now lr = 0.1, k = 7: continue with lr = 0.003, k = 6, or"
    ):
        Trainer.resume(small("topk", lr=0.1, k=7), tensors, meta, CPU)
    del meta["spec"]["clip"]  # a checkpoint from before the option existed: it had the default
    assert Trainer.resume(small("topk"), tensors, meta, CPU).step == 3


def test_layers_and_seeds_start_differently_and_alone_equals_beside_another() -> None:
    spec = small("relu")
    alone = trained(spec, 60)
    torch.manual_seed(5)
    beside, other = Trainer(spec, CPU, rows(-1, 256)), Trainer(replace(spec, layer=4), CPU, rows(-1, 256))
    for i in range(60):
        other.train_step(rows(i + 1))
        beside.train_step(rows(i))
    assert all(torch.equal(a, b) for a, b in zip(alone.state()[0].values(), beside.state()[0].values(), strict=True))
    seeds = [Trainer(s, CPU, rows(-1)).weights["W_dec"] for s in (spec, replace(spec, layer=4), replace(spec, seed=1))]
    assert not torch.equal(seeds[0], seeds[1]) and not torch.equal(seeds[0], seeds[2])


def test_resampling_revives_dead_features_with_distinct_directions() -> None:
    trainer = trained(small("relu", resample_every=0), 39)
    trainer.spec = replace(trainer.spec, resample_every=40)
    trainer.since_fired[10:20] = 10_000
    trainer.weights["b_enc"].data[10:20] = -100.0
    trainer.train_step(rows(39))
    w = trainer.weights
    assert (trainer.since_fired[10:20] == 0).all() and (w["b_enc"][10:20] == 0).all()
    assert torch.linalg.matrix_rank(w["W_dec"][10:20]) == 10
    assert all((trainer.optimiser.moments["exp_avg"][key][10:20] == 0).all() for key in ("W_enc", "b_enc", "W_dec"))
    ratio = w["W_enc"][10:20].norm(dim=1) / w["W_enc"].norm(dim=1)[20:].mean()
    assert torch.allclose(ratio, torch.full((10,), 0.2), atol=0.02)


def test_auxiliary_loss_brings_dead_features_back() -> None:
    """Features pushed far below zero stay dead without it and come back with it."""
    alive = {}
    for aux in (0.0, 1 / 32):
        trainer = trained(small("topk", aux=aux, steps=600, decay=0.0), 20)
        trainer.weights["b_enc"].data[:64] -= 3.0
        for i in range(20, 400):
            trainer.train_step(rows(i))
        alive[aux] = int((trainer.since_fired < 640).sum())
    assert alive[1 / 32] > alive[0.0] + 20


def test_a_feature_is_dead_after_a_tenth_of_the_rows_where_nobody_says_otherwise() -> None:
    """25,600 rows would call nothing dead in a run of 1,920."""
    (element,) = plan("task=sae", "layer=0", "sae.steps=60", "sae.batch_size=32")
    assert settled(element.cfg.sae).dead_after == dead_rows(60, 32) == 192


@pytest.mark.parametrize("name", EVERY)
def test_a_short_run_tells_its_dead_features_from_the_living(name: str) -> None:
    weak = {"relu": {"l1": 1e-3}, "gated": {"l1": 1e-3}, "jumprelu": {"l0_coefficient": 1e-4, "threshold": 0.05}}
    for planted in (0, 5):
        spec = small(name, d_sae=16, steps=60, dead_after=dead_rows(60, 32), resample_every=10**6, **weak.get(name, {}))
        trainer = Trainer(spec, CPU, rows(-1, 256))
        for bias in trainer.weights.keys() & {"b_enc", "b_gate"}:
            trainer.weights[bias].data[:planted] = -1e3
        told = []
        for i in range(60):
            trainer.train_step(rows(i))
            told.append(trainer.metrics()["dead_fraction"])
        assert told[:5] == [0.0] * 5, "in 160 rows none can be called dead"
        assert told[5:] == [planted / 16] * 55


def test_schedules() -> None:
    spec = small("topk", lr=1.0, steps=100, warmup=10, decay=0.2)
    assert [round(spec.lr_at(i), 3) for i in (0, 9, 10, 79, 80, 90, 99)] == [0.1, 1, 1, 1, 1, 0.5, 0.05]
    assert spec.lr_at(100) == 0
    relu = small("relu", steps=200, decay=0.2, resample_every=40)
    assert [i for i in range(1, 201) if relu.resamples_at(i)] == [40, 80, 120]


def test_sparsity_schedules() -> None:
    spec = small("relu", steps=100, sparsity_decay=0.2)
    assert [round(spec.sparsity_at(i, 10), 2) for i in (0, 9, 50, 80, 90, 99)] == [0.1, 1, 1, 1, 0.5, 0.05]
    falling = small("topk", k_anneal=10)
    assert [falling.k_at(i) for i in (0, 5, 10, 50)] == [24, 15, 6, 6]
    assert trained(falling, 1).metrics()["l0"] > 15 > trained(small("topk"), 1).metrics()["l0"]


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_the_inference_threshold_keeps_k_features_a_row_on_average(name: str) -> None:
    trainer = trained(small(name, threshold_warmup=5, threshold_rate=0.05, steps=400), 300)
    sae, x = trainer.export(), torch.cat([rows(1000 + i) for i in range(20)])
    assert float((sae.encode(x) > 0).sum(1).float().mean()) == pytest.approx(6, rel=0.15)
    assert torch.allclose(sae.encode(x)[:32], sae.encode(x[:32])), "what a row gives does not depend on its batch"


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_the_threshold_moves_once_a_step_however_many_parts_its_batch_has(name: str) -> None:
    found = {}
    for parts in (1, 4):
        trainer = trained(small(name, threshold_rate=0.05, accumulate=parts), 3)
        trainer.objective.state["threshold"].fill_(10.0)
        trainer.train_step(rows(3))
        found[parts] = float(trainer.objective.state["threshold"])
    assert found[4] == pytest.approx(found[1], abs=0.02) and 9.5 < found[1] < 9.6, (
        "towards the least that was kept, by a twentieth"
    )


def test_metrics_report_the_window_and_then_start_anew() -> None:
    trainer = trained(small("relu"), 30)
    found = trainer.metrics()
    assert set(found) == {"loss", "mse", "explained_variance", "l0", "dead_fraction", "lr", "l1"}
    assert found["loss"] > found["l1"] > 0 and 0 < found["explained_variance"] < 1
    assert trainer.metrics() == {}


def test_non_finite_loss_names_layer_and_step() -> None:
    trainer = trained(small("topk"), 4)
    trainer.train_step(rows(4) * float("nan"))
    with pytest.raises(NonFinite, match="layer 3, step 5"):
        trainer.metrics()


def test_impossible_settings_are_told_all_at_once() -> None:
    with pytest.raises(UserError) as e:
        Trainer(small("topk", k=200, lr=-1.0, decay=2.0), CPU, rows(-1))
    assert len(e.value.messages) == 3 and "k = 200 is not between 1 and the dictionary size d_sae = 128" in str(e.value)
    with pytest.raises(UserError, match="needs k"):
        Trainer(small("topk", k=None), CPU, rows(-1))
    with pytest.raises(UserError, match="needs l1"):
        Trainer(small("relu", l1=None), CPU, rows(-1))
    with pytest.raises(RunError, match="all equal"):
        Trainer(small("topk"), CPU, torch.ones(10, 16))


@pytest.mark.parametrize("name", EVERY)
def test_planted_features_are_found(name: str) -> None:
    """64 directions in 32 dimensions, about 4 active: explained variance and Hungarian-matched cosine with the truth."""
    truth = F.normalize(torch.randn(64, 32, generator=torch.Generator().manual_seed(31)), dim=1)

    def batch(index: int, n: int = 256) -> Tensor:
        g = torch.Generator().manual_seed(5000 + index)
        return ((torch.rand(n, 64, generator=g) < 0.06) * (0.5 + torch.rand(n, 64, generator=g))) @ truth

    options: dict[str, Any] = {
        "topk": {"k": 4},
        "batchtopk": {"k": 4},
        "matryoshka": {"k": 4, "groups": 2},
        "relu": {"l1": 0.1, "l1_warmup": 100},
        "gated": {"l1": 0.3, "l1_warmup": 100},
        "jumprelu": {"l0_coefficient": 0.02, "l0_warmup": 100},
    }[name]
    spec = TrainSpec(name, 32, 64, 3e-3, 256, 1000, warmup=50, decay=0.2, **options)
    trainer = Trainer(spec, CPU, batch(-1, 4096))
    control = trainer.export()
    for i in range(1000):
        trainer.train_step(batch(i))
    sae, x = trainer.export(), batch(-2, 4096)

    def explained(s: nn.Module) -> float:
        return float(1 - (s(x) - x).square().sum() / (x - x.mean(0)).square().sum())

    cosine = (sae.W_dec @ truth.T).abs()
    pairs = linear_sum_assignment(-cosine.numpy())
    assert explained(sae) > (0.7 if name == "matryoshka" else 0.8) > 0.4 > explained(control)
    assert cosine[pairs].mean() > {"matryoshka": 0.75, "gated": 0.8}.get(name, 0.85)


@pytest.mark.soak  # half a minute of compiling
def test_a_compiled_optimiser_takes_the_same_steps() -> None:
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(3))
    spec = TrainSpec("topk", 16, 128, 1e-2, 64, 30, k=4)
    eager, compiled = (Trainer(replace(spec, compile=flag), torch.device("cpu"), x) for flag in (False, True))
    for _ in range(10):
        eager.train_step(x)
        compiled.train_step(x)
    for name, p in eager.weights.items():
        torch.testing.assert_close(compiled.weights[name].data, p.data, rtol=1e-4, atol=1e-5)
