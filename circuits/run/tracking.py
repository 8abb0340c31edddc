"""Metrics of a run: always a local ``metrics.jsonl``; beside it Weights & Biases, one run per element and layer.

The W&B group is the sweep's name, fixed when it was launched, and the id is derived from group and artifact key, so a
resumed element joins its own run and a cached one logs its stored summary into the new sweep. W&B never costs a run: whatever
it raises is one warning, and the local file has every row.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from circuits.errors import RunError
from circuits.files import disk_errors, sha256_text
from circuits.schema import TrackingConfig, TrackingMode

FILE = "metrics.jsonl"


class Tracker:
    """Writes rows of metrics for the layers of one element."""

    def __init__(
        self,
        run_dir: Path,
        config: TrackingConfig,
        group: str,
        tags: list[str],
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.run_dir, self.config, self.group, self.tags, self._say = run_dir, config, group, tags, say
        self._runs: dict[int | None, Any] = {}
        self._wandb_off = config.mode is TrackingMode.disabled
        with disk_errors(run_dir):
            _drop_torn(run_dir / FILE)
            self._file = (run_dir / FILE).open("a", encoding="utf-8")

    def start(self, layer: int | None, key: str, name: str, config: Mapping[str, Any]) -> None:
        """Open the W&B run of one layer."""
        if self._wandb_off:
            return
        try:
            self._runs[layer] = self._init(key, name, dict(config))
        except Exception as e:  # W&B raises many kinds; none of them is worth a run
            self._wandb_off = True
            self._say(
                f"warning: W&B is left out ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}); {FILE} has all rows"
            )

    def _init(self, key: str, name: str, config: dict[str, Any]) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        online = self.config.mode is TrackingMode.online
        if online and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
            self._say(
                "warning: W&B online without a key: run `wandb login` or set WANDB_API_KEY; offline now, upload with `wandb sync`"
            )
            online = False
        run = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            mode="online" if online else "offline",
            dir=str(self.run_dir),
            id=sha256_text(f"{self.group}/{key}")[:16],
            name=name,
            group=self.group,
            tags=self.tags,
            config=config,
            resume="allow" if online else None,
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, init_timeout=10),
        )
        run.define_metric("global_step")
        run.define_metric("*", step_metric="global_step")  # a resumed offline run counts its own steps from 0
        return run

    def log(self, step: int, metrics: Mapping[str, float], layer: int | None = None) -> None:
        """One row: at `step` of `layer`."""
        row = {"step": step, "layer": layer, **{k: _finite(v) for k, v in metrics.items()}}
        with disk_errors(self.run_dir):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        self._guard(layer, lambda run: run.log({**metrics, "global_step": step}))

    def summary(self, metrics: Mapping[str, Any], layer: int | None = None) -> None:
        """The final metrics of `layer`; ends its W&B run."""
        plain = {k: v for k, v in metrics.items() if isinstance(v, (int, float, str, bool))}

        def write(run: Any) -> None:
            run.summary.update(plain)
            run.finish()

        self._guard(layer, write)
        self._runs.pop(layer, None)

    def _guard(self, layer: int | None, act: Callable[[Any], None]) -> None:
        run = self._runs.get(layer)
        if run is None or self._wandb_off:
            return
        try:
            act(run)
        except Exception as e:
            self._runs.pop(layer, None)
            self._say(f"warning: W&B stopped taking rows ({type(e).__name__}); {FILE} has all of them")

    def close(self) -> None:
        """End what is open (after a failure the W&B runs are marked as failed)."""
        for layer in list(self._runs):
            self._guard(layer, lambda run: run.finish(exit_code=1))
        self._file.close()


def _drop_torn(path: Path) -> None:
    """Cut a last line that was not written whole, or the next row would be glued to it."""
    if not path.exists():
        return
    with path.open("rb+") as f:
        content = f.read()
        if content and not content.endswith(b"\n"):
            f.truncate(content.rfind(b"\n") + 1)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
