"""A folder to launch in and a cluster to launch on, for the benchmarks that need the tests' own Slurm."""

from __future__ import annotations

import datetime as dt
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from slurm import debian  # noqa: E402
from slurm.cluster import Cluster  # noqa: E402
from slurm.config import Options  # noqa: E402
from slurm.debian import SlurmUnavailable  # noqa: E402

__all__ = ["LATER", "ROOT", "Bench", "Cluster", "Options", "SlurmUnavailable", "Times", "debian", "row", "until"]
LATER = (dt.date.today() + dt.timedelta(days=365)).isoformat()
Times = list[tuple[float, float]]  # wall, processor


class Bench:
    """A folder to launch in, and the cluster to launch on."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "CIRCUITS", "WANDB"))}
        self.env = {**kept, **cluster.env, "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}

    def launch(self, *words: str, root: Path = ROOT) -> tuple[str, float, float]:
        """Output, wall and processor seconds of one command line; this process has no other children meanwhile."""
        before, start = _children(), time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(root / "launch.py"), *words],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        wall = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}: {done.stderr[-800:]}")
        return done.stdout, wall, _children() - before

    def submit(self, *words: str, root: Path = ROOT) -> tuple[str, str, float, float]:
        """Submit; the job, the sweep, wall and processor seconds."""
        out, wall, processor = self.launch(*words, root=root)
        job, sweep = re.search(r"^cancel +scancel (\d+)$", out, re.M), re.search(r"of=(\S+)", out)
        if job is None or sweep is None:
            raise RuntimeError(f"nothing was submitted: {out}")
        return job[1], sweep[1], wall, processor

    def cancel(self, job: str) -> None:
        """Cancel an array and wait until it has left the queue."""
        self.cluster.client("scancel", job)
        until(lambda: not self.cluster.client("squeue", "-h", "-j", job).stdout.strip(), f"job {job} to be cancelled")


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def until(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.2)


def row(name: str, times: Times, goal: float | None = None) -> str:
    """One line of the table."""
    wall, processor = [statistics.median(column) for column in zip(*times, strict=True)]
    met = "" if goal is None else f"< {goal:g} {'met' if wall < goal else 'missed'}"
    low, high = min(w for w, _ in times), max(w for w, _ in times)
    return f"| {name} | {wall:.2f} | {low:.2f}-{high:.2f} | {processor:.2f} | {met} |"
