"""Metrics of a run: always a local ``metrics.jsonl``; beside it Weights & Biases, one run per element and layer.

The W&B group is the sweep's name, fixed when it was launched, and the id is derived from group and artifact key, so a
resumed element joins its own run and a cached one logs its stored summary into the new sweep. W&B never costs a run
(:mod:`circuits.run.wandb_runs`), and the local file has every row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from circuits.errors import RunError
from circuits.files import disk_errors
from circuits.run.wandb_runs import Runs
from circuits.schema import TrackingConfig, TrackingMode

FILE = "metrics.jsonl"


class Tracker:
    """Writes rows of metrics for the layers of one element; `job` (the task) is the type of its W&B runs.

    Of an element whose answers are `stored`, W&B is not told the packages that are here: they made none of it.
    """

    def __init__(
        self, run_dir: Path, config: TrackingConfig, group: str, tags: list[str],
        say: Callable[[str], None] = lambda text: None, job: str | None = None, stored: bool = False,
    ) -> None:  # fmt: skip
        self.run_dir = run_dir
        off = config.mode is TrackingMode.disabled
        self._wandb = None if off else Runs(run_dir, config, group, tags, say, job, stored)
        with disk_errors(run_dir):
            _drop_torn(run_dir / FILE)
            self._file = (run_dir / FILE).open("a", encoding="utf-8")

    def _tell(self, act: Callable[[Runs], None]) -> None:
        if self._wandb is not None:
            self._wandb.tell(act)

    def start(
        self, layer: int | None, key: str, name: str, config: Mapping[str, Any], tags: Sequence[str] = ()
    ) -> None:
        """Open the W&B run of one layer; `tags` are its own, beside the element's."""
        self._tell(lambda runs: runs.start(layer, key, name, config, tags))

    def log(self, step: int, metrics: Mapping[str, float | str], layer: int | None = None) -> None:
        """One row: at `step` of `layer`."""
        row = {"step": step, "layer": layer, **{k: _finite(v) for k, v in metrics.items()}}
        with disk_errors(self.run_dir):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        told = {**metrics, "global_step": step}
        self._tell(lambda runs: runs.log(layer, told))

    def table(self, name: str, file: Path, layer: int | None = None, at_most: int = 1000) -> None:
        """The first `at_most` rows of a parquet file as a W&B table; the name says so where there are more."""
        self._tell(lambda runs: runs.table(layer, name, file, at_most))

    def summary(self, metrics: Mapping[str, Any], layer: int | None = None) -> None:
        """The final metrics of `layer`; ends its W&B run."""
        told = dict(metrics)
        self._tell(lambda runs: runs.summary(layer, told))

    def close(self, budget_s: float | None = None) -> None:
        """End what is open (after a failure the W&B runs are marked as failed), waiting for W&B at most `budget_s`."""
        self._file.close()
        if self._wandb is not None:
            self._wandb.close(budget_s)


def _drop_torn(path: Path) -> None:
    """Cut a last line that was not written whole, or the next row would be glued to it."""
    if not path.exists():
        return
    with path.open("rb+") as f:
        content = f.read()
        if content and not content.endswith(b"\n"):
            f.truncate(content.rfind(b"\n") + 1)


def _finite(value: float | str) -> float | str | None:
    return value if isinstance(value, str) or math.isfinite(value) else None


def read(run_dir: Path) -> list[dict[str, Any]]:
    """All rows of a run; a last line cut by a kill is left out, any other damage is an error.

    Raises:
        RunError: a line in the middle is not JSON.
    """
    path = run_dir / FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                rows.append(json.loads(line))
        except ValueError as e:
            if number == len(lines):
                break
            raise RunError(f"{path}, line {number}: not JSON") from e
    return rows
