"""The SAELens directory in both directions, against SAELens itself, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sae_lens
import torch
from safetensors.torch import load_file, save_file

from circuits.errors import UserError
from circuits.sae import formats, sparsify
from circuits.sae.modules import SAE, SAEConfig, architectures


def ours(name: str, d_in: int = 12, d_sae: int = 40) -> SAE:
    sae = architectures()[name].sae(SAEConfig(d_in, d_sae, k=5 if name == "topk" else None))
    g = torch.Generator().manual_seed(4)
    for p in sae.parameters():
        p.copy_(torch.randn(p.shape, generator=g))
    if name in ("jumprelu", "batchtopk", "matryoshka"):
        sae.threshold.abs_()
    return sae


THEIRS = {"topk": "TopK", "relu": "Standard", "jumprelu": "JumpReLU", "gated": "Gated"}


def theirs(name: str, **options: Any) -> Any:
    """A SAELens SAE with random weights and decoder rows of different norms."""
    config = getattr(sae_lens, f"{THEIRS[name]}SAEConfig")
    k = {"k": 5} if name == "topk" else {}
    sae = getattr(sae_lens, f"{THEIRS[name]}SAE")(config(d_in=12, d_sae=40, **k, **options))
    g = torch.Generator().manual_seed(8)
    for key, p in sae.named_parameters():
        p.data.copy_(torch.rand(p.shape, generator=g) if key == "threshold" else torch.randn(p.shape, generator=g))
    return sae


X = torch.randn(64, 12, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", sorted(architectures()))
def test_saelens_loads_ours_with_equal_reconstructions(name: str, tmp_path: Path) -> None:
    sae = ours(name)
    rate = torch.linspace(0, 0.5, 40)
    formats.save(tmp_path, sae, {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post"}, firing_rate=rate)
    loaded = sae_lens.SAE.load_from_disk(tmp_path)
    assert loaded.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert torch.allclose(loaded.encode(X), sae.encode(X), atol=1e-5)
    assert torch.allclose(loaded(X), sae(X), atol=1e-5)
    sparsity = load_file(tmp_path / "sparsity.safetensors")["sparsity"]
    assert sparsity.shape == (40,) and sparsity[-1] == pytest.approx(-0.30103, abs=1e-5) and sparsity[0] == -10
    assert torch.equal(formats.load(tmp_path)(X), sae(X))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("topk", {"apply_b_dec_to_input": True}),
        ("topk", {"apply_b_dec_to_input": False}),
        ("topk", {"rescale_acts_by_decoder_norm": True}),
        ("topk", {"rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False}),
        ("relu", {"apply_b_dec_to_input": True}),
        ("relu", {"apply_b_dec_to_input": False}),
        ("jumprelu", {}),
        ("jumprelu", {"apply_b_dec_to_input": False}),
        ("gated", {}),
        ("gated", {"apply_b_dec_to_input": False}),
    ],
)
def test_saelens_directories_load_here_with_equal_reconstructions(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    sae = theirs(name, **options)
    sae.save_model(tmp_path)
    assert torch.allclose(formats.load(tmp_path)(X), sae(X), atol=1e-5)


@pytest.mark.parametrize("name", ["TopK", "Standard", "JumpReLU", "Gated", "BatchTopK", "MatryoshkaBatchTopK"])
def test_a_saelens_training_sae_exported_for_inference_loads_here(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"k": 5} if name.endswith("TopK") else {}
    options |= {"matryoshka_widths": [10, 40]} if name.startswith("Matryoshka") else {}
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=12, d_sae=40, **options)
    sae = getattr(sae_lens, f"{name}TrainingSAE")(config)
    g = torch.Generator().manual_seed(8)
    for key, p in sae.named_parameters():  # decoder rows of different norms
        p.data.copy_(torch.rand(p.shape, generator=g) if key == "threshold" else torch.randn(p.shape, generator=g))
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(0.3)
    sae.save_inference_model(tmp_path)
    found, exported = formats.load(tmp_path)(X), sae_lens.SAE.load_from_disk(tmp_path)(X)
    assert torch.allclose(found, exported, atol=1e-5) and found.abs().max() > 0.1
    if "BatchTopK" not in name:  # which in training chooses over the batch
        assert torch.allclose(found, sae(X), atol=1e-5)


def changed(directory: Path, **changes: Any) -> None:
    path = directory / "cfg.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "spatial"},
            "architecture spatial is not supported.* supported: gated jumprelu .*standard topk",
        ),
        ({"k": "absent"}, "k must be a whole number above 0, it is None"),
        ({"k": 41}, "k = 41 is more than d_sae = 40"),
        ({"d_in": "absent"}, "d_in must be a whole number"),
        ({"d_in": 13}, r"tensor W_dec has shape \[40, 12\], cfg.json asks for \[40, 13\]|tensor W_enc|tensor b_dec"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening is not supported"),
    ],
)
def test_configs_that_mean_something_else_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    formats.save(tmp_path, ours("topk"), {})
    changed(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as e:
        formats.load(tmp_path)
    assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("b_enc"), "lacks the tensor b_enc"),
        (lambda w: w.update(threshold=torch.zeros(40)), "has the unknown tensor threshold"),
        (lambda w: w.update(b_dec=torch.zeros(3)), r"tensor b_dec has shape \[3\]"),
        (lambda w: w.update(b_dec=torch.full((12,), float("nan"))), "tensor b_dec holds NaN"),
    ],
)
def test_wrong_tensors_are_named(edit: Any, message: str, tmp_path: Path) -> None:
    formats.save(tmp_path, ours("relu"), {})
    path = tmp_path / "sae_weights.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path)
    with pytest.raises(UserError, match=message) as e:
        formats.load(tmp_path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_a_directory_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no SAELens directory"):
        formats.load(tmp_path)
    formats.save(tmp_path, ours("relu"), {})
    (tmp_path / "sae_weights.safetensors").write_bytes(b"12345")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        formats.load(tmp_path)


@pytest.mark.parametrize("name", ["relu", "jumprelu"])
def test_transcoders_agree_with_saelens_both_ways(name: str, tmp_path: Path) -> None:
    from sae_lens.saes import transcoder as saelens

    sae = architectures()[name].sae(SAEConfig(12, 40, d_out=7))
    g = torch.Generator().manual_seed(4)
    for p in sae.parameters():
        p.copy_(torch.rand(p.shape, generator=g) - 0.3)
    formats.save(
        tmp_path / "ours", sae, {"hook_name": "blocks.1.hook_mlp_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    )
    found = sae_lens.SAE.load_from_disk(tmp_path / "ours")
    assert torch.allclose(found(X), sae(X), atol=1e-5) and found(X).shape == (64, 7)
    cls = {"relu": "Transcoder", "jumprelu": "JumpReLUTranscoder"}[name]
    config = getattr(saelens, f"{cls}Config")(d_in=12, d_sae=40, d_out=7, apply_b_dec_to_input=False)
    other = getattr(saelens, cls)(config)
    for p in other.parameters():
        p.data.copy_(torch.rand(p.shape, generator=g) - 0.3)
    other.save_model(tmp_path / "theirs")
    assert torch.allclose(formats.load(tmp_path / "theirs")(X), other(X), atol=1e-5)


@pytest.mark.parametrize("d_out", [None, 12])
def test_a_sparsify_directory_comes_back_the_same_and_holds_its_tensors(d_out: int | None, tmp_path: Path) -> None:
    """sparsify computes TopK(ReLU(encoder(x − b_dec))) W_dec + b_dec, in a transcoder encoder(x)."""
    sae = architectures()["topk"].sae(SAEConfig(12, 40, 5, d_out))
    g = torch.Generator().manual_seed(4)
    for p in sae.parameters():
        p.copy_(torch.randn(p.shape, generator=g))
    sparsify.save(tmp_path, sae)
    assert torch.equal(sparsify.load(tmp_path)(X), sae(X))
    w, config = load_file(tmp_path / "sae.safetensors"), json.loads((tmp_path / "cfg.json").read_text())
    assert {k: tuple(v.shape) for k, v in w.items()} == {
        "encoder.weight": (40, 12), "encoder.bias": (40,), "W_dec": (40, 12), "b_dec": (12,)
    }  # fmt: skip
    assert config["num_latents"] == 40 and config["k"] == 5 and config["transcode"] is (d_out is not None)
    pre = (X if d_out else X - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
    values, index = pre.relu().topk(5)
    by_hand = torch.zeros(64, 40).scatter(1, index, values) @ w["W_dec"] + w["b_dec"]
    assert torch.allclose(by_hand, sae(X), atol=1e-5)


def test_what_sparsify_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sparsify has TopK SAEs only, this one is relu"):
        sparsify.save(tmp_path, ours("relu"))
    sparsify.save(tmp_path, ours("topk"))
    changed(tmp_path, activation="groupmax")
    with pytest.raises(UserError, match="activation = groupmax is not supported"):
        sparsify.load(tmp_path)
    changed(tmp_path, activation="topk")
    weights = load_file(tmp_path / "sae.safetensors")
    del weights["encoder.bias"]
    save_file(weights, tmp_path / "sae.safetensors")
    with pytest.raises(UserError, match=r"lacks the tensor encoder\.bias; a topk SAE has W_dec b_dec encoder\.bias"):
        sparsify.load(tmp_path)
