"""Long fault runs of launching on a real Slurm (``make soak``): bounded arrays, killed clients, killed everything.

The first two launch a task of their own that sleeps and commits one number (a module and a yaml in a copy of the checkout): what is
tried is the launching. Every making of an artifact leaves a line in its element's directory, so that "exactly once" can be counted.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import ROOT, Cli, Done
from slurm.queueing import Queue, SlurmError
from slurm.sweeps import SLURM, SMALL, ours, state, status, steps_taken, submitted, sweep_dir

pytestmark = pytest.mark.soak

YAML = """name: tick
_target_: circuits.tasks.tick.run
where: cluster
resources: {gpus: 0, cpus: 1, memory: 500M, time: "00:10:00"}
"""
MODULE = '''"""Sleeps, then commits when it slept; no torch."""
import os, time
from circuits.files import write_json
from circuits.run.context import Context
from circuits.store.kinds import Kind
class Tick(Kind):
    """A tick."""
    name = "tick"
    sections = ("sae",)
    layers = "each"
    def label(self, cfg, layers):
        return f"L{layers[0]}"
    def make(self, context: Context, works) -> None:
        """Sleep, and say when."""
        for layer, work in works.items():
            begun = time.time()
            time.sleep(0.5)
            work.commit(lambda out: write_json(out / "metrics.json", {"begun": begun}))
            with open("made", "a") as f:
                f.write(f"{context.key(layer).hash} {begun} {time.time()} {os.environ['SLURM_ARRAY_TASK_ID']}\\n")
KIND = Tick()
run = KIND.run
'''


class Ticks(Cli):
    """The command line of a copy of the checkout that has ``task=tick``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.root = folder / "checkout"
        for name in ("circuits", "conf", "hydra_plugins"):
            ignored = shutil.ignore_patterns("__pycache__", "local.yaml")
            shutil.copytree(ROOT / name, self.root / name, ignore=ignored)
        shutil.copy(ROOT / "launch.py", self.root)
        (self.root / "conf" / "task" / "tick.yaml").write_text(YAML)
        (self.root / "circuits" / "tasks" / "tick.py").write_text(MODULE)

    def command(self, *words: str) -> list[str]:
        """The command line."""
        return [sys.executable, str(self.root / "launch.py"), "task=tick", SLURM, "tracking=off", *words]

    def __call__(self, *words: str, timeout: float = 300, **extra: str) -> Done:
        """Run it to its end, as a process of its own: the template of the other tests has this checkout's tasks."""
        return self.plain(*words, timeout=timeout, **extra)

    def made(self) -> list[tuple[str, float, float]]:
        """Every making of an artifact: its key, begin and end."""
        lines = [line.split() for path in self.folder.glob("multirun/*/*/*/made") for line in path.open()]
        return [(key, float(begun), float(ended)) for key, begun, ended, _ in lines]


def record(text: str) -> None:
    """A line for the soak's results."""
    with Path(os.environ.get("CIRCUITS_SOAK_RESULTS", os.devnull)).open("a") as f:
        f.write(f"{text}\n")


def at_once(spans: Sequence[tuple[float, float]]) -> int:
    """The largest number of spans that overlap."""
    turns = sorted([(begun, 1) for begun, _ in spans] + [(ended, -1) for _, ended in spans])
    running = most = 0
    for _, step in turns:
        running += step
        most = max(most, running)
    return most


def test_soak_forty_elements_at_parallelism_two(own_slurm: Queue, tmp_path: Path) -> None:
    cli = Ticks(tmp_path)
    words = ["layer=range(0,4)", "sae.lr=range(1,11)", "cluster.parallelism=2"]
    job = submitted(cli(*words))
    seen = []

    def ended() -> bool:
        states = own_slurm.states(job)
        seen.append(sum(found == "RUNNING" for found in states.values()))
        return set(states.values()) == {"COMPLETED"}

    own_slurm.wait(ended, seconds=1800, what="forty elements")
    made = cli.made()
    spans = [(begun, finish) for _, begun, finish in made]
    assert len(own_slurm.states(job)) == 40 and len(cli.artifacts("tick")) == len(made) == 40
    assert max(seen) <= 2 and at_once(spans) == 2
    assert "40 cached" in cli(*words).out
    record(
        f"parallelism 2: 40 elements, at most {max(seen)} in {len(seen)} looks at the queue, {at_once(spans)} by their own times"
    )


def test_soak_forty_clients_killed_while_submitting(own_slurm: Queue, tmp_path: Path) -> None:
    cli, dice = Ticks(tmp_path), random.Random(40)
    notes = cli.outputs / "artifacts" / ".submissions"
    ends, wish = Counter[str](), 1  # a wish is repeated by other clients until one of them lives
    start = time.monotonic()
    client = cli.start("layer=0,1", f"sae.lr={wish}")
    _until(lambda: any(notes.glob("*.json")))
    before = time.monotonic() - start
    assert client.wait() == 0
    window = time.monotonic() - start - before
    while ends["killed"] < 40:
        wish += ends["lived"] + 2 > wish
        client = cli.start("layer=0,1", f"sae.lr={wish}")
        if dice.random() < 0.25:  # anywhere; else inside the submission itself
            time.sleep(dice.uniform(0, before + window))
        else:
            old = set(notes.glob("*.json"))
            _until(lambda c=client, o=old: c.poll() is not None or set(notes.glob("*.json")) - o)
            time.sleep(dice.uniform(0, window))
        client.send_signal(signal.SIGKILL)
        ends["killed" if client.wait() == -signal.SIGKILL else "lived"] += 1
        said = client.communicate()[0]
        ends["announced when killed"] += any(notes.glob("*.json"))
        ends["rolled forward"] += said.count("is now complete")
        ends["rolled back"] += said.count("was cancelled")
    for number in range(1, wish + 1):  # in the end somebody's client lives
        again: Done = cli("layer=0,1", f"sae.lr={number}")
        assert again.code == 0, again.err + again.out
        ends["rolled forward"] += again.err.count("is now complete")
        ends["rolled back"] += again.err.count("was cancelled")
    own_slurm.wait(lambda: not own_slurm.jobs("circuits:", live=True), seconds=900, what="the queue to empty")
    made = Counter(key for key, _, _ in cli.made())
    assert len(made) == len(cli.artifacts("tick")) == 2 * wish and set(made.values()) == {1}, made
    assert not list(notes.glob("*.json"))
    ends["claims of ended jobs left"] = len(list((cli.outputs / "artifacts").glob("*/*.claim")))  # they hold nobody up
    assert ends["rolled forward"] and ends["rolled back"]
    record(
        f"40 clients killed while submitting: {2 * wish} artifacts, each made exactly once, the queue empty; {dict(ends)}"
    )


FAULTS = ("worker", "requeue", "node", "controller")


def test_soak_three_saes_survive_killed_workers_nodes_and_controllers(
    own_slurm: Queue, warm: Cli, quick_store: Path, tmp_path: Path
) -> None:
    words = ["task=sae", "layer=0,1,2", "sae.steps=1500", "sae.checkpoint_every=25", *SMALL]
    local = Cli(tmp_path / "alone")
    (local.outputs / "artifacts").mkdir(parents=True)
    (local.outputs / "artifacts" / "tiny").symlink_to(quick_store / "tiny")
    assert local(*words, timeout=3600).code == 0
    dice, done = random.Random(3), Counter[str]()
    submitted(warm(*words, SLURM))
    sweep = sweep_dir(warm)
    for fault in dice.sample(FAULTS * 3, 12):
        if all(state(sweep, number) == "done" for number in range(3)):
            break
        victim = own_slurm.wait(
            lambda: _training(own_slurm, sweep) or _ended(sweep), seconds=900, what="an element that trains"
        )
        if victim == "all":
            break
        time.sleep(dice.uniform(0, 3))
        done[fault] += hurt(own_slurm, victim, fault)
        if not ours(own_slurm, sweep) or fault == "worker":
            submitted_again(warm, sweep)
    own_slurm.wait(lambda: _ended(sweep) or submitted_again(warm, sweep), seconds=1800, what="all three SAEs")
    own_slurm.wait(lambda: not ours(own_slurm, sweep), what="the queue to empty")
    assert weights_and_metrics(warm) == weights_and_metrics(local), "bit-identical to an undisturbed local run"
    restarts = sum(status(next(sweep.glob(f"{n:03d}-*")))["restarts"] for n in range(3))
    assert sum(done.values()) >= 4 and restarts >= 3
    record(f"three SAEs on Slurm: {dict(done)}, {restarts} restarts, bit-identical to a local undisturbed run")


def submitted_again(cli: Cli, sweep: Path) -> bool:
    """Whether what is missing was submitted again (``task=recover``); False when it is being made."""
    done = cli("task=recover", f"of={sweep.name}")
    assert done.code == 0, done.err + done.out
    return False


def hurt(queue: Queue, victim: str, fault: str) -> bool:
    """Do one thing to Slurm, or to an element that trains; whether it hit."""
    if fault == "controller":
        queue.kill_controller()
        queue.restore()
        return True
    try:
        if fault == "worker":
            return bool(queue.kill_tasks(victim, "circuits.launch.element"))
        if fault == "requeue":
            queue.run("scontrol", "requeue", victim)
        else:
            queue.kill_node(queue.details(victim)["NodeList"])
            queue.restore()
    except SlurmError:  # it ended in this moment
        return False
    return True


def weights_and_metrics(cli: Cli) -> dict[str, tuple[bytes, str]]:
    """What must be equal to the last bit."""
    return {
        path.name: ((path / "sae_weights.safetensors").read_bytes(), (path / "metrics.json").read_text())
        for path in cli.artifacts("sae")
    }


def _ended(sweep: Path) -> str:
    return "all" if all(state(sweep, number) == "done" for number in range(3)) else ""


def _training(queue: Queue, sweep: Path) -> str:
    """An array element that has passed its first checkpoint, or nothing."""
    live = ours(queue, sweep)
    for directory in sorted(sweep.glob("0*-*")):
        facts = status(directory)
        if facts["job"] in live and steps_taken(facts) > 30:
            return str(facts["job"])
    return ""


def _until(condition: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s")
        time.sleep(0.01)
