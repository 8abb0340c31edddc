"""``profile=torch|memory``: what a run's time or memory goes to, by operator, in its directory ``profile/``.

A *window* is a few steps of one phase. It opens when the phase says where it is; where enough steps follow, the first is left out
(kernels are loaded and buffers made there). It closes after `STEPS` steps, or at the first step after `SECONDS`. Each phase that
counts its steps gets one window, at most `WINDOWS` of them: a trace does not grow with the run. A window is written as a Chrome
trace (``PHASE.trace.json.gz``, for ui.perfetto.dev) and as a table of its operators (``PHASE.txt``).

``memory`` on a GPU records every allocation of the run instead, with its stack, for pytorch.org/memory_viz (``memory.pickle``, the
format of that page); it is written even when memory ran out. On a CPU the windows count what operators allocate.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile

from circuits.files import read_json, write_json
from circuits.words import reason

FOLDER, SUMMARY = "profile", "profile.json"
STEPS, SECONDS, WINDOWS = 12, 2.0, 6
ENOUGH = 3  # steps to come, for which the first is left out
ROWS = 25  # operators of a table
EVENTS = 200_000  # allocations and frees that are kept, the newest
Mode = Literal["torch", "memory"]

_busy: Profiler | None = None  # torch has one profiler a process


class Profiler:
    """The windows of one run."""

    def __init__(self, run_dir: Path, mode: Mode, say: Callable[[str], None], device: str = "auto") -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes into the run's log when it starts and stops
        self._place, self._mode, self._say = run_dir / FOLDER, mode, say
        self._cuda = device.split(":")[0] in ("auto", "cuda") and torch.cuda.is_available()
        self._history = mode == "memory" and self._cuda
        self._seen: set[str] = set()
        self._broken = False
        self._now: Any = None
        self._done, self._unit = 0.0, "step"
        self._phase, self._marks, self._from, self._began, self._first = "", 0, 0.0, 0.0, False
        self.windows: list[dict[str, Any]] = []

    def begin(self) -> None:
        """Record from here on, unless another run in this process does."""
        global _busy
        if _busy is not None:
            self._say("profile: another element of this process is profiled, which they share")
            return
        _busy = self
        if self._history:
            torch.cuda.memory._record_memory_history(enabled="all", max_entries=EVENTS)

    def mark(self, phase: str, done: float, total: float | None, unit: str = "step") -> None:
        """The run is here: a step of `phase` has ended, or the phase begins. Called by the thread that computes."""
        if _busy is not self or self._history or self._broken:
            return
        try:
            self._mark(phase, done, total)
            self._done, self._unit = done, unit
        except Exception as e:  # no trace is worth a run
            self._give_up(e)

    def _give_up(self, error: Exception) -> None:
        self._broken, self._now = True, None
        self._say(f"profile: given up ({type(error).__name__}: {reason(error)})")

    def _mark(self, phase: str, done: float, total: float | None) -> None:
        if self._now is not None and phase == self._phase:
            self._step(done, total)
        else:
            self._close()
            if total is not None and done < total and phase not in self._seen and len(self._seen) < WINDOWS:
                self._seen.add(phase)
                self._phase, self._first = phase, True
                self._open(done)

    def _step(self, done: float, total: float | None) -> None:
        self._marks, self._done = self._marks + 1, done
        if self._first:
            self._first = False
            pace = done - self._from
            if total is not None and pace > 0 and (total - done) / pace >= ENOUGH:
                self._now.stop()  # what was recorded of the first step is dropped
                self._open(done)
                return
        if self._marks >= STEPS or time.monotonic() - self._began >= SECONDS or (total is not None and done >= total):
            self._close()

    def _open(self, done: float) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        self._now = profile(activities=activities, profile_memory=self._mode == "memory")
        self._marks, self._from, self._began = 0, done, time.monotonic()
        self._now.start()

    def _close(self) -> None:
        """End the window, and write it."""
        if self._now is None:
            return
        seconds, found, self._now = time.monotonic() - self._began, self._now, None
        amount = max(1, round(self._done - self._from))
        said = f"{amount:,} {self._unit}{'s' if amount > 1 else ''}"
        found.stop()
        self._place.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^\w-]+", "-", self._phase).strip("-")[:60] or "run"
        while (self._place / f"{name}.txt").exists():  # of a turn before this one
            match = re.fullmatch(r"(.*)-turn(\d+)", name)
            name = f"{match[1]}-turn{int(match[2]) + 1}" if match else f"{name}-turn2"
        averages = found.key_averages()
        by = self._sorted_by()
        table = averages.table(sort_by=by, row_limit=ROWS, max_name_column_width=70)
        (self._place / f"{name}.txt").write_text(f"{self._phase}: {said}, {seconds:.2f} s\n{table}\n", encoding="utf-8")
        trace = self._place / f"{name}.trace.json.gz"
        _export(found, trace)
        operators = sorted((_operator(event) for event in averages), key=lambda one: -one[self._key()])
        top = [one for one in operators if one[self._key()] > 0]
        self.windows.append(
            {
                "phase": self._phase, "amount": amount, "unit": self._unit, "seconds": round(seconds, 3), "by": self._key(),
                "trace": trace.name, "table": f"{name}.txt", "operators": top[:ROWS],
                "total": sum(one[self._key()] for one in top),
            }
        )  # fmt: skip
        self._say(f"profile: {self._phase}: {said} in {FOLDER}/{trace.name} and {FOLDER}/{name}.txt")

    def _sorted_by(self) -> str:
        if self._mode == "memory":
            return "self_cpu_memory_usage"
        return "self_device_time_total" if self._cuda else "self_cpu_time_total"

    def _key(self) -> str:
        return "bytes" if self._mode == "memory" else "gpu_us" if self._cuda else "cpu_us"

    def end(self) -> None:
        """Write what is open, whatever ended the run."""
        global _busy
        if _busy is not self:
            return
        try:
            if not self._broken:
                self._close()
            if self._history:
                self._snapshot()
            self._summarise()
        except Exception as e:
            self._give_up(e)
        finally:
            _busy = None

    def _snapshot(self) -> None:
        """The recorded allocations of a GPU, for the page that draws them, and its counters."""
        self._place.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(RuntimeError):
            torch.cuda.memory._dump_snapshot(str(self._place / "memory.pickle"))
        torch.cuda.memory._record_memory_history(enabled=None)
        (self._place / "memory.txt").write_text(torch.cuda.memory_summary() + "\n", encoding="utf-8")
        self._say(f"profile: allocations in {FOLDER}/memory.pickle (pytorch.org/memory_viz) and {FOLDER}/memory.txt")

    def _summarise(self) -> None:
        if not self.windows and not self._history:
            if self._broken:
                return
            self._say("profile: no phase of this run counted steps, so there is nothing to show")
            return
        facts: dict[str, Any] = {"mode": self._mode, "device": "cuda" if self._cuda else "cpu"}
        facts["windows"] = [*self._earlier(), *self.windows]
        if self._history:
            facts["snapshot"] = "memory.pickle"
            facts["peak_bytes"] = torch.cuda.max_memory_allocated()
            facts["reserved_bytes"] = torch.cuda.max_memory_reserved()
        write_json(self._place / SUMMARY, facts, durable=False)

    def _earlier(self) -> list[dict[str, Any]]:
        """The windows of the turns before this one."""
        try:
            return list(read_json(self._place / SUMMARY)["windows"])
        except (OSError, ValueError, KeyError, TypeError):
            return []


def _operator(event: Any) -> dict[str, Any]:
    """What the table of the page shows of an operator."""
    return {
        "name": str(event.key),
        "calls": int(event.count),
        "cpu_us": round(float(event.self_cpu_time_total), 1),
        "gpu_us": round(float(getattr(event, "self_device_time_total", 0) or 0), 1),
        "bytes": int(getattr(event, "self_cpu_memory_usage", 0) or 0),
    }


def _export(found: Any, path: Path) -> None:
    """A trace, packed: they are long and alike."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".trace-") as folder:
        plain = Path(folder) / "trace.json"
        found.export_chrome_trace(str(plain))
        packed = Path(folder) / "trace.json.gz"
        with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=4) as target:
            shutil.copyfileobj(source, target)
        packed.replace(path)
