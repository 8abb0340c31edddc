"""What an element takes while it runs: one sample a second of processor, memory and GPUs, in its ``usage.jsonl``.

One thread a process samples for all its elements. A line of the file covers the `s` seconds that end `t` seconds after the element
began, turns before a requeue included: the mean of what is busy, the peak of what is held. At first it covers one second; when
there are `ROWS` of them, each two become one and from then on a line covers twice as long. So the file of a day's run is no larger
than that of an hour's. What ends within two seconds leaves no file. Nothing that goes wrong here reaches the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from circuits.errors import CircuitsError
from circuits.files import write_atomic
from circuits.run.gpu_watch import GpuWatch

FILE = "usage.jsonl"
PERIOD_S = 1.0
ROWS = 1200  # lines of a file: 0.2 MB, with eight GPUs 0.6 MB
FLUSH = 10  # lines that are written together: a shared file system is not asked every second
Row = dict[str, Any]


class Recorder:
    """The samples of one element, in its directory; those of its earlier turns are gone on with."""

    def __init__(self, run_dir: Path, phase: Callable[[], str | None] = lambda: None) -> None:
        self._path, self._phase = run_dir / FILE, phase
        self._lock = threading.Lock()
        self._rows = read(run_dir)
        self._every = 1.0
        while self._rows and self._every < 0.75 * max(row["s"] for row in self._rows):
            self._every *= 2
        self._before = self._rows[-1]["t"] if self._rows else 0.0
        self._began = time.monotonic()
        self._open: Row | None = None  # the line that is not yet as long as the others
        self._waiting: list[Row] = []
        self._anew = True  # the first writing replaces the file: its last line may be torn

    def add(self, sample: Mapping[str, Any], moment: float) -> None:
        """One sample, which ends at this moment of the monotonic clock."""
        with self._lock:
            age = moment - self._began
            if age <= 0:
                return
            row = {"t": round(self._before + age, 1), "phase": self._phase() or "", **sample}
            row["s"] = round(min(sample["s"], age), 2)
            self._open = row if self._open is None else merged(self._open, row)
            if self._open["s"] >= 0.9 * self._every:
                self._keep(self._open)
                self._open = None

    def _keep(self, row: Row) -> None:
        self._rows.append(row)
        self._waiting.append(row)
        if len(self._rows) > ROWS:
            self._rows, self._every, self._anew = halved(self._rows), 2 * self._every, True
        if (self._anew and len(self._rows) >= 2) or len(self._waiting) >= FLUSH:
            self._write()

    def _write(self) -> None:
        rows = self._rows if self._anew else self._waiting
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        with contextlib.suppress(OSError, CircuitsError):  # a full disk: the run itself says so where it matters
            if self._anew:
                write_atomic(self._path, text.encode(), durable=False)
            else:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(text)
        self._waiting, self._anew = [], False

    @property
    def rows(self) -> list[Row]:
        """What was sampled so far."""
        with self._lock:
            return [*self._rows, *([self._open] if self._open else [])]

    def close(self) -> None:
        """Write what is left."""
        with self._lock:
            if self._waiting and len(self._rows) >= 2:
                self._write()


def merged(a: Row, b: Row) -> Row:
    """Two neighbouring lines as one: means of what is busy, peaks of what is held, the phase of the longer."""
    seconds = a["s"] + b["s"]

    def mean(x: float | None, y: float | None, digits: int) -> float | None:
        if x is None or y is None:
            return y if x is None else x
        return round((x * a["s"] + y * b["s"]) / seconds, digits)

    def most(x: float | None, y: float | None) -> float | None:
        return y if x is None else x if y is None else max(x, y)

    row = {
        "t": b["t"],
        "phase": a["phase"] if a["s"] > b["s"] else b["phase"],
        "s": round(seconds, 2),
        "cpu": mean(a["cpu"], b["cpu"], 3),
        "rss": most(a["rss"], b["rss"]),
        "memory": most(a["memory"], b["memory"]),
    }
    if a.get("gpus") and b.get("gpus") and len(a["gpus"]) == len(b["gpus"]):
        pairs = zip(a["gpus"], b["gpus"], strict=True)
        row["gpus"] = [
            {
                "busy": mean(x["busy"], y["busy"], 3),
                "memory": most(x["memory"], y["memory"]),
                "of": most(x["of"], y["of"]),
                "celsius": most(x["celsius"], y["celsius"]),
                "watts": mean(x["watts"], y["watts"], 1),
            }
            for x, y in pairs
        ]
    elif found := b.get("gpus") or a.get("gpus"):
        row["gpus"] = found
    return row


def halved(rows: Sequence[Row]) -> list[Row]:
    """Each two lines as one."""
    found = [merged(a, b) for a, b in zip(rows[::2], rows[1::2], strict=False)]
    return [*found, rows[-1]] if len(rows) % 2 else found


def read(run_dir: Path) -> list[Row]:
    """The lines of a run; none where it was too short. A torn one is left out."""
    try:
        lines = (run_dir / FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            row = json.loads(line)
            if {"t", "s", "phase", "cpu", "rss", "memory"} <= set(row):
                found.append(row)
    return found


class Source:
    """What this process takes, and what the machine is."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._gpus: GpuWatch | None = None  # until this process uses one
        self._spent = time.process_time()

    def take(self, seconds: float) -> Row:
        """A sample of the last `seconds`: cores that were busy, bytes held, the share of the machine's memory in use, GPUs."""
        spent = time.process_time()
        busy, self._spent = (spent - self._spent) / seconds, spent
        row: Row = {
            "s": seconds,
            "cpu": round(busy, 3),
            "rss": int(self._process.memory_info().rss),
            "memory": round(psutil.virtual_memory().percent / 100, 3),
        }
        if self._gpus is None and _on_gpu():
            self._gpus = GpuWatch()
        if self._gpus is not None and (gpus := self._gpus.latest()):
            row["gpus"] = gpus
        return row

    def close(self) -> None:
        """Let the GPUs alone."""
        if self._gpus is not None:
            self._gpus.close()


def _on_gpu() -> bool:
    """Whether torch computes on a CUDA device here; asked without importing it, and without touching a device."""
    ask = getattr(getattr(sys.modules.get("torch"), "cuda", None), "is_initialized", None)
    return bool(ask and ask())


class Sampler:
    """The thread of this process, which lives while there are recorders."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Hold nothing; a process that was forked has no thread of its parent's."""
        self._recorders: dict[Recorder, None] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, recorder: Recorder) -> None:
        """Sample for `recorder` from now on."""
        with self._changed:
            self._recorders[recorder] = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
                self._thread.start()

    def remove(self, recorder: Recorder) -> None:
        """No more for `recorder`, whose file is written to its end."""
        with self._changed:
            self._recorders.pop(recorder, None)
            self._changed.notify()
        recorder.close()

    def _run(self) -> None:
        source, last = Source(), time.monotonic()
        try:
            while True:
                with self._changed:
                    while self._recorders and (left := last + PERIOD_S - time.monotonic()) > 0:
                        self._changed.wait(left)
                    if not self._recorders:
                        self._thread = None
                        return
                    recorders = list(self._recorders)
                moment = time.monotonic()
                with contextlib.suppress(OSError, psutil.Error):
                    sample = source.take(moment - last)
                    for recorder in recorders:
                        recorder.add(sample, moment)
                last = moment
        finally:
            source.close()


SAMPLER = Sampler()
os.register_at_fork(after_in_child=SAMPLER.forget)
