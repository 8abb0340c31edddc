"""What the command line costs before any work: ``--help``, ``--cfg job``, planning a sweep, beside importing torch in the same run.

    python benchmarks/launch.py [--rounds 7]

Whole processes, wall time, median over rounds taken in turn. Goals: help and config under 0.6 s and without torch; 1,000 elements
planned in 1.6 s; a sweep of 100 elements that are all in the store answered, with its page, in 5 s. The 1,000 are planned dry:
``reuse=readonly`` on an empty store composes, checks, keys and looks up every element, then refuses them all (exit code 2) and
starts nothing.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = [sys.executable, str(ROOT / "launch.py")]
PLAN = [*LAUNCH, "task=sae", "reuse=readonly"]
HUNDRED = [*LAUNCH, "task=prompts", "behaviour=ioi", "seed=range(0,100)", "-m", "tracking=off"]
COMMANDS = {
    "a sweep of 100 elements that are in the store": HUNDRED,
    "launch.py --help": [*LAUNCH, "--help"],
    "launch.py task=sae --cfg job": [*LAUNCH, "task=sae", "--cfg", "job"],
    "planning 1 element": [*PLAN, "layer=0"],
    "planning 1,000 elements: layer=range(0,4) seed=range(0,250)": [*PLAN, "layer=range(0,4)", "seed=range(0,250)"],
    "planning 1,000 elements: layer=range(0,4) sae=topk,relu seed=range(0,125)": [
        *PLAN,
        "layer=range(0,4)",
        "sae=topk,relu",
        "seed=range(0,125)",
    ],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
    "python -c pass": [sys.executable, "-c", "pass"],
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*HUNDRED, "cluster.workers=0"], cwd=folder, capture_output=True, check=True)
        for _ in range(rounds):
            for name, command in COMMANDS.items():
                start = time.perf_counter()
                done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
                times[name].append(time.perf_counter() - start)
                if done.returncode != (2 if "reuse=readonly" in command else 0):
                    raise RuntimeError(f"{name}: exit code {done.returncode}: {done.stderr.decode()[:500]}")
    print(f"whole processes, median of {rounds} rounds\n\n| command | s | min-max |\n|---|---|---|")
    for name, found in times.items():
        print(f"| `{name}` | {statistics.median(found):.2f} | {min(found):.2f}-{max(found):.2f} |")


if __name__ == "__main__":
    main()
