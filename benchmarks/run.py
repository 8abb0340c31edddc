"""``make bench``: every benchmark after the other; with ``--write`` its tables go into docs/benchmarks.md.

python benchmarks/run.py [--write] [--only "Launching on Slurm"]
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
PARTS = {
    "The command line": ["launch.py"],
    "Launching on Slurm": ["submitting.py"],
    "Whole studies": ["studies.py"],
    "Capture": ["capture.py", "--rounds", "9"],
    "Activations on disk": ["activations.py", "--rounds", "3"],
    "One SAE training step": ["sae_step.py", "--full", "--rounds", "16"],
    "What stands beside an SAE's training": ["sae_beside.py"],
    "A step over several layers": ["clt_step.py"],
    "An SAE on a real model, end to end": ["sae_end_to_end.py"],
    "Many SAEs from stores": ["sae_layers.py"],
    "Interventions": ["interventions.py", "--rounds", "1"],
    "Circuits": ["attribution.py"],
    "Graphs of features": ["feature_graphs.py"],
    "Pictures": ["pictures.py"],
    "SAEs on a known world": ["sae_quality.py"],
    "Fifteen SAEs of a 7B model on an accelerator": ["sae_accelerator.py", "--tf32"],
}
INTRODUCTION = """# Benchmarks

`make bench` prints these tables; `python benchmarks/run.py --write` writes this page. Ratios are between things measured in one
run, in turn, so that they hold where single times do not.
"""


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", choices=PARTS, help="one part; with --write only its table is replaced")
    given = parser.parse_args()
    tables = {}
    for title, words in PARTS.items():
        if given.only not in (None, title):
            continue
        print(f"\n## {title}\n", flush=True)
        done = subprocess.run(
            [sys.executable, str(HERE / words[0]), *words[1:]], stdout=subprocess.PIPE, text=True, check=True
        )
        print(done.stdout, flush=True)
        tables[title] = done.stdout.strip()
    if given.write:
        PAGE.write_text(page(sections() | tables if given.only else tables), encoding="utf-8")
        print(f"written {PAGE}")


def sections() -> dict[str, str]:
    """The tables of the page as it is, by title."""
    parts = re.split(r"^## (.+)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {title: text.strip() for title, text in zip(parts[::2], parts[1::2], strict=True)}


def page(tables: dict[str, str]) -> str:
    """The whole page, its parts in our order."""
    machine = f"Machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}.\n"
    found = [f"## {title}\n\n{tables[title]}\n" for title in PARTS if title in tables]
    return "\n".join([INTRODUCTION, machine, *found])


if __name__ == "__main__":
    main()
