"""Leases and claims: notes beside an artifact that say who is making it. They only save double work.

Correctness never rests on them (it rests on the rename that publishes an artifact). A *lease* is held by the process that
is making an artifact: a file created with O_EXCL. A *claim* is held by a live launcher for an element that will make it. Either
is stale when its process is gone (this machine), when its job has ended (this cluster), or when its heartbeat is silent
(:mod:`circuits.store.pulse`). A claim of a cluster's job lives while the job is in the queue under its tag. Of another cluster
whose queue cannot be asked from here it binds nobody: what that cluster really makes holds a lease, with a heartbeat.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from circuits.files import read_bytes
from circuits.store import pulse

SAME_START_S = 5.0  # start times carry the boot time, which shifts by a second as the clock is corrected
LOOK_S = 0.2  # between looks at what is waited for


def owner(**facts: Any) -> dict[str, Any]:
    """Who this process is: machine, pid and its start time (a pid alone may be reused); inside a cluster's job, which one."""
    return {
        **_worker_job(),
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "token": uuid.uuid4().hex,
        **facts,
    }


@lru_cache
def machine() -> str:
    """What tells this machine, as it was booted, from others of the same name, and a container from others on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return f"{uuid.getnode():x}"


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
        "cluster": os.environ.get("CIRCUITS_SLURM_CLUSTER"),
    }


def elsewhere(facts: Mapping[str, Any]) -> bool:
    """Whether `facts` are of a job of another cluster than the one whose queue is asked here (or of any, where there is none)."""
    from circuits import slurm_commands as commands

    if not commands.asks():
        return True
    theirs, ours = facts.get("cluster"), commands.cluster()
    return theirs is not None and ours is not None and theirs != ours


def _job_ended(facts: Mapping[str, Any]) -> bool:
    """Whether the owner ran inside a job (or a turn of a requeued job) that is known to have ended."""
    job = facts.get("worker_job")
    if job is None:
        return False
    here = _worker_job()
    if here.get("worker_job") == job and here.get("cluster") == facts.get("cluster"):
        return bool(here["incarnation"] != facts["incarnation"])
    if facts["uid"] != os.getuid() or elsewhere(facts):
        return False  # only the heartbeat tells
    from circuits.slurm_commands import element_alive

    return element_alive(job) is False


def process_alive(host: str, pid: int, started: float, on: str | None = None) -> bool | None:
    """Whether that process lives; None when it is on another machine (than `on`, where that was noted) and cannot be seen."""
    if host != socket.gethostname() or (on is not None and on != machine()):
        return None
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < SAME_START_S and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_me(facts: Mapping[str, Any]) -> bool:
    """Whether `facts` are of this very process."""
    mine = owner()
    return all(facts.get(name) == mine[name] for name in ("host", "machine", "pid", "started"))


def certainly_gone(facts: Mapping[str, Any]) -> bool:
    """Whether the owner is known to be gone, and not only silent: it will never write again."""
    here = process_alive(facts["host"], facts["pid"], facts["started"], facts.get("machine"))
    return not here if here is not None else _job_ended(facts)


class Note:
    """One lease or claim file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._watch: tuple[str, pulse.Watch] | None = None  # of the owner with this token
        self._lock: Note | None = None  # held while a stale note is removed

    def read(self) -> dict[str, Any] | None:
        """The owner's facts, or None when nobody holds it."""
        try:
            facts = json.loads(read_bytes(self.path))
            if isinstance(facts, dict) and {"host", "pid", "started", "token"} <= facts.keys():
                return facts
        except FileNotFoundError:
            return None
        except (ValueError, OSError):
            pass
        beat = self._beat()  # being written, or its writer died, or it is not ours to read: it ages like any other
        return None if beat is None else {"host": "?", "pid": 0, "started": 0.0, "token": f"? {beat}"}

    def _beat(self) -> tuple[int, int] | None:
        try:
            facts = self.path.stat()
        except OSError:
            return None
        return facts.st_ino, facts.st_mtime_ns

    def look(self) -> tuple[dict[str, Any] | None, bool | None]:
        """The owner's facts, and whether it lives: None where that takes another look, a heartbeat later."""
        facts = self.read()
        if facts is None:
            return None, False
        if "job" in facts:  # a claim of an array element
            from circuits.slurm_commands import element_alive

            gone = elsewhere(facts) or element_alive(facts["job"], facts["tag"], facts["uid"]) is False
            return facts, not gone
        alive = process_alive(facts["host"], facts["pid"], facts["started"], facts.get("machine"))
        if alive is not None:
            return facts, alive
        if _job_ended(facts):
            return facts, False
        beat = self._beat()
        if beat is None:
            return None, False
        if self._watch is None or self._watch[0] != facts["token"]:
            self._watch = facts["token"], pulse.Watch()
        return facts, self._watch[1].look(beat)

    def live(self) -> dict[str, Any] | None:
        """The facts of an owner that lives, as far as can be told, else None."""
        facts, alive = self.look()
        return None if alive is False else facts

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

    def beat(self, token: str) -> None:
        """Touch it if it is still ours: a sign of life for watchers on other hosts."""
        facts = self.read()
        if facts is not None and facts["token"] == token:
            os.utime(self.path)


class Lease:
    """A note held with a heartbeat, from :meth:`acquire` or :meth:`wait` to :meth:`release`."""

    def __init__(self, path: Path | Note, **facts: Any) -> None:
        self.note, self.facts = path if isinstance(path, Note) else Note(path), owner(**facts)
        self._held = False

    def acquire(self) -> bool:
        """Take the lease if it is free; whether that succeeded."""
        if not self.note.take(self.facts):
            return False
        self._held = True
        pulse.PULSE.add(self.beat)
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
            time.sleep(LOOK_S)

    def beat(self) -> None:
        """A sign of life, while it is still ours."""
        self.note.beat(self.facts["token"])

    def release(self) -> None:
        """Stop the heartbeat and give the lease up."""
        pulse.PULSE.remove(self.beat)
        if self._held:
            self._held = False
            self.note.drop(self.facts["token"])


def settle(
    notes: Sequence[Note], tell: Callable[[Note, dict[str, Any], bool | None], None], pause: Callable[[], None]
) -> None:
    """Look until it is known of every note whether its owner lives: for at most `pulse.STALE_S` seconds.

    Args:
        notes: leases and claims; kept by the caller, so that what was seen of them is remembered.
        tell: told who is watched (None), once, and in the end whether they live.
        pause: called between looks; may end it.
    """
    unsure: dict[Note, dict[str, Any]] = {}
    while True:
        for note in notes if not unsure else list(unsure):
            facts, alive = note.look()
            if facts is not None and alive is None:
                if note not in unsure:
                    tell(note, facts, None)
                unsure[note] = facts
            elif note in unsure:
                tell(note, unsure.pop(note), bool(alive))
        if not unsure:
            return
        pause()
        time.sleep(LOOK_S)
