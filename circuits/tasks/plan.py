"""``task=plan pipeline=NAME`` or ``task=plan plan.task=sae …``: what would run, what waits for what, and what it takes.

The same checks as at a launch, and the same refusals; nothing is started. Times and memory are measured ones where the store has
run of the same kind, else what is asked for. ``plan.out=FILE.html`` writes a page with the drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.schema.fields import named_file

READS = ("*",)


@dataclass
class Options:
    """Options of the plan."""

    task: str | None = None  # one task in place of a pipeline, with whatever it sweeps
    rate: float = 1.0  # service units of a GPU-hour
    cpu_rate: float = 0.0  # service units of a CPU-hour
    out: str | None = named_file(None)  # a page with the drawing: FILE.html


def launch(
    compose: Callable[[Sequence[str]], Any],
    lists: Sequence[Sequence[str]],
    base: Path,
    launcher: Mapping[str, Any],
) -> int:
    """Print the plan; exit code 2 where what was measured does not fit what is asked for."""
    from circuits.console import console
    from circuits.errors import UserError
    from circuits.files import write_atomic
    from circuits.launch import pipeline
    from circuits.tasks import _plan

    made = pipeline.plan(compose, lists, base, launcher)
    shown = console()
    for line in _plan.lines(made):
        shown.tell(line) if isinstance(line, str) else shown.table(line)
    if made.out is not None:
        write_atomic(Path(made.out), _plan.page(made).encode())
        shown.tell(f"page    {made.out}")
    if made.problems:
        raise UserError(made.problems)
    return 0
