"""Skip transcoders of our own: gradients, units, bit-exact resume on the embedded model, what is saved, what is measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import compose, key, plan
from conftest import QUICK, Cli
from safetensors.torch import load_file
from test_sae_training import CPU, TOPK_FAMILY, agree_with_autograd, rows, small
from torch import Tensor

from circuits.activations.stream import ActivationStream, Position
from circuits.errors import UserError
from circuits.models.load import LM, load_model
from circuits.sae import card, foreign, formats, memory, sparsify
from circuits.sae.evaluate import measure
from circuits.sae.loop import Hooks, train
from circuits.sae.metrics import Evaluator
from circuits.sae.spec import TrainSpec
from circuits.sae.training import Trainer, hand_over
from circuits.schema import sae as schema
from circuits.tiny.source import EmbeddedSource

MLP = ["sae.site=mlp_in", "sae.target_site=mlp_out"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small only wait for each other on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", [*TOPK_FAMILY, "relu", "jumprelu"])
def test_a_skip_transcoder_has_the_gradients_of_autograd_and_folds_both_units(name: str) -> None:
    trainer = Trainer(small(name, d_out=24, skip=True, accumulate=2 if name == "topk" else 1), CPU, rows(-1, 256, d=40))
    assert not trainer.weights["W_skip"].any() and not trainer.untrained().W_skip.any()
    for i in range(30):
        trainer.train_step(rows(i, d=40))
    assert trainer.weights["W_skip"].norm() > 0.3
    need = memory.training(16, 128, 32, architecture="topk", d_out=24, skip=True)
    assert need.parameters == sum(p.numel() for key, p in trainer.weights.items() if key != "threshold")
    agree_with_autograd(trainer, 5 if name in TOPK_FAMILY else None)
    sae, both, w = trainer.export(), rows(500, d=40), trainer.weights
    x, _ = trainer._rows(both)
    f = sae.encode(both[:, :16]) * trainer.write.scale
    by_hand = f @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"].T
    assert torch.allclose(sae(both[:, :16]), by_hand / trainer.write.scale + trainer.write.mean, atol=1e-5)
    keep = torch.arange(128) > 60
    trainer.optimiser.reset(keep)
    moments = trainer.optimiser.tensors()
    assert moments["adam.exp_avg.W_skip"].all() and not moments["adam.exp_avg.W_enc"][:61].any()


def test_a_linear_map_is_left_to_the_skip_connection_and_the_measures_see_the_whole_output() -> None:
    """A site that is a linear map of another is explained without a feature; without the connection it takes many."""
    turn = torch.randn(16, 16, generator=torch.Generator().manual_seed(7))

    def both(index: int, n: int = 64) -> Tensor:
        x = rows(index, n)
        return torch.cat([x, x @ turn], dim=1)

    explained = {}
    for skip in (False, True):
        trainer = Trainer(small("topk", d_out=16, skip=skip, batch_size=64), CPU, both(-1, 256))
        for i in range(100):
            trainer.train_step(both(i))
        evaluator = Evaluator(trainer.export())
        evaluator.add(both(900, 256)[None], torch.ones(1, 256, dtype=torch.bool))
        explained[skip] = evaluator.result()["explained_variance"]
        if skip:
            sae = trainer.export()
            sae.b_enc.fill_(-1e6)  # no feature is active
            alone = Evaluator(sae)
            alone.add(both(900, 256)[None], torch.ones(1, 256, dtype=torch.bool))
            assert alone.result()["l0"] == 0 and alone.result()["explained_variance"] > 0.5
    assert explained[True] > explained[False] + 0.1, explained


@pytest.fixture(scope="module")
def embedded(quick_store: Path) -> LM:
    """The quick embedded model in memory."""
    (found,) = (quick_store / "tiny").glob("[!.]*")
    return load_model(str(found), dtype=torch.float32, device=CPU)


def trained(
    lm: LM, saved: dict[int, Any], checkpoints: dict[tuple[int, int], Any]
) -> tuple[dict[int, Trainer], ActivationStream]:
    """Skip transcoders of two layers after 24 steps on the embedded model's text."""
    source = EmbeddedSource(lm.tokenizer, 0, 64)
    stream = ActivationStream(
        lm,
        source,
        site="mlp_in",
        target="mlp_out",
        layers=[1, 2],
        batch_size=64,
        block_rows=1024,
        forward_batch=8,
        seed=3,
    )
    hooks: Hooks[int] = Hooks(
        log=lambda *_: None,
        save=lambda layer, step, *found: checkpoints.update({(layer, step): found}),
        stopping=lambda: False,
        log_every=10,
        save_every=8,
    )
    common: dict[str, Any] = {
        "d_in": 128,
        "d_out": 128,
        "d_sae": 256,
        "lr": 1e-3,
        "batch_size": 64,
        "steps": 24,
        "skip": True,
    }
    own: dict[int, dict[str, Any]] = {
        1: {"architecture": "topk", "k": 8},
        2: {"architecture": "jumprelu", "l0_coefficient": 0.01},
    }
    specs = {layer: TrainSpec(layer=layer, **common, **own[layer]) for layer in own}
    resumed = {
        layer: (Trainer.resume(specs[layer], tensors, meta, CPU), Position(**meta["position"]))
        for layer, (tensors, meta) in saved.items()
    }
    found = train(stream, specs, resumed, hooks, dict.fromkeys(specs, 24), {})
    assert found is not None
    return found, stream


def test_skip_transcoders_of_the_embedded_model_resume_bit_exactly_and_are_read_back(
    embedded: LM, tmp_path: Path
) -> None:
    checkpoints: dict[tuple[int, int], Any] = {}
    straight, stream = trained(embedded, {}, checkpoints)
    again: dict[tuple[int, int], Any] = {}
    trained(embedded, {1: checkpoints[1, 8], 2: checkpoints[2, 16]}, again)
    for layer in (1, 2):
        (one, meta), (other, meta_other) = checkpoints[layer, 24], again[layer, 24]
        assert "weights.W_skip" in one and "adam.exp_avg.W_skip" in one and meta == meta_other
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    saes, untrained = hand_over(straight)
    measured = measure(stream, saes, untrained, n_sequences=8, seed=0)
    x = torch.randn(32, 128)
    for layer, name in ((1, "topk_skip_transcoder"), (2, "jumprelu_skip_transcoder")):
        metrics, firing = measured[layer]
        assert metrics["explained_variance"] > metrics["control"]["explained_variance"] + 0.05
        assert metrics["ce_spliced"] != metrics["ce_zero"]
        place = tmp_path / f"layers.{layer}"
        formats.save(place, saes[layer], {"hook_name": "in", "hook_name_out": "out"}, firing_rate=firing)
        assert json.loads((place / "cfg.json").read_text())["architecture"] == name
        assert load_file(place / "sae_weights.safetensors")["W_skip"].shape == (128, 128)
        assert torch.equal(foreign.load(tmp_path, layer)(x), saes[layer](x))
        facts = {**metrics, "architecture": "topk", "layer": layer, "steps": 24}
        assert "A skip transcoder with 256 features" in card.text(saes[layer], facts, {}, "saelens", "sae/x")
    sparsify.save(tmp_path / "theirs", saes[1])
    assert torch.equal(foreign.load(tmp_path / "theirs")(x), saes[1](x))


def test_a_skip_transcoder_is_trained_and_exported_from_the_command_line(warm: Cli) -> None:
    words = ["layer=1", *MLP, "sae.skip=true", QUICK, "sae.steps=20", "sae.heldout_sequences=16", "sae.block_rows=4096"]
    done = warm("task=sae", *words, "tracking=off")
    assert done.code == 0, done.out + done.err
    (made,) = warm.artifacts("sae")
    metrics = json.loads((made / "metrics.json").read_text())
    assert "-skip-transcoder-" in made.name and metrics["skip"] is True
    assert metrics["explained_variance"] > metrics["control"]["explained_variance"]
    assert warm("task=export", *words, "export.format=sparsify", "export.path=out").code == 0
    x = torch.randn(16, 128)
    assert torch.equal(foreign.load(warm.folder / "out")(x), formats.load(made)(x))
    assert formats.load(made).W_skip.any()


def test_the_option_re_keys_nothing_and_needs_another_site() -> None:
    assert (
        key("task=sae", *MLP).hash
        == key("task=sae", *MLP, "sae.skip=false").hash
        != key("task=sae", *MLP, "sae.skip=true").hash
    )
    assert key("task=sae", *MLP, "sae.skip=true").label == "tiny-L1-topk-skip-transcoder"
    cfg = compose("task=sae", *MLP).sae
    told = schema.check(replace(cfg, skip=True, site=schema.Site.mlp_out))
    line = "sae.skip=true: from mlp_out to itself it would copy its input; name another site with sae.target_site=…"
    assert line in told
    with pytest.raises(UserError, match="skip = True: an SAE would copy its input"):
        Trainer(small("topk", skip=True), CPU, rows(-1, 256))
    with pytest.raises(UserError, match=r"sae.skip=true: from resid_post to itself it would copy its input"):
        plan("task=sae", "layer=1", "sae.skip=true")
