"""What the command line costs before any work: ``--help`` and ``--cfg job``, beside importing torch in the same run.

    python benchmarks/launch.py [--rounds 7]

Whole processes, wall time, median over rounds taken in turn. Goal: both under 0.6 s and without torch.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "launch.py --help": [sys.executable, str(ROOT / "launch.py"), "--help"],
    "launch.py task=sae --cfg job": [sys.executable, str(ROOT / "launch.py"), "task=sae", "--cfg", "job"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
    "python -c pass": [sys.executable, "-c", "pass"],
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            times[name].append(time.perf_counter() - start)
    print(f"whole processes, median of {rounds} rounds\n\n| command | s | min-max |\n|---|---|---|")
    for name, found in times.items():
        print(f"| `{name}` | {statistics.median(found):.2f} | {min(found):.2f}-{max(found):.2f} |")


if __name__ == "__main__":
    main()
