"""The training curve of one SAE, kept beside its checkpoints so that a resumed training has all of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from circuits.errors import Damaged
from circuits.files import write_atomic


class History:
    """Rows of metrics by step; `rows_per_s` is added by the clock."""

    def __init__(self, directory: Path, batch_size: int) -> None:
        self._path, self._batch_size = directory / "history.jsonl", batch_size
        self._rows: list[dict[str, Any]] = []
        self._last = (0, time.monotonic())

    def resume(self, step: int) -> None:
        """Take what was saved up to `step`.

        Raises:
            Damaged: the file is not readable; it was moved aside and the history goes on without it.
        """
        self._rows, self._last = [], (step, time.monotonic())
        if not step:
            return
        try:
            rows = [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]
        except FileNotFoundError:
            return
        except ValueError as e:
            aside = self._path.with_name(self._path.name + ".damaged")
            self._path.replace(aside)
            raise Damaged(f"{aside}: not JSON lines; the training curve begins at step {step}") from e
        self._rows = [row for row in rows if row["step"] <= step]

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row."""
        moment, (before, when) = time.monotonic(), self._last
        rate = (step - before) * self._batch_size / max(moment - when, 1e-9)
        self._last = (step, moment)
        self._rows.append({"step": step, **metrics, "rows_per_s": rate})

    def snapshot(self) -> Callable[[], None]:
        """What writes the rows as they are now, whole; to be called just before a checkpoint of this moment is written."""
        rows = tuple(self._rows)
        return lambda: write_atomic(self._path, "".join(json.dumps(row) + "\n" for row in rows).encode(), make=True)

    def write(self, out: Path) -> None:
        """``history.parquet`` in `out`."""
        pd.DataFrame(self._rows).to_parquet(out / "history.parquet", index=False)

    @property
    def steps(self) -> int:
        """The last step that has a row."""
        return int(self._rows[-1]["step"]) if self._rows else 0
