"""One store, several machines and clusters: what is made elsewhere is waited for, what was left by the dead is taken over."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from configs import plan
from conftest import ROOT, Cli
from slurm.queueing import Queue
from slurm.sweeps import PROMPTS, SLURM, sweep_dir

from circuits import slurm_commands as commands
from circuits.files import read_json
from circuits.launch import launching, sweep
from circuits.launch.slurm import states, submission
from circuits.launch.slurm.launcher import Slurm
from circuits.launch.states import facts_of, look_twice
from circuits.run import status
from circuits.store import pulse
from circuits.store.leases import Note, owner
from circuits.store.store import Store


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of the real constants become fractions."""
    monkeypatch.setattr(pulse, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(pulse, "STALE_S", 1.5)


@pytest.fixture
def beating() -> Iterator[list[Path]]:
    """Files that somebody on another host keeps touching."""
    files: list[Path] = []
    end = threading.Event()

    def beat() -> None:
        while not end.wait(0.1):
            for file in files:
                os.utime(file)

    thread = threading.Thread(target=beat)
    thread.start()
    yield files
    end.set()
    thread.join()


def elsewhere(path: Path, **changed: Any) -> Path:
    """A lease that a process on another host holds, or held when it died."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**owner(by="them"), "host": "node7", "machine": "another", **changed}))
    return path


# -- leases and claims -------------------------------------------------------------------------------------------


def test_a_launcher_that_leaves_tells_the_dead_of_another_host_from_the_living(
    tmp_path: Path, quick: None, beating: list[Path]
) -> None:
    dead, living, free = plan("task=prompts", "behaviour=ioi,facts,logic", base=tmp_path)
    said: list[str] = []
    store = Store(tmp_path / "outputs" / "artifacts", say=said.append)
    keys = [next(iter(element.keys.values())) for element in (dead, living, free)]
    elsewhere(store.beside(keys[0], "lease"))
    beating.append(elsewhere(store.beside(keys[1], "claim")))
    found = launching.plan([dead, living, free], store, Slurm({})).standing
    assert (found.to_run, found.adopted) == ([dead, free], [living])
    assert [line.split(":")[0] for line in said] == [
        f"{keys[0].id} is being made by pid {os.getpid()} on node7; waiting for a sign of life from there, up to 1.5 s",
        keys[0].id,
    ]
    assert store.lease(keys[0]).acquire(), "what was seen is remembered"


@pytest.mark.soak
def test_a_slurm_submission_takes_over_what_a_dead_process_of_another_host_holds(slurm: Queue, cli: Cli) -> None:
    words = [*PROMPTS, "behaviour=ioi", "seed=7", SLURM]
    (element,) = plan(*words, base=cli.folder)
    elsewhere(Store(cli.outputs / "artifacts").beside(element.keys[None], "lease"), pid=1234)
    code = """import sys
from circuits.store import pulse
from circuits.launch.cli import main
pulse.STALE_S = 1
sys.exit(main(sys.argv[1:]))"""
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=cli.folder, capture_output=True, text=True, timeout=300, check=False,
        env={**cli.environment(), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and "submitted" in done.stdout, done.stdout + done.stderr
    assert "being made by pid 1234 on node7; waiting for a sign of life" in done.stderr and "taken over" in done.stderr
    slurm.wait(lambda: facts_of(sweep.load(sweep_dir(cli)))[0]["state"] == "done", what="the element")


def test_jobs_of_another_cluster_are_neither_dead_nor_ours_because_their_number_means_nothing_here(
    slurm: Queue, tmp_path: Path, quick: None, beating: list[Path]
) -> None:
    here = commands.cluster()
    assert here is not None and here.startswith("testcluster@")
    mine = {"worker_job": "999999_0", "incarnation": "0", "uid": os.getuid()}
    running = Note(elsewhere(tmp_path / "running.lease", **mine, cluster="other@login"))
    beating.append(running.path)
    end = time.monotonic() + 3
    while running.look()[1] is not True and time.monotonic() < end:
        time.sleep(0.05)
    assert running.look()[1] is True, "its heartbeat counts, not our queue"
    assert Note(elsewhere(tmp_path / "ended.lease", **mine, cluster=here)).look()[1] is False, "our queue knows"
    job = slurm.submit("#!/bin/bash\nsleep 60\n", "--hold", "--array=0", "--comment=circuits:x:1")
    commands.forget()
    waiting = {"job": f"{job}_0", "tag": "circuits:x:1", "uid": os.getuid()}
    assert Note(elsewhere(tmp_path / "a.claim", **waiting, cluster=here)).look()[1] is True
    assert Note(elsewhere(tmp_path / "b.claim", **waiting, cluster="other@login")).look()[1] is False, (
        "what waits in a queue that cannot be asked holds nobody up"
    )
    slurm.cancel(job)


def test_an_interrupted_submission_to_another_cluster_is_left_to_that_cluster(slurm: Queue, tmp_path: Path) -> None:
    store = Store(tmp_path / "artifacts")
    found = sweep.create(plan("task=prompts", "tracking=off", base=tmp_path), tmp_path)
    note = store.root / submission.NOTES / f"{found.id}.json"
    note.parent.mkdir(parents=True)
    facts = {**owner(), "uid": os.getuid(), "announced": 0.0, "sweep": str(found.path), "tag": "t", "task": "prompts",
             "directories": ["."], "host": "login-b"}  # fmt: skip
    note.write_text(json.dumps({**facts, "cluster": "other@login-b"}))
    said: list[str] = []
    with submission.alone(store, said.append):
        assert note.exists() and said == [] and status.read(found.path)["state"] == "waiting"
    note.write_text(json.dumps({**facts, "cluster": commands.cluster()}))
    with submission.alone(store, said.append):
        assert not note.exists() and "nothing of it was cancelled" in said[0]
    (found.path / "jobs.json").write_text(
        json.dumps({"tag": "t", "cluster": "other@login-b", "earlier": [], "arrays": [{"job": "1", "elements": [0]}]})
    )
    found.record["launcher"]["backend"] = "slurm"
    status.write_plain(found.path, "waiting", task="prompts")
    assert "other@login-b: its queue cannot be asked from here" in states.facts_of(found)[0]["queue_error"]


# -- status ------------------------------------------------------------------------------------------------------


def test_elements_that_wait_for_a_launcher_on_another_host_wait_while_its_heart_beats(
    tmp_path: Path, quick: None, beating: list[Path]
) -> None:
    found = sweep.create(plan("task=prompts", "behaviour=ioi,facts", "tracking=off", base=tmp_path), tmp_path)
    found.record["launcher"] |= {"host": "node7", "machine": "another"}
    note = elsewhere(found.path / "launcher.lease")
    beating.append(note)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        assert facts_of(found)[1]["state"] == "waiting"
        time.sleep(0.1)
    beating.clear()
    end = time.monotonic() + 5
    while facts_of(found)[1]["state"] == "waiting" and time.monotonic() < end:
        time.sleep(0.1)
    assert facts_of(found)[1]["state"] == "never started"
    look_twice([found], print)


# -- NFS ---------------------------------------------------------------------------------------------------------


def test_a_file_that_is_replaced_on_another_host_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS answers ESTALE to who has the old file in hand; no NFS can be mounted here, so its answer is played."""
    file, whole, answers = tmp_path / "status.json", Path.read_bytes, [2]
    file.write_text('{"state": "done"}')

    def stale(path: Path) -> bytes:
        answers[0] -= 1
        if answers[0] >= 0:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", stale)
    assert read_json(file) == {"state": "done"} and answers == [-1]
    answers[0] = 1000
    assert status.read(tmp_path) == {} and Note(file).read() is None, "what stays stale is gone"
