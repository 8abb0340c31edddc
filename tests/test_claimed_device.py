"""What an accelerator would refuse, wait for or hold, seen on tensors that claim to be on one (tests/claimed.py).

Six architectures go from the stream through training, measurement, description and scoring on a claimed CUDA and a claimed MPS
device. This cannot see whether a device's kernels compute the right numbers, how fast they are, their own work space, what
streams and events order, nor waits inside of them: tests/test_gpu.py asks a real one.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from claimed import claimed
from test_activation_store import written
from test_baseline import prompt_set
from test_stream import make_lm, make_stream
from torch import Tensor

from circuits.activations.reservoir import Reservoir
from circuits.activations.scoring import score
from circuits.features.collect import Collector, Fresh
from circuits.features.logits import token_effects
from circuits.features.pooling import pooled
from circuits.models.load import LM, wrap
from circuits.sae.evaluate import measure
from circuits.sae.loop import Hooks, train
from circuits.sae.memory import training
from circuits.sae.modules import architectures
from circuits.sae.spec import TrainSpec
from circuits.sae.training import Trainer, hand_over

OPTIONS: dict[str, dict[str, Any]] = {
    "topk": {"k": 4},
    "batchtopk": {"k": 4},
    "matryoshka": {"k": 4, "groups": 3},
    "relu": {"l1": 0.1},
    "gated": {"l1": 0.1},
    "jumprelu": {"l0_coefficient": 0.01},
}
EVERY = sorted(OPTIONS)
KINDS = ["cuda", "mps"]
CPU = torch.device("cpu")


def spec(name: str, **changes: Any) -> TrainSpec:
    """An SAE that is clipped at every step, and whose dead features are revived within a few."""
    given = {
        "batch_size": 32,
        "clip": 0.01,
        "dead_after": 64,
        "resample_every": 4,
        "steps": 400,
        **OPTIONS[name],
        **changes,
    }
    return TrainSpec(name, 16, 256, 1e-2, **given)


def rows() -> Tensor:
    return torch.randn(32, 16, generator=torch.Generator().manual_seed(2))


def places(waits: Counter[str]) -> set[str]:
    """The files in which the host waited."""
    return {wait.rsplit(" ", 1)[1].split(":")[0] for wait in waits}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_architecture_is_here() -> None:
    assert list(architectures()) == EVERY


@functools.cache
def on_the_processor(name: str) -> dict[str, Tensor]:
    """An SAE's weights after six steps on the CPU."""
    made = Trainer(spec(name), CPU, rows())
    for _ in range(6):
        made.train_step(rows())
    return {key: weight.detach().clone() for key, weight in made.weights.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EVERY)
def test_a_step_waits_for_nothing_and_comes_to_the_weights_of_the_processor(name: str, kind: str) -> None:
    """Clipped alike, resampled alike; of an accelerator the dense products and the waiting-free selection are taken."""
    expected = on_the_processor(name)
    with claimed(kind) as device:
        made, x = Trainer(spec(name), device.name, rows()), rows().to(device.name)
        device.waits.clear()
        for _ in range(6):
            made.train_step(x)
        drawn = {"transfer.py"} if kind == "mps" else set()
        assert places(device.waits) <= drawn, "only MPS waits, for the noise of a resampling"
        found = {key: weight.cpu() for key, weight in made.weights.items()}
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_the_plan_knows_the_work_space_of_a_step_and_what_a_parameter_takes(name: str) -> None:
    with claimed("cuda") as device:
        made, x = Trainer(spec(name, resample_every=0, dead_after=10**6), device.name, rows()), rows().to(device.name)
        made.train_step(x)
        held, device.peak = device.live, 0
        for _ in range(2):
            made.train_step(x)
        assert device.live == held, "nothing stays after a step"
        work, need = device.peak - held, training(16, 256, 32, architecture=name)
        assert 0.8 < need.fixed / work < 1.1, f"{work / (4 * 32 * 256):.2f} tensors of pre-activations"
        assert held == pytest.approx(need.each, rel=0.1)


def test_batches_in_parts_and_early_stopping_take_what_the_plan_says() -> None:
    with claimed("cuda") as device:
        made = Trainer(spec("topk", accumulate=4, patience=3), device.name, rows())
        x = rows().to(device.name)
        for _ in range(3):
            made.train_step(x)
            made.validate(x)
        held, device.peak = device.live, 0
        made.train_step(x)
        made.validate(x)
        need = training(16, 256, 32, architecture="topk", best=True, parts=4)
        assert held == pytest.approx(need.each, rel=0.1) and device.live == held
        assert device.peak - held <= 1.2 * need.fixed


def test_handing_over_takes_less_than_training_did() -> None:
    """Gradients and moments go first, weights one by one; controls come from the start values."""
    names = list(range(4))
    with claimed("cuda") as device:
        trainers = {name: Trainer(spec("topk", layer=name), device.name, rows()) for name in names}
        x = rows().to(device.name)
        for trainer in trainers.values():
            trainer.train_step(x)
        parameters = sum(weight.numel() for weight in trainers[0].weights.values())
        steps = {name: {key: weight.cpu() for key, weight in t.weights.items()} for name, t in trainers.items()}
        del trainer
        for one in trainers.values():
            one.finish()
        del one
        device.peak = 0
        saes, controls = hand_over(trainers)
        assert not trainers and set(saes) == set(controls) == set(names)
        assert device.peak < 10 * parameters * len(names), "of the 16 bytes a parameter of the training"
        assert device.live == pytest.approx(8 * parameters * len(names), rel=0.1)
        assert torch.equal(saes[2].W_dec.cpu(), steps[2]["W_dec"])
        assert not torch.equal(controls[2]["untrained"].W_dec.cpu(), controls[1]["untrained"].W_dec.cpu())
        again = Trainer(spec("topk", layer=2), CPU, rows()).export()
        assert torch.equal(controls[2]["untrained"].W_enc.cpu(), again.W_enc)
        assert torch.equal(controls[2]["untrained"].b_dec.cpu(), again.b_dec)


def on(device: Any, lm: LM) -> LM:
    return wrap(lm.model.to(device.name), lm.tokenizer, lm.name)


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.soak) for kind in KINDS[1:])])
def test_the_whole_way_of_six_architectures(kind: str) -> None:
    """Stream, training, measurement, description and scoring: no mix of devices, no type that the device lacks; and the host waits
    for blocks and chunks, never for single sequences or prompts."""
    with claimed(kind) as device:
        lm = on(device, make_lm("qwen2"))
        stream = make_stream(lm, layers=(1,), skip_first=1)
        hooks: Hooks[str] = Hooks(log=lambda *_: None, save=lambda *_: None, stopping=lambda: False, log_every=5)
        specs = {name: spec(name, layer=1, batch_size=16, steps=10) for name in EVERY}
        device.waits.clear()
        trained = train(stream, specs, {}, hooks, dict.fromkeys(specs, 10))
        assert trained is not None and set(trained) == set(EVERY)
        assert not {"sae/optimiser.py"} & places(device.waits)
        assert ("transfer.py" in places(device.waits)) == (kind == "mps"), "ids go to CUDA while the host goes on"
        saes, controls = hand_over(trained)

        device.waits.clear()
        for name in EVERY:
            measured, _ = measure(stream, {1: saes[name]}, {1: controls[name]}, n_sequences=16, seed=0)[1]
            assert measured["n_sequences"] == 16 and measured["kl"] >= 0
        chunks = 2 * len(EVERY)
        assert sum(n for wait, n in device.waits.items() if "sae/splice.py" in wait) == chunks
        assert sum(n for wait, n in device.waits.items() if "sae/metrics.py" in wait) <= 8 * chunks

        sae, features = saes["topk"], torch.arange(40)
        collector, fresh = Collector(sae, features, top_k=3, window=2), Fresh()
        for chunk in stream.heldout(16):
            collector.add(chunk.sites[1], chunk.keep, fresh(chunk.tokens.ids, chunk.tokens.mask))
        assert collector.result().rows > 50
        assert token_effects(lm, sae, features, "resid_post", 1, 5) is not None
        prompts = prompt_set((2, 1), 20)
        for how in ("max", "mean", "last"):
            found = pooled(lm, {1: sae}, {1: features}, prompts, site="resid_post", how=how, skip_first=1, batch_size=8)  # type: ignore[arg-type]
            assert found[1].shape == (20, 40)
        device.waits.clear()
        scores = score(lm, prompts, batch_size=8)
        assert len(scores.top) == 20
        waits = sum(n for wait, n in device.waits.items() if "activations/scoring.py" in wait)
        assert 0 < waits <= 2 * 5, device.waits


def test_blocks_of_a_store_are_locked_at_their_size_and_let_go(tmp_path: Path) -> None:
    store = written(tmp_path / "s", 1000, width=6)
    with claimed("cuda") as device:
        reservoir = Reservoir(store, batch_size=50, ram_bytes=20_000, device=device.name)
        batches = reservoir.batches()
        first = next(batches).rows[0]
        size = reservoir.chunks_per_block * reservoir.chunk_rows * 6 * 4
        assert size & (size - 1), "no power of two"
        assert set(device.pinned.values()) == {size} and not device.waits
        assert first.cpu().shape == (50, 6)
        batches.close()
        del batches
        assert not device.pinned
