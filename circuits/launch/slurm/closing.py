"""The last job of a study: its page, what failed, what accounting says. ``python -m circuits.launch.slurm.closing DIR``.

It starts once every other job of the study has ended, however each did, and its exit code is the study's: Slurm's mail about it
tells how the study went.
"""

from __future__ import annotations

import sys
from pathlib import Path

from circuits.launch import answers, stagewise
from circuits.launch import sweep as sweeps
from circuits.launch.slurm.states import record_accounting
from circuits.launch.states import facts_of, hints
from circuits.run import streams
from circuits.state import State, state_of


def main(argv: list[str]) -> int:
    """Close the study in directory ``argv[0]``; the exit code is that of all its elements."""
    streams.prepare()
    if len(argv) != 1:
        print("usage: python -m circuits.launch.slurm.closing DIR", file=sys.stderr)
        return 2
    sweep = sweeps.load(Path(argv[0]))
    record_accounting(sweep)
    known = facts_of(sweep)
    cached = [item for item in sweep.record["elements"] if state_of(known[item["index"]]) is State.cached]
    answers.log_cached(sweep, [sweep.directory(item) for item in cached], print)
    answers.write_failed(sweep, known, print)
    page = answers.make_report(sweep, print)
    for line in [*stagewise.lines(sweep, known), *hints(sweep, known), *([f"report  {page}"] if page else [])]:
        print(line)
    return answers.exit_code(known.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
