"""What whole studies cost to plan, submit, look at and ask again, on the tests' own Slurm.

    python benchmarks/studies.py [--rounds 3]

* submitted: ``pipeline=qwen_circuits`` (63 elements with a model of 25 layers), from the command to the prompt. Goal: under 8 s.
* plan, status: a study of 1,000 elements. Goals: under 5 and 2 s.
* cached: a pipeline of 100 elements that are all in the store answers. Goal: under 20 s.
* start: from the end of an element's job to the beginning of its dependent's, while others of its stage wait. Goal: under 5 s.

Jobs begin next year, but for those whose start is timed, so that nothing runs meanwhile. Medians of whole processes.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import statistics
import tempfile
from datetime import datetime
from pathlib import Path

from slurm_bench import LATER, Bench, Cluster, Options, SlurmUnavailable, debian, row, until

LATE = ["cluster=slurm", f"cluster.sbatch=['--begin={LATER}']", "tracking=off"]
QWEN = ["task=pipeline", "pipeline=qwen_circuits", "model=tiny", "model.embedded.layers=25", *LATE, "task.resources.memory=1G",
        "task.resources.gpus=0", "data=embedded"]  # fmt: skip
THOUSAND = "stages:\n  saes: {task: sae, overrides: ['layer=range(0,4)', 'seed=range(0,250)']}\n"
HUNDRED = "stages:\n  prompts: {task: prompts, overrides: ['seed=range(0,100)']}\n"
TWO = """overrides: [sae.steps=20, sae.batch_size=64, sae.block_rows=512, sae.heldout_sequences=8]
stages:
  first: {task: sae, overrides: ['seed=0,1,2,3', layer=1]}
  second: {task: interpret, overrides: ['seed=0,1,2,3', layer=1, interpret.associate=false, interpret.n_sequences=16]}
"""


def cancelled(bench: Bench) -> None:
    """Take all that was submitted out of the queue, the job that would close the study, too."""
    bench.cluster.client("scancel", "--full", f"--user={getpass.getuser()}")
    until(lambda: not bench.cluster.client("squeue", "-h").stdout.strip(), "the queue to be empty", 60)


def submitted(bench: Bench, rounds: int) -> list[tuple[float, float]]:
    """The study of the qwen circuits, each round with another seed."""
    found = []
    for number in range(rounds):
        _, wall, processor = bench.launch(*QWEN, f"seed={number}")
        found.append((wall, processor))
        cancelled(bench)
    return found


def thousand(bench: Bench, rounds: int) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Plan of a study of 1,000 elements; its status while it waits."""
    (bench.folder / "thousand.yaml").write_text(THOUSAND)
    asked = ["task.resources.memory=1G", "task.resources.gpus=0"]
    plans = [bench.launch("task=plan", "pipeline=thousand.yaml", *LATE, *asked)[1:] for _ in range(rounds)]
    out, _, _ = bench.launch("task=pipeline", "pipeline=thousand.yaml", *LATE, *asked)
    sweep = re.search(r"of=(\S+)", out)
    if sweep is None:
        raise RuntimeError(out)
    looks = [bench.launch("task=status", f"of={sweep[1]}")[1:] for _ in range(rounds)]
    cancelled(bench)
    return plans, looks


def cached(bench: Bench, rounds: int) -> list[tuple[float, float]]:
    """100 elements that are all there."""
    (bench.folder / "hundred.yaml").write_text(HUNDRED)
    words = ["task=pipeline", "pipeline=hundred.yaml", "tracking=off"]
    bench.launch(*words)
    return [bench.launch(*words, "cluster=slurm", "task.resources.memory=1G")[1:] for _ in range(rounds)]


def starts(bench: Bench) -> list[float]:
    """Seconds from the end of an element to the start of its own dependent, by Slurm's accounting (whole seconds)."""
    (bench.folder / "two.yaml").write_text(TWO)
    asked = [
        "cluster=slurm",
        "tracking=off",
        "task.resources.memory=500M",
        "task.resources.cpus=1",
        "task.resources.gpus=0",
    ]
    out, _, _ = bench.launch("task=pipeline", "pipeline=two.yaml", *asked, "model.embedded.steps=20", "reuse=force")
    until(lambda: not bench.cluster.client("squeue", "-h").stdout.strip(), "the study to end")
    where = re.search(r"multirun/\S+", out)
    if where is None:
        raise RuntimeError(out)
    (sweep,) = bench.folder.glob(where[0])
    at: dict[tuple[str, str], tuple[datetime, datetime]] = {}
    for path in sorted(sweep.glob("*/status.json")):
        facts = json.loads(path.read_text())
        seed = re.search(r"seed=(\d)", path.parent.name)
        stage = "first" if facts["task"] == "sae" else "second"
        at[stage, seed[1] if seed else ""] = (
            datetime.fromisoformat(facts["began"]),
            datetime.fromisoformat(facts["ended"]),
        )
    return [(at["second", seed][0] - at["first", seed][1]).total_seconds() for stage, seed in at if stage == "first"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    try:
        debian.install(accounting=True)
    except SlurmUnavailable as e:
        print(f"not measured: no Slurm here ({e})")
        return
    cluster = Cluster(
        Path(tempfile.mkdtemp(prefix="slurm-b", dir="/tmp")), Options(changes=("MaxArraySize=2001",), cpus=4)
    )
    try:
        cluster.up().guarded_by(os.getpid())
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), cluster)
            bench.launch("task=status")  # warms the caches
            lines = [row("pipeline=qwen_circuits submitted, prompt back", submitted(bench, rounds), 8)]
            plans, looks = thousand(bench, rounds)
            lines += [row("plan of 1,000 elements", plans, 5), row("status of 1,000 elements that wait", looks, 2)]
            lines.append(row("a cached pipeline of 100 elements", cached(bench, rounds), 20))
            waits = starts(bench)
    finally:
        cluster.down()
    print(f"median of {rounds} rounds; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| | s | min-max | processor s | goal |\n|---|---|---|---|---|")
    print("\n".join(lines))
    middle = statistics.median(waits)
    print(
        f"| a dependent's start after its own producer's end | {middle:.1f} | {min(waits):.1f}-{max(waits):.1f} | | < 5 |"
    )


if __name__ == "__main__":
    main()
