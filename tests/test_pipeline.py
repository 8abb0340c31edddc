"""Whole studies: what a pipeline's file says, what each stage gets, who waits for whom, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from configs import study as planned
from conftest import QUICK, Cli
from slurm.sweeps import status, sweep_dir

from circuits.errors import UserError
from circuits.launch import launching, pipeline
from circuits.launch.forecast import edges
from circuits.launch.local import Local
from circuits.store.contents import Contents
from circuits.store.store import Store

SMALL = [QUICK, "tracking=off", "task.resources.cpus=1"]
STUDY = """
about: two SAEs and what their features stand for
overrides: [model=tiny, sae.steps=8, sae.batch_size=64, sae.heldout_sequences=16, sae.block_rows=2048]
stages:
  prompts: {task: prompts}
  saes: {task: sae, overrides: ["layer=1,2"]}
  features:
    task: interpret
    overrides: ["layer=1,2", interpret.associate=false, interpret.n_sequences=16, interpret.max_features=8, interpret.top_k=2]
  late: {task: prompts, overrides: [behaviour=induction], after: [features]}
"""


def study(cli: Cli, text: str = STUDY) -> str:
    """The word that names a pipeline of this text."""
    (cli.folder / "mine.yaml").write_text(text)
    return "pipeline=mine.yaml"


def record(sweep: Path) -> dict[str, Any]:
    return json.loads((sweep / "sweep.json").read_text())


def states(sweep: Path) -> list[str]:
    return [status(sweep / item["dir"])["state"] for item in record(sweep)["elements"]]


def test_a_study_runs_its_stages_in_order_answers_again_and_goes_on_where_it_failed(warm: Cli) -> None:
    word = study(warm)
    done = warm("task=pipeline", word, *SMALL, "pipeline.until=saes")
    assert done.code == 0, done.err + done.out
    sweep = sweep_dir(warm)
    names = [item["name"] for item in record(sweep)["elements"]]
    assert names == ["000-prompts", "001-saes-layer=1", "002-saes-layer=2"] and states(sweep) == ["done"] * 3
    assert sweep.name.startswith("mine-") and (sweep / "report.html").exists()
    whole = warm("task=pipeline", word, *SMALL)
    assert whole.code == 0 and "3 to run · 3 cached" in whole.out, whole.err + whole.out
    second = sweep_dir(warm)
    found = [status(second / item["dir"]) for item in record(second)["elements"]]
    assert [facts["state"] for facts in found] == ["cached"] * 3 + ["done"] * 3
    assert found[5]["began"] >= max(found[3]["ended"], found[4]["ended"]), "after: a whole stage"
    shown = warm("task=status", f"of={second.name}")
    assert "features" in shown.out and "2 done" in shown.out
    why = warm("task=why", f"of={second.name}")
    assert "no interpret was in the store before" in why.out and "cached: sae/" in why.out, why.out
    older = record(second)
    del older["pipeline"]["after"]  # as studies of earlier versions are recorded
    (second / "sweep.json").write_text(json.dumps(older))
    assert warm("task=report", f"of={second.name}").code == 0
    first, other = (path.name for path in warm.artifacts("sae"))
    layers = [re.findall(r"-L(\d)-", name)[0] for name in (other, first)]
    one = warm("task=why", f"of=sae/{first}").out
    assert f"made by {sweep.name}/" in one and f"nearest sae/{other}: layer: {' → '.join(layers)}\n" in one, one
    plan = warm("task=plan", word, *SMALL, "sae.k=16")
    assert plan.code == 0 and "measured on sae/" in plan.out and "features" in plan.out, plan.err + plan.out
    assert not list((warm.outputs / "artifacts" / "sae").glob("*.claim")), "a plan claims nothing"


def test_a_failed_stage_stops_only_what_stands_on_it_and_recovery_repeats_nothing(warm: Cli) -> None:
    word = study(warm)
    done = warm("task=pipeline", word, *SMALL, "sae.min_r2=0.9999", "seed=2")
    assert done.code == 1, done.out
    sweep = sweep_dir(warm)
    assert states(sweep) == ["done", "gate", "gate", "cancelled", "cancelled", "cancelled"]
    made = {path: path.stat().st_mtime_ns for path in (warm.outputs / "artifacts").glob("*/*/manifest.json")}
    again = warm("task=recover", f"of={sweep.name}")
    assert again.code == 1 and "refused by a gate" in again.out, again.err + again.out
    assert "not started: element 1, which makes an input of it, is refused by a gate" in again.out
    assert states(sweep) == ["done", "gate", "gate", "cancelled", "cancelled", "cancelled"]
    assert {path: path.stat().st_mtime_ns for path in made} == made, "nothing is made twice"
    lower = warm("task=pipeline", word, *SMALL, "seed=2")
    assert lower.code == 0 and "3 to run · 3 cached" in lower.out, lower.err + lower.out


def test_one_element_of_each_stage_goes_first(warm: Cli) -> None:
    done = warm("task=pipeline", study(warm), *SMALL, "pipeline.canary=true", "seed=3", "pipeline.until=features")
    assert done.code == 0, done.err + done.out
    sweep = sweep_dir(warm)
    found = {item["name"]: status(sweep / item["dir"]) for item in record(sweep)["elements"]}
    canaries = ["000-prompts", "001-saes-layer=1", "003-features-layer=1"]
    assert found["002-saes-layer=2"]["began"] >= max(found[name]["ended"] for name in canaries)


def test_what_is_typed_goes_where_it_is_read_and_wins(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(STUDY)
    _, elements = planned("task=pipeline", "pipeline=mine.yaml", *SMALL, "layer=0,1,3", "sae.k=16", base=tmp_path)
    layers = {stage: [e.layers for e in elements if e.stage == stage] for stage in ("saes", "features", "prompts")}
    assert layers == {"saes": [(0,), (1,), (3,)], "features": [(0,), (1,), (3,)], "prompts": [()]}
    reading = ("saes", "features")
    assert {element.stage for element in elements if "sae.k=16" in element.overrides} == set(reading)


MALFORMED = {
    "stages: {a: {task: saes}}": "pipeline.stages.a: task=saes: no such task; did you mean sae?",
    "stages: {a: {task: status}}": "pipeline.stages.a: task=status makes nothing that is kept",
    "stages: {a: {task: sae, layers: 3}}": "pipeline.stages.a.layers: no such key",
    "stages: {a: {task: sae, overrides: layer=3}}": "pipeline.stages.a.overrides: a list of texts is expected",
    "stages: {a: {task: sae, overrides: [sae.kk=3]}}": "stage a: sae.kk: no such key in sae; did you mean sae.k?",
    "stages: {a: {task: sae, overrides: [cluster=csd3]}}": "cluster=csd3: what a whole study has one of",
    "stages: {a: {task: sae, overrides: ['layer=range(3,3)']}}": "nothing to run",
    "stages: {a: {task: sae, after: [b]}}": "pipeline.stages.a: after b: no such stage",
    "stages: {a: {task: prompts, after: [b]}, b: {task: prompts, after: [a]}}": "each would wait for the other",
    "stages: {a: sae}": "pipeline.stages.a=sae: a mapping is expected",
    "stages: [a]": "stages: a mapping of stages is expected",
    "stage: {}": "pipeline=mine.yaml: stage: no such key; did you mean stages?",
    "stages: {a: {task: sae, overrides: [layer=9]}}": "layer=9: 9 out of range for model=tiny",
    "a: [": "not readable as yaml",
    "": "a mapping is expected",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_pipeline_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as e:
        planned("task=pipeline", "pipeline=mine.yaml", *SMALL, base=tmp_path)
    assert any(MALFORMED[text] in line for line in e.value.messages), e.value.messages


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pipeline=quick"], "pipeline=quick: no such pipeline; did you mean quickstart?"),
        (["pipeline.only=[saes]", "pipeline.from=saes"], "pipeline.only: beside pipeline.from"),
        (["pipeline.from=late", "pipeline.until=saes"], "pipeline.from=late comes after pipeline.until=saes"),
        (["pipeline.until=seas"], "pipeline.until=seas: no such stage; did you mean saes?"),
        (["pipeline.parallelism=0"], "pipeline.parallelism=0: conservative, aggressive or a number from 1"),
        (["geometry.heads=[1]"], "geometry.heads=[1]: no stage of pipeline=mine reads it; task=geometry does"),
        (["pipeline=nowhere.yaml"], "pipeline=nowhere.yaml: cannot be read (No such file or directory)"),
    ],
)
def test_what_no_stage_reads_and_stages_that_are_none(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "mine.yaml").write_text(STUDY)
    own = [] if any(word.startswith("pipeline=") for word in words) else ["pipeline=mine.yaml"]
    with pytest.raises(UserError) as e:
        planned("task=pipeline", *own, *SMALL, *words, base=tmp_path)
    assert any(said in line for line in e.value.messages), e.value.messages


@pytest.mark.parametrize("name", ["quickstart", "ablation_lab", "qwen_circuits"])
def test_shipped_pipelines_hold_together(tmp_path: Path, name: str) -> None:
    own = {
        "quickstart": [],
        "ablation_lab": [
            "model=tiny",
            "geometry.heads=[0,1]",
            "pipeline.only=[prompts,baseline,heads,patching,geometry]",
        ],
        "qwen_circuits": [
            "model=tiny",
            "precision=fp32",
            "layer=1,2",
            "data=embedded",
            "behaviour=grammar_agreement,induction",
        ],
    }[name]
    found, elements = planned("task=pipeline", f"pipeline={name}", *own, base=tmp_path)
    assert {element.stage for element in elements} == {stage.name for stage in found.stages}
    store, local = Store(tmp_path / "outputs" / "artifacts"), Local()
    made = launching.plan(elements, store, local, pipeline.shape_of(found, elements))
    assert len(made.standing.to_run) == len(elements), "whatever one needs another one makes"
    before = edges(elements, pipeline.shape_of(found, elements), Contents())
    if name == "quickstart":
        assert (
            before["features"] == ["saes"] and before["circuit"] == ["graph"] and before["activations"] == ["baseline"]
        )
    if name == "qwen_circuits":
        assert len([e for e in elements if e.stage == "saes"]) == 2 and "saes" in before["graphs"]
        assert {e.cfg.behaviour.name for e in elements if e.stage == "baseline"} == {"grammar_agreement", "induction"}
    if name == "ablation_lab":
        assert len([e for e in elements if e.stage == "patching"]) == 8, (
            "an experiment's own sweep: four conditions, two directions"
        )
