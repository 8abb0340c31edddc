"""Leases and claims: notes beside an artifact that say who is making it. They only save double work.

Correctness never rests on them (it rests on the rename that publishes an artifact). A *lease* is held by the process that
is making an artifact: a file created with O_EXCL and touched by a heartbeat. A *claim* is held by a live launcher for an
element that will make it. Either is stale when its process is gone (same host), or when the watcher, by its own clock, saw no
heartbeat for `STALE_S` seconds (another host). A claim of a cluster's job lives while the job is in the queue under its tag; a
lease taken inside a job ends with the job, whatever host it ran on.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

HEARTBEAT_S = 5.0
STALE_S = 60.0
SAME_START_S = 5.0  # start times carry the boot time, which shifts by a second as the clock is corrected


def owner(**facts: Any) -> dict[str, Any]:
    """Who this process is: host, pid and its start time (a pid alone may be reused); inside a cluster's job, which one."""
    return {
        **_worker_job(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "token": uuid.uuid4().hex,
        **facts,
    }


def worker_job() -> str | None:
    """The array element of ours that this process runs in (``48133_4``); None in anybody's own ``salloc`` session."""
    job, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{task}" if job and task and os.environ.get("CIRCUITS_SLURM_TAG") else None


def _worker_job() -> dict[str, Any]:
    job = worker_job()
    if job is None:
        return {}  # the process is what counts
    return {
        "worker_job": job,
        "incarnation": os.environ.get("SLURM_RESTART_COUNT", "0"),
        "uid": os.getuid(),
    }


def _job_ended(facts: dict[str, Any]) -> bool:
    """Whether the owner ran inside a job (or a turn of a requeued job) that is known to have ended."""
    job = facts.get("worker_job")
    if job is None:
        return False
    here = _worker_job()
    if here.get("worker_job") == job:
        return bool(here["incarnation"] != facts["incarnation"])
    from circuits.run.slurm.commands import element_alive

    return facts["uid"] == os.getuid() and element_alive(job) is False  # of a colleague's jobs only the heartbeat tells


def process_alive(host: str, pid: int, started: float) -> bool | None:
    """Whether that process lives; None when it is on another host and cannot be seen."""
    if host != socket.gethostname():
        return None
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < SAME_START_S and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Note:
    """One lease or claim file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[Any, float] | None = None  # last heartbeat seen, and when by our clock
        self._lock: Note | None = None  # held while a stale note is removed

    def read(self) -> dict[str, Any] | None:
        """The owner's facts, or None when nobody holds it."""
        try:
            changed = self.path.stat()
            return json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:  # being written, or its writer died: it ages like any other
            token = f"? {changed.st_ino} {changed.st_mtime_ns}"
            return {"host": "?", "pid": 0, "started": 0.0, "token": token}

    def live(self) -> dict[str, Any] | None:
        """The facts of a live owner, else None."""
        facts = self.read()
        if facts is None:
            return None
        if "job" in facts:  # a claim of an array element
            from circuits.run.slurm.commands import element_alive

            return None if element_alive(facts["job"], facts["tag"], facts["uid"]) is False else facts
        alive = process_alive(facts["host"], facts["pid"], facts["started"])
        if alive is not None:
            return facts if alive else None
        if _job_ended(facts):
            return None
        try:
            beat = (facts["token"], self.path.stat().st_mtime_ns)
        except FileNotFoundError:
            return None
        if self._seen is None or self._seen[0] != beat:
            self._seen = (beat, time.monotonic())
        return facts if time.monotonic() - self._seen[1] < STALE_S else None

    def take(self, facts: dict[str, Any]) -> bool:
        """Take it if nobody live holds it; whether that succeeded."""
        found = self.read()
        if found is not None:
            if self.live() is not None:
                return False
            self._break(found["token"], facts)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(fd, "w") as f:
            json.dump(facts, f)
        return True

    def _break(self, stale: str, facts: dict[str, Any]) -> None:
        """Remove the note with token `stale`, under a note of its own: one watcher at a time, and it looks again first.

        Without that, a slow watcher would remove the note that a quicker one has just taken.
        """
        self._lock = self._lock or Note(self.path.with_name(f".{self.path.name}.break"))
        if not self._lock.take(facts):
            return
        try:
            found = self.read()
            if found is not None and found["token"] == stale:
                self.path.unlink(missing_ok=True)
        finally:
            self._lock.drop(facts["token"])

    def drop(self, token: str) -> None:
        """Give it up if it is still ours."""
        facts = self.read()
        if facts is not None and facts["token"] == token:
            self.path.unlink(missing_ok=True)


class Lease:
    """A note held with a heartbeat; a context manager."""

    def __init__(self, path: Path, **facts: Any) -> None:
        self.note, self.facts = Note(path), owner(**facts)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> bool:
        """Take the lease if it is free; whether that succeeded."""
        if not self.note.take(self.facts):
            return False
        self._thread = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)
        self._thread.start()
        return True

    def wait(self, on_wait: Callable[[dict[str, Any]], None], finished: Callable[[], bool]) -> bool:
        """Wait until the lease is ours (True) or `finished()` says that nobody needs it any more (False)."""
        while True:
            if finished():
                return False
            if self.acquire():
                return True
            holder = self.note.live()
            if holder is not None:
                on_wait(holder)
            time.sleep(0.2)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                facts = self.note.read()
                if facts is not None and facts["token"] == self.facts["token"]:
                    os.utime(self.note.path)
            except OSError:
                continue  # a file system that is away for a moment must not end the heartbeat; publishing is safe without it

    def release(self) -> None:
        """Stop the heartbeat and give the lease up."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self.note.drop(self.facts["token"])
