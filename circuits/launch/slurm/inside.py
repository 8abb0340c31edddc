"""What the job of ``cluster.allocation=true`` runs: the sweep in DIR, as on a machine of one's own.

``python -m circuits.launch.slurm.inside DIR``
"""

from __future__ import annotations

import sys
from pathlib import Path

from circuits.launch import launching, local
from circuits.launch import sweep as sweeps
from circuits.run import streams
from circuits.schema import Backend


def main(argv: list[str]) -> int:
    """Run the sweep in directory ``argv[0]`` in this job; the exit code."""
    streams.prepare()
    if len(argv) != 1:
        print("usage: python -m circuits.launch.slurm.inside DIR", file=sys.stderr)
        return 2
    sweep = sweeps.load(Path(argv[0]))
    elements = launching.planned(sweep)
    for element in elements:
        cluster = element.cfg.cluster
        cluster.backend, cluster.workers = Backend.local, cluster.parallelism or 1
    sweep.record["launcher"]["backend"] = Backend.local.value
    return launching.run_again(sweep, elements, local.Local())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
