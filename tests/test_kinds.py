"""The contract of kinds: artifacts over a set of layers, inputs with configs of their own, what is refused where it is declared."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from configs import compose, plan
from conftest import QUICK, ROOT, Cli, Done

from circuits.errors import UserError
from circuits.schema import BaseConfig
from circuits.store import inputs, places, registry
from circuits.store.contents import Contents
from circuits.store.keys import key_of
from circuits.store.kinds import Input, Kind, Layers, one_a_layer

SHARED = '''
"""One table over the SAEs of a set of layers."""

from circuits.files import read_json, write_json
from circuits.store.kinds import Column, Input, Kind, one_a_layer


class Shared(Kind):
    name = "shared"
    sections = ("model", "seed")
    layers = "set"
    needs = ("tiny", "sae")
    columns = (Column("total", "features", ".0f"),)

    def label(self, cfg, layers):
        return f"shared-{len(layers)}"

    def inputs(self, cfg, layers):
        return [Input("tiny", (), cfg), *one_a_layer("sae", layers, cfg)]

    def make(self, context, works):
        sizes = {layer: read_json(context.require("sae", layer).path / "metrics.json")["d_sae"] for layer in context.layers}
        works[None].commit(lambda out: write_json(out / "metrics.json", {"total": sum(sizes.values()), "sizes": sizes}))


KIND = Shared()
run = KIND.run
'''
YAML = "name: shared\n_target_: circuits.tasks.shared.run\nwhere: cluster\nresources: {gpus: 0, cpus: 1, memory: 1G}\n"


class Over(Kind):
    """One artifact over the SAEs of a set of layers."""

    name = "over"
    sections = ("seed",)
    layers = "set"
    needs = ("sae",)

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        return "over"

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        return one_a_layer("sae", layers, cfg)


def test_a_set_of_layers_has_one_key_in_any_order_and_another_when_one_input_changes() -> None:
    cfg, other, contents = compose("layer=0-3"), compose("sae.k=64"), Contents()
    key = key_of(Over(), cfg, (0, 1, 3), contents)
    assert key == key_of(Over(), cfg, (3, 0, 1), contents) and key.layers == (0, 1, 3)
    assert {one.layers for one in key.inputs.values()} == {(0,), (1,), (3,)}
    assert key.hash != key_of(Over(), cfg, (0, 1, 2), contents).hash, "another layer"
    assert key.hash != key_of(Over(), other, (0, 1, 3), contents).hash, "other SAEs, though it reads no sae.k itself"

    class One(Over):
        def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
            found = super().inputs(cfg, layers)
            return [*found[:-1], Input("sae", layers[-1:], other, found[-1].name)]

    assert key.hash != key_of(One(), cfg, (0, 1, 3), contents).hash, "one input is made under another config"


def test_inputs_that_are_not_declared_or_called_alike_are_refused() -> None:
    class Undeclared(Over):
        needs = ()

    class Alike(Over):
        def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
            return [Input("sae", (0,), cfg), Input("sae", (1,), cfg)]

    with pytest.raises(Exception, match="kind over: sae is an input and does not stand in its needs"):
        inputs.of(Undeclared(), compose(), (0,))
    with pytest.raises(Exception, match="two inputs are called sae; give them names"):
        inputs.of(Alike(), compose(), (0, 1))


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        (("sea",), "kind over needs sea; did you mean sae"),
        (("after",), "need each other in a circle: "),
    ],
)
def test_unknown_needs_and_circles_are_refused_when_the_program_starts(
    needs: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bad(Over):
        pass

    class After(Over):
        name = "after"

    Bad.needs, After.needs = needs, ("over",)
    modules = {**registry.modules(), **{kind.name: type(kind.name, (), {"KIND": kind}) for kind in (Bad(), After())}}
    monkeypatch.setattr(registry, "modules", lambda: modules)
    registry.kinds.cache_clear()
    try:
        with pytest.raises(Exception, match=says):
            registry.kinds()
    finally:
        registry.kinds.cache_clear()


def test_two_sections_of_reports_with_one_name_are_refused_when_the_program_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "circuits" / "report" / "sections"
    shutil.copytree(ROOT / "circuits" / "report" / "sections", place)
    monkeypatch.setattr(places, "CODE", tmp_path)
    registry.kinds.cache_clear()
    registry.kinds()
    (place / "sae_mine.py").write_text('@section("sae", order=1)\ndef show(view):\n    ...\n')
    registry.kinds.cache_clear()
    with pytest.raises(UserError, match=r"two sections of sae: in sae\.py and sae_mine\.py of "):
        registry.kinds()
    registry.kinds.cache_clear()


def test_the_checks_of_inputs_are_asked_with_those_of_who_needs_them() -> None:
    with pytest.raises(Exception, match=r"sae\.k=100000: more than d_sae"):
        plan("task=interpret", "layer=1", "sae.k=100000", "behaviour=ioi")
    with pytest.raises(Exception, match="no such file"):
        plan("task=interpret", "layer=1", "data=text", "data.path=nowhere.txt", "behaviour=ioi")


def test_one_artifact_over_a_set_of_layers_from_the_command_line_to_its_manifest(warm: Cli, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("circuits", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("*.pyc.*"))  # with its bytecode
    shutil.copy(ROOT / "launch.py", checkout)
    (checkout / "circuits" / "tasks" / "shared.py").write_text(SHARED)
    (checkout / "conf" / "task" / "shared.yaml").write_text(YAML)
    small = ["sae.steps=4", "sae.batch_size=64", "sae.block_rows=512", "sae.heldout_sequences=4", QUICK, "seed=77"]

    def launch(task: str, *words: str) -> Done:
        return warm.python(str(checkout / "launch.py"), f"task={task}", "tracking=off", "cluster.workers=0", *words)

    own = [*(word for word in small if not word.startswith(("sae.batch", "sae.block", "sae.held"))), *small[1:4]]
    assert launch("sae", "layer=1", *small).code == 0
    absent = launch("shared", "layer=[2,0-1]", *own)
    assert absent.code == 2, absent.err
    (line,) = (line for line in absent.err.splitlines() if "make them with" in line)
    assert "needs sae/tiny-L0-topk-" in line and "sae/tiny-L2-topk-" in line and "tiny-L1" not in line
    command = shlex.split(line.partition("make them with: python launch.py ")[2].partition("  log ")[0])
    made_all = launch(command[0].removeprefix("task="), *command[1:])
    assert command[0] == "task=sae" and made_all.code == 0, made_all.err
    done = launch("shared", "layer=[2,0-1]", *own)
    assert done.code == 0, done.err
    (made,) = warm.artifacts("shared")
    again = launch("shared", "layer=0-2", *own)
    assert again.code == 0 and warm.artifacts("shared") == [made], "cached, whatever order the layers are written in"
    manifest = (
        warm.manifest(made)
        if hasattr(warm, "manifest")
        else __import__("json").loads((made / "manifest.json").read_text())
    )
    assert sorted(manifest["inputs"]) == ["sae/L0", "sae/L1", "sae/L2", "tiny"]
    assert all(one["content"] for name, one in manifest["inputs"].items() if name != "tiny")
