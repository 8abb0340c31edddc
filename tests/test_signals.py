"""Stops of real processes: what they say, what they keep, who is named, at any moment of a run's life."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from configs import plan
from conftest import ROOT, Cli
from slurm.queueing import ENDED, Queue
from slurm.sweeps import PROMPTS, SLURM, submitted, sweep_dir
from test_launch import SHORT, Wait, elements, of_folder, training

from circuits import host
from circuits.launch import local, terminal
from circuits.launch import sweep as sweeps
from circuits.launch.slurm.request import Request
from circuits.launch.slurm.script import Array
from circuits.launch.states import facts_of as facts_of_sweep
from circuits.run import status
from circuits.run.signals import StopFlag, Stopped


def facts_of(cli: Cli) -> dict:
    """The status of the only run."""
    (path,) = (cli.outputs / "runs").glob("*/*/status.json")
    return json.loads(path.read_text())


def phase(cli: Cli) -> str:
    """What the only run is doing."""
    for path in (cli.outputs / "runs").glob("*/*/status.json"):
        return (json.loads(path.read_text())["progress"] or {}).get("phase", "")
    return ""


def test_under_nohup_tests_hear_signals_and_leave_no_process(warm: Cli, wait_until: Wait) -> None:
    """Whoever runs the tests may ignore signals, and hand that on; what a test leaves running is ended with it."""
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        running = warm.start("layer=1", "sae.steps=100000", *SHORT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    wait_until(lambda: elements(warm) or running.poll() is not None, what="a worker")
    for process in (psutil.Process(running.pid), *elements(warm)):
        (line,) = (x for x in Path(f"/proc/{process.pid}/status").read_text().splitlines() if x.startswith("SigIgn"))
        assert not [n for n in (signal.SIGHUP, signal.SIGTERM) if int(line.split()[1], 16) >> (n - 1) & 1], process
    warm.end()
    wait_until(lambda: not elements(warm), 10, "their end")
    assert running.poll() is not None


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGUSR2, marks=pytest.mark.soak)])
def test_a_stop_while_an_sae_is_measured_keeps_the_training_and_what_was_measured(
    warm: Cli, wait_until: Wait, how: signal.Signals
) -> None:
    words = ["layer=1", "sae.steps=40", *SHORT, "sae.heldout_sequences=1000"]
    running = warm.start(*words)
    wait_until(lambda: phase(warm) == "measuring" or running.poll() is not None, what="the measurement")
    (worker,) = elements(warm)
    worker.send_signal(how) if how is signal.SIGUSR2 else running.send_signal(how)  # Slurm's goes to the element
    out, _ = running.communicate(timeout=120)
    assert running.returncode in (1, 130) and f"stopped ({how.name})" in out, out
    (partial,) = (warm.outputs / "artifacts" / "sae").glob("*.partial")
    assert (partial / "step-000000040.safetensors").exists() and (partial / "measured.safetensors").exists()
    done = warm(*words)
    log = max((warm.outputs / "runs").glob("*/*/run.log"), key=lambda p: p.stat().st_mtime).read_text()
    assert done.code == 0 and "resumed at step 40" in log and "goes on at" in log, log


@pytest.mark.soak
@pytest.mark.parametrize("again", [True, False])
def test_a_deaf_worker_is_ended_by_the_launcher_which_says_so(warm: Cli, wait_until: Wait, again: bool) -> None:
    running = warm.start("layer=0", "sae.steps=100000", *SHORT, f"cluster.grace_s={60 if again else 1}")
    wait_until(lambda: training(warm) or running.poll() is not None, what="training")
    (worker,) = elements(warm)
    worker.suspend()
    running.send_signal(signal.SIGINT)
    assert running.stdout is not None
    silent = threading.Timer(60, running.kill)  # else a launcher that says nothing would be waited for without end
    silent.start()
    said = next((line for line in running.stdout if line.startswith("stopping: ")), "nothing")
    silent.cancel()
    assert said == f"stopping: saving checkpoints, up to {60 if again else 1} s; Ctrl-C again ends it\n"
    if again:
        time.sleep(1.5)
        running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    facts = facts_of(warm)
    why = "ended at once: the launcher was asked to stop a second time" if again else "came to no safe point within"
    assert running.returncode == 130 and facts["state"] == "interrupted" and why in facts["error"], facts
    assert why in out and "memory" not in out + facts["error"] and not of_folder(warm)


def test_a_second_signal_in_this_process_waits_for_no_safe_point(capfd: pytest.CaptureFixture[str]) -> None:
    stop = local._Here()
    stop._handle(signal.SIGINT, None)
    stop._handle(signal.SIGINT, None)  # handed on by a wrapper: the same one
    assert capfd.readouterr().err == "stopping: saving a checkpoint; Ctrl-C again ends it\n" and stop.reason == "SIGINT"
    assert stop._first is not None
    stop._first -= 2
    with pytest.raises(Stopped, match="SIGINT, asked again"):
        stop._handle(signal.SIGINT, None)


def test_where_all_is_done_an_interruption_names_no_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = plan("task=sae", "layer=0,1", base=tmp_path)
    sweep = sweeps.create(planned, tmp_path)
    view = terminal.View(sweep, planned)
    for element in planned:
        status.write_plain(sweep.directory(element), "done", task="sae")
    view.summary(interrupted="SIGINT")
    assert capsys.readouterr().out == "interrupted (SIGINT): 2 of 2 done and kept\n"
    error = "stopped (SIGINT); what was saved is kept"
    status.write_plain(sweep.directory(planned[1]), "interrupted", task="sae", error=error)
    view.summary(interrupted="SIGINT")
    assert capsys.readouterr().out.endswith(
        f"{error}\ninterrupted (SIGINT): 1 of 2 done and kept; the same command resumes the rest\n"
    )


def test_memory_is_named_only_where_the_kernel_says_so(tmp_path: Path) -> None:
    mine, group, machine = tmp_path / "cgroup", tmp_path / "groups" / "job", tmp_path / "vmstat"
    group.mkdir(parents=True)
    mine.write_text("0::/job\n")
    machine.write_text("pgfault 1\noom_kill 7\n")
    assert host.memory_kills(mine, tmp_path / "groups", machine) == 7
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\n")
    assert host.memory_kills(mine, tmp_path / "groups", machine) == 2
    assert host.memory_kills(tmp_path / "none", tmp_path, tmp_path / "none") is None
    assert "ran out of memory" in local.killed_by(signal.SIGKILL, 2, 3)
    for number, before, after in ((9, 2, 2), (9, None, None), (9, None, 3), (15, 2, 3)):
        said = local.killed_by(number, before, after)
        assert "memory" not in said and "sent by something else than this launcher" in said


# -- USR2 at any moment --------------------------------------------------------------------------------------------------


def at_a_moment(folder: Path, when: Callable[[Path], None] | None) -> tuple[int, dict]:
    """A short run in the cluster's own script, which gets USR2 when `when` returns, or in its set-up (None): the
    script's end, and the status."""
    folder.mkdir()
    (element,) = plan("task=prompts", "behaviour=ioi", "behaviour.n_samples=50", "tracking=off", base=folder)
    sweep = sweeps.create([element], folder)
    directory = sweep.directory(element)
    status.wait_again(directory, "prompts")
    (folder / "elements.txt").write_text(f"{directory}\n")
    request = Request(name="x", partition=None, account=None, qos=None, minutes=1, cpus=1, memory="1G")
    array = Array(request, (0,), folder, "tag", sys.executable, ROOT, () if when else ("kill -USR2 $$",), {})
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    script = subprocess.Popen(
        ["bash", "-c", array.text()], env={**kept, "SLURM_ARRAY_TASK_ID": "0", "HF_HUB_OFFLINE": "1"}
    )
    if when:
        when(directory)
        if script.poll() is None:
            script.send_signal(signal.SIGUSR2)
    return script.wait(120), status.read(directory)


def told(code: int, facts: dict) -> str:
    """How it ended, where the script's end and the status tell the same; a KeyError where they do not."""
    truth = {(0, "done", False): "done", (-signal.SIGUSR2, "interrupted", True): "stopped"}
    return truth[code, facts["state"], bool(facts["error"])]


def until(directory: Path, state: str) -> None:
    """Wait for a state, closely."""
    end = time.monotonic() + 120
    while json.loads((directory / "status.json").read_text())["state"] != state:
        if time.monotonic() > end:
            raise TimeoutError(f"the run is not {state} after 120 s")
        time.sleep(0.002)


def begun(directory: Path) -> None:
    """Wait until the script has begun: before that Slurm itself would end it."""
    end = time.monotonic() + 60
    while not (directory / "run.log").exists():
        if time.monotonic() > end:
            raise TimeoutError("the script has not begun for 60 s")
        time.sleep(0.002)


def test_usr2_at_the_first_and_at_the_last_moment_of_a_run_is_told_truly(tmp_path: Path) -> None:
    assert told(*at_a_moment(tmp_path / "first", None)) == "stopped"
    assert told(*at_a_moment(tmp_path / "early", begun)) in ("stopped", "done")
    assert told(*at_a_moment(tmp_path / "begun", lambda at: until(at, "running"))) in ("stopped", "done")
    assert told(*at_a_moment(tmp_path / "last", lambda at: until(at, "done"))) == "done"


def test_what_is_not_worth_saving_ends_where_it_stands_and_what_is_whole_does_not() -> None:
    """A model is loaded, a file is hashed: one long call without a safe point."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        for number in before:
            flag, done = StopFlag().install(numbers=[number], watch=False), []
            with pytest.raises(Stopped, match=number.name), flag.cutting():
                os.kill(os.getpid(), number)
                time.sleep(5)
                done.append("long")
            assert not done
            flag = StopFlag().install(numbers=[number], watch=False)
            with pytest.raises(Stopped), flag.cutting():
                with flag.whole():
                    os.kill(os.getpid(), number)
                    time.sleep(0.01)
                    done.append("whole")
                flag.check()
                done.append("after")
            assert done == ["whole"]
            with pytest.raises(Stopped), flag.cutting():
                done.append("begun although asked to stop")
            assert done == ["whole"]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_usr2_after_the_last_word_does_not_end_the_interpreter_otherwise() -> None:
    """The interpreter's end gives signals back their default: a destructor that runs behind that sends one."""
    program = (
        "import os, signal, sys\n"
        "from circuits.launch import element\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGUSR2): kill(me, number)\n"
        "sys.modules['late'] = Late()\n"
        "builtins = __import__('builtins'); builtins.late = sys.modules.pop('late')\n"
        "sys.exit(element.main(['/nonesuch']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, timeout=60)
    assert done.returncode == 2, done.stderr


@pytest.mark.soak
def test_soak_usr2_at_a_hundred_random_moments_of_a_run(tmp_path: Path) -> None:
    begin = time.monotonic()
    assert told(*at_a_moment(tmp_path / "whole", lambda at: until(at, "done"))) == "done"
    life, dice, ends = time.monotonic() - begin, random.Random(17), []
    for number in range(100):

        def when(directory: Path) -> None:
            begun(directory)
            time.sleep(dice.uniform(0, 1.05 * life))

        ends.append(told(*at_a_moment(tmp_path / str(number), when)))
    with Path(os.environ.get("CIRCUITS_SOAK_RESULTS", os.devnull)).open("a") as f:
        f.write(
            f"USR2 at 100 random moments: {ends.count('stopped')} stopped, {ends.count('done')} done, each told truly\n"
        )
    assert ends.count("stopped") >= 20


@pytest.mark.soak
def test_soak_usr2_on_slurm_at_random_moments_of_a_hundred_jobs(
    slurm: Queue, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each job's end by Slurm and its run's last word tell the same, from the moment at which Slurm calls it running."""
    dice, sent = random.Random(18), set[str]()
    words = [*PROMPTS, SLURM, "behaviour=ioi", "behaviour.n_samples=50", "seed=range(0,100)"]
    job = submitted(cli(*words, "cluster.max_num_timeout=0", "cluster.parallelism=2"))
    sweep = sweep_dir(cli)

    def ended() -> bool:
        states = slurm.states(job)
        for name, found in states.items():
            if found == "RUNNING" and name not in sent and dice.random() < 0.2:
                sent.add(name)
                slurm.run("scancel", "--batch", "--signal=USR2", name, check=False)  # it may have ended by now
        return set(states.values()) <= set(ENDED)

    slurm.wait(ended, seconds=3600, what="a hundred jobs")
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    known, ends = facts_of_sweep(sweeps.load(sweep)), slurm.wait_ended(job)
    for index, facts in known.items():
        told_by_slurm, error = ends[f"{job}_{index}"][0], facts.get("error") or ""
        if facts["state"] == "done":
            assert told_by_slurm == "COMPLETED" and not error, (index, ends[f"{job}_{index}"])
        else:
            assert told_by_slurm == "FAILED" and ("time limit once" in error or "SIGUSR2 before the run" in error), (
                facts
            )
    failed = sum(facts["state"] != "done" for facts in known.values())
    if failed:
        second = submitted(cli("task=recover", f"of={sweep.name}"))
        assert {state for state, _ in slurm.wait_ended(second, 1800).values()} == {"COMPLETED"}
    assert len(cli.artifacts("prompts")) == 100
    with Path(os.environ.get("CIRCUITS_SOAK_RESULTS", os.devnull)).open("a") as f:
        f.write(f"USR2 to {len(sent)} of 100 Slurm jobs at random moments: {failed} stopped, each told truly\n")
