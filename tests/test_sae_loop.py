"""The loop that trains several layers on one stream: layers that were cut at different steps end as if nothing had happened."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_stream import make_lm, make_stream

from circuits.sae.loop import Hooks, train
from circuits.sae.spec import TrainSpec
from circuits.sae.training import Trainer

STEPS = 40
Saved = dict[int, tuple[dict[str, torch.Tensor], dict[str, Any]]]


def spec(architecture: str, layer: int, d_in: int) -> TrainSpec:
    """A small SAE."""
    own = {"k": 4} if architecture == "topk" else {"l1": 0.05, "resample_every": 10}
    return TrainSpec(
        architecture=architecture,
        d_in=d_in,
        d_sae=32,
        lr=1e-3,
        batch_size=16,
        steps=STEPS,
        dead_after=64,
        layer=layer,
        **own,
    )


def run(
    architecture: str, layers: tuple[int, ...], saved: Saved, stop_at: int | None = None
) -> tuple[dict[int, Trainer] | None, dict[tuple[int, int], Any], dict[int, list[int]]]:
    """Train; the trainers, every checkpoint by (layer, step), and the logged steps of each layer."""
    stream = make_stream(make_lm("qwen2"), layers=layers)
    checkpoints: dict[tuple[int, int], Any] = {}
    logged: dict[int, list[int]] = {layer: [] for layer in layers}
    hooks = Hooks(
        log=lambda layer, step, metrics: logged[layer].append(step) if metrics["explained_variance"] <= 1 else None,
        save=lambda layer, step, tensors, meta: checkpoints.update({(layer, step): (tensors, meta)}),
        stopping=lambda: stop_at is not None and bool(logged[layers[0]]) and logged[layers[0]][-1] >= stop_at,
        log_every=10,
        save_every=10,
    )
    specs = {layer: spec(architecture, layer, stream.width) for layer in layers}
    return train(stream, specs, saved, hooks, STEPS), checkpoints, logged


@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_layers_cut_at_different_steps_continue_bit_identically(architecture: str) -> None:
    whole, checkpoints, logged = run(architecture, (0, 1, 2), {})
    assert whole is not None and logged == {layer: [10, 20, 30, 40] for layer in (0, 1, 2)}
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


def test_a_stop_saves_every_layer_first() -> None:
    stopped, checkpoints, _ = run("topk", (0, 1), {}, stop_at=20)
    assert stopped is None
    assert {(0, 20), (1, 20)} <= checkpoints.keys()
