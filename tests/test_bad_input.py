"""Every bad input of the command line: one clear line, the right exit code, nothing started, nothing lost."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from configs import plan
from conftest import QUICK, ROOT, Cli
from prompt_sets import bpe, save_model
from safetensors.torch import load_file, save_file

from circuits.launch import sweep as sweeps

SHORT = [QUICK, "sae.steps=30", "sae.heldout_sequences=16", "sae.block_rows=4096", "tracking=off"]

BEFORE_THE_START = [
    (["layer=9"], r"layer=9: .*out of range for model=tiny, which has 4 layers \(0-3\)"),
    (
        ["layer=range(2,9)"],
        r"layer=2-8: 5 of 7 elements are out of range for model=tiny, which has 4 layers \(0-3\): 4 … 8",
    ),
    (["layer=true"], "layer=true: true is no layer"),
    (["layer=3-1"], "3-1 runs backwards; write 1-3"),
    (["layer=1–3"], "no hyphen; write 1-3"),
    (["task=sea"], "task=sea: no such task; did you mean sae?"),
    (["model=tinny"], "tinny.*did you mean tiny"),
    (["sae.kk=3"], "sae.kk: no such key in sae; did you mean sae.k?"),
    (["sae.site=resid_pots"], "did you mean resid_post?"),
    (
        ["sae=topkk"],
        "sae=topkk: no such sae; did you mean (batch)?topk. choices: batchtopk gated jumprelu matryoshka relu topk",
    ),
    (["+sae.k=3"], r"\+sae.k=3: keys cannot be added"),
    (["~sae.k"], "~sae.k: keys cannot be added or removed"),
    (["sae.k=2000"], r"sae.k=2000: more than d_sae=1024 \(sae.expansion=8 × width 128\)"),
    (["sae.steps=0"], "sae.steps=0: at least 1"),
    (["sae.steps=-5"], "sae.steps=-5: at least 1"),
    (["sae.steps=many"], "sae.steps=many: a whole number is expected"),
    (["sae.l1=0.1"], "sae.l1=0.1: sae=topk does not read it; sae=relu, gated do"),
    (["model.device=cuda:7"], "model.device=cuda:7: this machine has"),
    (["data=text"], "data=text needs data.path"),
    (["data=text", "data.path=absent.txt"], "absent.txt: no such file"),
    (["task=status", "sae.k=3"], "sae.k: task=status does not read it; .*task=sae.* does"),
    (["layer=0", "of=x"], "of: task=sae does not read it"),
]


@pytest.mark.parametrize(
    ("words", "message"), BEFORE_THE_START, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_wrong_input_is_one_line_and_exit_2_and_starts_nothing(cli: Cli, words: list[str], message: str) -> None:
    done = cli(*words)
    assert done.code == 2
    assert len(done.errors) == 1 and len(done.err.splitlines()) == 1, done.err
    assert re.search(message, done.err), done.err
    assert not (cli.outputs / "runs").exists() and not (cli.folder / "multirun").exists()


def test_all_errors_at_once(cli: Cli) -> None:
    done = cli("sae.steps=0", "sae.lr=-1", "seed=-1")
    assert done.code == 2 and len(done.errors) == 3, done.err


def test_a_directory_that_is_no_model_and_pickled_weights(cli: Cli, warm: Cli) -> None:
    (cli.folder / "empty").mkdir()
    done = cli("layer=0", "model=empty", "data.context=16")
    assert done.code == 2 and len(done.errors) == 1 and "no config.json" in done.err
    (model,) = warm.artifacts("tiny")
    pickled = cli.folder / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((model / "config.json").read_text())
    torch.save(load_file(model / "model.safetensors"), pickled / "pytorch_model.bin")
    done = cli("layer=0", "model=pickled")
    assert done.code == 2 and len(done.errors) == 1 and "pickle" in done.err and "save_pretrained" in done.err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty"),
        ("latin.txt", "caf\xe9\n\nna\xefve\n".encode("latin-1"), "UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": "b"}\n{"text" "c"}\n', "bad.jsonl.*3"),
        ("field.jsonl", b'{"body": "a"}\n{"body": "b"}\n', "field.jsonl.*1.*text.*body"),
    ],
)
def test_a_corpus_that_cannot_be_read(cli: Cli, name: str, content: bytes, message: str) -> None:
    (cli.folder / name).write_bytes(content)
    done = cli("layer=0", "data=text", f"data.path={name}")
    assert done.code == 2 and len(done.errors) == 1, done.err
    assert re.search(message, done.err), done.err


def test_outputs_that_cannot_be_written(cli: Cli) -> None:
    (cli.folder / "outputs").write_text("a file in the way")
    done = cli("layer=0")
    assert done.code == 2 and len(done.errors) == 1 and "outputs=DIR" in done.err


def test_a_damaged_artifact_is_named_and_rebuilt(warm: Cli) -> None:
    assert warm("layer=1", *SHORT).code == 0
    (path,) = warm.artifacts("sae")
    file = path / "sae_weights.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        done = warm("layer=1", *SHORT)
        assert done.code == 0, done.err
        assert "damaged artifact" in done.err and str(file) in done.err
        assert file.read_bytes() == whole, "rebuilt bit by bit"
    (path / "manifest.json").write_text("{")
    assert warm("layer=1", *SHORT).code == 0
    assert file.read_bytes() == whole


def _model(warm: Cli, folder: Path) -> Path:
    """A copy of the embedded model that may be altered."""
    (model,) = warm.artifacts("tiny")
    copy = folder / "model"
    copy.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (copy / name).write_bytes((model / name).read_bytes())
    return copy


def test_non_finite_activations_name_layer_and_sample_and_exit_1(warm: Cli) -> None:
    model = _model(warm, warm.folder)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    (warm.folder / "text.txt").write_text(
        "\n".join(f"the cat is near {n % 7} dogs and the bird ." for n in range(2000))
    )
    words = ["model=model", "data=text", "data.path=text.txt", "data.context=16", *SHORT[1:]]
    below = warm("layer=1", *words)
    assert below.code == 1 and "non-finite logits with the model itself, held-out sample" in below.err, below.err
    done = warm("layer=2", *words)
    assert done.code == 1
    assert len(done.errors) == 1 and "non-finite activation at resid_post, layer 2, sample" in done.err, done.err
    assert "Traceback" not in done.err + done.out


def test_token_ids_beyond_the_models_embedding_are_told_where_text_is_tokenised(cli: Cli) -> None:
    save_model(cli.folder / "model", bpe(), vocabulary=300)
    (cli.folder / "text.txt").write_text("\n\n".join(["The cats near the dog are"] * 40))
    words = ("layer=1", "model=model", "data.context=16", "tracking=off")
    done = cli(*words, "data=text", "data.path=text.txt")
    assert done.code == 1 and len(done.errors) == 1, done.out + done.err
    assert re.search(r"token id \d+.* embeds only 300 ids \(0-299\); its tokenizer is not the model's own", done.err)
    assert "document 0 has" in done.err and "Traceback" not in done.err + done.out
    toy = cli(*words, "data=embedded")
    assert toy.code == 2 and "choose data=text, jsonl or datasets" in toy.errors[0]


def test_a_loss_that_is_no_number_names_step_and_last_good_checkpoint(warm: Cli) -> None:
    done = warm(
        "layer=1", "sae.lr=1e38", "sae.clip=1e30", "sae.warmup=0", "sae.log_every=1", "sae.checkpoint_every=1", *SHORT
    )
    assert done.code == 1 and len(done.errors) == 1, done.out + done.err
    assert "layer 1, step" in done.err and "last good checkpoint" in done.err


@pytest.mark.soak
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(warm: Cli) -> None:
    words = ["layer=1", "sae.checkpoint_every=10", *SHORT]
    assert warm(*words).code == 0
    (path,) = warm.artifacts("sae")
    undisturbed = (path / "sae_weights.safetensors").read_bytes()
    partial = _interrupted(warm, words, path)
    newest = sorted(partial.glob("step-*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    done = warm(*words)
    log = sorted((warm.outputs / "runs").glob("*/*/run.log"), key=lambda p: p.stat().st_mtime)[-1].read_text()
    assert done.code == 0 and "damaged checkpoint" in log and newest.name in log, log
    assert (path / "sae_weights.safetensors").read_bytes() == undisturbed


def _interrupted(warm: Cli, words: list[str], path: Path) -> Path:
    """Remove the artifact and stop its making after two checkpoints at least; the directory of unfinished work."""
    import shutil
    import signal
    import time

    shutil.rmtree(path)
    partial = path.with_name(path.name + ".partial")
    running = warm.start(*words, "sae.steps=60")
    while len(list(partial.glob("step-*.safetensors"))) < 2 and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=240)
    assert partial.exists(), "it was stopped in time"
    return partial


def _element(warm: Cli, *words: str) -> Path:
    """The directory of an element that was launched and has not begun: to be run by hand."""
    (element,) = plan(*words, base=warm.folder)
    return sweeps.create([element], warm.folder).directory(element)


def _by_hand(warm: Cli, directory: Path, limit: tuple[int, int]) -> subprocess.CompletedProcess[str]:
    """Run the element with a resource limit."""
    return subprocess.run(
        [sys.executable, "-m", "circuits.launch.element", str(directory)],
        env={**warm.environment(), "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(limit[0], (limit[1], limit[1])),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_a_full_disk_in_the_middle_is_one_line_and_the_last_checkpoint_is_kept(warm: Cli) -> None:
    directory = _element(warm, "layer=1", "sae.checkpoint_every=10", *SHORT)
    done = _by_hand(
        warm, directory, (resource.RLIMIT_FSIZE, 100_000)
    )  # a checkpoint is larger: the write fails half-way
    assert done.returncode == 1, done.stdout
    errors = [line for line in done.stdout.splitlines() if re.match(r"\d\d:\d\d:\d\d error:", line)]
    assert len(errors) == 1 and "free some space" in errors[0] and str(warm.outputs) in errors[0], errors
    left = [p for p in (warm.outputs / "artifacts").rglob("*") if ".tmp" in p.name]
    assert not left, "no half-written file stays"
    assert json.loads((directory / "status.json").read_text())["state"] == "failed"
    done = _by_hand(warm, directory, (resource.RLIMIT_NOFILE, 1024))
    assert done.returncode == 0 and len(warm.artifacts("sae")) == 1


def test_out_of_memory_names_the_keys_to_lower(warm: Cli) -> None:
    directory = _element(warm, "layer=1", "sae.expansion=8000", *SHORT)  # 4 GB and more, beside what the programs take
    done = _by_hand(warm, directory, (resource.RLIMIT_AS, 3 << 30))
    assert done.returncode == 1
    assert "error: out of memory: lower sae.block_rows (4096)" in done.stdout, done.stdout[-2000:]


def test_an_element_whose_input_was_edited_stops_in_one_line(warm: Cli) -> None:
    corpus = warm.folder / "corpus.txt"
    corpus.write_text("\n\n".join("the cat is near the dogs ." for _ in range(300)))
    words = ["layer=1", "data=text", "data.path=corpus.txt", "data.context=16"]
    directory = _element(warm, *words, *SHORT)
    corpus.write_text(corpus.read_text() + "\n\none more")
    done = _by_hand(warm, directory, (resource.RLIMIT_NOFILE, 1024))
    assert done.returncode == 1 and "key changed since this element was launched" in done.stdout
    assert not warm.artifacts("sae")


def test_an_empty_folder_is_no_element(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "circuits.launch.element", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_half_a_surrogate_pair_in_a_prompt_is_said_before_the_start_and_a_file_is_called_by_its_stem(cli: Cli) -> None:
    rows = [{"prompt": f"the {noun}", "target": " is", "foil": " are"} for noun in ("cat", "dog", "cats", "dogs")]
    mine = cli.folder / "my.prompts.jsonl"
    mine.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:3], {**rows[3], "prompt": "x \ud83d"}]))
    done = cli("task=prompts", f"behaviour={mine}", "tracking=off")
    assert done.code == 2 and "line 4: prompt holds half of a surrogate pair" in done.err, done.err
    assert not list((cli.outputs / "runs").glob("*/*")), "nothing began"
    mine.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli("task=prompts", f"behaviour={mine}", "tracking=off")
    assert done.code == 0, done.err
    (made,) = cli.artifacts("prompts")
    (page,) = (cli.outputs / "runs").glob("*/*/report.html")
    assert made.name.startswith("my.prompts-tiny-") and "my.prompts" in page.read_text(encoding="utf-8")
