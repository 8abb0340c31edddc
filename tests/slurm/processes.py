"""Daemons and job processes by identity: a pid counts only with the start time recorded with it, so a reused one is not killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

PROC = Path("/proc")


def started(pid: int) -> int | None:
    """When a process began, in ticks since boot; None if there is none, or only a zombie."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def name(pid: int) -> str:
    """A process's program name, at most 15 characters."""
    try:
        return (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


def environment(pid: int) -> dict[str, str]:
    """The environment that a process began with."""
    try:
        entries = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(e.decode(errors="replace").split("=", 1) for e in entries if b"=" in e)


def arguments(pid: int) -> str:
    """The command line of a process."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def everything() -> Iterator[int]:
    """All pids but our own."""
    pids = (int(p.name) for p in PROC.iterdir() if p.name.isdigit())
    return (pid for pid in pids if pid != os.getpid() and started(pid) is not None)


def until(condition: Callable[[], object], seconds: float, every: float = 0.05) -> bool:
    """Whether the condition came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True


def send(pid: int, number: int) -> None:
    """Signal a process that may just have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def kill(pids: Iterable[int]) -> list[int]:
    """SIGKILL processes and wait until they are gone; returns those that were there."""
    found = [(pid, begun) for pid in pids if (begun := started(pid)) is not None]
    for pid, _ in found:
        send(pid, signal.SIGKILL)
    until(lambda: not any(started(pid) == begun for pid, begun in found), 20)
    return [pid for pid, _ in found]


class Daemon:
    """One program of a cluster: its log, its pid with its start time, in files below the cluster's folder."""

    def __init__(self, folder: Path, title: str) -> None:
        self.title = title
        self.record = folder / "run" / f"{title}.json"
        self.log = folder / "log" / f"{title}.out"

    @property
    def pid(self) -> int | None:
        """The pid, if the process that was started still runs."""
        try:
            entry = json.loads(self.record.read_text())
        except (OSError, ValueError):
            return None
        return entry["pid"] if started(entry["pid"]) == entry["started"] else None

    def start(self, command: list[str], environment: Mapping[str, str], priority: int = 0) -> None:
        """Start it in a session of its own: it outlives the process that started it, and hears no Ctrl-C."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(environment), cwd="/",
                start_new_session=True,
            )  # fmt: skip
        STARTED.append(process)
        entry = {"pid": process.pid, "started": started(process.pid)}
        self.record.with_suffix(".tmp").write_text(json.dumps(entry))
        self.record.with_suffix(".tmp").replace(self.record)
        try:  # busy tests must not starve the daemons; without the right to it they run like any process
            os.setpriority(os.PRIO_PROCESS, process.pid, priority)
        except (PermissionError, ProcessLookupError):
            pass

    def stop(self, seconds: float = 10) -> None:
        """TERM, then KILL."""
        pid = self.pid
        if pid is not None:
            send(pid, signal.SIGTERM)
            if not until(lambda: self.pid is None, seconds, 0.02):
                kill([pid])
        reap()
        self.record.unlink(missing_ok=True)


STARTED: list[subprocess.Popen[bytes]] = []  # held so that ended children are waited for


def reap() -> None:
    """Wait for children of ours that have ended."""
    STARTED[:] = [process for process in STARTED if process.poll() is None]
