"""Transcoders of others: circuit-tracer's and Gemma Scope 2's files against their formulas, sets of layers, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from configs import plan
from conftest import QUICK, Cli
from local_hub import serving
from safetensors.torch import load_file, save_file
from test_sae_foreign import at
from torch import Tensor

from circuits.errors import UserError
from circuits.models.sites import site_of_hook
from circuits.sae import directory, foreign, formats, origin, places, sparsify
from circuits.sae import hub as hub_of
from circuits.sae.modules import SAEConfig, architectures
from circuits.store.contents import Contents

D, M = 12, 40
X = torch.randn(64, D, generator=torch.Generator().manual_seed(2))


MLP = ["sae.site=mlp_in", "sae.target_site=mlp_out"]


# -- files as others write them ----------------------------------------------------------------------------------------


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 8


def tracer_weights(
    layer: int, *, jump: bool = False, skip: bool = False, d: int = D, out: int | None = None
) -> dict[str, Tensor]:
    """A layer of circuit-tracer's: both tables feature-major, W_skip [d_out, d_in]."""
    out = out or d
    found = {
        "W_enc": draw(layer, M, d),
        "b_enc": draw(layer + 100, M),
        "W_dec": draw(layer + 200, M, out),
        "b_dec": draw(layer + 300, out),
    }
    found |= {"activation_function.threshold": draw(layer + 400, M).abs()} if jump else {}
    return found | ({"W_skip": draw(layer + 500, out, d)} if skip else {})


def tracer(
    place: Path, layers: tuple[int, ...] = (0, 1, 2), config: dict[str, Any] | None = None, **options: Any
) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    said = {"model_name": "a/model", "model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in",
            "feature_output_hook": "hook_mlp_out", "scan": ["x-0", "x-1"], **(config or {})}  # fmt: skip
    (place / "config.yaml").write_text(
        yaml.safe_dump({name: value for name, value in said.items() if value != "absent"})
    )
    for layer in layers:
        save_file(tracer_weights(layer, **options), place / f"layer_{layer}.safetensors")
    return place


def scope_weights(seed: int, *, affine: bool = False) -> dict[str, Tensor]:
    """Gemma Scope 2's: the encoder [d_in, d_sae], the skip connection [d_in, d_out]."""
    found = {"w_enc": draw(seed, D, M), "b_enc": draw(seed + 1, M), "w_dec": draw(seed + 2, M, D), "b_dec": draw(seed + 3, D),
             "threshold": draw(seed + 4, M).abs()}  # fmt: skip
    return found | ({"affine_skip_connection": draw(seed + 5, D, D)} if affine else {})


READS, WRITES = "model.layers.{}.pre_feedforward_layernorm.output", "model.layers.{}.post_feedforward_layernorm.output"


def scope(place: Path, layer: int = 1, *, affine: bool = False, sae: bool = False, **changes: Any) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    hooks = [f"model.layers.{layer}.output"] * 2 if sae else [READS.format(layer), WRITES.format(layer)]
    said = {"hf_hook_point_in": hooks[0], "hf_hook_point_out": hooks[1], "width": M, "model_name": "gemma-v3-1b-pt",
            "architecture": "jump_relu", "l0": 20, "affine_connection": affine, "type": "sae" if sae else "transcoder"}  # fmt: skip
    (place / "config.json").write_text(json.dumps({**said, **changes}))
    save_file(scope_weights(layer, affine=affine), place / "params.safetensors")
    (place / "examples.safetensors").write_bytes(b"what the features fire on, beside them")
    return place


def altered(weights: Path, drop: str = "", **tensors: Tensor) -> None:
    save_file({name: t for name, t in {**load_file(weights), **tensors}.items() if name != drop}, weights)


# -- what they compute -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [False, True])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("out", [D, 10])
def test_circuit_tracers_transcoders_compute_their_formula(jump: bool, skip: bool, out: int, tmp_path: Path) -> None:
    place = tracer(tmp_path, jump=jump, skip=skip, out=out)
    for layer in (0, 2):
        w, found = tracer_weights(layer, jump=jump, skip=skip, out=out), foreign.load(place, layer)
        pre = X @ w["W_enc"].T + w["b_enc"]
        f = pre * (pre > w["activation_function.threshold"]) if jump else pre.relu()
        y = f @ w["W_dec"] + w["b_dec"] + (X @ w["W_skip"].T if skip else 0)
        assert (found.encode(X) - f).abs().max() < 1e-6 and (found(X) - y).abs().max() < 1e-6
        assert found.cfg.skip is skip and found.cfg.d_out == out
        assert (f > 0).float().mean() > 0.2
    assert directory.problems(place, D, out, transcodes=True, layers=[0, 2]) == []
    if jump:
        altered(place / "layer_0.safetensors", **{"activation_function.threshold": torch.linspace(-1, 1, M)})
        with pytest.raises(UserError, match="the threshold of 20 features is below 0"):
            foreign.load(place, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("sae", [False, True])
def test_gemma_scope_2_computes_its_formula(sae: bool, affine: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    """Its SAEs take no b_dec from their input; its skip connection is applied as it is stored, x first."""
    place = scope(tmp_path / "layer_1_width_16k_l0_small", affine=affine, sae=sae)
    if sae and affine:
        assert "affine_connection = True is not supported in an SAE" in directory.problems(place, D)[0]
        return
    w = {name: t.to(dtype) for name, t in scope_weights(1, affine=affine).items()}
    save_file(w, place / "params.safetensors")
    w = {name: t.float() for name, t in w.items()}
    pre = X @ w["w_enc"] + w["b_enc"]
    f = pre.relu() * (pre > w["threshold"])
    y = f @ w["w_dec"] + w["b_dec"] + (X @ w["affine_skip_connection"] if affine else 0)
    found = foreign.load(place)
    assert (found.encode(X) - f).abs().max() < 1e-6 and (found(X) - y).abs().max() < 1e-6
    assert directory.problems(place, D, None if sae else D, transcodes=not sae, layers=[1]) == []
    formats.save(tmp_path / "ours", found, {})
    assert torch.equal(foreign.load(tmp_path / "ours")(X), found(X)), "and it is kept in our own format"


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_kind": "cross_layer_transcoder"}, "config.yaml: a cross-layer transcoder, whose features write to all later"),
        ({"model_kind": "other"}, "model_kind = other is not supported (only transcoder_set)"),
        ({"transcoders": ["hf://a/b/layer_0.safetensors"]}, "transcoders names files that lie elsewhere"),
        ({"activation": "topk", "k": 5}, "activation = topk is not supported: its k largest pre-activations may be negative"),
        ({"activation": "gelu"}, "activation = gelu is not supported; did you mean relu? read: jump_relu jumprelu relu"),
        ({"normalize": True}, "unknown key normalize, which may change what the SAE computes"),
        ({"feature_input_hook": "absent"}, "feature_input_hook must name a hook of the model's blocks, it is None"),
        ({"feature_input_hook": "ln2.hook_normalized"}, "before its weight is applied is no site here (mlp_in is what"),
        ({"activation": "jump_relu"}, "lacks the tensor activation_function.threshold; a jumprelu_transcoder SAE has"),
    ],
)  # fmt: skip
def test_configs_of_circuit_tracer_that_mean_something_else(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    place = tracer(tmp_path, config=config)
    (told,) = directory.problems(place, D, D, transcodes=True, layers=[1])
    assert message in told and "\n" not in told, told
    with pytest.raises(UserError) as e:
        foreign.load(place, 1)
    assert message in str(e.value) and len(e.value.messages) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "relu"}, "config.json: architecture = relu is not supported (only jump_relu)"),
        ({"type": "crosscoder"}, "type = crosscoder is not supported (only sae and transcoder)"),
        ({"type": "clt"}, "a cross-layer transcoder"),
        ({"width": 16}, "width = 16, and the tensor b_enc has 40"),
        ({"normalise": 1}, "unknown key normalise"),
        ({"affine_connection": 1}, "affine_connection must be true or false, it is 1"),
        ({"affine_connection": True}, "lacks the tensor affine_skip_connection; a jumprelu_skip_transcoder SAE has"),
    ],
)
def test_configs_of_gemma_scope_2_that_mean_something_else(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (told,) = directory.problems(scope(tmp_path, **changes), D, D, transcodes=True)
    assert message in told, told
    with pytest.raises(UserError) as e:
        foreign.load(tmp_path)
    assert message in str(e.value) and len(e.value.messages) == 1


def test_tensors_and_directories_that_are_something_else(tmp_path: Path) -> None:
    def told(place: Path, **options: Any) -> str:
        (line,) = directory.problems(place, D, D, **({"transcodes": True} | options))
        return line

    place = tracer(tmp_path / "set")
    weights = place / "layer_1.safetensors"
    altered(weights, W_enc=torch.zeros(M, 13))
    assert told(place) == "layer 1: its d_in=13 is not the site's width 12"
    assert (
        told(place, transcodes=False)
        == "layer 0: a transcoder; name the site that it reconstructs with sae.target_site=…"
    )
    altered(weights, W_enc=draw(1, M, D), W_dec=draw(1, D, M))  # its first version stored the decoder so
    assert told(place) == "layer 1: layer_1.safetensors tensor W_dec has shape [12, 40], config.yaml asks for [40, 12]"
    altered(weights, W_dec=draw(1, M, D), log_thresholds=torch.zeros(M))
    assert "layer_1.safetensors has the unknown tensor log_thresholds; a transcoder SAE has W_dec W_enc b_dec" in told(
        place
    )
    altered(weights, drop="b_enc")
    assert told(place) == "layer 1: config.yaml: its weights lack the tensor b_enc"
    altered(weights, W_enc_1=torch.zeros(2))
    assert "a cross-layer transcoder" in told(place)
    weights.write_bytes(b"12345")
    assert "layer_1.safetensors cannot be read" in told(place)
    (place / "config.yaml").write_text("model_kind: [")
    assert "config.yaml: cannot be read as YAML" in told(place)

    clt = tmp_path / "clt"
    tracer(clt, ())
    assert told(clt) == "config.yaml without a layer's transcoder beside it (layer_0.safetensors …)"
    save_file({"W_enc_0": torch.zeros(2)}, clt / "W_enc_0.safetensors")
    assert told(clt).startswith("a cross-layer transcoder, whose features write to all later layers")
    place = scope(tmp_path / "scope", sae=True)
    assert told(place) == "no transcoder; leave out sae.target_site"
    (place / "config.json").unlink()
    assert (
        told(place)
        == "params.safetensors without the config.json of Gemma Scope 2 beside it, which says where it reads and writes"
    )


# -- several layers, and where they are from ----------------------------------------------------------------------------


def test_of_a_set_each_layer_is_taken_and_a_missing_one_named(tmp_path: Path) -> None:
    place = tracer(tmp_path / "set", (0, 1, 3))
    with pytest.raises(ValueError, match="no SAE of layers 2,4; it has those of layers 0-1,3"):
        places.chosen(place, [0, 2, 4])
    with pytest.raises(UserError, match="holds 3 SAEs, one a layer: name the layer"):
        foreign.load(place)
    scopes = tmp_path / "transcoder_all"
    for layer in (1, 2, 10):
        scope(scopes / f"layer_{layer}_width_16k_l0_small_affine", layer, affine=True)
    (scopes / "readme").mkdir()
    assert [found.layer for found in places.chosen(scopes, [])] == [1, 2, 10]
    w = scope_weights(10, affine=True)
    assert torch.equal(foreign.load(scopes, 10).W_enc, w["w_enc"])
    assert torch.equal(foreign.load(scopes, 10).W_skip, w["affine_skip_connection"].T)
    scope(scopes / "layer_2_width_262k_l0_small", 2)
    (told,) = directory.problems(scopes, D, D, transcodes=True, layers=[1, 2])
    assert told.startswith(
        "2 SAEs of layer 2: layer_2_width_16k_l0_small_affine layer_2_width_262k_l0_small; name one of them"
    )
    assert directory.problems(scopes, D, D, transcodes=True, layers=[1, 10]) == []

    exported = tmp_path / "exported"  # as task=export writes several layers
    for layer in (4, 5):
        sae = architectures()["topk"].sae(SAEConfig(D, M, 5))
        sae.b_dec.fill_(layer)
        (formats.save if layer == 4 else lambda *given: sparsify.save(*given[:2]))(
            exported / f"layers.{layer}", sae, {}
        )
    assert [float(foreign.load(exported, layer).b_dec[0]) for layer in (4, 5)] == [4, 5]
    assert foreign.load(exported / "layers.4", 7).cfg.d_in == D, "one SAE is that one, whatever the layer"


def test_a_set_is_planned_by_its_content(tmp_path: Path) -> None:
    def keys(place: Path, *words: str) -> dict[Any, str]:
        (element,) = plan("task=sae", f"sae.from={place}", *MLP, *words)
        return {layer: made.hash for layer, made in element.keys.items()}

    place = tracer(tmp_path / "set", (0, 1, 2), d=128, skip=True)
    both = keys(place, "layer=[1,2]")
    assert keys(place, "layer=2") == {2: both[2]} and both[1] != both[2]
    assert keys(place.rename(tmp_path / "moved"), "layer=[1,2]") == both
    place = tmp_path / "moved"
    (place / "readme.md").write_text("more words")
    assert keys(place, "layer=2") == {2: both[2]}
    with pytest.raises(UserError, match=r"no SAE of layer 3; it has those of layers 0-2") as e:
        keys(place, "layer=all")
    assert len(e.value.messages) == 1
    alone = tracer(tmp_path / "alone", (1,), d=128, skip=True)
    assert keys(alone, "layer=1") == {1: both[1]}, "a layer is what it is by itself"
    config = place / "config.yaml"
    config.write_text(config.read_text().replace("transcoder_set", "transcoder_set # of ours"))
    assert keys(place, "layer=1") != {1: both[1]}
    scope(tmp_path / "scopes" / "layer_1_a", 1)
    assert Contents().sae(tmp_path / "scopes", (1,)) == Contents().sae(tmp_path / "scopes" / "layer_1_a")
    formats.save(tmp_path / "ours" / "layers.2", foreign.load(alone, 1), {})
    assert Contents().sae(tmp_path / "ours", (2,)) == Contents().sae(tmp_path / "ours" / "layers.2")
    with pytest.raises(UserError, match="layer 0: its d_in=128 is not the site's width 512"):
        plan("task=sae", "layer=0-1", f"sae.from={place}", "sae.site=mlp_act", "sae.target_site=mlp_out")


def test_hook_paths_with_and_without_a_vision_language_models_prefix(tmp_path: Path) -> None:
    for prefix in ("model", "model.language_model", "language_model.model"):
        for path, site in {
            "output": "resid_post",
            "input": "resid_pre",
            "self_attn.o_proj.input": "head_z",
            "pre_feedforward_layernorm.output": "mlp_in",
            "post_feedforward_layernorm.output": "mlp_out",
            "mlp": "mlp_out",
        }.items():
            assert site_of_hook(f"{prefix}.layers.10.{path}") == (site, 10)
    assert site_of_hook("model.layers.3") == site_of_hook("layers_3") == ("resid_post", 3)
    assert site_of_hook("model.vision_tower.encoder.layers.3.mlp") is None
    assert site_of_hook("model.layers.3.post_attention_layernorm.output") is None, (
        "a norm of another place in each family"
    )
    assert site_of_hook("blocks.3.mlp.hook_in") == ("mlp_in", 3) and site_of_hook("blocks.3.mlp.hook_pre") is None

    plain = scope(tmp_path / "layer_1_plain", 1)
    long = {name: hook.format(1).replace("model.", "model.language_model.", 1)
            for name, hook in (("hf_hook_point_in", READS), ("hf_hook_point_out", WRITES))}  # fmt: skip
    prefixed = scope(tmp_path / "layer_1_prefixed", 1, model_name="google/gemma-3-4b-it", **long)
    assert origin.remarks(plain, "google/gemma-3-1b-pt", "mlp_in", [1], "mlp_out") == []
    assert origin.remarks(prefixed, "/models/gemma-3-4b-it", "mlp_in", [1], "mlp_out") == []
    smallest = scope(tmp_path / "layer_1_smallest", 1, model_name="google/gemma-3-270m-pt")
    assert origin.remarks(smallest, "google/gemma-3-270m", "mlp_in", [1], "mlp_out") == []
    (told,) = origin.remarks(plain, "google/gemma-3-1b-pt", "mlp_in", [1], "resid_post")
    assert told == (
        "it says that it was made for google/gemma-3-1b-pt at model.layers.1.pre_feedforward_layernorm.output to "
        "model.layers.1.post_feedforward_layernorm.output, and is used on google/gemma-3-1b-pt at "
        "blocks.1.ln2.hook_normalized to blocks.1.hook_resid_post"
    ) or told.startswith("it says that it was made for gemma-3-1b-pt at model.layers.1.pre_feed")
    (told,) = origin.remarks(plain, "google/gemma-3-1b-pt", "mlp_in", [2], "mlp_out")
    assert "and is used on google/gemma-3-1b-pt at blocks.2.ln2.hook_normalized" in told
    made = tracer(tmp_path / "set", config={"feature_input_hook": "hook_resid_mid"})
    assert origin.remarks(made, "a/model", "resid_mid", [0, 1, 2], "mlp_out") == []
    (told,) = origin.remarks(made, "b/other", "mlp_in", [0, 1, 2], "mlp_out")
    assert told.startswith(
        "it says that it was made for a/model at blocks.0.hook_resid_mid, and is used on b/other at blocks.0"
    )
    assert told.endswith("(and so on for 3 of 3 layers)")


def test_of_the_hub_a_set_is_fetched_whole_and_a_directory_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    made = tracer(tmp_path / "made", (0, 1), d=128)
    scope(made / "all" / "layer_1_width_16k_l0_small")
    with serving(tmp_path / "repositories") as hub:
        hub.add("models", "someone/transcoders", "0123456789abcdef0123456789abcdef01234567", made, "main")
        at(monkeypatch, hub.address)
        for _ in range(2):  # the second time from the cache
            (element,) = plan("layer=[0,1]", "sae.from=someone/transcoders", *MLP, base=tmp_path)
            assert sorted(hub.sent) == ["config.yaml", "layer_0.safetensors", "layer_1.safetensors"]
        assert len(element.keys) == 2
        hub.sent.clear()
        found = hub_of.directory("someone/transcoders/all/layer_1_width_16k_l0_small")
        assert sorted(hub.sent) == [f"all/{found.name}/{file}" for file in ("config.json", "params.safetensors")]
        assert foreign.load(found).cfg.d_sae == M
        with pytest.raises(
            UserError, match="holds 1 SAE in directories below it; name one of them: layer_1_width_16k_l0"
        ):
            hub_of.directory("someone/transcoders/all")


def test_a_set_is_measured_from_the_command_line(warm: Cli) -> None:
    place = tracer(warm.folder / "theirs", (1, 2), d=128, skip=True, config={"model_name": "tiny"})
    done = warm("task=sae", "layer=[1,2]", "sae.from=theirs", *MLP, QUICK, "sae.heldout_sequences=16", "tracking=off")
    assert done.code == 0, done.out + done.err
    assert "it says that it was made for" not in done.out + done.err
    found = {json.loads((path / "metrics.json").read_text())["layer"]: path for path in warm.artifacts("sae")}
    assert sorted(found) == [1, 2]
    x = torch.randn(16, 128)
    for layer, path in found.items():
        metrics = json.loads((path / "metrics.json").read_text())
        assert (
            metrics["skip"] is True
            and metrics["target_site"] == "mlp_out"
            and metrics["ce_spliced"] != metrics["ce_zero"]
        )
        assert torch.equal(formats.load(path)(x), foreign.load(place, layer)(x))
