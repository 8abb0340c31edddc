"""Crosscoders over layers and over two models, on worlds whose features are known."""

from __future__ import annotations

import pytest
import torch

from circuits.sae import crosscoder
from circuits.sae.crosscoder import Block, Measured
from circuits.sae.normalise import measure
from circuits.sae.spec import TrainSpec
from circuits.sae.synthetic import World
from circuits.sae.training import Trainer

CPU = torch.device("cpu")
WIDTH, SCALE = 48, 7.0
WORLD = World(features=128, width=WIDTH, l0=4.0, seed=100)
PLANTED = torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(9)), dim=0)


def rows(index: int, n: int = 256, planted: bool = False) -> torch.Tensor:
    """Of one model and of a copy whose activations are seven times as large, with a feature more on a tenth of the rows."""
    x = WORLD.sample(n, index).x
    other = x.clone()
    if planted:
        g = torch.Generator().manual_seed(10_000 + index)
        on = torch.rand(n, generator=g) < 0.1
        other += (on * (1 + 0.3 * torch.randn(n, generator=g)).abs())[:, None] * PLANTED
    return torch.cat([x, SCALE * other], dim=1)


def trained(planted: bool, **given: object) -> tuple[Trainer, list[Block]]:
    options = {"k": 4, "threshold_rate": 0.02} | given
    spec = TrainSpec("batchtopk", 2 * WIDTH, 160, 5e-3, 256, 1200, warmup=50, decay=0.2, blocks=2, **options)  # type: ignore[arg-type]
    trainer = Trainer(spec, CPU, rows(-2, 4096, planted))
    for step in range(spec.steps):
        trainer.train_step(rows(step, 256, planted))
    assert trainer.read.by is not None
    blocks = [Block(model, 0, float(trainer.read.by[model * WIDTH])) for model in (0, 1)]
    return trainer, blocks


def held_out(sae: torch.nn.Module, blocks: list[Block], planted: bool) -> Measured:
    found = Measured(sae, blocks)  # type: ignore[arg-type]
    for index in range(20):
        x = rows(100_000 + index, 256, planted).unflatten(0, (16, 16))
        found.add(x, torch.ones(16, 16, dtype=torch.bool))
    return found


def test_blocks_are_normalised_each_by_itself_and_folded_in_exactly() -> None:
    x = rows(-2, 4096)
    units = measure(x, "standard", 2)
    normal = units.normalise(x)
    for part in normal.chunk(2, dim=1):
        assert float(part.square().sum(1).mean()) == pytest.approx(WIDTH, rel=1e-3)
    trainer, _ = trained(planted=False, k_anneal=0)
    sae, w = trainer.export(), trainer.weights
    inside = (trainer.read.normalise(x) - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]
    outside = sae.centred(x) @ sae.W_enc + sae.b_enc
    assert torch.allclose(outside * trainer.write.scale, inside, atol=1e-3)
    f = sae.encode(x)
    again = (f * trainer.write.scale) @ w["W_dec"] + w["b_dec"]
    assert torch.allclose(trainer.read.normalise(sae.decode(f)), again, atol=1e-3)


def test_two_copies_share_every_feature() -> None:
    trainer, blocks = trained(planted=False)
    found = held_out(trainer.export(), blocks, planted=False)
    by_block, mean, (low, high) = found.explained_variance()
    assert low < mean < high and by_block.min() > 0.6 and abs(by_block[0] - by_block[1]) < 0.01
    alive = found.fired.numpy() > 0
    relative = crosscoder.relative_norm(crosscoder.norms(trainer.export(), blocks), blocks)
    seems, exclusive = crosscoder.exclusive(relative, *found.latent_scaling())
    assert not seems[alive].any() and not exclusive.any()
    assert abs(relative[alive] - 0.5).max() < 0.1


def test_a_planted_feature_of_one_model_is_the_only_exclusive_one() -> None:
    trainer, blocks = trained(planted=True)
    sae = trainer.export()
    found = held_out(sae, blocks, planted=True)
    relative = crosscoder.relative_norm(crosscoder.norms(sae, blocks), blocks)
    nu_error, nu_reconstruction = found.latent_scaling()
    _, exclusive = crosscoder.exclusive(relative, nu_error, nu_reconstruction)
    exclusive &= found.fired.numpy() > 0
    (alone,) = exclusive.nonzero()[0]
    assert relative[alone] > 0.9
    direction = torch.nn.functional.normalize(sae.W_dec[alone, WIDTH:], dim=0)
    assert float(direction @ PLANTED) > 0.95


def test_shrinkage_is_told_from_absence() -> None:
    """A shared feature whose row in one model was lost: its norm says exclusive, the other model's error says that it is not."""
    trainer, blocks = trained(planted=False)
    sae = trainer.export()
    alive = int(held_out(sae, blocks, planted=False).fired.argmax())
    sae.W_dec[alive, :WIDTH] = 0.0
    found = held_out(sae, blocks, planted=False)
    relative = crosscoder.relative_norm(crosscoder.norms(sae, blocks), blocks)
    nu_error, nu_reconstruction = found.latent_scaling()
    seems, exclusive = crosscoder.exclusive(relative, nu_error, nu_reconstruction)
    assert seems[alive] and not exclusive[alive] and nu_error[alive] > 0.5


def test_a_crosscoder_is_resumed_bit_by_bit() -> None:
    spec = TrainSpec("batchtopk", 2 * WIDTH, 160, 5e-3, 256, 60, k=4, blocks=2)
    straight = Trainer(spec, CPU, rows(-2, 4096))
    for step in range(30):
        straight.train_step(rows(step))
    again = Trainer.resume(spec, *straight.state(), CPU)
    for step in range(30, 60):
        straight.train_step(rows(step))
        again.train_step(rows(step))
    mine, other = straight.state()[0], again.state()[0]
    assert all(torch.equal(mine[key], other[key]) for key in mine) and "by" in mine
    assert all(
        torch.equal(a, b) for a, b in zip(straight.export().parameters(), again.export().parameters(), strict=True)
    )
