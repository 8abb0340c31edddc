"""Crosscoders over layers and over two models, on worlds whose features are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import QUICK as BRIEF
from conftest import Cli

from circuits.sae import across, crosscoder
from circuits.sae.cross_layer import CrossLayerTranscoder
from circuits.sae.crosscoder import Block, BlockSums, Measured
from circuits.sae.massive import find, parts
from circuits.sae.modules import SAEConfig, architectures
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


QUICK = [
    BRIEF,
    "sae=batchtopk",
    "sae.k=8",
    "sae.steps=120",
    "sae.expansion=2",
    "sae.heldout_sequences=32",
    "tracking=off",
]


@pytest.fixture(scope="module")
def second(quick_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the embedded model, as a person's directory."""
    place = tmp_path_factory.mktemp("models") / "copy"
    shutil.copytree(next((quick_store / "tiny").glob("tiny-*")), place)
    return place


def test_two_copies_of_a_model_have_no_exclusive_feature_from_the_command_line(warm: Cli, second: Path) -> None:
    done = warm("task=crosscoder", "layer=1", f"crosscoder.beside={second}", *QUICK)
    assert done.code == 0, done.err
    (place,) = warm.artifacts("crosscoder")
    metrics = json.loads((place / "metrics.json").read_text())
    assert metrics["exclusive"] == metrics["seemingly_exclusive"] == 0 and metrics["shared_fraction"] == 1
    assert [block["model"] for block in metrics["blocks"]] == ["A", "B"]
    a, b = metrics["explained_variance_by_block"]
    assert a == pytest.approx(b, abs=5e-3) and a > metrics["baselines"]["frozen_decoder"]["explained_variance"]
    again = warm("task=crosscoder", "layer=1", f"crosscoder.beside={second}", *QUICK)
    assert "cached" in again.out


def test_layers_are_joined_and_shown_on_a_page(warm: Cli) -> None:
    straight = warm("task=crosscoder", "layer=0-2", *QUICK)
    assert straight.code == 0, straight.err
    (place,) = warm.artifacts("crosscoder")
    table = pd.read_parquet(place / "features.parquet")
    metrics = json.loads((place / "metrics.json").read_text())
    assert {"norm_L0", "norm_L1", "norm_L2", "largest_share"} <= set(table) and metrics["d_in"] == 3 * 128
    assert len(metrics["explained_variance_by_block"]) == 3
    report = next((warm.outputs / "runs").rglob("report.html")).read_text()
    assert "Explained variance, block by block" in report


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["layer=1"], "a crosscoder joins several layers"),
        (["layer=0-1", "sae.site=mlp_in", "sae.target_site=mlp_out"], "sae.target_site: not of a crosscoder"),
        (["layer=0-1", "crosscoder.beside=nowhere/at/all"], "crosscoder.beside=nowhere/at/all"),
        (["layer=0-1", "sae.nonfinite=drop"], "use fail"),
    ],
)
def test_what_cannot_be_joined_is_one_line(warm: Cli, words: list[str], message: str) -> None:
    refused = warm("task=crosscoder", *words, *QUICK)
    assert refused.code == 2 and message in refused.err and "Traceback" not in refused.err


def test_models_of_other_widths_are_refused(warm: Cli, second: Path, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow"
    shutil.copytree(second, narrow)
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    refused = warm("task=crosscoder", "layer=1", f"crosscoder.beside={narrow}", *QUICK)
    assert refused.code == 2 and "64 wide at resid_post, the model 128; equal widths are joined" in refused.err


@pytest.mark.parametrize("what", ["crosscoder", "transcoder"])
def test_held_out_sums_are_the_same_in_one_go_and_in_pieces(what: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, keep = torch.randn(12, 9, 2 * WIDTH, generator=generator), torch.ones(12, 9, dtype=torch.bool)
    x[3, 4], keep[5, 7:] = 1e4, False

    def fresh() -> BlockSums:
        if what == "crosscoder":
            sae = architectures()["relu"].sae(SAEConfig(2 * WIDTH, 40, blocks=2))
            found: BlockSums = Measured(sae, [Block(0, 0, 1.0), Block(1, 0, 2.0)])
        else:
            half = WIDTH // 2
            sae = CrossLayerTranscoder(SAEConfig(2 * half, 40, d_out=2 * half, blocks=2))
            found = across.Measured(sae)
        for weight in sae.parameters():
            weight.data.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        sae.massive = find(x[keep], parts(sae.cfg.d_in, sae.cfg.d_out, 2), 10.0)
        assert sae.massive is not None
        return found

    def fed(found: BlockSums, rows: slice) -> BlockSums:
        for part in range(rows.start, rows.stop, 3):
            found.add(x[part : part + 3], keep[part : part + 3])
        return found

    whole, first = fed(fresh(), slice(0, 12)), fed(fresh(), slice(0, 6))
    again = fresh()
    again.load({name: value.clone() for name, value in first.state().items()})
    fed(again, slice(6, 12))
    assert whole.state().keys() == again.state().keys()
    assert all(torch.equal(value, again.state()[name]) for name, value in whole.state().items())
    assert whole.counts == again.counts and whole.explained_variance()[1] == again.explained_variance()[1]
