"""What an element on a node does when it is stopped, and when it is the last of its sweep. No torch.

A job is queued again by itself when its time is nearly up (USR2) or the node is wanted (preemption, which may bring only
TERM); never when it was cancelled: a TERM that Slurm does not call a preemption is somebody's ``scancel``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits import slurm_commands as commands
from circuits.errors import UserError
from circuits.files import read_json
from circuits.launch import answers
from circuits.launch import sweep as sweeps
from circuits.launch.slurm.states import directories, failed_before, record_accounting
from circuits.launch.slurm.submission import read_record
from circuits.launch.states import facts_of
from circuits.state import State, state_of
from circuits.store.leases import Lease, Note, worker_job
from circuits.store.places import RECORD


@dataclass(frozen=True)
class Verdict:
    """Whether the stopped element is queued again, and what its status says."""

    again: bool
    error: str
    timed_out: bool = False
    queued: bool = False  # it is in the queue again whatever we do


def judge(reason: str, timeouts: int) -> Verdict:
    """What becomes of an element that was stopped by signal `reason`, having reached its limit `timeouts` times before."""
    job = worker_job() or ""
    shown = commands.show(job, timeout=10)
    if int(shown.get("Restarts", "0")) > int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        # Slurm has done it already (scontrol requeue, preemption without notice): all that was left to us was to save
        return Verdict(False, f"queued again by Slurm; job {job} goes on from what was saved", queued=True)
    if shown.get("PreemptTime", "None") not in ("None", "Unknown", ""):
        return Verdict(True, f"preempted; job {job} is queued again and goes on from what was saved")
    if reason != "SIGUSR2":
        return Verdict(False, f"stopped ({reason}); the same command goes on from what was saved")
    limit = int(os.environ.get("CIRCUITS_MAX_TIMEOUTS", "3"))
    if timeouts >= limit:
        times = "once" if timeouts == 0 else f"{timeouts + 1} times"
        return Verdict(
            False,
            f"reached its time limit {times} (cluster.max_num_timeout={limit}); raise task.resources.time, then the same command "
            "goes on from what was saved",
            True,
        )
    return Verdict(True, f"time limit reached; job {job} is queued again and goes on from what was saved", True)


def queue_again(say: Callable[[str], None]) -> bool:
    """Ask Slurm to queue this very element again; whether it will."""
    job = worker_job() or ""
    if commands.show(job, timeout=10).get("JobState", "RUNNING") != "RUNNING":
        say(f"{job} was cancelled while it saved: it is not queued again")
        return False
    try:
        commands.ask(["scontrol", "requeue", job])
        return True
    except (commands.SlurmError, UserError) as e:  # some sites have no scontrol on their nodes
        say(
            f"error: {job} could not be queued again ({e}); the same command, or task=recover, goes on from what was saved"
        )
        return False


def barred(directory: Path) -> str | None:
    """Why an element that Slurm started is not to begin: one that makes an input of it, or stands before it, did not end well.

    Slurm knows this of elements with a job of their own; in a pack the others' exit codes hide it.
    """
    path = directory if (directory / sweeps.FILE).exists() else directory.parent
    record = read_record(path)
    if record is None or not (path / sweeps.FILE).exists():
        return None
    me = int(read_json(directory / RECORD)["index"])
    before = failed_before(directories(sweeps.load(path)), record.get("after", {}), me)
    return before and f"not started: {before}"


def close(directory: Path, say: Callable[[str], None]) -> None:
    """The element has ended: it claims nothing any more. The last one logs the cached ones and makes the page."""
    path = directory if (directory / sweeps.FILE).exists() else directory.parent
    if not (path / sweeps.FILE).exists():
        return
    sweep = sweeps.load(path)
    me = int(read_json(directory / RECORD)["index"])
    _drop_claims(sweep, me)
    if (read_record(path) or {}).get("closing"):
        return  # a job of its own comes after all of them
    known = facts_of(sweep)
    if any(state_of(facts).live and index != me for index, facts in known.items()):
        return
    lease = Lease(path / "closing.lease")
    if not lease.acquire():
        return  # another element ended in this very moment
    try:
        conclude(sweep, known, say)
    finally:
        lease.release()


def conclude(sweep: sweeps.Sweep, known: Mapping[int, dict[str, Any]], say: Callable[[str], None]) -> Path | None:
    """What follows a sweep's last job: accounting, the cached ones in W&B, ``failed_items.json``, the page; where that is."""
    record_accounting(sweep)
    cached = [item for item in sweep.record["elements"] if state_of(known[item["index"]]) is State.cached]
    answers.log_cached(sweep, [sweep.directory(item) for item in cached], say)
    answers.write_failed(sweep, known, say)
    return answers.make_report(sweep, say)


def _drop_claims(sweep: sweeps.Sweep, element: int) -> None:
    job, record = worker_job() or "", read_record(sweep.path)
    for path in record["claims"].get(str(element), []) if record else []:
        note = Note(Path(path))
        facts = note.read()
        if facts is not None and facts.get("job") == job and facts.get("cluster") in (None, commands.cluster()):
            note.drop(facts["token"])
