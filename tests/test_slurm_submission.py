"""Submitting to a real Slurm: no client's death costs or doubles a job, elements wait for exactly what they need, and what
becomes of a stopped one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, Cli
from slurm.queueing import Queue
from slurm.sweeps import PROMPTS, SLURM, ours, state, status, submitted, sweep_dir

from circuits import slurm_commands as commands
from circuits.launch.slurm import requeue, submission
from circuits.store.store import Store


def _python(code: str, cli: Cli, **extra: str) -> subprocess.CompletedProcess[str]:
    env = {**cli.environment(**extra), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cli.folder, env=env, capture_output=True, text=True, timeout=300, check=False
    )


KILLED = """
import os, signal, sys
from circuits.launch.slurm import submission
run = submission.Submission.run
def until(self, between=lambda step: None):
    def stop(step):
        if step == {step!r}:
            os.kill(os.getpid(), signal.SIGKILL)
    return run(self, stop)
submission.Submission.run = until
from circuits.launch.cli import main
sys.argv = ["launch.py"]
sys.exit(main({words!r}))
"""


@pytest.mark.soak
def test_a_client_killed_between_any_two_steps_leaves_no_orphan_and_no_double(
    own_slurm: Queue, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    Submission = submission.Submission
    words = [*PROMPTS, "behaviour=ioi,facts", SLURM]
    for step in Submission.STEPS:
        one = [*words, f"seed={Submission.STEPS.index(step)}"]
        killed = _python(KILLED.format(step=step, words=one), cli)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        again = cli(*one)
        assert again.code == 0, again.err + again.out
        interrupted = (
            "is now complete" in again.err if step in ("record", "claim", "release") else "was cancelled" in again.err
        )
        assert interrupted, (step, again.err)
        assert not list((cli.outputs / "artifacts" / ".submissions").glob("*.json"))
    own_slurm.wait(lambda: not own_slurm.jobs("circuits:", live=True), what="the queue to empty: no orphan is held")
    assert len(cli.artifacts("prompts")) == 2 * len(Submission.STEPS)
    made = [json.loads(p.read_text()) for p in (cli.folder / "multirun").glob("*/*/*/status.json")]
    assert len([facts for facts in made if facts["state"] == "done"]) == 2 * len(Submission.STEPS), "each was made once"
    # A recovery that is interrupted: its elements wait, whatever they were before, once somebody has completed it.
    (sweep, *_) = (
        p.parents[1] for p in cli.folder.glob("multirun/*/*/001-*/status.json") if status(p.parent)["state"] == "done"
    )
    lost = json.loads((sweep / "sweep.json").read_text())["elements"][1]["artifacts"]
    shutil.rmtree(cli.outputs / "artifacts" / lost["all"])
    killed = _python(KILLED.format(step="claim", words=["task=recover", f"of={sweep.name}"]), cli)
    assert killed.returncode == -signal.SIGKILL and state(sweep, 1) == "done", killed.stderr
    with monkeypatch.context() as held:
        held.setattr(commands, "release", lambda jobs: None)
        with submission.alone(Store(cli.outputs / "artifacts"), print):
            assert (state(sweep, 0), state(sweep, 1)) == ("done", "waiting")
    commands.release([submission.read_record(sweep)["arrays"][0]["job"]])
    own_slurm.wait(lambda: state(sweep, 1) == "done", what="the recovered element")
    assert len(cli.artifacts("prompts")) == 2 * len(Submission.STEPS)


AFTER = """
import sys
from pathlib import Path
from circuits.launch import launching, sweep
from circuits.launch.plan import After, Plan, Standing
from circuits import slurm_commands as commands
from circuits.launch.slurm.launcher import Slurm, SlurmLauncher
from circuits.store.store import Store
found = sweep.load(Path({sweep!r}))
elements = launching.planned(found)
store = Store(Path(elements[0].cfg.outputs) / "artifacts")
for element in elements:
    element.cfg.cluster.sbatch = []
if {forbidden}:
    def refuse(*given):
        raise commands.SlurmError("scontrol: Access/permission denied")
    commands.depend = refuse
new = sweep.create(elements, Path.cwd())
after = {{number: After(jobs=tuple(jobs)) for number, jobs in {after!r}.items()}}
plan = Plan(elements, store, Standing(to_run=elements), [[one] for one in elements], after, Slurm({{}}).requests(elements))
sys.exit(SlurmLauncher(new, plan).submit())
"""


def test_elements_wait_for_exactly_the_elements_that_they_name(slurm: Queue, cli: Cli) -> None:
    good = slurm.submit("sleep 4", "--array=3")
    bad = slurm.submit("exit 1", "--array=0")
    words = [*PROMPTS, "behaviour=ioi,facts,cf", SLURM]
    held = cli(*words, f"cluster.sbatch=['--dependency=afterok:{bad}_0']")
    first = submitted(held)
    slurm.wait(
        lambda: not slurm.jobs(f"circuits:{sweep_dir(cli).name}", live=True),
        what="what needs a failed element to be dropped",
    )
    assert set(slurm.states(first).values()) == {"CANCELLED"}, "kill-on-invalid-dep"
    origin = str(sweep_dir(cli))

    def after(ids: dict[int, list[str]], forbidden: bool = False) -> str:
        made = _python(AFTER.format(sweep=origin, after=ids, forbidden=forbidden), cli, **slurm.env)
        assert made.returncode == 0, made.stderr + made.stdout
        found = re.search(r"submitted (\d+)_\[0-2\]", made.stdout)
        assert found, made.stdout
        return found[1]

    job = after({0: [f"{good}_3"], 1: [f"{good}_3", f"{bad}_0"]})
    ended = slurm.wait_ended(job)
    # Slurm dropped the bad dependency's waiter; the other two ran although it did.
    waited = {number: ended[f"{job}_{number}"][0] for number in range(3)}
    assert waited == {0: "COMPLETED", 1: "CANCELLED", 2: "COMPLETED"}
    # Where a site forbids updating a job, the whole array waits for all that any of its elements needs.
    one, two = (str(slurm.submit("sleep 600")) for _ in range(2))
    whole = after({0: [one], 2: [two]}, forbidden=True)
    found = {element.id: slurm.details(element.number)["Dependency"] for element in slurm.elements(whole)}
    assert len(found) == 3 and all(f"afterok:{one}" in text and f"afterok:{two}" in text for text in found.values()), (
        found
    )
    assert {name.split("_")[0] for name in ours(slurm, sweep_dir(cli))} == {whole}, "the first array is gone"
    slurm.cancel(one, two, whole)


def test_csd3_is_submitted_as_it_is_and_watched_until_it_has_ended(slurm: Queue, cli: Cli) -> None:
    none = [
        "cluster.setup=[]",
        "cluster.gpu.modules=[]",
        "cluster.gpu.cpus_per_gpu=1",
    ]  # nodes here have 8 cores, and no modules
    words = [
        *PROMPTS,
        "task.resources.gpus=1",
        "behaviour=ioi,facts",
        "cluster=csd3",
        "user.csd3.account=MYPROJ-SL3-GPU",
    ]
    job = submitted(cli(*words, *none))
    given = slurm.details(f"{job}_0")
    assert (given["Partition"], given["Account"]) == ("ampere", "myproj-sl3-gpu") and "gres/gpu=1" in given["TRES"], (
        given
    )
    watched = cli("task=status", f"of={sweep_dir(cli).name}", "status.watch=true")
    assert watched.code == 0 and watched.out.count("task=prompts") > 1, watched.out
    assert watched.out.rstrip().rsplit("task=prompts", 1)[1].count("  done  ") == 2, watched.out
    assert slurm.wait_ended(job) == {f"{job}_{i}": ("COMPLETED", "0:0") for i in range(2)}


def test_what_becomes_of_a_stopped_element(slurm: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the controller says of its job, how often it came to its limit, and what stopped it."""
    job = slurm.submit("sleep 600", "--array=0", "--requeue")
    facts = {"SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": "0", "SLURM_RESTART_COUNT": "0", "CIRCUITS_SLURM_TAG": "x",
             "CIRCUITS_MAX_TIMEOUTS": "2"}  # fmt: skip
    for name, value in facts.items():
        monkeypatch.setenv(name, value)
    slurm.wait_state(job, "RUNNING")
    assert requeue.judge("SIGUSR2", 1).again and requeue.judge("SIGUSR2", 1).timed_out
    last = requeue.judge("SIGUSR2", 2)
    assert not last.again and last.error.startswith("reached its time limit 3 times (cluster.max_num_timeout=2)")
    assert not requeue.judge("SIGTERM", 0).again, "whoever cancelled it meant it"
    slurm.run("scontrol", "requeue", f"{job}_0")
    assert requeue.judge("SIGTERM", 0).queued
    with monkeypatch.context() as nowhere:  # nodes without Slurm's commands
        nowhere.setenv("PATH", "/nonexistent")
        said: list[str] = []
        assert requeue.judge("SIGUSR2", 0).again and not requeue.queue_again(said.append)
        assert "could not be queued again (scontrol is not on this machine" in said[0]
    slurm.cancel(job)
