"""A penalty that steers itself to an L0, and the frozen baselines: on a world whose features are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from circuits.errors import UserError
from circuits.sae import baselines
from circuits.sae.memory import training
from circuits.sae.modules import steering
from circuits.sae.spec import TrainSpec
from circuits.sae.synthetic import World, score
from circuits.sae.training import Trainer, hand_over

CPU = torch.device("cpu")
WORLD = World(features=128, width=48, l0=4.0, seed=100)
STEPS = 800
RISES = {"relu": "l1_warmup", "gated": "l1_warmup", "jumprelu": "l0_warmup"}


def of(name: str, **given: object) -> TrainSpec:
    """A training at a target of 4 active features a row."""
    options = {RISES[name]: 480, "target_l0": 4.0} if name in RISES else {"k": 4}
    return TrainSpec(name, 48, 128, 6e-3, 256, STEPS, warmup=50, decay=0.2, **(options | given))  # type: ignore[arg-type]


def trained(spec: TrainSpec, until: int | None = None, trainer: Trainer | None = None) -> Trainer:
    found = trainer or Trainer(spec, CPU, WORLD.sample(4096, -2).x)
    for step in range(found.step, spec.steps if until is None else until):
        found.train_step(WORLD.sample(256, step).x)
    return found


@pytest.mark.parametrize("name", RISES)
@pytest.mark.parametrize("target", [8.0, pytest.param(3.0, marks=pytest.mark.soak)])
def test_a_penalty_steers_itself_to_its_target(name: str, target: float) -> None:
    found = score(trained(of(name, target_l0=target)).export(), WORLD, WORLD.heldout(4000))
    assert found.l0 == pytest.approx(target, rel=0.1)
    assert found.mcc > 0.75


@pytest.mark.parametrize("name", RISES)
@pytest.mark.parametrize("start", [10.0, pytest.param(0.1, marks=pytest.mark.soak)])
def test_where_it_sets_out_from_does_not_matter(name: str, start: float) -> None:
    """A tenth and ten times the usual coefficient."""
    usual = {"relu": 0.05, "gated": 0.1, "jumprelu": 0.006}[name]
    option = "l0_coefficient" if name == "jumprelu" else "l1"
    found = score(trained(of(name, **{option: start * usual})).export(), WORLD, WORLD.heldout(4000))
    assert found.l0 == pytest.approx(4.0, rel=0.12)


@pytest.mark.parametrize("name", [*RISES, "topk", "batchtopk"])
def test_a_cut_training_with_its_baselines_goes_on_bit_by_bit(name: str) -> None:
    spec = of(name, baselines=True)
    straight = trained(spec, 100)
    tensors, meta = trained(spec, 57).state()
    again = trained(spec, 100, Trainer.resume(spec, tensors, meta, CPU))
    mine, other = straight.state()[0], again.state()[0]
    assert mine.keys() == other.keys() and any(key.startswith("frozen_decoder/weights.") for key in mine)
    assert all(torch.equal(mine[key], other[key]) for key in mine)
    alone = trained(replace(spec, baselines=False), 100).state()[0]
    assert all(torch.equal(mine[key], alone[key]) for key in alone), "they change nothing of what they stand beside"


@pytest.mark.parametrize("name", [*RISES, "topk"])
def test_a_frozen_part_stays_as_it_was_drawn_and_the_rest_is_trained(name: str) -> None:
    trainer = trained(of(name, baselines=True), 120)
    drawn = trainer.objective.init(trainer._generator("init"))
    for baseline, frozen in baselines.FROZEN.items():
        weights = trainer.baselines[baseline].weights
        assert trainer.baselines[baseline].step == 15
        for matrix in ("W_enc", "W_dec"):
            assert torch.equal(weights[matrix], drawn[matrix]) == (matrix == frozen)


@pytest.mark.parametrize(
    "name", [*RISES, "topk", *(pytest.param(name, marks=pytest.mark.soak) for name in ("batchtopk", "matryoshka"))]
)
def test_training_beats_its_frozen_baselines_on_a_known_world(name: str) -> None:
    extra = {"groups": 3} if name == "matryoshka" else {}
    trainer = trained(of(name, baselines=True, **extra))
    trainer.finish()
    saes, controls = hand_over({0: trainer})
    held = WORLD.heldout(4000)
    found, beside = score(saes[0], WORLD, held), {key: score(sae, WORLD, held) for key, sae in controls[0].items()}
    assert set(beside) == {"untrained", *baselines.FROZEN}
    for other in beside.values():
        assert found.mcc > other.mcc + 0.2 and found.explained_variance > other.explained_variance + 0.1


def test_what_cannot_be_steered_is_refused() -> None:
    for target in (0.5, 129.0):
        with pytest.raises(UserError, match=r"target_l0 = .* must be between 1 and d_sae = 128"):
            Trainer(of("relu", target_l0=target), CPU, None)
    with pytest.raises(UserError, match="a penalty that steers itself has no sparsity_decay"):
        Trainer(of("relu", sparsity_decay=0.1), CPU, None)


def test_a_batch_without_an_active_feature_lowers_the_penalty() -> None:
    """It counts as one; before the first step the penalty is what it sets out from."""
    state = steering.begin()
    assert float(steering.factor(state)) == 1.0
    steering.follow(state, of("relu"), torch.zeros(()), 0, risen=True)
    assert 0 < float(steering.factor(state)) < 1
    state["steer.error"].fill_(torch.nan)
    assert float(steering.factor(state)) != float(steering.factor(state)), "a number that was lost shows in the loss"


def test_memory_counts_the_baselines() -> None:
    with_them, without = (training(512, 4096, 256, architecture="topk", baselines=b) for b in (True, False))
    assert with_them.each == without.each + 24 * without.parameters
    trainer = Trainer(of("topk", baselines=True), CPU, WORLD.sample(4096, -2).x)
    trainer.train_step(WORLD.sample(256, 0).x)
    own = sum(p.numel() for p in trainer.weights.values())
    held = sum(
        4 * (p.numel() + (0 if p.grad is None else p.grad.numel()))
        for b in trainer.baselines.values()
        for p in b.weights.values()
    )
    held += sum(
        4 * t.numel()
        for b in trainer.baselines.values()
        for some in b.optimiser.moments.values()
        for t in some.values()
    )
    assert held == pytest.approx(24 * own, rel=0.03)
