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
from circuits.sae import formats
from circuits.sae.modules import SAE, SAEConfig, architectures


def ours(name: str, d_in: int = 12, d_sae: int = 40) -> SAE:
    sae = architectures()[name].sae(SAEConfig(d_in, d_sae, k=5 if name == "topk" else None))
    g = torch.Generator().manual_seed(4)
    for p in sae.parameters():
        p.copy_(torch.randn(p.shape, generator=g))
    return sae


def theirs(name: str, **options: Any) -> Any:
    """A SAELens SAE with random weights and decoder rows of different norms."""
    from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

    if name == "topk":
        sae: Any = TopKSAE(TopKSAEConfig(d_in=12, d_sae=40, k=5, **options))
    else:
        sae = StandardSAE(StandardSAEConfig(d_in=12, d_sae=40, **options))
    g = torch.Generator().manual_seed(8)
    for p in sae.parameters():
        p.data.copy_(torch.randn(p.shape, generator=g))
    return sae


X = torch.randn(64, 12, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ["topk", "relu"])
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
        ("standard", {"apply_b_dec_to_input": True}),
        ("standard", {"apply_b_dec_to_input": False}),
    ],
)
def test_saelens_directories_load_here_with_equal_reconstructions(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    sae = theirs(name, **options)
    sae.save_model(tmp_path)
    assert torch.allclose(formats.load(tmp_path)(X), sae(X), atol=1e-5)


def test_a_saelens_training_sae_exported_for_inference_loads_here(tmp_path: Path) -> None:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=12, d_sae=40, k=5))
    sae.W_dec.data.mul_(torch.linspace(0.5, 2, 40)[:, None])
    sae.save_inference_model(tmp_path)
    assert torch.allclose(formats.load(tmp_path)(X), sae(X), atol=1e-5)


def changed(directory: Path, **changes: Any) -> None:
    path = directory / "cfg.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "jumprelu"}, "architecture jumprelu is not supported.* supported: standard topk"),
        ({"k": "absent"}, "k must be a whole number above 0, it is None"),
        ({"k": 41}, "k = 41 is more than d_sae = 40"),
        ({"d_in": "absent"}, "d_in must be a whole number"),
        ({"d_in": 13}, r"tensor W_dec has shape \[40, 12\], cfg.json asks for \[40, 13\]|tensor W_enc|tensor b_dec"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations = layer_norm is not supported"),
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
