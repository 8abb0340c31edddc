"""Cross-layer transcoders: gradients, resume, folding, bands, and paths that are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import QUICK, Cli
from safetensors.torch import load_file, save_file

from circuits.errors import UserError
from circuits.sae import cross_layer_files as files
from circuits.sae import cross_layer_sets as sets
from circuits.sae.cross_layer import CrossLayerTranscoder
from circuits.sae.modules import SAEConfig
from circuits.sae.spec import TrainSpec
from circuits.sae.training import Trainer

CPU = torch.device("cpu")
LAYERS, WIDTH, OUT, FEATURES = 3, 24, 20, 48


def generator(*seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(1000**i * s for i, s in enumerate(seed)))


DIRECTIONS = F.normalize(torch.randn(LAYERS, FEATURES, WIDTH, generator=generator(1)), dim=2)
WRITES = F.normalize(torch.randn(LAYERS, FEATURES, OUT, generator=generator(2)), dim=2)
HOPS = torch.arange(FEATURES) % 2
"""Every other feature of a layer is written at that layer, the others one layer later."""


def active(index: int, n: int) -> torch.Tensor:
    """[n, layers, features]: what is on."""
    g = generator(3, index + 10)
    on = torch.rand(n, LAYERS, FEATURES, generator=g) < 2.5 / FEATURES
    return on * (1 + 0.3 * torch.randn(n, LAYERS, FEATURES, generator=g)).abs()


def stack(index: int, n: int = 256) -> torch.Tensor:
    """A linear stack: sparse features of each layer, each written once, at its layer or one later. [x of all layers | y of all]."""
    a = active(index, n)
    x = torch.einsum("nlf,lfd->nld", a, DIRECTIONS)
    written = torch.einsum("nlf,lfo->nlfo", a, WRITES)
    y = torch.zeros(n, LAYERS, OUT)
    y += written[:, :, HOPS == 0].sum(2)
    y[:, 1:] += written[:, :-1][:, :, HOPS == 1].sum(2)
    scale = torch.tensor([1.0, 5.0, 0.3])[None, :, None]
    return torch.cat([(x * scale).flatten(1), (y / scale).flatten(1)], dim=1)


def of(**given: object) -> TrainSpec:
    options = {"k": 3, "steps": 1500, "threshold_rate": 0.02, "decay": 0.2, "warmup": 30} | given
    return TrainSpec(
        "cross_layer",
        LAYERS * WIDTH,
        LAYERS * 64,
        8e-3,
        256,
        d_out=LAYERS * OUT,
        blocks=LAYERS,
        **options,  # type: ignore[arg-type]
    )


def trained(spec: TrainSpec, until: int | None = None, trainer: Trainer | None = None) -> Trainer:
    found = trainer or Trainer(spec, CPU, stack(-2, 4096))
    for step in range(found.step, spec.steps if until is None else until):
        found.train_step(stack(step))
    return found


@pytest.mark.parametrize("band", [None, 1, 2])
@pytest.mark.parametrize("dead", [None, torch.tensor([0, 5, 64, 70, 190])])
def test_gradients_equal_autograds(band: int | None, dead: torch.Tensor | None) -> None:
    trainer = Trainer(of(band=band), CPU, stack(-2, 4096))
    objective, w = trainer.objective, trainer.weights
    x, y = trainer._rows(stack(0, 32))
    w["b_enc"].data += 0.1 * torch.randn(len(w["b_enc"]), generator=generator(7))
    with torch.enable_grad():
        for p in w.values():
            p.requires_grad_(True)
        loss = objective.loss(w, x, y, 0, dead)
        wanted = torch.autograd.grad(loss, list(w.values()))
    with torch.no_grad():
        outcome = objective.gradients(w, x, y, 0, dead)
    total = outcome.error.square().sum() / len(x) + sum(outcome.parts.values())
    assert float(total) == pytest.approx(float(loss), rel=1e-5)
    for (name, p), expected in zip(w.items(), wanted, strict=True):
        assert p.grad is not None and torch.allclose(p.grad, expected, atol=2e-5, rtol=1e-4), name
    along = torch.cat([torch.linalg.vecdot(p.grad, p.data) for name, p in w.items() if name.startswith("W_dec")])  # type: ignore[arg-type]
    assert outcome.along is not None and torch.allclose(outcome.along, along, atol=1e-4)


def test_a_linear_stacks_paths_are_found() -> None:
    """Which layer each feature writes to, from decoder norms alone: every other one its own, every other one the next."""
    trainer = trained(of())
    sae = trainer.export()
    assert isinstance(sae, CrossLayerTranscoder)
    x, y = stack(99_999, 4096).split([LAYERS * WIDTH, LAYERS * OUT], dim=1)
    found = sae(x)
    for mine, wanted in zip(found.chunk(LAYERS, 1), y.chunk(LAYERS, 1), strict=True):
        assert float(1 - (mine - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()) > 0.8
    truth, f, norms = active(99_999, 4096), sae.encode(x).view(len(x), LAYERS, -1), sae.norms()
    for layer in range(LAYERS - 1):
        together = torch.corrcoef(torch.cat([f[:, layer], truth[:, layer]], dim=1).T)[: f.shape[2], f.shape[2] :]
        best, true = together.nan_to_num().max(1)
        sure = best > 0.8
        assert int(sure.sum()) >= 30
        share = norms[layer, :, layer] ** 2 / (norms[layer] ** 2).sum(1)
        own = HOPS[true[sure]] == 0
        assert float(share[sure][own].median()) > 0.9 and float(share[sure][~own].median()) < 0.1
        assert float(((share[sure] > 0.5) == own).float().mean()) > 0.9


def test_the_band_bounds_what_is_written() -> None:
    narrow = trained(of(band=1, steps=60)).export()
    assert isinstance(narrow, CrossLayerTranscoder)
    assert [table.shape[1] for table in narrow.decoders] == [OUT] * LAYERS
    assert not narrow.norms()[0, :, 1:].any() and narrow.norms()[0, :, 0].all()


def test_exported_it_computes_on_raw_rows_what_it_computed_in_training() -> None:
    trainer = trained(of(steps=80))
    sae, w = trainer.export(), trainer.weights
    x, _ = trainer._rows(stack(5, 64))
    raw = stack(5, 64)
    inside = trainer.objective._pre(w, x)[1]
    outside = (
        torch.einsum("bld,ldm->lbm", raw[:, : LAYERS * WIDTH].unflatten(1, (LAYERS, -1)), sae.W_enc)
        + sae.b_enc[:, None]
    )
    assert torch.allclose(outside * trainer.write.scale, inside, atol=1e-3)
    f = sae.encode(raw[:, : LAYERS * WIDTH])
    again = w["b_dec"].expand(64, -1).clone()
    for s, part in enumerate((f * trainer.write.scale).chunk(LAYERS, 1)):
        again[:, trainer.objective._slice(s)] += part @ w[f"W_dec.{s}"]
    assert torch.allclose(trainer.write.normalise(sae.decode(f)), again, atol=1e-3)


def test_a_cut_training_goes_on_bit_by_bit_with_its_baselines() -> None:
    spec = of(steps=60, baselines=True)
    straight = trained(spec)
    again = trained(spec, trainer=Trainer.resume(spec, *trained(spec, 33).state(), CPU))
    mine, other = straight.state()[0], again.state()[0]
    assert all(torch.equal(mine[key], other[key]) for key in mine) and "by_out" in mine
    drawn = straight.objective.init(straight._generator("init"))
    frozen = straight.baselines["frozen_decoder"].weights
    assert all(torch.equal(frozen[name], drawn[name]) for name in drawn if name.startswith("W_dec"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"band": 4}, "band = 4 is not between 1 and the 3 layers"),
        ({"band": 0}, "band = 0 is not between 1 and the 3 layers"),
        ({"k": 65}, "k = 65 is not between 1 and the 64 features of a layer"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Trainer(of(**given), CPU, None)


@pytest.mark.parametrize("band", [None, 2])
def test_on_disk_it_is_circuit_tracers_layout_and_comes_back(tmp_path: Path, band: int | None) -> None:
    sae = trained(of(steps=40, band=band)).export()
    assert isinstance(sae, CrossLayerTranscoder)
    files.save(tmp_path, sae, ("hook_resid_mid", "hook_mlp_out"), "tiny", [0, 1, 2])
    decoder = load_file(tmp_path / "W_dec_1.safetensors")["W_dec_1"]
    assert decoder.shape == (64, 2, OUT) and load_file(tmp_path / "W_enc_0.safetensors")["W_enc_0"].shape == (64, WIDTH)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model_kind"] == "cross_layer_transcoder"
    again, x = files.load(tmp_path), stack(5, 64)[:, : LAYERS * WIDTH]
    assert torch.equal(again(x), sae(x)) and again.cfg.band == band
    (tmp_path / sets.FACTS).unlink()  # as somebody else wrote it
    assert torch.allclose(files.load(tmp_path)(x), sae(x), atol=1e-6)


def test_foreign_sets_that_are_not_whole_are_named(tmp_path: Path) -> None:
    sae = trained(of(steps=5)).export()
    assert isinstance(sae, CrossLayerTranscoder)
    files.save(tmp_path, sae, ("hook_resid_mid", "hook_mlp_out"), "tiny", [0, 1, 2])
    (tmp_path / "W_enc_1.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks W_enc_1\.safetensors"):
        files.load(tmp_path)
    files.save(tmp_path, sae, ("hook_resid_mid", "hook_mlp_out"), "tiny", [0, 1, 2])
    save_file({"W_dec_0": torch.zeros(64, 2, OUT)}, tmp_path / "W_dec_0.safetensors")
    with pytest.raises(UserError, match=r"W_dec_0 is \[64, 2, 20\]; \[64, 3, 20\] is wanted of 3 layers"):
        files.load(tmp_path)
    (tmp_path / "config.yaml").write_text("model_kind: transcoder_set\n")
    with pytest.raises(UserError, match="model_kind is not cross_layer_transcoder"):
        files.load(tmp_path)


CLT = [
    "task=clt",
    "sae=batchtopk",
    "sae.site=mlp_in",
    "sae.target_site=mlp_out",
    "sae.k=8",
    "sae.steps=40",
    "sae.expansion=2",
]
FEW = [QUICK, "sae.heldout_sequences=8", "tracking=off"]


def test_from_the_command_line_to_a_set_that_opens_and_a_page(warm: Cli) -> None:
    done = warm(*CLT, "layer=all", *FEW)
    assert done.code == 0, done.err
    (place,) = warm.artifacts("clt")
    metrics = json.loads((place / "metrics.json").read_text())
    assert metrics["layers"] == [0, 1, 2, 3] and len(metrics["explained_variance_by_layer"]) == 4
    assert metrics["explained_variance"] > metrics["baselines"]["frozen_decoder"]["explained_variance"]
    sae, config = files.load(place / "set"), yaml.safe_load((place / "set" / "config.yaml").read_text())
    assert (
        sae.layers == 4
        and config["feature_input_hook"] == "mlp.hook_in"
        and config["feature_output_hook"] == "hook_mlp_out"
    )
    assert "How far features reach" in next((warm.outputs / "runs").rglob("report.html")).read_text()
    sites = ["sae.site=mlp_in", "sae.target_site=mlp_out", "layer=all", *FEW]
    theirs = shutil.copytree(place / "set", warm.outputs / "theirs")
    (theirs / "across.json").unlink()  # as circuit-tracer writes it
    for given in (f"clt/{place.name}", str(place), str(theirs)):
        taken = warm("task=clt", f"sae.from={given}", *sites)
        assert taken.code == 0, taken.err
    others = {path for path in warm.artifacts("clt") if path != place}
    assert len(others) == 2, "ours by its name is ours by its directory"
    for other in others:
        again = json.loads((other / "metrics.json").read_text())
        for name in ("explained_variance", "l0", "explained_variance_by_layer"):
            assert again[name] == pytest.approx(metrics[name], rel=1e-5), name
    behaviour = ["behaviour=grammar_agreement", QUICK, "tracking=off"]
    assert warm("task=baseline", *behaviour).code in (0, 3)
    graph = [f"attribution.{one}" for one in ("level=features", "features=clt", "graphs=1", "samples=4", "verify_samples=1",
                                              "method=eap", "min_explained=-9")]  # fmt: skip
    done = warm("task=attribution", *graph, *behaviour, "force=true", f"sae.from={theirs}", *sites[:3], FEW[1])
    assert done.code == 0, done.err
    found = json.loads((warm.artifacts("attribution")[0] / "metrics.json").read_text())
    assert found["cross_layer"] and found["layers"] == [0, 1, 2, 3] and found["features"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["layer=1"], "a cross-layer transcoder is of several layers"),
        (["layer=0,2"], ""),
        (["layer=0-2", "clt.band=4"], "clt.band=4: between 1 and the 3 layers"),
        (["layer=0-2", "sae=topk"], "a cross-layer transcoder is sae=batchtopk"),
        (["layer=0-2", "sae.target_site=null"], "what features write must be named"),
    ],
)
def test_what_it_cannot_be_is_one_line(warm: Cli, words: list[str], message: str) -> None:
    refused = warm(*CLT, *words, *FEW)
    assert refused.code == 2 and message in refused.err and "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sae.from=clt/x-000000000000"], "sae.from=clt/x-000000000000: no such artifact"),
        (["sae.from=theirs", "layer=0-2"], "of 4 layers, and 3 are asked"),
        (["sae.from=theirs", "clt.band=2"], "clt.band=2: sae.from"),
        (["sae.from=theirs", "sae.site=mlp_act"], "the width that is read is 128, not the site's 512"),
        (["sae.from=cut"], "a cross-layer transcoder lacks W_dec_3.safetensors"),
    ],
)
def test_one_that_is_taken_over_fits_or_is_refused(warm: Cli, words: list[str], message: str) -> None:
    theirs = warm.outputs.parent / "theirs"
    theirs.mkdir()
    made = CrossLayerTranscoder(SAEConfig(4 * 128, 4 * 64, None, 4 * 128, blocks=4))
    files.save(theirs, made, ("mlp.hook_in", "hook_mlp_out"), "tiny", [0, 1, 2, 3])
    (theirs / sets.FACTS).unlink()
    shutil.copytree(theirs, theirs.parent / "cut")
    (theirs.parent / "cut" / "W_dec_3.safetensors").unlink()
    refused = warm("task=clt", "sae.site=mlp_in", "sae.target_site=mlp_out", *words, *FEW)
    assert refused.code == 2 and message in refused.err and len(refused.errors) == 1
