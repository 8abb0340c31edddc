"""What a test asks of a real Slurm, through its own commands: jobs, states, waiting with a useful message, and faults."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from slurm import processes
from slurm.cluster import PATIENCE, Cluster

T = TypeVar("T")
FIELDS = ("%i", "%A", "%T", "%u", "%P", "%a", "%j", "%k")  # of squeue; the comment last, for it may hold anything
ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
)


class SlurmError(RuntimeError):
    """One of Slurm's commands failed; the message is what it said."""


class Job(NamedTuple):
    """A job, or one element of an array."""

    id: str  # 12, or 12_3 for an element
    number: int  # Slurm's own number (SLURM_JOB_ID): every running element of an array has its own
    state: str
    user: str
    partition: str
    account: str
    name: str
    comment: str


class Queue:
    """A cluster, seen through squeue, sacct, scontrol and scancel."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    @property
    def env(self) -> dict[str, str]:
        """What a client needs in its environment: ``cli("task=sae", …, **queue.env)``."""
        return self.cluster.env

    @property
    def accounting(self) -> bool:
        """Whether sacct answers."""
        return self.cluster.options.accounting

    def run(self, *words: str, check: bool = True) -> str:
        """The output of one of Slurm's commands; `SlurmError` when it fails, unless `check` is false."""
        done = self.cluster.client(*words)
        if check and done.returncode:
            raise SlurmError(f"{' '.join(words)}: exit {done.returncode}: {(done.stderr + done.stdout).strip()}")
        return done.stdout

    def submit(self, script: str, *options: str, folder: Path | str = "/tmp") -> int:
        """sbatch a shell command with options such as ``--array=0-3``; returns the job's number."""
        words = ["sbatch", "--parsable", f"--chdir={folder}", "--output=slurm-%A_%a.out", *options, f"--wrap={script}"]
        return int(self.run(*words).strip().split(";")[0])

    # -- looking -------------------------------------------------------------------------------------------------

    def jobs(self, comment: str | None = None, user: str | None = None, live: bool = False) -> list[Job]:
        """Every job and array element that slurmctld remembers, ended ones too (unless `live`), whose comment holds `comment`."""
        words = ["squeue", "-h", "-r", *([] if live else ["-t", "all"]), *(["-u", user] if user else [])]
        rows = self.run(*words, "-o", "\x1f".join(FIELDS)).splitlines()
        found = [Job(row[0], int(row[1]), *row[2:]) for row in (line.split("\x1f", len(FIELDS) - 1) for line in rows)]
        return sorted((job for job in found if comment is None or comment in job.comment), key=_order)

    def elements(self, job: int | str) -> list[Job]:
        """The elements of an array (or the one job), by its number."""
        return [found for found in self.jobs() if found.id.split("_")[0] == str(job) or found.id == str(job)]

    def states(self, job: int | str) -> dict[str, str]:
        """``{"12_0": "COMPLETED", "12_1": "RUNNING"}``: what slurmctld says."""
        return {found.id: found.state for found in self.elements(job)}

    def accounted(self, job: int | str) -> dict[str, tuple[str, str]]:
        """``{"12_0": ("FAILED", "3:0")}``: state and exit code by sacct, which lags about a second."""
        rows = self.run("sacct", "-n", "-X", "-P", "-j", str(job), "-o", "jobid,state,exitcode").splitlines()
        return {r[0]: (r[1].split()[0], r[2]) for r in (line.split("|") for line in rows)}

    def details(self, job: int | str) -> dict[str, str]:
        """What ``scontrol show job`` says of one job or element: ``Restarts``, ``Reason``, ``Dependency`` …"""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", "-o", str(job))))

    def tasks(self, job: int | str) -> list[int]:
        """The processes of a job or element (not its slurmstepd)."""
        numbers = {str(found.number) for found in self.elements(job)}
        return [
            pid
            for pid in self.cluster.job_processes()
            if processes.name(pid) != "slurmstepd" and processes.environment(pid).get("SLURM_JOB_ID") in numbers
        ]

    # -- waiting -------------------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], T], seconds: float = 240, what: str = "") -> T:
        """Wait until the condition is true and return its value; on time-out say what the queue and slurmctld say."""
        end = time.monotonic() + seconds
        while True:
            try:
                value = condition()
            except SlurmError:  # slurmctld restarting, sacct not yet answering: asked again until the time is over
                if time.monotonic() > end:
                    raise
            else:
                if value:
                    return value
                if time.monotonic() > end:
                    raise TimeoutError(f"waited {seconds:.0f} s for {what or 'the condition'}\n{self.report()}")
            time.sleep(0.2)

    def wait_state(self, job: int | str, *states: str, seconds: float = 240) -> dict[str, str]:
        """Wait until every element of a job is in one of the states."""

        def reached() -> dict[str, str] | None:
            found = self.states(job)
            return found if found and all(state in states for state in found.values()) else None

        return self.wait(lambda: reached() or {}, seconds, f"job {job} to be {' or '.join(states)}")

    def wait_ended(self, job: int | str, seconds: float = 240) -> dict[str, tuple[str, str]]:
        """Wait until every element has ended, and with accounting until sacct says so; state and exit code of each."""
        self.wait_state(job, *ENDED, seconds=seconds)
        if not self.accounting:
            return {e.id: (e.state, self.details(e.number)["ExitCode"]) for e in self.elements(job)}

        def told() -> dict[str, tuple[str, str]]:
            found = self.accounted(job)
            return found if set(found) == set(self.states(job)) and all(s in ENDED for s, _ in found.values()) else {}

        return self.wait(told, seconds, f"sacct to tell the end of job {job}")

    def report(self) -> str:
        """The queue, the nodes, and the end of slurmctld's log."""
        parts = (
            self.run("squeue", "-r", "-t", "all", check=False),
            self.run("sinfo", "-N", "-o", "%N %T %E", check=False),
            self.cluster.logs("slurmctld", 25),
        )
        return "\n".join(parts)

    # -- acting, and faults ----------------------------------------------------------------------------------------

    def cancel(self, *jobs: int | str) -> None:
        """scancel jobs or elements."""
        if jobs:
            self.run("scancel", *map(str, jobs))

    def clear(self, comment: str | None = None) -> None:
        """Cancel every live job (whose comment holds `comment`) and wait until it has ended."""
        numbers = [job.id for job in self.jobs(comment, live=True)]
        self.cancel(*numbers)
        self.wait(lambda: not self.jobs(comment, live=True), what="the queue to be empty")

    def kill_tasks(self, job: int | str, matching: str = "", number: int = signal.SIGKILL) -> list[int]:
        """Send SIGKILL (or another signal) to a job's processes whose command line holds `matching`; returns their pids."""
        pids = [pid for pid in self.tasks(job) if matching in processes.arguments(pid)]
        for pid in pids:
            processes.send(pid, number)
        return pids

    def kill_controller(self) -> None:
        """SIGKILL slurmctld: no answers until `restore`; what happened in its last 5 s is lost, as on any cluster."""
        self._kill("slurmctld")

    def kill_node(self, node: str = "node1", jobs: bool = True) -> None:
        """SIGKILL a node's slurmd and, as when the machine loses power, its jobs: requeued or NODE_FAIL. `restore` mends it."""
        self._kill(f"slurmd-{node}")
        if jobs:
            processes.kill(self.cluster.on_node(node))
            self.cluster.lose(node)

    def restore(self) -> None:
        """Start again whatever daemon was killed; jobs that still run live on."""
        self.cluster.up()

    def restart_controller(self) -> None:
        """Stop slurmctld in good order, so that it saves what it knows, and start it again."""
        self.cluster.daemon("slurmctld").stop(60)
        self.restore()

    def wait_node(self, node: str, *states: str, seconds: float = PATIENCE) -> None:
        """Wait until a node is in one of the states (``idle``, ``down`` …; the signs ``*~#`` are left out)."""

        def state() -> str:
            return self.run("sinfo", "-h", "-N", "-n", node, "-o", "%T").split("\n")[0].rstrip("*~#!%$@^-")

        self.wait(lambda: state() in states, seconds, f"{node} to be {' or '.join(states)}")

    def _kill(self, title: str) -> None:
        pid = self.cluster.daemon(title).pid
        if pid is None:
            raise SlurmError(f"{title} does not run; it can be started with restore()")
        processes.kill([pid])


def _order(job: Job) -> list[int]:
    """12_3 before 12_10."""
    return [int(part) for part in re.findall(r"\d+", job.id)]
