"""The loop that trains several layers on one stream: layers that were cut at different steps end as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from test_activation_store import written
from test_stream import make_lm, make_stream

from circuits.activations.reservoir import Reservoir
from circuits.activations.stream import ActivationStream, Position
from circuits.sae import loop
from circuits.sae.loop import Hooks, train, validation_rows
from circuits.sae.spec import TrainSpec
from circuits.sae.training import Trainer

STEPS = 40
Saved = dict[int, tuple[dict[str, torch.Tensor], dict[str, Any]]]


def spec(architecture: str, layer: int, d_in: int, **changes: Any) -> TrainSpec:
    """A small SAE."""
    own: dict[str, Any] = {
        "topk": {"k": 4},
        "batchtopk": {"k": 4},
        "matryoshka": {"k": 4, "groups": 3},
        "relu": {"l1": 0.05, "resample_every": 10},
        "gated": {"l1": 0.05, "resample_every": 10},
        "jumprelu": {"l0_coefficient": 0.01, "resample_every": 10},
    }[architecture]
    common = {"d_sae": 32, "lr": 1e-3, "batch_size": 16, "steps": STEPS, "dead_after": 64}
    return TrainSpec(architecture=architecture, d_in=d_in, layer=layer, **{**common, **own, **changes})


def run(
    architecture: str,
    layers: tuple[int, ...],
    saved: Saved,
    stop_at: int | None = None,
    target: str | None = None,
    **changes: Any,
) -> tuple[dict[int, Trainer] | None, dict[tuple[int, int], Any], dict[int, list[int]]]:
    """Train; the trainers, every checkpoint by (layer, step), and the logged steps of each layer."""
    stream = make_stream(make_lm("qwen2"), layers=layers, **({"target": target} if target else {}))
    checkpoints: dict[tuple[int, int], Any] = {}
    logged: dict[int, list[int]] = {layer: [] for layer in layers}
    hooks = Hooks(
        log=lambda layer, step, metrics: logged[layer].append(step) if metrics["explained_variance"] <= 1 else None,
        save=lambda layer, step, tensors, meta: checkpoints.update({(layer, step): (tensors, meta)}),
        stopping=lambda: stop_at is not None and bool(logged[layers[0]]) and logged[layers[0]][-1] >= stop_at,
        log_every=10,
        save_every=10,
    )
    specs = {layer: spec(architecture, layer, stream.width, d_out=stream.target_width, **changes) for layer in layers}
    validation = validation_rows(stream, 4, 8) if "patience" in changes else None
    resumed = {
        layer: (Trainer.resume(specs[layer], tensors, meta, stream.lm.device), Position(**meta["position"]))
        for layer, (tensors, meta) in saved.items()
    }
    until = dict.fromkeys(layers, STEPS)
    return train(stream, specs, resumed, hooks, until, validation), checkpoints, logged


@pytest.mark.parametrize("architecture", ["topk", "relu", "batchtopk", "matryoshka", "jumprelu", "gated"])
def test_layers_cut_at_different_steps_continue_bit_identically(architecture: str) -> None:
    whole, checkpoints, logged = run(architecture, (0, 1, 2), {})
    assert whole is not None and logged == {layer: [10, 20, 30, 40] for layer in (0, 1, 2)}
    alone, _, _ = run(architecture, (1,), {})
    assert alone is not None and equal(alone[1], whole[1])
    saved = {0: checkpoints[0, 30], 1: checkpoints[1, 10], 2: checkpoints[2, 20]}
    resumed, again, logged = run(architecture, (0, 1, 2), saved)
    assert resumed is not None
    assert logged == {0: [40], 1: [20, 30, 40], 2: [30, 40]}, "nothing is logged twice"
    assert (0, 20) not in again and (1, 20) in again, "a layer that is ahead is not saved again"
    for layer, trainer in whole.items():
        for name, weight in trainer.weights.items():
            assert torch.equal(weight, resumed[layer].weights[name]), (layer, name)


def test_a_layer_without_a_checkpoint_begins_beside_one_that_has_one() -> None:
    whole, checkpoints, _ = run("topk", (0, 1), {})
    resumed, _, _ = run("topk", (0, 1), {1: checkpoints[1, 20]})
    assert whole is not None and resumed is not None
    for layer, trainer in whole.items():
        assert all(torch.equal(w, resumed[layer].weights[name]) for name, w in trainer.weights.items())


def test_turns_change_nothing_and_end_where_something_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most in (1, loop.TURN_BATCHES):
        monkeypatch.setattr(loop, "TURN_BATCHES", most)
        found.append(run("topk", (0, 1), {}))
    (one, saved, logged), (many, again, logged_again) = found
    assert one is not None and many is not None and all(equal(trainer, many[layer]) for layer, trainer in one.items())
    assert logged == logged_again and saved.keys() == again.keys()
    assert all(meta == again[at][1] for at, (_, meta) in saved.items()), "positions too"


def test_views_into_a_block_last_for_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few batches, read while the trainers go on: with views or with copies, they see the same rows."""
    monkeypatch.setattr(loop, "FIRST_ROWS", 64)
    stores = {layer: written(tmp_path / str(layer), 500, layer=layer) for layer in (0, 1)}
    trained = []
    for own in (True, False):
        reservoir = Reservoir(stores, batch_size=16, ram_bytes=16 * 16 * stores[0].values[0].nbytes, own=own)
        assert 200 > reservoir.chunk_rows * reservoir.chunks_per_block > 2 * 16
        stream = SimpleNamespace(batches=reservoir.batches, lm=SimpleNamespace(device=torch.device("cpu")))
        specs = {layer: spec("topk", layer, reservoir.width, steps=200) for layer in stores}
        hooks: Hooks[int] = Hooks(log=lambda *_: None, save=lambda *_: None, stopping=lambda: False)
        trained.append(train(cast(ActivationStream, stream), specs, {}, hooks, dict.fromkeys(specs, 200)))
    copies, views = trained
    assert copies and views and all(equal(trainer, views[layer]) for layer, trainer in copies.items())


def test_a_stop_saves_every_layer_first() -> None:
    stopped, checkpoints, _ = run("topk", (0, 1), {}, stop_at=20)
    assert stopped is None
    assert {(0, 20), (1, 20)} <= checkpoints.keys()


def equal(a: Trainer, b: Trainer) -> bool:
    """Bit-identical weights."""
    return all(torch.equal(weight, b.weights[name]) for name, weight in a.weights.items())


def test_transcoders_resume_bit_identically_alone_and_in_a_set() -> None:
    whole, checkpoints, _ = run("jumprelu", (0, 1), {}, target="mlp_out")
    resumed, _, _ = run("jumprelu", (0, 1), {0: checkpoints[0, 30], 1: checkpoints[1, 10]}, target="mlp_out")
    alone, _, _ = run("jumprelu", (1,), {}, target="mlp_out")
    assert whole and resumed and alone and equal(whole[1], alone[1])
    assert all(equal(trainer, resumed[layer]) for layer, trainer in whole.items())
    assert not torch.equal(whole[1].read.mean, whole[1].write.mean)


def test_early_stopping_takes_the_best_weights_and_each_layer_stops_by_itself() -> None:
    options = {"patience": 2, "validate_every": 5, "min_delta": 0.0, "lr": 0.5}  # a rate that soon makes things worse
    stopped, checkpoints, logged = run("topk", (0, 1), {}, **options)
    assert stopped is not None
    for layer, trainer in stopped.items():
        best = trainer.best
        assert best is not None and trainer.finished and trainer.step == best.step + 10 < STEPS
        assert logged[layer][-1] == trainer.step, "the last step is in the history"
        tensors = checkpoints[layer, trainer.step][0]
        assert all(torch.equal(w, tensors[f"best.{name}"]) for name, w in trainer.weights.items())
        assert not torch.equal(trainer.weights["W_dec"], tensors["weights.W_dec"]), "copies, not the live weights"
    before = {layer: (layer, 5 if (layer, 5) in checkpoints else 10) for layer in (0, 1)}
    resumed, _, _ = run("topk", (0, 1), {layer: checkpoints[at] for layer, at in before.items()}, **options)
    assert resumed is not None and all(equal(trainer, resumed[layer]) for layer, trainer in stopped.items())
    ended, _, _ = run("topk", (0, 1), {i: checkpoints[i, stopped[i].step] for i in (0, 1)}, **options)
    assert ended is not None and all(equal(trainer, ended[layer]) for layer, trainer in stopped.items())
