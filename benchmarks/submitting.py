"""What launching on Slurm costs, on the tests' own Slurm: started in /tmp, taken down at the end (tests/slurm/README.md).

    python benchmarks/submitting.py [--rounds 5]

* submitting: from the command to the prompt, with preflight, sbatch, claims and release. The jobs begin next year, so that no
  element runs meanwhile. Goal: 15 elements in under 4 s.
* status: ``task=status of=SWEEP`` of 200 elements that wait (one squeue) or were cancelled (and one sacct). Goal: under 1 s.
* start: from the first line of the job's script to the first line of the task's code, and then importing torch beside it.
  Goal: under 1 s without torch. The task is a module added to a copy of the checkout, as docs/tasks.md describes.

Wall and processor seconds of whole processes, median over rounds; where the machine is busy only the second is a property of ours.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from slurm_bench import LATER, ROOT, Bench, Cluster, Options, SlurmUnavailable, Times, debian, row, until

SUBMIT = ["task=sae", "cluster=slurm", "task.resources.memory=1G", f"cluster.sbatch=['--begin={LATER}']"]
FIFTEEN = ["layer=0,1,2", "seed=range(0,5)"]
TWO_HUNDRED = ["layer=range(0,4)", "seed=range(0,50)"]
THOUSAND = ["layer=range(0,4)", "seed=range(0,250)"]
CLOCK_YAML = """name: clock
_target_: circuits.tasks.clock.run
where: cluster
resources: {gpus: 0, cpus: 1, memory: 1G, time: "00:10:00"}
"""
CLOCK = '''"""When the task's code is reached."""
import time
from circuits.run.context import Context
from circuits.store.kinds import Kind
class Clock(Kind):
    """A clock."""
    name = "clock"
    sections = ("model",)
    layers = "each"
    def label(self, cfg, layers):
        return "clock"
    def run(self, context: Context) -> None:
        """Note the time, then import torch."""
        reached = time.time()
        import torch
        print("CLOCK", reached, time.time(), torch.__version__, flush=True)
KIND = Clock()
run = KIND.run
'''


def submissions(bench: Bench, words: list[str], rounds: int) -> Times:
    """Submit, cancel, again: each round with another hyperparameter, so that nothing is adopted."""
    found = []
    for number in range(rounds):
        job, _, wall, processor = bench.submit(*SUBMIT, *words, f"sae.lr={number + 1}e-6")
        found.append((wall, processor))
        bench.cancel(job)
    return found


def statuses(bench: Bench, rounds: int) -> tuple[Times, Times]:
    """Of 200 elements: while they wait, and when they were cancelled."""
    job, sweep, _, _ = bench.submit(*SUBMIT, *TWO_HUNDRED, "sae.lr=1e-7")
    waiting = [bench.launch("task=status", f"of={sweep}")[1:] for _ in range(rounds)]
    bench.cancel(job)
    time.sleep(2)  # sacct lags
    cancelled = [bench.launch("task=status", f"of={sweep}")[1:] for _ in range(rounds)]
    return waiting, cancelled


def starts(bench: Bench) -> tuple[list[float], list[float]]:
    """Seconds from the script's first line to the task's, and of importing torch after it; one element at a time."""
    root = bench.folder / "checkout"
    for name in ("circuits", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "local.yaml"))
    shutil.copy(ROOT / "launch.py", root)
    (root / "conf" / "task" / "clock.yaml").write_text(CLOCK_YAML)
    (root / "circuits" / "tasks" / "clock.py").write_text(CLOCK)
    begun = f"cluster.setup=['date +%s.%N > {bench.folder}/begun-$SLURM_ARRAY_TASK_ID']"
    words = ["task=clock", "layer=range(0,4)", "cluster=slurm", "cluster.parallelism=1", "tracking=off"]
    job, sweep, _, _ = bench.submit(*words, begun, root=root)
    until(lambda: not bench.cluster.client("squeue", "-h", "-j", job).stdout.strip(), f"job {job} to end")
    reached, torch = [], []
    for log in sorted(bench.folder.glob(f"multirun/*/{sweep}/*/run.log"))[1:]:  # the first one warms the caches
        line = re.search(r"^CLOCK (\S+) (\S+)", log.read_text(), re.M)
        if line is None:
            raise RuntimeError(f"{log}: {log.read_text()[-800:]}")
        start = float((bench.folder / f"begun-{int(log.parent.name[:3])}").read_text())
        reached.append(float(line[1]) - start)
        torch.append(float(line[2]) - float(line[1]))
    return reached, torch


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    try:
        debian.install(accounting=True)
    except SlurmUnavailable as e:
        print(f"not measured: no Slurm here ({e})")
        return
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="slurm-b", dir="/tmp")), Options(changes=("MaxArraySize=2001",)))
    try:
        cluster.up().guarded_by(os.getpid())
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), cluster)
            load = os.getloadavg()[0]
            version = cluster.client("sinfo", "--version").stdout.strip()
            bench.launch("task=status")  # warms the caches
            lines = [
                row("15 elements submitted, prompt back", submissions(bench, FIFTEEN, rounds), 4),
                row("1,000 elements submitted, prompt back", submissions(bench, THOUSAND, max(1, rounds // 2))),
            ]
            waiting, cancelled = statuses(bench, rounds)
            lines.append(row("status of 200 elements that wait", waiting, 1))
            lines.append(row("status of 200 elements that were cancelled", cancelled, 1))
            reached, torch = starts(bench)
            load = max(load, os.getloadavg()[0])
    finally:
        cluster.down()
    wall = statistics.median(reached)
    print(f"{version}, accounting, median of {rounds} rounds; load average {load:.1f} on {os.cpu_count()} cores\n")
    print("| | s | min-max | processor s | goal |\n|---|---|---|---|---|")
    print("\n".join(lines))
    met = "met" if wall < 1 else "missed"
    print(
        f"| from the job's first line to the task's code | {wall:.2f} | {min(reached):.2f}-{max(reached):.2f} |  | < 1 {met} |"
    )
    print(f"| then `import torch` | {statistics.median(torch):.2f} | {min(torch):.2f}-{max(torch):.2f} |  |  |")


if __name__ == "__main__":
    main()
