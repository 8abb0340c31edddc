"""Families on the command line and on disk: refusals at preflight, pinned revisions, loading without a second copy in memory."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
import transformers as hf
from configs import plan
from conftest import Cli
from small_models import build
from test_load import make

from circuits.errors import UserError
from circuits.models.identify import cached_weights, inspect_model
from circuits.models.load import load_model
from circuits.run import config
from circuits.store import registry
from circuits.store.contents import Contents
from circuits.store.keys import key_of

CPU = torch.device("cpu")
ONE, TWO = ("0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef")


def save(family: str, directory: Path) -> Path:
    """A small random model of `family` with a tokenizer."""
    make(directory, "gpt2")  # for its tokenizer
    (directory / "model.safetensors").unlink()
    build(family).model.save_pretrained(directory)
    return directory


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache with one model at two commits: main is the first, the tag v2 the second; and no network."""
    cache = tmp_path / "hub" / "models--someone--small"
    for commit in (ONE, TWO):
        make(cache / "snapshots" / commit, "gpt2")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(ONE)
    (cache / "refs" / "v2").write_text(TWO)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


def text(folder: Path) -> tuple[str, str]:
    """The words for a small corpus."""
    (folder / "corpus.txt").write_text("one two three\n\nfour five six\n")
    return "data=text", f"data.path={folder / 'corpus.txt'}"


def refused(*words: str, base: Path) -> list[str]:
    """What preflight says of a command line."""
    with pytest.raises(UserError) as caught:
        plan(*words, f"outputs={base}/outputs", base=base)
    assert all("\n" not in message for message in caught.value.messages)
    return caught.value.messages


# Preflight


def test_a_site_that_a_family_lacks_is_refused_before_anything_runs(tmp_path: Path) -> None:
    model = save("gpt_neox", tmp_path / "pythia")
    words = ("task=sae", f"model={model}", *text(tmp_path), "sae.site=resid_mid", "layer=0", "data.context=16")
    (message,) = refused(*words, base=tmp_path)
    assert message.startswith("resid_mid: this model has none: its attention and MLP read the same stream")
    capture = (
        "task=activations",
        "activations.source=data",
        f"model={model}",
        *text(tmp_path),
        "activations.site=[resid_mid,mlp_in]",
    )
    site, context = refused(*capture, "layer=0", "data.context=4096", base=tmp_path)
    assert site.startswith(
        "activations.site=resid_mid: this model has none: its attention and MLP read the same stream"
    )
    assert context.startswith("data.context=4096: more than the model's 32 positions")


def test_float16_is_refused_for_gemma_3_before_anything_runs(tmp_path: Path) -> None:
    model = save("gemma3", tmp_path / "gemma")
    words = ("task=sae", f"model={model}", "precision=fp16", *text(tmp_path), "layer=0", "data.context=16")
    (message,) = refused(*words, base=tmp_path)
    assert message.startswith("precision=fp16: activations of gemma3 exceed float16's largest number (65504)")
    assert plan(*words[:2], "precision=bf16", *words[3:], f"outputs={tmp_path}/outputs", base=tmp_path)


def test_a_preset_is_checked_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = refused("task=sae", "model=gemma-3-4b-it", "layer=30-34", "precision=fp16", base=tmp_path)
    layers = "layer=30-34: 34 out of range for model=google/gemma-3-4b-it, which has 34 layers (0-33)"
    assert layers in told
    (absent,) = [message for message in told if "not in the local Hugging Face cache" in message]
    assert "run: python launch.py task=prefetch model=google/gemma-3-4b-it" in absent
    told = refused("task=sae", "model=gemma-3-4b-it", "layer=key9", "precision=fp16", base=tmp_path)
    assert any(message.startswith("precision=fp16: activations of gemma3") for message in told)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("model=tiny", "model.revision=main"), "model.revision=main: model=tiny is trained here"),
        (("model=DIR", "model.revision=main"), "is a directory; only hub names have revisions"),
    ],
)
def test_a_revision_of_what_has_none_is_refused(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    make(tmp_path / "model", "gpt2")
    words = tuple(word.replace("DIR", str(tmp_path / "model")) for word in words)
    assert any(says in message for message in refused("task=sae", "layer=0", *words, base=tmp_path))


# Revisions


def test_a_branch_becomes_a_commit_that_the_element_keeps(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one two three four\nfive six seven eight\n")
    words = ("task=sae", "model=someone/small", "layer=0", "data=text", f"data.path={tmp_path}/text.txt", "data.context=16",
             f"outputs={tmp_path}/outputs")  # fmt: skip
    (element,) = plan(*words, base=tmp_path)
    assert element.cfg.model.revision == ONE and ONE in element.keys[0].payload
    (tagged,) = plan(*words, "model.revision=v2", base=tmp_path)
    assert tagged.cfg.model.revision == TWO and tagged.keys[0].hash != element.keys[0].hash
    config.save(element.cfg, tmp_path / "config.yaml")
    (hub / "refs" / "main").write_text(TWO)  # the branch moves on after the launch
    resolved = config.load(tmp_path / "config.yaml")
    assert key_of(registry.kind("sae"), resolved, (0,), Contents()).hash == element.keys[0].hash
    assert plan(*words, base=tmp_path)[0].keys[0].hash == tagged.keys[0].hash


def test_a_revision_that_is_not_here_names_what_to_run(hub: Path) -> None:
    with pytest.raises(UserError) as caught:
        inspect_model("someone/small", revision="step1000")
    assert str(caught.value).startswith("someone/small at revision step1000 is not in the local Hugging Face cache")
    assert "task=prefetch model=someone/small model.revision=step1000" in str(caught.value)


def test_whether_weights_are_cached_is_known_without_torch(hub: Path) -> None:
    assert cached_weights("someone/small") == hub / "snapshots" / ONE
    assert cached_weights("someone/small", "v2") == cached_weights("someone/small", TWO) == hub / "snapshots" / TWO
    assert cached_weights(str(hub / "snapshots" / ONE)) is not None
    (hub / "snapshots" / ONE / "model.safetensors").write_bytes(b"cut")
    assert cached_weights("someone/small") is None
    (hub / "snapshots" / TWO / "model.safetensors").unlink()
    assert cached_weights("someone/small", "v2") is None
    assert cached_weights("someone/absent") is None and cached_weights("no//name") is None


# A run


def test_an_sae_on_the_language_tower_of_a_vision_language_model(cli: Cli) -> None:
    save("gemma3", cli.folder / "model")
    texts = [" ".join(["the cat sleeps", "the cats sleep"][(i >> j) % 2] for j in range(30)) for i in range(64)]
    (cli.folder / "text.txt").write_text("\n\n".join(texts))
    sizes = ("sae.steps=3", "sae.batch_size=32", "sae.block_rows=256", "sae.heldout_sequences=2", "data.context=16")
    done = cli(
        "task=sae", "layer=1", "model=model", "data=text", "data.path=text.txt", *sizes, "tracking=off", "sae.k=4"
    )
    assert done.code == 0, done.out + done.err
    assert len(cli.artifacts("sae")) == 1


# Memory


@pytest.mark.parametrize(("saved", "asked", "copies"), [("bfloat16", "float32", 1.0), ("float32", "float32", 0.0)])
def test_loading_holds_no_second_copy(tmp_path: Path, saved: str, asked: str, copies: float) -> None:
    """Weights are mapped from the file; only another number format makes a copy, and only one."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 6}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=7, **sizes)).to(getattr(torch, saved))
    make(tmp_path, "gpt2")  # for its tokenizer
    model.save_pretrained(tmp_path)
    del model
    peak, done = [0], threading.Event()

    def private() -> int:
        (line,) = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("RssAnon")]
        return int(line.split()[1]) * 1024

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], private())
            time.sleep(0.002)

    load_model(str(tmp_path), dtype=getattr(torch, asked), device=CPU)  # what is imported at first use
    before = private()
    thread = threading.Thread(target=watch)
    thread.start()
    lm = load_model(str(tmp_path), dtype=getattr(torch, asked), device=CPU)
    done.set()
    thread.join()
    size = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    assert size > 70e6 and peak[0] - before < (copies + 0.4) * size
