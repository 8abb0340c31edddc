"""``task=why of=SWEEP|RUN|ARTIFACT``: why a result was made anew, or what an element waits for; one line each.

A key holds everything that decides a result. Whatever was made anew differs in some part of its key from all that there was; the
line names the nearest artifact and that part: section, field, old → new.
"""

from __future__ import annotations

from pathlib import Path

from circuits.errors import UserError
from circuits.schema import BaseConfig

READS = ("of",)


def run(cfg: BaseConfig) -> int:
    """Say it."""
    from circuits.console import console
    from circuits.launch import sweep, why

    if cfg.of is None:
        raise UserError("task=why needs of=SWEEP, of=RUN or of=ARTIFACT (kind/name); task=status shows the first two")
    root, shown = Path(cfg.outputs) / "artifacts", console()
    artifact = why.artifact_of(cfg.of, root)
    if artifact is not None:
        shown.tell(why.of_artifact(artifact))
        return 0
    found = sweep.find(cfg.of, Path(cfg.outputs), Path(cfg.multirun))
    for line in why.of_sweep(found, why.only(found, cfg.of)):
        shown.tell(line)
    return 0
