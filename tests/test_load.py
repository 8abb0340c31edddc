"""Identifying and loading models: what a directory must hold, safe weights only, devices, the hub without a network."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from prompt_sets import bpe
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from circuits.errors import UserError
from circuits.model_input import ModelInput
from circuits.models.hooks import forward
from circuits.models.identify import ModelFacts, inspect_model
from circuits.models.load import asked_model, available_devices, load_model, load_processor, pick_device
from circuits.models.sites import Dims, dims_of, family_of, hook_name, site_width

CPU = torch.device("cpu")
WORDS = {word: i for i, word in enumerate(["<pad>", "<unk>", "the", "cat", "cats", "sleeps", "sleep"])}


def make(directory: Path, family: str, **save) -> Path:
    """Save a small random model with a word-level tokenizer."""
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_layer=2, n_embd=16, n_head=2, n_positions=24))
    else:
        sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=7, intermediate_size=40, max_position_embeddings=24, **sizes))
    model.save_pretrained(directory, **save)
    words = Tokenizer(WordLevel(WORDS, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=["gpt2", "qwen2"])
def saved(request, tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture
def model_dir(tmp_path) -> Path:
    return make(tmp_path / "model", "gpt2")


def refused(directory: Path | str) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(UserError) as caught:
        inspect_model(str(directory))
    assert len(caught.value.messages) == 1 and "\n" not in str(caught.value)
    return str(caught.value)


# Sizes and names


def test_sizes_are_read_from_the_config_alone(saved):
    expected = {
        "gpt2": Dims(layers=2, width=16, heads=2, kv_heads=2, head_dim=8, mlp_width=64, vocab=7, context=24),
        "qwen2": Dims(layers=2, width=16, heads=4, kv_heads=2, head_dim=4, mlp_width=40, vocab=7, context=24),
    }[saved.name]
    assert inspect_model(str(saved)) == ModelFacts(str(saved), saved.resolve(), None, saved.name, expected)


def test_published_sizes():
    qwen = {"num_hidden_layers": 36, "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 2}
    dims = dims_of({**qwen, "intermediate_size": 11008, "vocab_size": 151936})
    assert (site_width(dims, "mlp_act"), site_width(dims, "resid_mid"), dims.head_dim) == (11008, 2048, 128)
    small = dims_of({"n_layer": 12, "n_embd": 768, "n_head": 12, "n_inner": None, "vocab_size": 50257})
    assert (small.layers, site_width(small, "mlp_act"), site_width(small, "head_z"), small.context) == (
        12,
        3072,
        768,
        None,
    )
    # a model whose heads together are wider than its residual stream
    wide = dims_of({"hidden_size": 2560, "num_attention_heads": 8, "head_dim": 256, "n_layer": 34, "vocab_size": 9})
    assert site_width(wide, "head_z") == 2048
    assert hook_name("mlp_act", 3) == "blocks.3.mlp.hook_post"


def test_identifying_imports_neither_torch_nor_transformers(saved):
    code = (
        "import sys; from circuits.models.identify import inspect_model; inspect_model(sys.argv[1]);"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# Loading


def test_a_saved_model_loads_frozen_and_computes_the_same(saved):
    lm = load_model(str(saved), dtype=torch.float32, device=CPU)
    assert not lm.model.training and not any(p.requires_grad for p in lm.model.parameters())
    assert (lm.name, lm.device, lm.dtype, lm.family) == (str(saved), CPU, torch.float32, family_of(saved.name))
    ids = torch.tensor([lm.tokenizer("the cat sleeps").input_ids])
    assert ids.tolist() == [[2, 3, 5]]
    source = (GPT2LMHeadModel if saved.name == "gpt2" else Qwen2ForCausalLM).from_pretrained(saved).eval()
    with torch.no_grad():
        expected = source(ids).logits
    assert torch.equal(forward(lm, ModelInput(ids, torch.ones_like(ids).bool()), logits="all").logits, expected)


def test_the_asked_dtype_is_the_dtype(saved):
    lm = load_model(str(saved), dtype=torch.bfloat16, device=CPU)
    assert {p.dtype for p in lm.model.parameters()} == {torch.bfloat16} and lm.dtype == torch.bfloat16


def test_sharded_weights_load(tmp_path):
    sharded = make(tmp_path / "sharded", "qwen2", max_shard_size="4KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert load_model(str(sharded), dtype=torch.float32, device=CPU).dims.layers == 2
    sorted(sharded.glob("*.safetensors"))[1].unlink()
    assert "names files that are not there: model-00002" in refused(sharded)


# What is refused


def test_a_directory_that_is_no_model(tmp_path):
    assert refused(tmp_path) == f"{tmp_path} is no model directory: no config.json"
    assert "no such model directory" in refused("./no/such/place")
    (tmp_path / "weights.safetensors").touch()
    assert "is a file" in refused(tmp_path / "weights.safetensors")


def test_pickled_weights_are_refused_with_the_way_out(model_dir):
    weights = model_dir / "model.safetensors"
    weights.unlink()
    assert "holds no weights" in refused(model_dir)
    (model_dir / "pytorch_model.bin").write_bytes(b"never read")
    message = refused(model_dir)
    assert "only pickled weights (pytorch_model.bin)" in message and "save_pretrained" in message


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights_are_refused_before_anything_starts(model_dir, keep):
    weights = model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert str(weights) in refused(model_dir)


def test_a_damaged_config_is_refused(model_dir):
    path = model_dir / "config.json"
    config = json.loads(path.read_text())
    for text, message in [
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        (
            json.dumps({**config, "model_type": "gpt3"}),
            "did you mean gpt2? known types: gemma3 gemma3_text gpt2 gpt_neox",
        ),
        (json.dumps({k: v for k, v in config.items() if k != "model_type"}), "no model_type"),
        (json.dumps({k: v for k, v in config.items() if k != "n_layer"}), "names no num_hidden_layers or n_layer"),
        (json.dumps({**config, "n_layer": -3}), "must be a positive whole number"),
    ]:
        path.write_text(text)
        assert message in refused(model_dir)


def test_weights_that_do_not_fit_are_refused_not_replaced_by_random_ones(model_dir):
    path = model_dir / "config.json"
    config = json.loads(path.read_text())
    for change, message in [({"n_layer": 3}, "is missing"), ({"n_embd": 32}, "another shape")]:
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=message) as caught:
            load_model(str(model_dir), dtype=torch.float32, device=CPU)
        assert "\n" not in str(caught.value)


def test_a_model_without_tokenizer_is_refused(model_dir):
    for path in model_dir.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"no tokenizer; .*save_pretrained") as caught:
        load_model(str(model_dir), dtype=torch.float32, device=CPU)
    assert "\n" not in str(caught.value)


def test_code_in_a_model_directory_is_never_run(model_dir, tmp_path):
    config = json.loads((model_dir / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (model_dir / "config.json").write_text(json.dumps({**config, "auto_map": auto}))
    (model_dir / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    load_model(str(model_dir), dtype=torch.float32, device=CPU)
    assert not (tmp_path / "ran").exists()


# Devices


def test_devices():
    present = available_devices()
    assert present[-1] == "cpu" and pick_device("auto") == torch.device(present[0])
    assert all(pick_device(name) == torch.device(name) for name in present)
    with pytest.raises(UserError, match=r"'cuda:99' is not present; this machine has: .*cpu"):
        pick_device("cuda:99")
    assert pick_device("cuda:99", allow_fallback=True) == torch.device(present[0])
    with pytest.raises(UserError, match="'gpu' is none; choices: auto"):
        pick_device("gpu")


# Hub names, without a hub

LOOK = """
import sys
from circuits.errors import UserError
from circuits.models.identify import inspect_model
try:
    print(inspect_model(sys.argv[1], presets=["tiny", "gpt2"]))
except UserError as e:
    print(e)
"""


def look(name: str, home: Path, **env: str) -> str:
    """What inspect_model says in a process of its own, whose hub is a closed port and whose cache is `home`."""
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", "PATH": os.environ["PATH"], **env}
    settings["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", LOOK, name], env=settings, capture_output=True, text=True, check=True)
    assert len(done.stdout.strip().splitlines()) == 1
    return done.stdout.strip()


@pytest.mark.parametrize("offline", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_an_unknown_name_without_network(tmp_path, offline):
    told = look("gpt22", tmp_path, **offline)
    assert told.startswith("unknown model 'gpt22'") and "did you mean gpt2? models: gpt2 tiny" in told
    told = look("someone/some-model", tmp_path, **offline)
    assert "not in the local Hugging Face cache" in told
    assert "where there is network run: python launch.py task=prefetch model=someone/some-model" in told
    assert "neither a directory nor a possible hub name" in look("no//name", tmp_path, **offline)


def test_a_cached_hub_name_is_pinned_and_loads_without_network(tmp_path, model_dir, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub" / "models--someone--small"
    shutil.copytree(model_dir, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    facts = inspect_model("someone/small")
    assert (facts.revision, facts.path, facts.model_type) == (commit, None, "gpt2")
    assert inspect_model("someone/small", revision=commit) == facts
    assert load_model("someone/small", dtype=torch.float32, device=CPU).name == "someone/small"


def test_a_hub_that_accepts_and_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("circuits.models.hub.NETWORK_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "the hub was not reached (no answer in 0.3 s)" in refused("someone/small")


@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
def test_products_are_computed_as_the_precision_says(model_dir, matmul):
    before = torch.get_float32_matmul_precision()
    try:
        asked_model(str(model_dir), None, precision="fp32", matmul=matmul, device="cpu")
        assert torch.get_float32_matmul_precision() == matmul
        assert torch.backends.cuda.matmul.allow_tf32 == (matmul != "highest")
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_vision_language_model_has_its_processor_and_a_language_model_none(tmp_path: Path) -> None:
    words = bpe(300)
    signs = {"image_token": "<img>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    named = {name: getattr(words, name) for name in ("bos_token", "eos_token", "unk_token")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, pad_token=words.eos_token, extra_special_tokens=signs, **named
    )
    assert load_processor(tmp_path) is None
    images = Gemma3ImageProcessorPil(size={"height": 8, "width": 8})
    Gemma3Processor(images, tokenizer, image_seq_length=4).save_pretrained(tmp_path)
    found = load_processor(tmp_path)(
        text="<boi> one", images=[[Image.new("RGB", (16, 8), "red")]], return_tensors="pt", padding=True
    )
    mask = found.pop("attention_mask").bool()
    rows = ModelInput(found.pop("input_ids"), mask, extra=dict(found))
    assert rows.extra["pixel_values"].shape == (1, 3, 8, 8) and rows.extra["token_type_ids"].shape == rows.ids.shape
    assert int(rows.extra["token_type_ids"].sum()) == 4, "four tokens stand for the image"
    (tmp_path / "processor_config.json").write_text('{"processor_class": "NoSuchProcessor"')
    with pytest.raises(UserError, match="how its images are prepared cannot be read"):
        load_processor(tmp_path)
