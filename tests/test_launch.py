"""The local launcher's behaviour under failure: nothing is lost, nothing is left behind, everything is named."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from configs import plan
from conftest import QUICK, Cli
from slurm.sweeps import steps_taken

from circuits.launch import sweep as sweeps
from circuits.launch.local import LocalLauncher, Worker
from circuits.launch.plan import Plan, Standing
from circuits.run import machine
from circuits.store.store import Store

SHORT = [QUICK, "sae.heldout_sequences=16", "sae.block_rows=2048", "tracking=off"]
Wait = Callable[..., None]


def elements(cli: Cli) -> list[psutil.Process]:
    """Worker processes of this test's folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "circuits.launch.element" in words and str(cli.folder) in words[-1]:
            found.append(process)
    return found


def of_folder(cli: Cli) -> list[psutil.Process]:
    """Every process that a run of this folder left: by its working directory or its command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = " ".join(process.info["cmdline"] or [])
        if str(cli.folder) in words or process.info["cwd"] == str(cli.folder):
            found.append(process)
    return found


def training(cli: Cli) -> list[dict]:
    """The statuses of elements that have taken steps of an SAE's training: there is something to lose."""
    found = []
    for path in [*(cli.folder / "multirun").glob("*/*/*/status.json"), *(cli.outputs / "runs").glob("*/*/status.json")]:
        facts = json.loads(path.read_text())
        if steps_taken(facts):
            found.append(facts)
    return found


def test_a_failing_element_stops_no_other_and_is_named_with_its_log(warm: Cli) -> None:
    done = warm(
        "layer=1", "sae.lr=1e-3,1e38,1e-4", "sae.clip=1e30", "sae.warmup=0", "sae.steps=40", "sae.log_every=1", *SHORT
    )
    assert done.code == 1
    assert len(warm.artifacts("sae")) == 2
    assert "1 of 3 failed (2 done, kept):" in done.out
    assert re.search(r"1  sae.lr=1e.?38 .*layer 1, step \d+.* log multirun/.*/001-sae.lr=1e.?38/run.log", done.err), (
        done.err
    )
    (log,) = (warm.folder / "multirun").glob("*/*/001-*/run.log")
    assert "Traceback" in log.read_text(), "the traceback is in the log"
    assert "Traceback" not in done.out + done.err
    (failed,) = json.loads((log.parents[1] / "failed_items.json").read_text())
    assert (failed["index"], failed["state"], failed["log"]) == (1, "failed", str(log)) and "layer 1" in failed["error"]


@pytest.mark.parametrize(
    "how", [signal.SIGINT, *(pytest.param(how, marks=pytest.mark.soak) for how in (signal.SIGTERM, signal.SIGHUP))]
)
def test_an_ended_launcher_checkpoints_and_leaves_no_process(warm: Cli, wait_until: Wait, how: signal.Signals) -> None:
    running = warm.start("layer=0,1", "sae.steps=100000", *SHORT)
    wait_until(lambda: len(training(warm)) == 2 or running.poll() is not None, 120, "two elements in training")
    running.send_signal(how)
    out, _ = running.communicate(timeout=240)
    assert running.returncode == 130 and "interrupted" in out and "the same command resumes" in out
    assert not of_folder(warm)
    for path in (warm.folder / "multirun").glob("*/*/*/status.json"):
        assert json.loads(path.read_text())["state"] == "interrupted"
    assert len(list((warm.outputs / "artifacts" / "sae").glob("*.partial/step-*.safetensors"))) >= 2
    assert not list((warm.outputs / "artifacts" / "sae").glob("*.lease")), "leases were given up"


def test_a_killed_launcher_leaves_no_process(warm: Cli, wait_until: Wait) -> None:
    running = warm.start("layer=0,1", "sae.steps=100000", *SHORT[:-1], "tracking=wandb")
    wait_until(lambda: len(training(warm)) == 2 or running.poll() is not None, 120, "two elements in training")
    running.kill()
    running.wait()
    wait_until(lambda: not of_folder(warm), 40, "the workers to notice")
    assert len(list((warm.outputs / "artifacts" / "sae").glob("*.partial/step-*.safetensors"))) >= 2, (
        "with a last checkpoint"
    )
    shown = warm("task=status").out
    assert "interrupted" in shown


@pytest.mark.soak
def test_a_killed_worker_is_named_and_the_others_finish(warm: Cli, wait_until: Wait) -> None:
    running = warm.start("layer=0,1", "sae.steps=500", "sae.checkpoint_every=20", *SHORT)
    wait_until(lambda: training(warm) or running.poll() is not None, 120, "training")
    victim = elements(warm)[0]
    name = Path(victim.cmdline()[-1]).name
    victim.send_signal(signal.SIGKILL)
    out, _ = running.communicate(timeout=300)
    assert running.returncode == 1
    assert "killed by SIGKILL" in out and name in out
    assert len(warm.artifacts("sae")) == 1
    recovered_locally(warm, name)
    done = warm("layer=0,1", "sae.steps=500", "sae.checkpoint_every=20", *SHORT)
    assert done.code == 0 and "2 cached" in done.out


def recovered_locally(cli: Cli, killed: str) -> None:
    """``task=recover`` makes what the killed element lacks, and leaves the other's status as it is."""
    (sweep,) = (cli.folder / "multirun").glob("*/*")
    (other,) = (path for path in sweep.glob("0*") if path.name != killed)
    words, before = ("task=recover", f"of={sweep.name}"), (other / "status.json").read_text()
    assert json.loads(before)["state"] == "done" and (sweep / "failed_items.json").exists()
    place = cli.folder / "broken"
    place.mkdir()
    dies = "import os, sys\nif 'circuits.launch.element' in sys.orig_argv: os._exit(7)\n"
    (place / "sitecustomize.py").write_text(dies)
    broken = cli(*words, PYTHONPATH=str(place))
    assert broken.code == 1 and "ended with exit code 7 without a word" in broken.err, broken.err
    assert "SIGKILL" not in broken.err, "what became of it before is no result of this turn"
    done = cli(*words)
    assert done.code == 0 and "1 to run · 1 cached" in done.out, done.out + done.err
    facts = json.loads((sweep / killed / "status.json").read_text())
    assert facts["state"] == "done" and facts["restarts"] == 1 and facts["error"] is None
    assert (other / "status.json").read_text() == before and not (sweep / "failed_items.json").exists()
    again = cli(*words)
    assert again.code == 0 and f"{sweep.name}: nothing is missing, all 2 elements are done" in again.out


@pytest.mark.soak
def test_a_closed_terminal_costs_no_last_checkpoint_in_this_process(warm: Cli, wait_until: Wait) -> None:
    running = warm.start("layer=0", "cluster.workers=0", "sae.steps=100000", *SHORT)
    wait_until(lambda: training(warm) or running.poll() is not None, 120, "training")
    running.send_signal(signal.SIGHUP)
    out, _ = running.communicate(timeout=120)
    assert running.returncode == 130 and "interrupted (SIGHUP)" in out, out
    (facts,) = (json.loads(path.read_text()) for path in (warm.outputs / "runs").glob("*/*/status.json"))
    assert facts["state"] == "interrupted" and "stopped (SIGHUP)" in facts["error"]
    assert list((warm.outputs / "artifacts" / "sae").glob("*.partial/step-*.safetensors"))


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_worker_sees_as_many_gpus_as_its_task_asks_for(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5,7")
    monkeypatch.setattr(machine, "gpus", machine.gpus.__wrapped__)
    words = ["task=sae", "layer=0,1", "task.resources.gpus=2", f"model.device={device}"]
    words += ["model.allow_fallback=true"] if device != "auto" else []
    elements = plan(*words, base=tmp_path)
    launcher = LocalLauncher(sweeps.create(elements, tmp_path), Plan(elements, Store(tmp_path), Standing()))
    seen = []
    for element in elements:
        gpus = launcher._free_gpus(element)
        seen.append(launcher._environment(element, tmp_path / "run.log", gpus)["CUDA_VISIBLE_DEVICES"])
        launcher.workers.append(Worker([element], None, gpus, 0))  # type: ignore[arg-type]
    assert seen == ["4,5", "7,4"]


def test_workers_0_runs_in_this_process(warm: Cli) -> None:
    done = warm("layer=0,1", "cluster.workers=0", "sae.steps=20", *SHORT)
    assert done.code == 0 and len(warm.artifacts("sae")) == 2
    assert "layer 0: explained variance" in done.out, "the log is on the terminal"


@pytest.mark.soak
def test_every_element_has_the_task_s_threads_whatever_the_pool(warm: Cli) -> None:
    assert warm("layer=0,1", "cluster.workers=2", "sae.steps=20", *SHORT).code == 0
    assert warm("layer=2", "task.resources.cpus=2", "sae.steps=20", *SHORT).code == 0
    threads = {
        json.loads((path / "metrics.json").read_text())["layer"]: json.loads((path / "manifest.json").read_text())[
            "environment"
        ]["threads"]
        for path in warm.artifacts("sae")
    }
    assert threads == {0: 1, 1: 1, 2: 2}


def test_sweeps_and_runs_are_listed_newest_first_with_name_and_note(warm: Cli) -> None:
    assert "no runs yet" in warm("task=status").out
    assert warm("layer=0", "sae.steps=20", "name=first", "note='كيف الحال'", *SHORT).code == 0
    assert warm("layer=0,1", "sae.steps=20", *SHORT).code == 0
    shown = warm("task=status").out.splitlines()
    assert "1 done  1 cached" in shown[1] and "first-" in shown[2] and "كيف الحال" in shown[2]
    one = warm("task=status", "of=first").out
    assert "done" in one and "sae/tiny-L0-topk" in one
    assert warm("task=status", "of=frist").code == 2
    assert warm("task=status", "status.verify=true").code == 0
    sae = warm.artifacts("sae")[0]
    file = sae / "history.parquet"
    whole = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # as long as before, another content
    damaged = warm("task=status", "status.verify=true")
    assert damaged.code == 1 and f"sae/{sae.name}" in damaged.out + damaged.err, damaged.out + damaged.err
    file.write_bytes(whole)
    page = warm("task=report", "of=first")
    assert page.code == 0 and Path(warm.folder / page.out.strip()).exists()


def kill_at_random_moments(cli: Cli, words: list[str], kills: int, seed: int, wait_until: Wait) -> list[str]:
    """Run the command until it succeeds, killing the worker `kills` times at random moments; where each kill fell."""
    chance = random.Random(seed)
    moments = []
    while True:
        left = _hidden(cli)  # what earlier kills left behind; it is swept later
        running = cli.start(*words)
        wait_until(lambda: training(cli) or running.poll() is not None, 120, "training")  # noqa: B023
        if len(moments) < kills and running.poll() is None:
            time.sleep(chance.expovariate(1 / 0.15))
            for worker in elements(cli):
                moments.append(_where(cli, left))
                worker.send_signal(signal.SIGKILL)
        running.communicate(timeout=300)
        if running.returncode == 0:
            return moments


def _hidden(cli: Cli) -> set[str]:
    """Temporary files and directories of unfinished writes."""
    return {path.name for path in (cli.outputs / "artifacts" / "sae").rglob(".*")}


def _where(cli: Cli, left: set[str]) -> str:
    """What the run was doing, from what lies on the disk besides what was `left` there before it."""
    hidden = _hidden(cli) - left
    if any(name.startswith(".step-") for name in hidden):
        return "writing a checkpoint"
    if any(name.endswith(".tmp") for name in hidden):
        return "publishing"
    phases = [facts["progress"]["phase"] for facts in training(cli)]
    return phases[0] if phases else "measuring"


def resumed_equals_undisturbed(
    cli: Cli, kills: int, architecture: str, layer: str, wait_until: Wait, steps: int = 150
) -> list[str]:
    """Kill a run at random moments until it is through; its SAEs must equal those of an undisturbed run."""
    words = [
        f"layer={layer}",
        f"sae={architecture}",
        f"sae.steps={steps}",
        "sae.checkpoint_every=3",
        "sae.dead_after=2000",
        *SHORT,
    ]
    if architecture == "relu":
        words.append("sae.resample_every=50")
    assert cli(*words).code == 0
    undisturbed = {path.name: (path / "sae_weights.safetensors").read_bytes() for path in cli.artifacts("sae")}
    curves = {path.name: (path / "metrics.json").read_text() for path in cli.artifacts("sae")}
    for path in cli.artifacts("sae"):
        shutil.rmtree(path)
    moments = kill_at_random_moments(cli, words, kills, seed=kills, wait_until=wait_until)
    assert {path.name: (path / "sae_weights.safetensors").read_bytes() for path in cli.artifacts("sae")} == undisturbed
    assert {path.name: (path / "metrics.json").read_text() for path in cli.artifacts("sae")} == curves
    assert not list((cli.outputs / "artifacts" / "sae").glob("*.partial")), "unfinished work was cleared"
    return moments


def test_a_killed_and_resumed_sae_is_bit_identical(warm: Cli, wait_until: Wait) -> None:
    resumed_equals_undisturbed(warm, 1, "topk", "[1,2]", wait_until, steps=40)


@pytest.mark.soak
@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_killed_and_resumed_saes_are_bit_identical(warm: Cli, wait_until: Wait, architecture: str) -> None:
    resumed_equals_undisturbed(warm, 2, architecture, "[1,2]", wait_until)


@pytest.mark.soak
@pytest.mark.parametrize("architecture", ["topk", "relu"])
def test_soak_thirty_kills(
    warm: Cli, wait_until: Wait, architecture: str, record_property: Callable[..., None]
) -> None:
    moments = resumed_equals_undisturbed(warm, 30, architecture, "[0,3]", wait_until, steps=1200)
    counted = {where: moments.count(where) for where in sorted(set(moments))}
    record_property("kills", counted)
    with (Path(os.environ.get("CIRCUITS_SOAK_RESULTS", os.devnull))).open("a") as f:
        f.write(f"{architecture}: {len(moments)} kills, bit-identical; {counted}\n")
    assert len(moments) >= 30
