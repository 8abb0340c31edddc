"""``sae.source=store``: SAEs trained from kept activations, measured as those from the stream, resumable bit by bit."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from configs import compose, key, plan
from conftest import QUICK, Cli, sharing
from safetensors.torch import load_file
from small_models import build
from test_stream import RandomSource

from circuits.activations.store import ActivationStore
from circuits.activations.stored import StoredStream
from circuits.errors import Damaged, UserError
from circuits.files import sha256_file
from circuits.models.load import LM
from circuits.models.sites import site_width
from circuits.store import registry, staging
from circuits.tasks._sae import Member
from circuits.tasks._sae.source import too_few

STORE = [QUICK, "activations.source=data", "activations.n_sequences=1500", "tracking=off", "cluster.workers=0"]
SAE = [
    QUICK,
    "sae.source=store",
    "activations.n_sequences=1500",
    "sae.heldout_sequences=32",
    "tracking=off",
    "cluster.workers=0",
]
SHORT = [*SAE, "sae.steps=80", "sae.ram=0.004"]  # four blocks of two chunks, more than one pass


def saes(cli: Cli) -> dict[int, Path]:
    return {json.loads((path / "metrics.json").read_text())["layer"]: path for path in cli.artifacts("sae")}


def same(a: Path, b: Path) -> bool:
    first, second = (load_file(path / "sae_weights.safetensors") for path in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def stores(quick_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A folder whose store has the activations of layers 1 and 2, at three sites."""
    cli = sharing(quick_store, tmp_path_factory.mktemp("stores"))
    done = cli("task=activations", "layer=[1,2]", "activations.site=[resid_post,mlp_act,mlp_in]", *STORE)
    assert done.code == 0, done.out + done.err
    return cli


def beside(stores: Cli, folder: Path) -> Cli:
    """A folder with the stores and no SAE."""
    cli = sharing(stores.outputs / "artifacts", folder)
    place = cli.outputs / "artifacts" / "activations"
    place.mkdir()
    for path in stores.artifacts("activations"):
        (place / path.name).symlink_to(path)
    return cli


@pytest.mark.soak
@pytest.mark.parametrize("target", [[], ["sae.site=mlp_in", "sae.target_site=resid_post"]], ids=["sae", "transcoder"])
def test_layers_trained_from_their_stores_together_alone_and_after_a_kill_are_equal_bit_by_bit(
    target: list[str], stores: Cli, tmp_path_factory: pytest.TempPathFactory, wait_until: Callable[..., None]
) -> None:
    both = beside(stores, tmp_path_factory.mktemp("together"))
    done = both("task=sae", "layer=[1,2]", *target, *SHORT)
    assert done.code == 0, done.out + done.err
    together = saes(both)
    assert sorted(together) == [1, 2]
    for layer, path in together.items():
        manifest, metrics = (json.loads((path / f"{name}.json").read_text()) for name in ("manifest", "metrics"))
        (used,) = [p for p in stores.artifacts("activations") if f"-L{layer}-resid_post-" in p.name]
        read = manifest["inputs"]["activations:target" if target else "activations"]
        assert read["id"] == f"activations/{used.name}" and read["content"]
        rows = json.loads((used / "meta.json").read_text())["n_rows"]
        assert metrics["passes"] == pytest.approx(150 * 256 / rows) and metrics["passes"] > 1
        assert metrics["explained_variance"] > metrics["control"]["explained_variance"]

    alone = beside(stores, tmp_path_factory.mktemp("alone"))
    words = ["task=sae", "layer=2", *target, *SHORT, "sae.checkpoint_every=10", "sae.log_every=10"]
    running = alone.start(*words)
    partial = alone.outputs / "artifacts" / "sae"
    wait_until(lambda: list(partial.glob("*.partial/step-*0.safetensors")), 120, "a checkpoint")
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    assert not alone.artifacts("sae")
    done = alone(*words)
    assert done.code == 0, done.out + done.err
    (log,) = [p for p in (alone.outputs / "runs").glob("*/sae-*/run.log") if "resumed at step" in p.read_text()]
    assert "started anew" not in log.read_text()
    assert same(saes(alone)[2], together[2])
    assert saes(alone)[2].name == together[2].name
    facts = [(path / "metrics.json").read_text() for path in (saes(alone)[2], together[2])]
    assert facts[0] == facts[1]


def test_a_missing_store_is_one_line_with_the_command_that_makes_it(warm: Cli) -> None:
    done = warm("task=sae", "layer=3", "sae.skip_first=2", *SAE, "sae.site=resid_mid")
    assert done.code == 2 and len(done.errors) == 1, done.err
    line = done.errors[0]
    assert "sae needs activations/tiny-L3-resid_mid-data-" in line and "which does not exist" in line
    command = line.split("make it with: python launch.py ")[1].split(" log ")[0].split()
    assert command[0] == "task=activations" and "sae.site=resid_mid" not in command
    (made,) = plan(*command)
    (wanted,) = plan("task=sae", "layer=3", *SAE, "sae.skip_first=2", "sae.site=resid_mid")
    assert made.keys[3].hash == wanted.keys[3].inputs["activations"].hash


def test_a_transcoder_is_trained_from_the_stores_of_both_sites(warm: Cli) -> None:
    words = ["layer=1", "sae.site=mlp_in", "sae.target_site=mlp_out", *SHORT]
    missing = warm("task=sae", *words)
    assert missing.code == 2 and "sae needs activations/tiny-L1-mlp_in-data-" in missing.err, missing.err
    command = shlex.split(missing.errors[0].split("make them with: python launch.py ")[1].split(" log ")[0])
    assert "activations.site=[mlp_in,mlp_out]" in command
    made = warm(*command)
    assert made.code == 0 and len(warm.artifacts("activations")) == 2, made.out + made.err
    done = warm("task=sae", "sae=topk,jumprelu", *words)
    assert done.code == 0, done.out + done.err
    used = {f"activations/{path.name}" for path in warm.artifacts("activations")}
    assert len(warm.artifacts("sae")) == 2
    for path in warm.artifacts("sae"):
        manifest, metrics = (json.loads((path / f"{name}.json").read_text()) for name in ("manifest", "metrics"))
        inputs = [manifest["inputs"][name] for name in ("activations", "activations:target")]
        assert {one["id"] for one in inputs} == used and all(one["content"] for one in inputs)
        assert metrics["target_site"] == "mlp_out" and metrics["ce_zero"] != metrics["ce_spliced"]
        assert metrics["explained_variance"] > metrics["control"]["explained_variance"]


def test_too_few_rows_are_refused_unless_they_are_allowed(stores: Cli, tmp_path: Path) -> None:
    """The store has about 19,000 rows: enough for 128 dimensions, too few for 512. Read from a copy, and exported."""
    cli = beside(stores, tmp_path)
    words = ["layer=1", "sae.site=mlp_act", "sae.steps=20", *SAE]
    done = cli(
        "task=sae", "sae.allow_small=false,true", "cluster.stage=$FAST_DISK", *words, FAST_DISK=f"{tmp_path}/fast"
    )
    assert done.code == 1 and len(cli.artifacts("sae")) == 1, done.out + done.err
    assert "rows are fewer than 100 × the site's width 512 (51,200)" in done.err
    (used,) = [path for path in stores.artifacts("activations") if "-L1-mlp_act-" in path.name]
    (copy,) = (tmp_path / "fast").iterdir()
    assert sorted(path.name for path in copy.iterdir()) == ["meta.json", "values.npy"]
    assert (copy / "values.npy").read_bytes() == (used / "values.npy").read_bytes()
    done = cli("task=export", "export.path=out", *(w for w in words if w not in SAE[-2:]))
    assert done.code == 0 and (cli.folder / "out" / "sae_weights.safetensors").exists(), done.err


def test_a_staged_copy_is_made_once_and_made_again_when_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, fast = tmp_path / "source", tmp_path / "fast"
    source.mkdir()
    (source / "values.npy").write_bytes(b"x" * 100)
    (source / "norms.npy").write_bytes(b"not asked for")

    def staged(stage: str = "$FAST/here") -> Path:
        return staging.staged(
            source, "c0ffee", {"values.npy": sha256_file(source / "values.npy")}, stage, lambda holder: None
        )

    with pytest.raises(
        UserError, match=r"cluster.stage=\$FAST/here: FAST is not set on this machine; leave cluster.stage out"
    ):
        staged()
    monkeypatch.setenv("FAST", str(fast))
    found = staged()
    assert found == fast / "here" / "c0ffee" and [path.name for path in found.iterdir()] == ["values.npy"]
    made = found.stat().st_ino
    assert staged().stat().st_ino == made
    (found / "values.npy").write_bytes(b"x" * 99)
    assert (staged() / "values.npy").stat().st_size == 100
    (found / "values.npy").write_bytes(b"x" * 99 + b"y")
    assert (staged() / "values.npy").read_bytes() == b"x" * 100, "a copy of the same size is not trusted for that"
    with pytest.raises(Damaged, match=r"values.npy: its content is not what was written"):
        staging.staged(source, "decade", {"values.npy": "0" * 64}, "$FAST/here", lambda holder: None)
    assert not (fast / "here" / "decade").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50))
    with pytest.raises(UserError, match=r"B are needed and there is .*B free in .*; leave cluster.stage out"):
        staged(str(tmp_path / "small"))
    assert not list((tmp_path / "small").iterdir())
    with pytest.raises(UserError, match=r"cannot be written .*; leave cluster.stage out"):
        staged(str(source / "values.npy"))


@pytest.fixture(scope="module")
def small() -> LM:
    return build("gpt2")


def kept(folder: Path, lm: LM, **other: object) -> ActivationStore:
    """A store of random rows of `lm`, with some facts of another."""
    width = site_width(lm.dims, "resid_post")
    facts = {
        "site": "resid_post",
        "layer": 1,
        "width": width,
        "dtype": "fp32",
        "n_rows": 64,
        "model_dtype": "fp32",
        "model": "a/b",
    }
    folder.mkdir()
    np.save(folder / "values.npy", np.random.default_rng(0).standard_normal((64, width), np.float32))
    (folder / "meta.json").write_text(json.dumps({**facts, "revision": "c1", "skip_first": 1, "last_n": None, **other}))
    return ActivationStore(folder)


def stream_of(lm: LM, store: ActivationStore) -> StoredStream:
    given = {"site": "resid_post", "layers": [1], "batch_size": 8, "skip_first": 1, "ram_bytes": 1 << 20}
    return StoredStream(lm, RandomSource(), {1: (store,)}, {1: "content"}, model=("a/b", "c1"), **given)


@pytest.mark.parametrize(
    "other",
    [{"model": "a/c"}, {"revision": "c2"}, {"site": "mlp_out"}, {"layer": 0}, {"model_dtype": "bf16"}, {"skip_first": 0},
     {"last_n": 3}],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_a_store_of_something_else_is_refused(other: dict[str, object], small: LM, tmp_path: Path) -> None:
    ((name, value),) = other.items()
    with pytest.raises(UserError, match=f"{tmp_path}/store: {name} {value}, but a/b is read with {name} ") as e:
        stream_of(small, kept(tmp_path / "store", small, **other))
    assert len(e.value.messages) == 1


def test_each_element_of_a_pack_is_asked_whether_it_allows_few_rows(small: LM, tmp_path: Path) -> None:
    stream = stream_of(small, kept(tmp_path / "store", small))
    cfgs = [compose("sae.source=store", *words) for words in ([], ["sae.allow_small=true"])]
    members = {n: Member(SimpleNamespace(cfg=cfg), {}) for n, cfg in enumerate(cfgs)}  # type: ignore[arg-type]
    refused = too_few(members, stream)
    assert list(refused) == [0] and "64 rows are fewer than 100 ×" in str(refused[0])


def test_the_default_source_keeps_its_keys_and_a_store_enters_as_an_input() -> None:
    assert key("sae.source=stream").hash == key().hash
    stored = key("sae.source=store")
    assert stored.hash != key().hash and set(stored.inputs) == {"tiny", "activations"}
    same_keys = [
        ["activations.site=mlp_out"],  # what the section says of another capture is nothing to this one
        ["activations.source=behaviour"],
        ["activations.skip_first=1"],
        ["sae.allow_small=true"],
        ["activations.chunk=5"],
    ]
    for words in same_keys:
        assert key("sae.source=store", *words).hash == stored.hash, words
    for words in (["sae.ram=1"], ["activations.dtype=bf16"], ["activations.n_sequences=3000"], ["sae.site=mlp_out"]):
        assert key("sae.source=store", *words).hash != stored.hash, words
    made = key("activations.source=data", kind="activations")
    assert stored.inputs["activations"].hash == made.hash
    assert key("sae.source=store", "sae.from=x", kind="activations").hash != stored.hash


REFUSED = [
    (["sae.source=disk"], "sae.source=disk: no such choice; choices: store stream"),
    (["activations.dtype=bf16"], "activations.dtype=bf16: sae.source=stream does not read it; sae.source=store does"),
    (["sae.ram=1"], "sae.ram=1.0: sae.source=stream does not read it; sae.source=store does"),
    (["sae.source=store", "cluster.stage=fast"], "cluster.stage=fast: a whole path on the node's own disk, or a variable"),
    (["sae.source=store", "sae.block_rows=999"], "sae.block_rows=999: sae.source=store does not read it"),
    (["sae.source=store", "activations.last_n=5"], "activations.last_n=5: an SAE is trained and measured on all tokens"),
    (["sae.source=store", "activations.skip_first=0"], "activations.skip_first=0: sae.skip_first=1 is what the SAE"),
    (["sae.source=store", "sae.ram=0.0001"], "sae.ram=0.0001: two batches of sae.batch_size=256 have to fit twice; at least"),
    (["sae.source=store", "activations.n_sequences=9"], "567 rows are fewer than 100 × the site's width 128"),
    (["behaviour=ioi"], "behaviour=ioi: data.source=embedded does not read it; data=pictures does"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_a_store_cannot_be_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as e:
        plan("layer=0", *words)
    assert len(e.value.messages) == 1 and message in e.value.messages[0], e.value.messages


def test_an_sae_reads_the_captures_section_and_nothing_of_behaviours_of_text() -> None:
    assert "activations" in registry.reads("sae")
    assert key().hash == key("task=sae", "behaviour=ioi").hash
    assert {"activations", "behaviour"} <= registry.reads("activations")
