"""Names: whatever models, files and sweeps are called, nothing is written outside outputs and multirun."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from configs import compose
from conftest import Cli

from circuits.run import provenance
from circuits.schema import BaseConfig
from circuits.store import registry
from circuits.store.keys import Key, units
from circuits.store.kinds import Kind
from circuits.store.places import safe_name
from circuits.store.store import Store

HOSTILE = (
    "/abs/olute",
    "../../up",
    "..",
    ".hidden",
    "a\nb\tc",
    "50%j $(x) `y` 'z\"",
    "名前" * 200,
    "x" * 400,
    "\udc80",
    "-rf",
    "",
    "a.partial",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_safe_name_is_one_name_and_names_that_were_safe_stay(text: str) -> None:
    name = safe_name(text)
    assert name not in ("", ".", "..") and not name.startswith(".") and not set(name) & set("/\\\0\n\t %$`'\"")
    assert len(name.encode()) <= 120 and safe_name(name) == name
    for kept in ("tiny-L0-topk", "tiny-4x128", "003-layer=14,sae.k=8", "grammar_agreement-Llama-3.2-1B", "größe-日本"):
        assert safe_name(kept) == kept


def hostile(name: str) -> BaseConfig:
    """A config in which everything that a person names is called `name`."""
    cfg = compose()
    cfg.model.id, cfg.model.embedded = name, None
    cfg.behaviour.name = cfg.behaviour.path = cfg.data.path = cfg.sae.from_ = name
    return cfg


class Named(Kind):
    """A kind that calls everything as a person called the model."""

    name = "named"
    layers = "each"

    def label(self, cfg: BaseConfig, layers: tuple[int, ...]) -> str:
        return cfg.model.id

    def variants(self, cfg: BaseConfig) -> dict[str, BaseConfig]:
        return {cfg.model.id: cfg}

    def share(self, cfg: BaseConfig) -> str:
        return cfg.model.id


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in ("all", "whatever it says") for name in HOSTILE[::2]]
)
def test_every_kind_stays_in_its_place_in_the_store(tmp_path: Path, kind: str, name: str) -> None:
    store = Store(tmp_path / "artifacts")
    cfg = hostile(name)
    for one in registry.kinds().values():
        told = one if kind == "all" else Named()
        layers = () if told.layers == "none" else (1,)
        assert all(len(unit) == 2 for unit in units(told, cfg, layers) if isinstance(unit, tuple))
        key = Key(told.name if kind == "all" else name, told.label(cfg, layers), layers, "{}", {}, told.share(cfg))
        places = [store.path(key), *(store.beside(key, suffix) for suffix in ("partial", "lease", "claim"))]
        for place in places:
            assert place.parent.parent == store.root and place == Path(*place.parts) and ".." not in place.parts
            assert len(place.name.encode()) < 250
        with store.writing(key) as written:
            assert written.parent == places[0].parent
            (written / "x").write_text(name, errors="replace")
            assert store.publish(key, written, {}).path == places[0]
        assert store.find(key) is not None and store.partial(key) == places[1]
    assert list(tmp_path.iterdir()) == [store.root]


def test_hostile_names_of_a_model_a_corpus_and_a_sweep_change_nothing_outside_the_two_places(
    warm: Cli, quick_store: Path, tmp_path: Path
) -> None:
    place = tmp_path / "mine" / "50%j 'a' $(x)"
    (tiny,) = (quick_store / "tiny").glob("[!.]*")
    shutil.copytree(tiny, place / "-model.partial")
    (place / "..corpus.txt").write_text(
        "\n\n".join(f"the cat number {n} is near the dogs of the farm ." for n in range(400))
    )
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.glob("mine/**/*"))}
    done = warm(
        "task=sae", "layer=0", f"model={place / '-model.partial'}", "data=text", f"data.path={place / '..corpus.txt'}",
        "name=../../mine/50%j", "sae.steps=3", "sae.batch_size=32", "sae.block_rows=512", "sae.heldout_sequences=4",
        "sae.allow_small=true", "data.context=32", "tracking=off",
    )  # fmt: skip
    assert done.code == 0, done.err + done.out
    assert before == {path: path.stat().st_mtime_ns for path in sorted(tmp_path.glob("mine/**/*"))}
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "outputs"}
    assert len(warm.artifacts("sae")) == len(warm.artifacts("tokens")) == 1


def test_code_that_nobody_has_committed_counts_as_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    (tmp_path / "circuits" / "tasks").mkdir(parents=True)
    (tmp_path / "circuits" / "a.py").write_text("a = 1\n")
    (tmp_path / ".gitignore").write_text("outputs/\n*.pyc\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(provenance, "CODE", tmp_path)

    def dirty() -> bool | None:
        provenance.code.cache_clear()
        return provenance.code()["dirty"]

    assert dirty() is False
    for harmless in ("notes.txt", "outputs/x.py", "circuits/a.pyc"):
        (tmp_path / harmless).parent.mkdir(exist_ok=True)
        (tmp_path / harmless).write_text("x")
    assert dirty() is False
    (tmp_path / "circuits" / "tasks" / "mine.py").write_text("b = 2\n")
    assert dirty() is True
    (tmp_path / "circuits" / "tasks" / "mine.py").unlink()
    (tmp_path / "circuits" / "a.py").write_text("a = 2\n")
    assert dirty() is True
    provenance.code.cache_clear()
