"""``status.json``: what a run is doing, written by the run itself, read by whoever asks.

The states are those of :class:`circuits.state.State`. A reader trusts "running" only while the process lives (on another host:
until its heartbeat is silent, see :mod:`circuits.store.pulse`); else the run was killed, and says so.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.files import read_json, write_json
from circuits.run.pace import Pace
from circuits.state import State, state_of
from circuits.store import pulse
from circuits.store.leases import LOOK_S, owner, process_alive, worker_job

if TYPE_CHECKING:
    from circuits.store.kinds import Kind
    from circuits.store.store import Artifact

FILE = "status.json"
WRITE_EVERY_S = 0.5
FRESH_S = 3 * pulse.HEARTBEAT_S  # a status this new, by whatever clock, is not looked at twice


def now() -> str:
    """The time as people and programs read it: ISO 8601 with the zone, to the second."""
    return dt.datetime.now().astimezone().isoformat(timespec="seconds")


def peak_rss() -> int:
    """Peak resident memory of this process, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_gpu() -> int | None:
    """Peak memory that this process allocated of a CUDA device (of several: the most), bytes; None where it used none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return max((int(torch.cuda.max_memory_allocated(i)) for i in range(torch.cuda.device_count())), default=0) or None


_waited = 0.0


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Others make what this process needs: the time counts for none of the runs in it (:meth:`Status.cost`)."""
    global _waited
    begin = time.monotonic()
    try:
        yield
    finally:
        _waited += time.monotonic() - begin


def worked() -> float:
    """A clock that stands while this process waits for others, seconds."""
    return time.monotonic() - _waited


class Status:
    """The writer's side, for one run directory."""

    def __init__(self, run_dir: Path, task: str) -> None:
        self.path = run_dir / FILE
        before = read(run_dir)
        self._began, self._written = worked(), 0.0
        self._pace: Pace | None = None
        self._phase: str | None = None
        who = owner()
        self.facts: dict[str, Any] = {
            "state": State.running,
            "task": task,
            "host": who["host"],
            "pid": who["pid"],
            "machine": who["machine"],
            "process_started": who["started"],
            "restarts": before.get("restarts", 0) + (state_of(before) is not State.waiting),
            "timeouts": before.get("timeouts", 0),
            "job": worker_job(),
            "began": now(),
            "ended": None,
            "progress": None,
            "error": None,
            "traceback": None,
            "exit_code": None,
            "wall_s": 0.0,
            "peak_rss_bytes": 0,
            "peak_gpu_bytes": None,
            "artifacts": [],
        }
        self.write()
        pulse.PULSE.add(self.beat)

    def cost(self) -> dict[str, Any]:
        """What the run has taken so far: seconds, less those in which it waited for others' work, and peaks of memory in bytes."""
        seconds = round(worked() - self._began, 3)
        return {"run_s": seconds, "peak_rss_bytes": peak_rss(), "peak_gpu_bytes": peak_gpu()}

    def beat(self) -> None:
        """A sign of life, also while the run has nothing to say."""
        os.utime(self.path)

    def progress(self, phase: str, done: float, total: float | None, unit: str, metrics: dict[str, float]) -> None:
        """Where the run is; written at most every half second, a new phase at once: it may be long and say no more."""
        moment = time.monotonic()
        fresh = phase != self._phase
        if fresh or self._pace is None:
            self._phase, self._pace = phase, Pace(moment, done)
        rate = self._pace.at(moment, done)
        self.facts["progress"] = {
            "phase": phase,
            "done": done,
            "total": total,
            "unit": unit,
            "rate": rate,
            "eta_s": max(0.0, total - done) / rate if rate and total is not None else None,
            "metrics": metrics,
        }
        if fresh or moment - self._written >= WRITE_EVERY_S or (total is not None and done >= total):
            self.write(durable=False)

    def finish(self, state: State, exit_code: int, error: str | None = None, traceback: str | None = None) -> None:
        """The last word of the run."""
        pulse.PULSE.remove(self.beat)
        self.facts.update(state=state, exit_code=exit_code, error=error, traceback=traceback, ended=now())
        self.write()

    def write(self, durable: bool = True) -> None:
        """Write the file now."""
        self._written = time.monotonic()
        spent = self.cost()
        self.facts.update(
            wall_s=spent["run_s"], peak_rss_bytes=spent["peak_rss_bytes"], peak_gpu_bytes=spent["peak_gpu_bytes"]
        )
        write_json(self.path, self.facts, durable)


def write_plain(run_dir: Path, state: State, **facts: Any) -> None:
    """A status written on behalf of a run that has no process: waiting, cached, or killed before it could say so."""
    plain = {"state": state, "restarts": 0, "timeouts": 0, "began": None, "ended": None, "progress": None, "error": None,
             "traceback": None, "exit_code": None, "wall_s": 0.0, "peak_rss_bytes": 0, "peak_gpu_bytes": None,
             "artifacts": []}  # fmt: skip
    write_json(run_dir / FILE, {**plain, **facts}, durable=False)


def wait_again(run_dir: Path, task: str) -> None:
    """An element that is to run anew waits, whatever became of it before; the turns that it had are counted."""
    before = read(run_dir, trust_running=True)
    if not before or state_of(before) is not State.waiting:
        had_begun = "pid" in before  # its process wrote that, or somebody on its behalf
        write_plain(run_dir, State.waiting, task=task, restarts=before.get("restarts", 0) + had_begun)


def waits(run_dir: Path, reason: str | None) -> None:
    """An element that waits does so for this; None: for its turn, like any other."""
    facts = read(run_dir, trust_running=True)
    if facts and state_of(facts) is State.waiting:
        write_json(run_dir / FILE, {**facts, "reason": reason}, durable=False)


def read(run_dir: Path, trust_running: bool = False) -> dict[str, Any]:
    """The status of a run directory, with "running" turned into "killed" when nobody is there any more.

    `trust_running` leaves that judgement to the caller, who knows what the scheduler says.
    """
    path = run_dir / FILE
    try:
        facts = read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError:
        return _unreadable(path)
    if facts.get("state") not in list(State):
        return _unreadable(path)
    if facts["state"] == State.running and not trust_running and _alive(path, facts) is False:
        facts["state"] = State.killed
        facts["error"] = facts["error"] or "its process is gone and left no word; what was saved is kept"
    return facts


def _unreadable(path: Path) -> dict[str, Any]:
    """What stands for a status that is damaged, or of another version of this program."""
    return {"state": State.failed, "error": f"{path}: not readable", "restarts": 0, "artifacts": []}


_watches: dict[tuple[Path, int, float], pulse.Watch] = {}  # by file and process


def _alive(path: Path, facts: Mapping[str, Any]) -> bool | None:
    """Whether the process of a running element lives; None when that takes another look, a heartbeat later."""
    alive = process_alive(facts["host"], facts["pid"], facts["process_started"], facts.get("machine"))
    if alive is not None:
        return alive
    try:
        beat = path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
    watch = _watches.setdefault((path, facts["pid"], facts["process_started"]), pulse.Watch())
    return watch.look(beat)


def look_twice(run_dirs: Iterable[Path], say: Callable[[str], None]) -> None:
    """Look at elements that run on other hosts until it is known whether they do; what was written just now is believed.

    Only then :func:`read` can tell which of them were killed.
    """
    unsure = {path: facts for path in run_dirs if (facts := _unsure(path))}
    if unsure:
        hosts = " ".join(sorted({str(facts["host"]) for facts in unsure.values()}))
        say(f"waiting for a sign of life from {hosts}, up to {pulse.STALE_S:g} s")
    while unsure:
        time.sleep(LOOK_S)
        unsure = {path: facts for path in unsure if (facts := _unsure(path))}


def _unsure(run_dir: Path) -> dict[str, Any] | None:
    """The status of an element of which one look more is needed, else None."""
    try:
        facts = read_json(run_dir / FILE)
        if facts["state"] != State.running or _alive(run_dir / FILE, facts) is not None:
            return None
        return None if abs(time.time() - (run_dir / FILE).stat().st_mtime) < FRESH_S else dict(facts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def last_error(log: Path, since: int = 0) -> str | None:
    """The last line of a log (from byte `since` on) that says what went wrong."""
    try:
        lines = log.read_bytes()[since:].decode(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines[-50:]):
        if "error:" in line.lower():
            return line.split("error:", 1)[-1].strip() or None
    return lines[-1].strip() if lines else None


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers among metrics."""
    return {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def entry(
    kind: Kind, artifact: Artifact, layer: int | None, metrics: Mapping[str, Any], cached: bool
) -> dict[str, Any]:
    """An artifact as a run's status lists it."""
    kept: dict[str, Any] = dict(numbers(metrics))
    kept.update({c.interval: metrics[c.interval] for c in kind.columns if c.interval and c.interval in metrics})
    if any(c.headings for c in kind.columns):
        kept["metric"] = metrics.get("metric")
    return {
        "id": artifact.id,
        "kind": kind.name,
        "layer": layer,
        "path": str(artifact.path),
        "cached": cached,
        "inputs": [facts["id"] for facts in artifact.manifest["inputs"].values()],
        "metrics": kept,
    }
