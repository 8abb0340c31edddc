"""``task=prefetch`` on the real command line, against a hub on this machine that the hub's own client talks to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Cli, Done
from local_hub import LocalHub, serving
from test_load import make

ONE, TWO = ("0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef")
CLOSED = "http://127.0.0.1:9"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with serving(tmp_path / "repositories") as found:
        yield found


@pytest.fixture
def fetch(cli: Cli, hub: LocalHub) -> Callable[..., Done]:
    """``task=prefetch``, with an empty cache and that hub."""

    def run(*words: str, **extra: str) -> Done:
        settings = {"HF_HOME": str(cli.folder / "home"), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.address, **extra}
        return cli("task=prefetch", *words, **settings)

    return run


def model(folder: Path, *, extra: str = "") -> Path:
    """A model's files as repositories have them: pickles and other formats beside what we read."""
    made = make(folder, "gpt2")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx"):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(b"not wanted")
    (made / "notes.txt").write_text(extra)
    return made


def test_a_model_is_fetched_once_and_then_runs_without_a_network(cli: Cli, hub: LocalHub, fetch) -> None:
    hub.add("models", "someone/small", ONE, model(cli.folder / "a"), "main", "v1")
    done = fetch("model=someone/small")
    assert done.code == 0, done.err
    cache = cli.folder / "home" / "hub" / "models--someone--small"
    assert f"someone/small  {ONE[:12]}" in done.out and "kB fetched" in done.out and str(cache) in done.out
    names = {path.name for path in (cache / "snapshots" / ONE).rglob("*")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "consolidated.safetensors", "onnx", "model.onnx"}
    hub.sent.clear()
    again = fetch("model=someone/small", "model.revision=v1")
    assert again.code == 0 and "already here" in again.out and "model.safetensors" not in hub.sent
    offline = fetch("model=someone/small", HF_ENDPOINT=CLOSED)
    assert offline.code == 0 and "already here" in offline.out
    (cli.folder / "text.txt").write_text("\n\n".join(f"the cat sleeps {'the cats sleep ' * (9 + i)}" for i in range(40)))
    sizes = ("sae.steps=2", "sae.batch_size=32", "sae.block_rows=128", "sae.heldout_sequences=2", "data.context=8")
    ran = cli(
        "task=sae", "model=someone/small", "layer=0", "data=text", "data.path=text.txt", "sae.k=2", "tracking=off", *sizes,
        HF_HOME=str(cli.folder / "home"),
    )  # fmt: skip
    assert ran.code == 0, ran.out + ran.err
    (element,) = (cli.outputs / "runs").rglob("config.yaml")
    assert f"revision: {ONE}" in element.read_text()


def test_a_branch_that_moved_is_fetched_anew(cli: Cli, hub: LocalHub, fetch) -> None:
    hub.add("models", "someone/small", ONE, model(cli.folder / "a"), "main")
    assert fetch("model=someone/small").code == 0
    hub.add("models", "someone/small", TWO, model(cli.folder / "b", extra="more"), "main")
    moved = fetch("model=someone/small")
    assert moved.code == 0 and TWO[:12] in moved.out and "fetched" in moved.out
    pinned = fetch("model=someone/small", f"model.revision={ONE}")
    assert pinned.code == 0 and ONE[:12] in pinned.out and "already here" in pinned.out


def test_what_cannot_be_fetched_is_told_in_one_line(cli: Cli, hub: LocalHub, fetch) -> None:
    hub.add("models", "someone/small", ONE, model(cli.folder / "a"), "main")
    pickled = model(cli.folder / "b")
    (pickled / "model.safetensors").unlink()
    hub.add("models", "someone/pickled", ONE, pickled, "main")
    other = model(cli.folder / "c")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "mamba2"}))
    hub.add("models", "someone/other", ONE, other, "main")
    hub.add("models", "someone/gated", ONE, model(cli.folder / "d"), "main")
    (hub.root / "models" / "someone" / "gated" / "gated").touch()
    for words, says in {
        ("model=someone/absent",): "unknown model 'someone/absent': no directory, and no (public) hub model",
        ("model=someone/gated",): "someone/gated is gated: accept its licence",
        ("model=someone/small", "model.revision=step7"): "model.revision=step7: someone/small has no such branch, tag or commit",
        ("model=someone/pickled",): "someone/pickled on the hub has no safetensors weights; pickled ones are refused",
        ("model=someone/other",): "someone/other is of model type 'mamba2'",
        (): "model=tiny: nothing to fetch, it is trained here; name a hub model (presets: gemma-3-4b-it gpt2",
        ("sae.k=3",): "sae.k: task=prefetch does not read it",
    }.items():
        done = fetch(*words)
        assert done.code == 2 and len(done.errors) == 1 and says in done.errors[0], (words, done.err)
        assert done.err.strip() == done.errors[0], "one line and nothing else"
    assert "hf auth login, then run: python launch.py task=prefetch model=someone/gated" in fetch("model=someone/gated").err
    silent = fetch("model=someone/small", HF_ENDPOINT=CLOSED)
    assert silent.code == 2 and "not in the local Hugging Face cache and the hub was not reached" in silent.errors[0]


def test_a_dataset_is_fetched_and_has_the_same_key_and_rows_without_a_network(cli: Cli, hub: LocalHub, fetch) -> None:
    texts = cli.folder / "texts"
    for subset, offset in (("first", 0), ("second", 100)):
        (texts / subset).mkdir(parents=True)
        rows = [f"the cat sleeps {'the cats sleep ' * (9 + i + offset)}" for i in range(30)]
        pq.write_table(pa.table({"text": rows}), texts / subset / "train-00000-of-00001.parquet")
    (texts / "loader.py").write_text("raise SystemExit('never run')")
    card = "\n".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*" for name in ("first", "second")
    )
    (texts / "README.md").write_text(f"---\nconfigs:\n{card}\n---\n")
    hub.add("datasets", "someone/texts", ONE, texts, "main")
    hub.add("models", "someone/small", ONE, model(cli.folder / "a"), "main")
    words = ("model=someone/small", "data=datasets", "data.path=someone/texts:second")
    done = fetch(*words)
    assert done.code == 0, done.err
    assert f"someone/texts:second  {ONE[:12]}" in done.out and "loader.py" not in hub.sent
    assert fetch(*words).out.count("already here") == 2
    assert fetch(*words, HF_ENDPOINT=CLOSED).out.count("already here") == 2
    sizes = ("sae.steps=2", "sae.batch_size=32", "sae.block_rows=128", "sae.heldout_sequences=2", "data.context=8")
    ran = cli("task=sae", *words, "layer=0", "sae.k=2", "tracking=off", *sizes, HF_HOME=str(cli.folder / "home"))
    assert ran.code == 0, ran.out + ran.err
    (corpus,) = cli.artifacts("tokens")
    facts = json.loads((corpus / "manifest.json").read_text())
    assert f"someone/texts:second@{ONE}" in facts["payload"]
    (cli.folder / "home" / "hub" / "datasets--someone--texts" / "refs" / "main").unlink()
    absent = cli("task=sae", *words, "layer=0", "sae.k=3", *sizes, HF_HOME=str(cli.folder / "home"))
    assert absent.code == 2 and "task=prefetch data=datasets data.path=someone/texts:second" in absent.errors[0]
