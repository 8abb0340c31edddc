"""``profile=torch|memory``: traces and tables of a few steps of each phase, whatever the task and however it ends."""

from __future__ import annotations

import gzip
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK, Cli
from test_report import Page

SAE = ["task=sae", "layer=1", "sae.heldout_sequences=128", "sae.log_every=5", QUICK, "tracking=off"]
PROMPTS = ["behaviour.n_samples=120", "behaviour.n_test=40", "tracking=off", "cluster.workers=0"]


def run_of(cli: Cli, task: str) -> Path:
    """The directory of the newest single run of a task."""
    return max((cli.outputs / "runs").glob(f"*/{task}-*"), key=lambda path: path.stat().st_mtime_ns)


def summary(run: Path) -> dict[str, Any]:
    """What the profile of a run found."""
    return dict(json.loads((run / "profile" / "profile.json").read_text()))


def test_a_training_is_profiled_phase_by_phase_and_its_key_is_as_ever(warm: Cli) -> None:
    done = warm(*SAE, "sae.steps=80", "profile=torch", "cluster.workers=0")
    assert done.code == 0, done.out + done.err
    run = run_of(warm, "sae")
    windows = {window["phase"]: window for window in summary(run)["windows"]}
    assert set(windows) == {"training", "measuring"} and windows["training"]["unit"] == "step"
    top = windows["training"]["operators"]
    assert any("aten::mm" in one["name"] or "addmm" in one["name"] for one in top[:8]) and top[0]["cpu_us"] > 0
    with gzip.open(run / "profile" / "training.trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    assert any(event.get("name", "").startswith("aten::") for event in events)
    assert "Self CPU" in (run / "profile" / "training.txt").read_text()
    assert re.search(
        r"profile: training: [1-6]\d steps in profile/training.trace.json.gz", (run / "run.log").read_text()
    )
    page = Page(run / "report.html")
    assert "Profile of 000: training" in page.text and "profile/training.trace.json.gz (ui.perfetto.dev)" in page.text
    assert "  cached  " in warm(*SAE, "sae.steps=80").out, "a profile is in no key"
    plain = warm(*SAE, "sae.steps=4", "cluster.workers=0")
    assert plain.code == 0 and not (run_of(warm, "sae") / "profile").exists()


@pytest.mark.parametrize(
    ("words", "phases"),
    [
        (["task=baseline", "behaviour.success_threshold=0", "baseline.batch_size=16", QUICK, *PROMPTS], {"scoring"}),
        (["task=activations", "activations.source=data", "activations.n_sequences=256", "activations.batch_size=16", "layer=1",
          QUICK, "tracking=off", "cluster.workers=0"], {"capturing"}),
        (["task=prompts", "behaviour=ioi", *PROMPTS], set()),
    ],
)  # fmt: skip
def test_memory_on_a_processor_is_told_by_operator_in_every_task(words: list[str], phases: set[str], warm: Cli) -> None:
    if "task=baseline" in words:
        assert warm("task=prompts", *PROMPTS).code == 0
    done = warm(*words, "profile=memory")
    assert done.code == 0, done.out + done.err
    run = run_of(warm, words[0].removeprefix("task="))
    if not phases:
        assert "profile: no phase of this run counted steps" in (run / "run.log").read_text()
        assert not (run / "profile").exists()
        return
    found = summary(run)
    windows = {window["phase"]: window for window in found["windows"]}
    assert found["mode"] == "memory" and found["device"] == "cpu" and phases <= set(windows), windows
    (phase,) = phases
    assert windows[phase]["by"] == "bytes" and windows[phase]["operators"][0]["bytes"] > 1000
    assert "allocated" in Page(run / "report.html").text


@pytest.mark.soak
def test_a_run_that_is_stopped_keeps_its_profile_and_the_next_turn_adds_its_own(
    warm: Cli, wait_until: Callable[..., None]
) -> None:
    words = [*SAE, "sae.steps=20000", "profile=torch", "cluster.workers=1", "name=cut"]
    process = warm.start(*words)

    def status() -> dict[str, Any]:
        found = list((warm.outputs / "runs").glob("*/cut-*/status.json"))
        return dict(json.loads(found[0].read_text())) if found else {}

    wait_until(lambda: ((status().get("progress") or {}).get("done") or 0) > 200, 120)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    run = run_of(warm, "cut")
    assert status()["state"] == "interrupted" and "usage" in status()
    assert [window["phase"] for window in summary(run)["windows"]] == ["training"]
    process = warm.start("task=recover", f"of={run.name}")
    wait_until((run / "profile" / "training-turn2.txt").exists, 120)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert [window["table"] for window in summary(run)["windows"]] == ["training.txt", "training-turn2.txt"]
    assert (run / "profile" / "training.txt").exists() and (run / "profile" / "training-turn2.trace.json.gz").exists()


@pytest.mark.soak
def test_elements_of_a_pack_that_train_together_share_a_profile(warm: Cli) -> None:
    words = [
        "task=sae",
        "layer=1",
        "sae.k=8,16",
        "pack=2",
        "sae.steps=100",
        *SAE[2:],
        "cluster.workers=1",
        "profile=torch",
    ]
    done = warm(*words)
    assert done.code == 0, done.out + done.err
    (sweep,) = (warm.folder / "multirun").glob("*/*")
    first, second = sorted(sweep.glob("0*"))
    assert {window["phase"] for window in summary(first)["windows"]} >= {"training"}
    assert "another element of this process is profiled" in (second / "run.log").read_text()


def test_another_word_is_refused_with_the_choices(warm: Cli) -> None:
    done = warm("task=sae", "layer=1", "profile=fast")
    assert done.code == 2 and done.err == "error: profile=fast: no such choice; choices: memory none torch\n"
    assert "task=status does not read it" in warm("task=status", "profile=torch").err
