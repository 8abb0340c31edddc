"""``make bench``: every benchmark after the other; with ``--write`` its tables go into docs/benchmarks.md.

python benchmarks/run.py [--write]
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
PARTS = {
    "The command line": ["launch.py"],
    "Capture": ["capture.py"],
    "One SAE training step": ["sae_step.py"],
    "SAEs on a known world": ["sae_quality.py", "--seeds", "1", "--only", "topk,relu"],
}
INTRODUCTION = """# Benchmarks

`make bench` prints these tables; `python benchmarks/run.py --write` writes this page. Ratios are between things measured in one
run, in turn, so that they hold where single times do not.
"""


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    text = [
        INTRODUCTION,
        f"Machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}.\n",
    ]
    for title, words in PARTS.items():
        print(f"\n## {title}\n", flush=True)
        done = subprocess.run(
            [sys.executable, str(HERE / words[0]), *words[1:]], stdout=subprocess.PIPE, text=True, check=True
        )
        print(done.stdout, flush=True)
        text.append(f"## {title}\n\n{done.stdout.strip()}\n")
    if write:
        PAGE.write_text("\n".join(text), encoding="utf-8")
        print(f"written {PAGE}")


if __name__ == "__main__":
    main()
