"""Keys: what changes a result changes the key, nothing else does, and all of it is known without torch."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from configs import compose, copy_conf, edit, key, plan
from conftest import ROOT
from safetensors.numpy import save_file

from circuits import schema
from circuits.errors import UserError
from circuits.store import places, registry
from circuits.store.contents import Contents
from circuits.store.keys import canonical, key_of
from circuits.store.scope import Scope
from circuits.tiny.spec import TinySpec, hf_config

SAE = registry.kind("sae")
#: Fields that may change without changing any result. Another one here is a decision, not an accident.
FREE = {
    "model": {"revision", "family", "layers", "width", "sets", "device", "allow_fallback"},
    "sae": {"min_r2", "checkpoint_every", "checkpoint_minutes", "checkpoint_keep", "log_every", "allow_small"},
}
FILES = {"model.id", "data.path", "sae.from_"}


@pytest.fixture(autouse=True)
def fresh_choices() -> Iterator[None]:
    """Forget the choices of a test's copy of conf/."""
    yield
    places.choices.cache_clear()
    places.config_groups.cache_clear()


def model_directory(place: Path, weight: float = 0.5) -> Path:
    """A directory that is a model as far as a key can see: config, weights, tokenizer."""
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(hf_config(TinySpec(), 100)))
    save_file({"w": np.full(4, weight, dtype=np.float32)}, place / "model.safetensors")
    (place / "tokenizer.json").write_text("{}")
    return place


def corpus(file: Path, documents: int = 30, end: str = "\n") -> Path:
    """A text corpus."""
    file.write_bytes("".join(f"document {i} is here{end}{end}" for i in range(documents)).encode())
    return file


# -- roles -------------------------------------------------------------------------------------------------------


def _fields() -> list[tuple[str, str, Any, str]]:
    found = []
    for path in ("model", "model.embedded", "data", "sae", "precision"):
        section: Any = schema.BaseConfig()
        for name in path.split("."):
            section = schema.EmbeddedConfig() if name == "embedded" else getattr(section, name)
        hints = typing.get_type_hints(type(section))
        for field in dataclasses.fields(section):
            if (path, field.name) != ("model", "embedded"):
                found.append((path, field.name, hints[field.name], field.metadata.get("role", "keyed")))
    return found


def _other(value: Any, hint: Any) -> Any:
    """Another value of the field's type."""
    if isinstance(value, Enum):
        return next(member for member in type(value) if member is not value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, dict):
        return {"new": [1]}
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if issubclass(options[0], Enum):
        return next(iter(options[0]))
    if dataclasses.is_dataclass(options[0]):
        return options[0]()
    return {int: 7, float: 0.5, str: "x"}[options[0]]


def test_the_free_fields_are_the_ones_that_change_no_result() -> None:
    free = {(path, name) for path, name, _, role in _fields() if role == "free"}
    assert free == {(path, name) for path, names in FREE.items() for name in names}
    assert {f"{path}.{name}" for path, name, _, role in _fields() if role in ("file", "from")} == FILES


@pytest.mark.parametrize(("path", "name", "hint", "role"), [f for f in _fields() if f"{f[0]}.{f[1]}" not in FILES])
def test_each_field_enters_the_sae_key_by_its_role(path: str, name: str, hint: Any, role: str) -> None:
    cfg = compose()
    before = key_of(SAE, cfg, (1,), Contents()).hash
    section: Any = cfg
    for part in path.split("."):
        section = getattr(section, part)
    setattr(section, name, _other(getattr(section, name), hint))
    after = key_of(SAE, cfg, (1,), Contents()).hash
    assert (after == before) == (role == "free")


def test_a_later_option_is_outside_the_key_only_at_its_old_default() -> None:
    @dataclasses.dataclass
    class Old:
        k: int = 3

    @dataclasses.dataclass
    class New:
        k: int = 3
        norm: str = schema.added("none")

    assert canonical("x", New(), Contents()) == canonical("x", Old(), Contents())
    assert canonical("x", New(norm="unit"), Contents()) == {"k": 3, "norm": "unit"}
    assert key("sae.max_steps=null").hash == key().hash != key("sae.max_steps=10").hash


def test_a_number_that_json_does_not_have_is_refused_by_its_name() -> None:
    with pytest.raises(UserError, match=r"^sae\.lr=inf: a finite number"):
        key("sae.clip=1", "sae.lr=inf")


@pytest.mark.parametrize(
    ("one", "other"), [("sae.k=1000", "sae.k=1_000"), ("sae.lr=1e-3", "sae.lr=0.001"), ("sae.clip=1", "sae.clip=1.0")]
)
def test_spelling_of_a_number_changes_no_key(one: str, other: str) -> None:
    assert key(one).hash == key(other).hash


# -- what is never in a key --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["name=x"],
        ["note=x"],
        ["reuse=force"],
        ["outputs=elsewhere", "multirun=elsewhere"],
        ["tracking=off"],
        ["tracking.mode=online", "tracking.entity=me"],
        ["cluster.workers=3", "cluster.grace_s=1"],
        ["task.resources.cpus=2", "task.resources.memory=1G"],
        ["model.device=cpu"],
        ["model.allow_fallback=true"],
        ["sae.checkpoint_every=7", "sae.checkpoint_minutes=1", "sae.checkpoint_keep=5"],
        ["sae.log_every=1"],
        ["sae.min_r2=0.9"],
    ],
)
def test_where_and_how_it_runs_changes_no_key(words: list[str]) -> None:
    assert key(*words).hash == key().hash


@pytest.mark.parametrize(
    "words",
    [
        ["sae.k=64"],
        ["sae=relu"],
        ["sae.site=mlp_out"],
        ["precision=bf16"],
        ["precision=tf32"],
        ["seed=1"],
        ["data.context=32"],
    ],
)
def test_what_changes_the_sae_changes_its_key_and_leaves_the_model_alone(words: list[str]) -> None:
    assert key(*words).hash != key().hash
    assert key(*words, kind="tiny").hash == key(kind="tiny").hash


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("tracking/wandb.yaml", "project: circuits", "project: other"),
        ("cluster/local.yaml", "grace_s: 30", "grace_s: 3"),
        ("task/sae.yaml", "memory: 32G", "memory: 1G"),
        ("model/tiny.yaml", "id: tiny", "id: tiny\nsets: {mid: [1, 2]}"),
        ("config.yaml", "outputs: outputs ", "outputs: elsewhere "),
    ],
)
def test_editing_a_yaml_that_saes_do_not_read_changes_no_key(
    file: str, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key().hash
    edit(copy_conf(tmp_path, monkeypatch) / file, old, new)
    assert key().hash == before


def test_editing_a_yaml_that_saes_read_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key().hash
    edit(copy_conf(tmp_path, monkeypatch) / "sae" / "topk.yaml", "k: 32", "k: 33")
    assert key().hash != before


# -- the chain ---------------------------------------------------------------------------------------------------


def test_another_seed_of_the_embedded_model_is_another_sae() -> None:
    one, other = key(), key("model.embedded.seed=1")
    assert one.hash != other.hash
    assert one.inputs["tiny"].hash != other.inputs["tiny"].hash
    assert json.loads(one.payload)["inputs"] == {"tiny": one.inputs["tiny"].hash}


def test_a_change_deep_in_the_chain_reaches_the_top(tmp_path: Path) -> None:
    words = ["data=text", f"data.path={corpus(tmp_path / 'c.txt')}"]
    one, other = key(*words), key(*words, "model.embedded.seed=1")
    assert one.inputs["tokens"].inputs["tiny"].hash != other.inputs["tokens"].inputs["tiny"].hash
    assert one.inputs["tokens"].hash != other.inputs["tokens"].hash


def test_one_measure_of_sparsity_stands_for_every_architectures_own() -> None:
    assert key("sae.sparsity=2").hash == key("sae.k=16").hash != key().hash == key("sae.sparsity=1").hash
    fixed = ("sae=relu", "sae.target_l0=null")
    assert key(*fixed, "sae.l1=0.05", "sae.sparsity=2").hash == key(*fixed, "sae.l1=0.1").hash
    for name in ("relu", "gated", "jumprelu"):
        halved = key(f"sae={name}", "sae.sparsity=2").hash
        assert key(f"sae={name}", "sae.target_l0=16").hash == halved != key(f"sae={name}").hash
    assert key("sae.target_l0=16").hash == key("sae.k=16").hash


def test_a_kinds_version_changes_its_key_and_the_keys_of_what_is_made_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(type(registry.kind("tiny")), "version", 99)
    after = key()
    assert after.inputs["tiny"].hash != before.inputs["tiny"].hash and after.hash != before.hash


def test_layers_have_keys_of_their_own_and_share_their_inputs() -> None:
    keys = [key(layers=(layer,)) for layer in range(4)]
    assert len({k.hash for k in keys}) == 4
    assert len({k.inputs["tiny"].hash for k in keys}) == 1


@pytest.mark.parametrize("layer", ["1", "[1]", "1-1", "[1-1]", "[1,1]", "'1'"])
def test_canonical_forms_of_a_layer_have_one_key(layer: str) -> None:
    (element,) = plan("task=sae", f"layer={layer}")
    assert {number: k.hash for number, k in element.keys.items()} == {1: key(layers=(1,)).hash}


def test_a_set_has_the_keys_of_its_layers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(copy_conf(tmp_path, monkeypatch) / "model" / "tiny.yaml", "id: tiny", "id: tiny\nsets: {mid: [1, 2]}")
    (named,), (listed,) = plan("layer=mid"), plan("layer=[2,1]")
    swept = plan("layer=1,2")
    assert named.layers == listed.layers == (1, 2)
    keys = {layer: k.hash for layer, k in named.keys.items()}
    assert keys == {layer: k.hash for layer, k in listed.keys.items()}
    assert keys == {layer: k.hash for element in swept for layer, k in element.keys.items()}


def test_keys_are_the_same_in_another_process_and_folder(tmp_path: Path) -> None:
    code = "import sys; sys.path[:0] = sys.argv[1:]; from configs import key; print(key('sae.k=16').hash)"
    found = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(ROOT), str(ROOT / "tests")], cwd=tmp_path, capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        )  # fmt: skip
        found.add(done.stdout.strip())
    assert found == {key("sae.k=16").hash}


# -- files -------------------------------------------------------------------------------------------------------


def test_a_crlf_copy_of_a_corpus_has_the_same_key_and_an_edited_one_another(tmp_path: Path) -> None:
    def of(path: Path) -> str:
        return key("data=text", f"data.path={path}").hash

    original = of(corpus(tmp_path / "a.txt"))
    assert of(corpus(tmp_path / "windows copy.txt", end="\r\n")) == original
    edited = corpus(tmp_path / "b.txt")
    edited.write_text(edited.read_text().replace("document 7", "document seven"))
    assert of(edited) != original


def test_editing_a_corpus_in_place_changes_its_key_although_hashes_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuits.store.contents.SETTLED_NS", -1)  # what was just written is remembered too
    file, memory = corpus(tmp_path / "a.txt"), tmp_path / "store" / ".hashes.json"
    cfg = compose("data=text", f"data.path={file}")
    first = key_of(SAE, cfg, (1,), Contents(memory)).hash
    assert memory.exists()
    assert key_of(SAE, cfg, (1,), Contents(memory)).hash == first
    file.write_text(file.read_text().replace("document 7", "document 8"))
    assert key_of(SAE, cfg, (1,), Contents(memory)).hash != first


@pytest.mark.parametrize("settled", [True, False])
def test_another_content_of_the_same_size_and_time_is_another_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: bool
) -> None:
    """As ``cp -p``, ``rsync -t`` and ``touch -r`` leave it; and written in the same tick of the clock as what was hashed."""
    monkeypatch.setattr("circuits.store.contents.SETTLED_NS", -1 if settled else 60_000_000_000)
    file, memory = tmp_path / "a.jsonl", tmp_path / ".hashes.json"
    file.write_text('{"id": 1}\n')
    before = file.stat()
    first = Contents(memory).records(file)
    assert memory.exists() is settled and Contents(memory).records(file) == first
    file.write_text('{"id": 2}\n')
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size and Contents(memory).records(file) != first


def test_a_broken_memory_of_hashes_is_only_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuits.store.contents.SETTLED_NS", -1)  # what was just written is remembered too
    file, memory = corpus(tmp_path / "a.txt"), tmp_path / ".hashes.json"
    cfg = compose("data=text", f"data.path={file}")
    first = key_of(SAE, cfg, (1,), Contents(memory)).hash
    memory.write_text(memory.read_text()[:-9])
    assert key_of(SAE, cfg, (1,), Contents(memory)).hash == first


def test_what_was_asked_before_does_not_change_a_key(tmp_path: Path) -> None:
    file, memory = tmp_path / "corpus.dat", tmp_path / ".hashes.json"
    file.write_text("".join(json.dumps({"text": f"document {i}"}, indent=None) + "\n" for i in range(9)))
    text, lines = (compose(f"data={source}", f"data.path={file}") for source in ("text", "jsonl"))
    alone = key_of(SAE, lines, (1,), Contents()).hash
    key_of(SAE, text, (1,), Contents(memory))
    assert key_of(SAE, lines, (1,), Contents(memory)).hash == alone


def test_a_model_directory_enters_by_its_content(tmp_path: Path) -> None:
    def of(path: Path) -> str:
        return key(f"model={path}").hash

    first = model_directory(tmp_path / "first")
    original = of(first)
    shutil.copytree(first, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("notes")
    assert of(tmp_path / "copy") == original
    assert of(model_directory(tmp_path / "trained further", weight=0.25)) != original
    (first / "tokenizer.json").write_text('{"a": 1}')
    assert of(first) != original


def test_a_home_relative_model_enters_by_its_content_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    place = model_directory(tmp_path / "m")
    assert key("model=~/m").hash == key(f"model={place}").hash


def test_a_foreign_sae_enters_by_its_content(tmp_path: Path) -> None:
    def foreign(name: str, value: float) -> str:
        place = tmp_path / name
        place.mkdir()
        (place / "cfg.json").write_text("{}")
        save_file({"W_enc": np.full((2, 2), value, dtype=np.float32)}, place / "sae_weights.safetensors")
        return key(f"sae.from={place}").hash

    assert foreign("one", 1.0) == foreign("same", 1.0)
    assert foreign("other", 2.0) not in (key(f"sae.from={tmp_path / 'one'}").hash, key().hash)


# -- the scope ---------------------------------------------------------------------------------------------------


def test_a_task_sees_only_the_sections_that_its_kind_declares() -> None:
    cfg = compose()
    scope = Scope(cfg, SAE)
    assert scope.sae.k == 32 and scope.seed == 0
    for name in ("tracking", "cluster", "task", "name", "reuse", "layer", "outputs", "nonsense"):
        with pytest.raises(UserError, match=f"kind sae reads config section '{name}' without declaring it"):
            getattr(scope, name)


def test_a_task_that_declares_a_part_of_a_section_sees_that_part() -> None:
    scope = Scope(compose(), registry.kind("tiny"))
    assert scope.model.embedded.width == 128
    for name in ("id", "device", "sets"):
        with pytest.raises(UserError, match=f"kind tiny reads '{name}' without declaring it"):
            getattr(scope.model, name)
    with pytest.raises(UserError, match="'sae' without declaring"):
        scope.sae  # noqa: B018


# -- without torch -----------------------------------------------------------------------------------------------


def test_plans_and_keys_are_made_without_torch(tmp_path: Path) -> None:
    model, text = model_directory(tmp_path / "model"), corpus(tmp_path / "c.txt")
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; from configs import plan\n"
        "for words in (['layer=all'], ['layer=0,1', f'model={sys.argv[3]}', 'data=text', f'data.path={sys.argv[4]}']):\n"
        "    assert all(e.keys for e in plan('task=sae', *words))\n"
        "heavy = {'torch', 'transformers', 'wandb', 'datasets', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), str(ROOT / "tests"), str(model), str(text)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
