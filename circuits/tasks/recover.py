"""``task=recover of=SWEEP``: run, or submit again, exactly the elements whose artifacts are missing, under their own numbers."""

from __future__ import annotations

from pathlib import Path

from circuits.errors import UserError
from circuits.schema import BaseConfig

READS = ("of",)


def run(cfg: BaseConfig) -> int:
    """Recover the sweep that ``of=`` names; the exit code of what was started, or of the sweep when nothing is missing."""
    from circuits.launch import launching, sweep
    from circuits.launch.keeping import moved

    if cfg.of is None:
        raise UserError("task=recover needs of=SWEEP; task=status shows them")
    found = sweep.find(cfg.of, Path(cfg.outputs), Path(cfg.multirun))
    moved.refuse(found, Path(cfg.outputs))
    return launching.recover(found)
