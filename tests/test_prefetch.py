"""``task=prefetch``, against a hub on this machine that the hub's own client talks to; then runs that have no network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from configs import compose
from conftest import Cli
from local_hub import LocalHub, serving
from test_load import make

from circuits.data.corpora import content_hash, documents
from circuits.errors import UserError
from circuits.models.load import load_model
from circuits.tasks import prefetch

ONE, TWO = ("0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """An empty hub, which this process asks, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serving(tmp_path / "repositories") as found:
        ask(monkeypatch, found.address)
        yield found


def ask(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let the hub's client in this process ask another hub."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def fetch(hub: LocalHub, capsys: pytest.CaptureFixture[str]):
    """``task=prefetch`` in this process; what it printed."""

    def run(*words: str) -> str:
        assert prefetch.run(compose("task=prefetch", *words)) == 0
        return capsys.readouterr().out

    return run


def cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network from here on."""
    ask(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def model(folder: Path, *, extra: str = "") -> Path:
    """A model's files as repositories have them: pickles and other formats beside what we read."""
    made = make(folder, "gpt2")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx"):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(b"not wanted")
    (made / "notes.txt").write_text(extra)
    return made


def test_a_model_is_fetched_on_the_command_line(cli: Cli, hub: LocalHub) -> None:
    hub.add("models", "someone/small", ONE, model(cli.folder / "a"), "main")
    settings = {"HF_HOME": str(cli.folder / "home"), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.address}
    done = cli("task=prefetch", "model=someone/small", **settings)
    assert done.code == 0 and f"someone/small  {ONE[:12]}" in done.out and "kB fetched" in done.out, done.err
    absent = cli("task=prefetch", "model=someone/absent", **settings)
    assert absent.code == 2 and absent.err.strip() == absent.errors[0], "one line and nothing else"


def test_a_model_is_fetched_once_and_then_loads_without_a_network(tmp_path, hub, fetch, monkeypatch) -> None:
    hub.add("models", "someone/small", ONE, model(tmp_path / "a"), "main", "v1")
    cache = tmp_path / "home" / "hub" / "models--someone--small"
    out = fetch("model=someone/small")
    assert f"someone/small  {ONE[:12]}" in out and "kB fetched" in out and str(cache) in out
    names = {path.name for path in (cache / "snapshots" / ONE).rglob("*")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "consolidated.safetensors", "onnx", "model.onnx"}
    hub.sent.clear()
    assert "already here" in fetch("model=someone/small", "model.revision=v1") and "model.safetensors" not in hub.sent
    cut_off(monkeypatch)
    assert "already here" in fetch("model=someone/small")
    for revision in (None, "v1", ONE):
        lm = load_model("someone/small", revision=revision, dtype=torch.float32, device=torch.device("cpu"))
        assert lm.dims.layers == 2 and lm.tokenizer("the cat").input_ids == [2, 3]


def test_an_interrupted_download_goes_on(tmp_path, hub, fetch) -> None:
    hub.add("models", "someone/small", ONE, model(tmp_path / "a"), "main")
    fetch("model=someone/small")
    snapshot = tmp_path / "home" / "hub" / "models--someone--small" / "snapshots" / ONE
    weights = snapshot / "model.safetensors"
    weights.resolve().unlink()  # the link to the blob dangles, as after a kill
    hub.sent.clear()
    assert "kB fetched" in fetch("model=someone/small")
    assert hub.sent == ["model.safetensors"] and weights.is_file()


def test_a_branch_that_moved_is_fetched_anew(tmp_path, hub, fetch) -> None:
    hub.add("models", "someone/small", ONE, model(tmp_path / "a"), "main")
    fetch("model=someone/small")
    hub.add("models", "someone/small", TWO, model(tmp_path / "b", extra="more"), "main")
    moved = fetch("model=someone/small")
    assert TWO[:12] in moved and "fetched" in moved
    pinned = fetch("model=someone/small", f"model.revision={ONE}")
    assert ONE[:12] in pinned and "already here" in pinned


def test_what_cannot_be_fetched_is_told_in_one_line(tmp_path, hub, fetch, monkeypatch) -> None:
    hub.add("models", "someone/small", ONE, model(tmp_path / "a"), "main")
    pickled = model(tmp_path / "b")
    (pickled / "model.safetensors").unlink()
    hub.add("models", "someone/pickled", ONE, pickled, "main")
    other = model(tmp_path / "c")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "mamba2"}))
    hub.add("models", "someone/other", ONE, other, "main")
    hub.add("models", "someone/gated", ONE, model(tmp_path / "d"), "main")
    (hub.root / "models" / "someone" / "gated" / "gated").touch()
    refusals = {
        ("model=someone/absent",): "unknown model 'someone/absent': no directory, and no (public) hub model",
        ("model=someone/gated",): "then run: python launch.py task=prefetch model=someone/gated",
        ("model=someone/gated", "model.revision=v2"): "task=prefetch model=someone/gated model.revision=v2",
        (
            "model=someone/small",
            "model.revision=step7",
        ): "model.revision=step7: someone/small has no such branch, tag or",
        ("model=someone/pickled",): "someone/pickled on the hub has no safetensors weights; pickled ones are refused",
        ("model=someone/other",): "someone/other is of model type 'mamba2'",
        (
            "model=tiny",
        ): "model=tiny: nothing to fetch, it is trained here; name a hub model (presets: gemma-3-4b-it gpt2",
        ("data=datasets", "data.path=someone/absent"): "data.path=someone/absent: the hub has no such dataset",
    }
    for words, says in refusals.items():
        with pytest.raises(UserError) as caught:
            fetch(*words)
        assert says in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"someone/small: .* are to be fetched and there is .*B free .*HF_HOME"):
        fetch("model=someone/small")
    cut_off(monkeypatch)
    with pytest.raises(UserError, match="v9 is not in the local Hugging Face cache and the hub was not reached"):
        fetch("model=someone/small", "model.revision=v9")


def test_a_dataset_is_fetched_and_has_the_same_key_and_rows_without_a_network(
    tmp_path, hub, fetch, monkeypatch
) -> None:
    texts = tmp_path / "texts"
    for subset, count in (("first", 3), ("second", 5)):
        (texts / subset).mkdir(parents=True)
        rows = [f"{subset} text {i}" for i in range(count)]
        pq.write_table(pa.table({"text": rows}), texts / subset / "train-00000-of-00001.parquet")
    (texts / "loader.py").write_text("raise SystemExit('never run')")
    card = "\n".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*"
        for name in ("first", "second")
    )
    (texts / "README.md").write_text(f"---\nconfigs:\n{card}\n---\n")
    hub.add("datasets", "someone/texts", ONE, texts, "main")
    name = "someone/texts:second"
    words = ("model=tiny", "data=datasets", f"data.path={name}")
    key = content_hash("datasets", name)
    out = fetch(*words)
    assert f"{name}  {ONE[:12]}" in out and "fetched" in out and "loader.py" not in hub.sent
    assert "already here" in fetch(*words)
    cut_off(monkeypatch)
    assert "already here" in fetch(*words)
    assert content_hash("datasets", name) == key == f"{name}@{ONE}"
    assert list(documents("datasets", name)) == [f"second text {i}" for i in range(5)]
    (tmp_path / "home" / "hub" / "datasets--someone--texts" / "refs" / "main").unlink()
    with pytest.raises(UserError, match=r"task=prefetch data=datasets data\.path=someone/texts:second"):
        content_hash("datasets", name)
