"""The last job of a study: its page, what failed, what accounting says. ``python -m circuits.launch.slurm.closing DIR``.

It starts once every other job of the study has ended, however each did, and its exit code is the study's: Slurm's mail about it
tells how the study went.
"""

from __future__ import annotations

import sys
from pathlib import Path

from circuits.launch import answers, stagewise
from circuits.launch import sweep as sweeps
from circuits.launch.slurm.requeue import conclude
from circuits.launch.states import facts_of, hints
from circuits.run import streams


def main(argv: list[str]) -> int:
    """Close the study in directory ``argv[0]``; the exit code is that of all its elements."""
    streams.prepare()
    if len(argv) != 1:
        print("usage: python -m circuits.launch.slurm.closing DIR", file=sys.stderr)
        return 2
    sweep = sweeps.load(Path(argv[0]))
    known = facts_of(sweep)
    page = conclude(sweep, known, print)
    for line in [*stagewise.lines(sweep, known), *hints(sweep, known), *([f"report  {page}"] if page else [])]:
        print(line)
    return answers.exit_code(known.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
