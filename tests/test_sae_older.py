"""SAE directories of other libraries and older versions: read as SAELens reads them, or refused in one line that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sae_lens
import torch
from safetensors.torch import load_file, save_file

from circuits.errors import UserError
from circuits.sae import directory, foreign, formats, origin, sparsify, unread
from circuits.sae.modules import SAEConfig, architectures

D, M, K = 12, 40, 5
G = torch.Generator().manual_seed(3)
X = torch.randn(64, D, generator=G)
BASE = {
    "W_enc": torch.randn(D, M, generator=G),
    "W_dec": torch.randn(M, D, generator=G),
    "b_dec": torch.randn(D, generator=G),
}
VECTOR = torch.randn(M, generator=G)
PLAIN = {**BASE, "b_enc": VECTOR}
JUMP = {**PLAIN, "threshold": VECTOR.abs()}
GATED = {**BASE, "b_gate": VECTOR, "b_mag": VECTOR.flip(0), "r_mag": VECTOR / 4}
OLD = {"model_name": "gpt2-small", "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1, "hook_head_index": None, "d_in": D,
       "d_sae": M, "dtype": "torch.float32", "device": "cpu", "apply_b_dec_to_input": True, "prepend_bos": True,
       "context_size": 128, "dataset_path": "x", "normalize_activations": "none", "sae_lens_training_version": "3.20"}  # fmt: skip
NEW = {
    "d_in": D,
    "d_sae": M,
    "dtype": "float32",
    "metadata": {"sae_lens_version": "6.5.0", "hook_name": "blocks.1.hook_resid_post"},
}
TOPK = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
RESCALED = {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}
HALF = {name: tensor.half() for name, tensor in PLAIN.items()}
V1 = {name: value for name, value in OLD.items() if not name.startswith("hook_")} | {
    "hook_point": "blocks.1.hook_resid_post", "hook_point_layer": 1, "normalize_activations": False, "lr": 4e-4,
    "use_ghost_grads": True,
}  # fmt: skip


def put(place: Path, config: dict[str, Any], weights: dict[str, torch.Tensor], name: str = unread.WEIGHTS) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "cfg.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in weights.items()}, place / name)
    return place


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        (V1, PLAIN),
        (V1, {**PLAIN, "scaling_factor": torch.ones(M)}),
        ({**OLD, "architecture": "standard", "activation_fn_str": "relu", "activation_fn_kwargs": {}}, PLAIN),
        ({**OLD, "architecture": "standard", "normalize_activations": None}, PLAIN),
        ({**OLD, "architecture": "standard", **TOPK}, PLAIN),  # version 3
        ({**OLD, **TOPK}, PLAIN),
        ({**OLD, "architecture": "topk", **TOPK}, PLAIN),  # version 5
        ({**OLD, "architecture": "jumprelu", "activation_fn": "relu", "apply_b_dec_to_input": False}, JUMP),
        ({**OLD, "architecture": "gated", "activation_fn_str": "relu"}, GATED),
        ({**OLD, "architecture": "gated", "apply_b_dec_to_input": False}, GATED),
        ({**OLD, **TOPK, "normalize_activations": "layer_norm"}, PLAIN),  # OpenAI's for GPT-2
        ({**OLD, "hook_name": "blocks.1.attn.hook_z"}, PLAIN),
        ({**NEW, "architecture": "standard", "normalize_activations": "layer_norm", "apply_b_dec_to_input": False}, PLAIN),
        ({**NEW, "architecture": "jumprelu", "normalize_activations": "constant_norm_rescale"}, JUMP),
        ({**NEW, "architecture": "gated", "normalize_activations": "layer_norm", "apply_b_dec_to_input": False}, GATED),
        ({**NEW, **RESCALED, "normalize_activations": "layer_norm"}, PLAIN),
        ({**NEW, "architecture": "standard", "dtype": "float16", "apply_b_dec_to_input": False}, HALF),
        ({**NEW, "architecture": "topk", "k": K, "dtype": "bfloat16"}, {n: w.bfloat16() for n, w in PLAIN.items()}),
    ],
)  # fmt: skip
def test_what_saelens_reads_is_the_same_function_here(
    config: dict[str, Any], weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    place = put(tmp_path / "theirs", config, weights)
    assert directory.problems(place, D) == []
    theirs, found = sae_lens.SAE.load_from_disk(place, dtype="float32"), foreign.load(place)
    theirs.turn_off_forward_pass_hook_z_reshaping()  # heads stand side by side here
    assert torch.allclose(found.encode(X), theirs.encode(X), atol=1e-5)
    assert torch.allclose(found(X), theirs(X), atol=1e-5) and found(X).abs().max() > 0.1
    formats.save(tmp_path / "again", found, {})
    assert torch.allclose(foreign.load(tmp_path / "again")(X), found(X), atol=1e-5)
    assert torch.allclose(sae_lens.SAE.load_from_disk(tmp_path / "again")(X), found(X), atol=1e-5)


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("name", ["skip_transcoder", "jumprelu_skip_transcoder"])
def test_a_transcoder_with_a_skip_connection_is_the_same_function_here(
    name: str, normalize: str, tmp_path: Path
) -> None:
    weights = {
        **(JUMP if "jump" in name else PLAIN),
        "W_dec": BASE["W_dec"][:, :7],
        "b_dec": BASE["b_dec"][:7],
        "W_skip": X[:7],
    }
    config = {
        **NEW,
        "architecture": name,
        "d_out": 7,
        "apply_b_dec_to_input": False,
        "normalize_activations": normalize,
    }
    place = put(tmp_path / "theirs", config, weights)
    assert directory.problems(place, D, 7, transcodes=True) == []
    assert torch.allclose(foreign.load(place)(X), sae_lens.SAE.load_from_disk(place)(X), atol=1e-4)
    formats.save(tmp_path / "again", foreign.load(place), {})
    assert torch.allclose(sae_lens.SAE.load_from_disk(tmp_path / "again")(X), foreign.load(place)(X), atol=1e-4)


def test_a_finetuned_sae_multiplies_its_features_before_it_decodes(tmp_path: Path) -> None:
    """SAELens 3 to 5: ``sae_out = (f · finetuning_scaling_factor) W_dec + b_dec``; version 6 cannot load one."""
    factor = VECTOR.abs() + 0.5
    weights = {**PLAIN, "scaling_factor": factor}
    found = foreign.load(put(tmp_path / "tuned", {**OLD, "finetuning_scaling_factor": True}, weights))
    f = ((X - BASE["b_dec"]) @ BASE["W_enc"] + VECTOR).relu()
    assert torch.allclose(found(X), (f * factor) @ BASE["W_dec"] + BASE["b_dec"], atol=1e-4)
    assert torch.allclose(found.encode(X), f, atol=1e-5)
    with pytest.raises(UserError, match="holds a scaling_factor that is not 1, and cfg"):
        foreign.load(put(tmp_path / "not", OLD, weights))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**OLD, "activation_fn_str": "tanh-relu"}, "activation_fn = tanh-relu with architecture standard is not supported"),
        ({**OLD, "architecture": "gated", **TOPK}, "activation_fn = topk with architecture gated is not supported"),
        ({**OLD, "activation_fn_str": "topk"}, "k must be a whole number above 0, it is None"),
        ({**OLD, **TOPK, "activation_fn_kwargs": {"k": 3, "signed": True}}, "signed is not supported"),
        ({**OLD, **TOPK, "activation_fn_kwargs": {"k": 3, "postact": "x"}}, "activation_fn_kwargs = {'postact': 'x'}"),
        ({**OLD, "normalize_activations": True}, r"expected_average_only_in is not supported: the factor .*fold_activation_norm"),
        ({**OLD, "normalize_activations": "whatever"}, r"whatever is not supported \(none layer_norm constant_norm_rescale are\)"),
        ({**OLD, "hook_head_index": 3}, "an SAE of one head alone is not supported"),
        ({**OLD, "is_transcoder": True}, "unknown key is_transcoder, which may change what the SAE computes"),
        ({**NEW, "architecture": "standard", "activation_fn_str": "topk"}, "unknown key activation_fn_str"),
        ({**NEW, "architecture": "abstopk", "k": 5}, "abstopk is not supported: its features are negative, too"),
        ({**NEW, "architecture": "batchtopk", "k": 5}, "a checkpoint of SAELens's training; its save_inference_model"),
        ({**NEW, "architecture": "standard", "apply_b_dec_to_input": "no"}, "apply_b_dec_to_input must be true or false, it is no"),
        ([], "holds no JSON object"),
    ],
)  # fmt: skip
def test_a_key_that_changes_the_function_is_read_or_refused(config: Any, message: str, tmp_path: Path) -> None:
    place = put(tmp_path, config, PLAIN)
    with pytest.raises(UserError, match=message) as e:
        foreign.load(place)
    (told,) = directory.problems(place, D)
    assert told.split(": ", 1)[1][:60] in str(e.value), "before the start as when it is loaded"


SPARSIFY = {"expansion_factor": 4, "normalize_decoder": True, "num_latents": M, "k": K, "d_in": D, "multi_topk": False}
TENSORS = {"encoder.weight": BASE["W_enc"].T, "encoder.bias": VECTOR, "W_dec": BASE["W_dec"], "b_dec": BASE["b_dec"]}


def test_sparsify_says_what_it_is(tmp_path: Path) -> None:
    """Its older versions had signed features; its transcoders may have a skip connection, which is added to what comes out."""
    found = foreign.load(put(tmp_path / "skip", {**SPARSIFY, "transcode": True, "skip_connection": True},
                             {**TENSORS, "W_skip": X[:D]}, "sae.safetensors"))  # fmt: skip
    values, index = (X @ BASE["W_enc"] + VECTOR).relu().topk(K)
    by_hand = torch.zeros(64, M).scatter(1, index, values) @ BASE["W_dec"] + BASE["b_dec"] + X @ X[:D].T
    assert torch.allclose(found(X), by_hand, atol=1e-4)
    sparsify.save(tmp_path / "again", found)
    assert torch.equal(foreign.load(tmp_path / "again")(X), found(X))
    for name, message in (("signed", "signed = True is not supported"), ("halut", "unknown key halut"),
                          ("skip_connection", "not supported without transcode")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            foreign.load(put(tmp_path / name, {**SPARSIFY, name: True}, TENSORS, "sae.safetensors"))


def test_a_row_normalising_sae_needs_its_rows_to_decode() -> None:
    sae = architectures()["relu"].sae(SAEConfig(D, M, normalize="layer_norm"))
    with pytest.raises(ValueError, match=r"decode\(f, x\) needs the rows x"):
        sae.decode(sae.encode(X))


def test_what_is_no_sae_is_named_as_what_it_is(tmp_path: Path) -> None:
    for file, message in {
        "ae/ae.pt": "an SAE of dictionary_learning, saved as ae.pt: a pickle",
        "scope/params.npz": "an SAE as params.npz, as Gemma Scope's are",
        "adapter/adapter_config.json": "an adapter of a language model (PEFT), no SAE",
        "model/model.safetensors": "a language model, no SAE",
        "old/sae.pkl.gz": "holds sae.pkl.gz: a pickle",
        "root/layers.3/sae.safetensors": "holds 1 SAE in directories below it; name one of them: layers.3",
        "deep/run/trainer_0/ae.pt": "holds 1 SAE in directories below it; name one of them: run/trainer_0",
        "other/readme.txt": "no SAELens or sparsify directory: cfg.json and sae_weights.safetensors missing",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
        (tmp_path / file).with_name("config.json").touch()
        (told,) = directory.problems(tmp_path / file.split("/")[0], D)
        assert told.startswith(message) and "\n" not in told, told
    (told,) = directory.problems(tmp_path / "ae" / "ae.pt", D)
    assert told == "a file; an SAE is named by the directory that holds it"


def test_tensors_beside_those_of_the_config_are_named(tmp_path: Path) -> None:
    place = put(tmp_path, OLD, {**PLAIN, "scaling_factor": torch.ones(3)})
    assert directory.problems(place, D) == [
        f"sae_weights.safetensors tensor scaling_factor has shape [3], cfg.json asks for [{M}]"
    ]
    assert sorted(load_file(place / unread.WEIGHTS)) == ["W_dec", "W_enc", "b_dec", "b_enc", "scaling_factor"]


def test_an_sae_of_another_model_or_site_says_so_with_both_names(tmp_path: Path) -> None:
    def told(model: str, site: str, layer: int, **changes: Any) -> list[str]:
        metadata = {**NEW["metadata"], "model_name": "gpt2-small", **changes}
        place = put(tmp_path, {**NEW, "architecture": "standard", "metadata": metadata}, PLAIN)
        return origin.remarks(place, model, site, [layer])

    made = "it says that it was made for gpt2-small at blocks.1.hook_resid_post, and is used on"
    assert told("gpt2", "resid_post", 1) == told("/cache/models--gpt2/snapshots/ab12", "resid_post", 1) == []
    assert told("gpt2", "resid_pre", 2) == [], "the same stream"
    assert told("gpt2", "resid_post", 2) == [f"{made} gpt2 at blocks.2.hook_resid_post"]
    assert told("org/pythia-70m", "resid_post", 1) == [f"{made} org/pythia-70m at blocks.1.hook_resid_post"]
    assert told("gpt2", "mlp_in", 1, hook_name="blocks.1.hook_mlp_in")[0].endswith(
        "on gpt2 at blocks.1.ln2.hook_normalized"
    )
    (line,) = told("gpt2", "resid_post", 1, model_from_pretrained_kwargs={"center_writing_weights": True})
    assert line.startswith("it was made on activations of a model loaded with center_writing_weights=True")
    (tmp_path / "config.json").write_text(json.dumps({"model": "HuggingFaceTB/SmolLM2-135M"}))
    place = put(tmp_path / "layers.5.mlp", {**SPARSIFY, "transcode": True}, TENSORS, "sae.safetensors")
    assert origin.remarks(place, "/models/SmolLM2-135M", "mlp_in", [5]) == []
    assert origin.remarks(place, "/models/SmolLM2-135M", "mlp_in", [6]) == [
        "it says that it was made for HuggingFaceTB/SmolLM2-135M at layers.5.mlp, and is used on /models/SmolLM2-135M at "
        "blocks.6.ln2.hook_normalized"
    ]
