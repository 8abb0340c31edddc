"""The W&B side of an element: its runs are written by one thread, so that nothing W&B does can delay or end the work.

Everything is queued and done in order by a daemon thread: importing wandb, asking whether the server is there, opening runs, rows,
summaries. The work waits for it at one place only, :meth:`Runs.close`, and there for a bounded time; what W&B has not finished by
then is given up with a line, its service process is ended (it would hold up the interpreter's exit), and its files stay for
``wandb sync``. Online becomes offline, with one warning, when there is no key, the server does not answer, or it refuses.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from circuits import tables
from circuits.files import sha256_text
from circuits.run import wandb_server
from circuits.schema import TrackingConfig, TrackingMode

INIT_S = 10.0  # that wandb may take to open an online run
CLOSE_S = 30.0  # that the end of a run waits for W&B
LONGEST = 128  # bytes of a group's or a run's name that the server takes


class Runs:
    """The W&B runs of one element, one per layer. What is to be done is queued by :meth:`tell`; all else is the thread's."""

    def __init__(
        self, run_dir: Path, config: TrackingConfig, group: str, tags: list[str], say: Callable[[str], None],
        job: str | None = None, stored: bool = False,
    ) -> None:  # fmt: skip
        self._dir, self._config, self._group, self._tags, self._say = run_dir, config, group, tags, say
        self._job, self._stored = job, stored
        self._todo: queue.Queue[Callable[[Runs], None] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._online: bool | None = None  # not yet asked
        self._off = self._warned = False
        self._open: dict[int | None, Any] = {}
        self._last: Any = None  # the run that was summarised last
        self._table: list[dict[str, Any]] = []
        self._files: dict[Path, bool] = {}  # of each run, and whether it is online

    def tell(self, act: Callable[[Runs], None]) -> None:
        """Have `act` done after all that was told before; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
            self._thread.start()
        self._todo.put(act)

    def close(self, budget_s: float | None = None) -> None:
        """End what is open (as failed) and wait for W&B, but not longer than `budget_s` (default: `CLOSE_S`)."""
        if self._thread is None:
            return
        self._todo.put(Runs._finish_all)
        self._todo.put(None)
        budget = CLOSE_S if budget_s is None else budget_s
        self._thread.join(budget)
        if self._thread.is_alive():
            self._off = True
            _end_service()
            self._say(
                f"warning: W&B had not finished after {budget:.0f} s and was left; upload it with: wandb sync {self._places()}"
            )
        elif not all(self._files.values()):
            self._say(f"W&B is offline; upload with: wandb sync {self._places()}")

    def _places(self) -> str:
        """The directories for ``wandb sync``: one, or a pattern that the shell expands."""
        found = [place for place, online in self._files.items() if self._off or not online]
        if len(found) == 1:
            return shlex.quote(os.path.relpath(found[0]))
        return f"{shlex.quote(os.path.relpath(self._dir / 'wandb'))}/{'*' if self._off else 'offline-'}run-*"

    def _work(self) -> None:
        while (act := self._todo.get()) is not None:
            if self._off:
                continue
            try:
                act(self)
            except Exception as e:  # W&B raises many kinds; none of them is worth a run
                if not self._off:
                    self._off = True
                    self._warn(f"W&B stopped taking rows ({_reason(e)})")

    def _warn(self, what: str) -> None:
        """One warning a run, whatever follows from it."""
        if not self._warned:
            self._warned = True
            self._say(f"warning: {what}; metrics.jsonl has all rows")

    # -- on the thread -------------------------------------------------------------------------------------------

    def start(self, layer: int | None, key: str, name: str, config: Mapping[str, Any], tags: Sequence[str]) -> None:
        """Open the run of one layer; `tags` are its own, beside the element's."""
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # sending its own errors holds up the exit for 10 s
        if self._online is None:
            why_not = wandb_server.refusal() if self._config.mode is TrackingMode.online else None
            if self._off:  # given up while we asked
                return
            self._online = self._config.mode is TrackingMode.online and why_not is None
            if why_not:
                self._warn(f"W&B is offline in this run: {why_not}")
        run_id, both = sha256_text(f"{self._group}/{key}")[:16], list(dict.fromkeys([*self._tags, *tags]))
        try:
            run = self._init(run_id, name, dict(config), both, self._online)
        except Exception as e:
            if not self._online:
                raise
            self._online = False
            self._warn(f"W&B is offline in this run: the server took no run ({_reason(e)})")
            if self._open:  # the service keeps the name of what it failed to open
                run_id = f"{run_id}-offline"
            else:
                _restart_service()
            run = self._init(run_id, name, dict(config), both, False)
        self._open[layer] = run
        self._files[Path(run.settings.sync_dir)] = self._online

    def log(self, layer: int | None, row: Mapping[str, Any]) -> None:
        """A row of the run of `layer`."""
        if layer in self._open:
            self._open[layer].log(dict(row))

    def table(self, layer: int | None, name: str, file: Path, at_most: int) -> None:
        """The first rows of a parquet file as a table of the run of `layer`."""
        import wandb

        rows = tables.read(file)
        if len(rows) > at_most:
            name, rows = f"{name}_first_{at_most}_of_{len(rows)}", rows[:at_most]
        self.log(layer, {name: wandb.Table(dataframe=rows)})

    def summary(self, layer: int | None, metrics: Mapping[str, Any]) -> None:
        """The final metrics of `layer`; nothing more comes for it."""
        run = self._open.pop(layer, None)
        if run is None:
            return
        told = _summarised(metrics)
        self._table.append({"layer": layer, **{k: v for k, v in told.items() if not isinstance(v, dict)}})
        run.summary.update(told)
        if self._last is not None:
            self._last.finish()
        self._last = run  # open until another comes or the element ends: which one is the last, nobody knows before

    def _finish_all(self) -> None:
        if self._last is not None:
            if len(self._table) > 1:  # the last of several layers carries them all, side by side
                import wandb

                columns = list(dict.fromkeys(name for row in self._table for name in row))
                rows = [[row.get(name) for name in columns] for row in self._table]
                self._last.log({"layers": wandb.Table(columns=columns, data=rows)})
            self._last.finish()
            self._last = None
        for layer in list(self._open):
            self._open.pop(layer).finish(exit_code=1)

    def _init(self, run_id: str, name: str, config: dict[str, Any], tags: list[str], online: bool) -> Any:
        import wandb

        run = wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            mode="online" if online else "offline",
            dir=str(self._dir),
            id=run_id,
            name=fitting(name),
            group=fitting(self._group),
            job_type=self._job,
            tags=tags,
            config=config,
            resume="allow" if online else None,
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_save_requirements=not self._stored,  # looking through all packages takes longer than all else
                init_timeout=INIT_S,
                finish_timeout=CLOSE_S,
            ),
        )
        run.define_metric("global_step")
        run.define_metric("*", step_metric="global_step")  # a resumed offline run counts its own steps from 0
        return run


def fitting(name: str) -> str:
    """`name`; a longer one than W&B takes is cut, with a hash of all of it at its end: what differs stays apart."""
    whole = name.encode()
    if len(whole) <= LONGEST:
        return name
    end = f"-{sha256_text(name)[:8]}"
    return whole[: LONGEST - len(end)].decode(errors="ignore") + end


def _summarised(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary takes of metrics: plain values, nested ones too (``control``), and the two ends of intervals (``…_ci``)."""
    told: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, (int, float, str, bool)):
            told[name] = value
        elif name.endswith("_ci") and isinstance(value, (list, tuple)) and len(value) == 2:
            told |= {f"{name}_low": value[0], f"{name}_high": value[1]}
        elif isinstance(value, Mapping) and (inner := _summarised(value)):
            told[name] = inner
    return told


def _end_service() -> None:
    """End W&B's service process, which belongs to this process alone: its exit hook would wait for it without end."""
    import psutil

    for process in [p for p in psutil.Process().children() if "wandb-core" in p.name()]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _restart_service() -> None:
    import wandb

    _end_service()
    with contextlib.suppress(
        Exception
    ):  # it complains of the service that is gone; what counts is that it starts another
        wandb.teardown(exit_code=1)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
