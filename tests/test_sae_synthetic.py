"""Worlds whose features are known: their statistics, the scores, and what the default settings find in one."""

from __future__ import annotations

import pytest
import torch

from circuits.sae.modules import SAEConfig, architecture
from circuits.sae.spec import TrainSpec
from circuits.sae.synthetic import World, score
from circuits.sae.training import Trainer


def test_a_world_has_the_sparsity_asked_for_and_repeats() -> None:
    world, again = World(seed=3), World(seed=3)
    sample = world.heldout(4000)
    assert float((sample.activations > 0).sum(1).float().mean()) == pytest.approx(9.35, abs=0.2)
    assert torch.equal(sample.x, again.heldout(4000).x) and torch.equal(world.sample(10, 5).x, again.sample(10, 5).x)
    assert torch.allclose(sample.activations @ world.directions, sample.x, atol=1e-5)
    assert not torch.equal(world.sample(10, 0).x, world.sample(10, 1).x)
    assert float((World(seed=4).directions * world.directions).sum(1).abs().max()) < 0.5
    start = torch.randn(512, 128, generator=torch.Generator().manual_seed(3))
    assert float((torch.nn.functional.normalize(start, dim=1) @ world.directions.T).abs().max()) < 0.6, (
        "the seed itself does not give the answer away"
    )
    with pytest.raises(ValueError, match="more than always"):
        World(features=20, l0=15, decay=1.0)


def test_the_true_dictionary_scores_one_in_any_order_and_sign() -> None:
    world = World(features=24, width=64, l0=2.0)
    sae = architecture("relu").sae(SAEConfig(64, 24))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    sae.W_dec.copy_(world.directions[order])
    sae.W_enc.copy_(torch.linalg.pinv(world.directions[order]))
    sae.b_enc.fill_(-1e-4)
    found = score(sae, world, world.heldout(2000))
    assert min(found.mcc, found.mmcs, found.explained_variance) > 0.99
    assert min(found.precision, found.recall, found.f1) > 0.97 and found.l0 == pytest.approx(2.0, abs=0.15)
    sae.W_dec.neg_()
    found = score(sae, world, world.heldout(2000))
    assert found.mcc > 0.99 and found.mmcs < 0.9 and found.explained_variance < 0
    sae.b_enc.fill_(-100.0)
    found = score(sae, world, world.heldout(2000))
    assert found.f1 == found.recall == found.l0 == 0 and found.dead_fraction == 1


@pytest.mark.parametrize(("name", "options"), [("topk", {"k": 4}), ("relu", {"l1": 0.2, "l1_warmup": 50})])
def test_training_finds_the_features_of_a_world(name: str, options: dict[str, float]) -> None:
    """A quarter of the benchmark's world and few of its rows (benchmarks/sae_quality.py)."""
    world = World(features=128, width=48, l0=4.0, seed=100)
    spec = TrainSpec(name, 48, 128, 3e-3, 256, 300, warmup=50, decay=0.2, **options)  # type: ignore[arg-type]
    trainer = Trainer(spec, torch.device("cpu"), world.sample(4096, -2).x)
    before = score(trainer.export(), world, world.heldout(2000))
    for rows in world.batches(256, 256 * 300):
        trainer.train_step(rows)
    found = score(trainer.export(), world, world.heldout(2000))
    assert found.mcc > 0.7 > 0.5 > before.mcc and found.explained_variance > 0.7
