"""A run in progress: its log, its status, what its task is given, and its last word.

An element is opened from its directory, begun, performed and ended; :mod:`circuits.launch.element` does so with one, or with the
elements of a pack. Whatever happens in between becomes the element's outcome and exit code; nothing is swallowed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from circuits import host
from circuits.run import private, sampler, usage
from circuits.run.signals import StopFlag, Stopped
from circuits.state import State, state_of
from circuits.store.places import LOG, RECORD, SWEEP

KEPT = "what was saved is kept, and the same command goes on from it"
HURRIED_S = 5.0  # for W&B, when we were asked to stop: whoever asked will not wait long

Judge = Callable[[str, int], Any]
"""From the signal, and how often its time was up before, to whether it is queued again and what its status says."""


class Opened:
    """An element in this process: :meth:`begin`, :meth:`perform`, :meth:`end`."""

    def __init__(self, directory: Path, record: dict[str, Any], cfg: Any, place: str) -> None:
        self.directory, self.record, self.cfg, self.place = directory, record, cfg, place
        self.context: Any = None
        """Its task's; None before it has begun, and where it could not."""
        self.status: Any = None
        """None until it has begun, and where not even that could be written."""
        self.failure: BaseException | None = None
        self.trace: str | None = None
        self.judge: Judge | None = None
        """Says what becomes of it when it is stopped, where a scheduler runs it."""
        self.code, self.again = 0, ""
        """How it ended; whether Slurm is to be asked to queue it again ("ask") or has ("queued")."""
        self.recorder: Any = None
        """Of what it takes, from its beginning to its end."""

    @staticmethod
    def at(directory: Path, place: str = "") -> Opened | int:
        """The element of a directory (`place` in a pack is said in its log), or the exit code of one that is none."""
        from circuits.errors import CircuitsError
        from circuits.files import read_json
        from circuits.run import config

        try:
            cfg = config.load(directory / "config.yaml")
            private.declare(cfg.cluster.secrets)
            return Opened(directory, read_json(directory / RECORD), cfg, place)
        except FileNotFoundError as e:
            print(f"error: {e.filename}: no such file; {directory} is no element's directory", file=sys.stderr)
            return 2
        except CircuitsError as e:
            print(f"error: {e}", file=sys.stderr)
            return e.exit_code

    @property
    def together(self) -> str | None:
        """What elements that can be made in one go with this one have equal."""
        from circuits.store import registry

        kind = registry.modules()[self.record["task"]].KIND
        made = kind.together(self.cfg)
        return None if made is None else f"{kind.name} {made}"

    def begin(self, stop: StopFlag, echo: bool = True) -> None:
        """Its log, its status, and what its task is given. `echo`: also to standard output."""
        from circuits.errors import CircuitsError
        from circuits.run.status import Status

        self.log = Log(self.directory / LOG, echo)
        try:
            self.status = Status(self.directory, self.record["task"])
        except CircuitsError as e:
            self.failure = e
            return
        _set_threads(self.cfg.task.resources.cpus or 1)
        host.keep_memory()
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        os.environ.setdefault("TQDM_DISABLE", "1")
        if self.place:
            self.log.write(self.place)
        self.recorder = sampler.Recorder(self.directory, self._phase)
        sampler.SAMPLER.add(self.recorder)
        self.stop = stop
        stop.last_words.append(self._cut_off)
        with self._noting():
            self.context = _context(self.directory, self.record, self.cfg, self.status, stop, self.log)
            self.context.run.usage = lambda: usage.told(self.taken())
            self._profile()

    def perform(self, failure: BaseException | None = None) -> None:
        """Its task; with a `failure` that came before it: only that."""
        from hydra.utils import get_method

        with self._noting():
            try:
                if failure is not None:
                    raise failure
                get_method(self.cfg.task._target_)(self.context)
            finally:
                self.context.run.tracker.close(budget_s=HURRIED_S if self.stop.reason else None)

    def _phase(self) -> str | None:
        progress = self.status.facts.get("progress")
        return progress["phase"] if progress else None

    def taken(self) -> dict[str, Any]:
        """What it has taken so far; nothing of a run of two seconds."""
        from circuits.run.status import peak_gpu

        rows = self.recorder.rows if self.recorder is not None else []
        return usage.summary(rows, self.cfg.task.resources.cpus or 1, peak_gpu() is not None) if len(rows) > 1 else {}

    def _profile(self) -> None:
        """A profiler for what follows, where ``profile=`` asks for one."""
        if (mode := self.cfg.profile.value) != "none":
            from circuits.profiling import Profiler

            self.context.run.profiler = Profiler(self.directory, mode, self.log.write, self.cfg.model.device)
            self.context.run.profiler.begin()

    def _cut_off(self, why: str) -> None:
        """The word of a run that could not come to its end."""
        if state_of(self.status.facts) is not State.running:
            return  # it has had its last word
        error = f"{why}; {KEPT}"
        self.log.write(f"error: {error}")
        self.status.finish(State.interrupted, 128 + signal.SIGTERM, error)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except (Exception, Stopped) as e:
            self.failure, self.trace = e, traceback.format_exc()

    def end(self) -> int:
        """Its last word; its exit code."""
        from circuits.errors import CircuitsError, GateError, UserError

        log, failure, status = self.log, self.failure, self.status
        if status is None:  # it could not even say that it began
            log.write(f"error: {failure}")
            self.code = getattr(failure, "exit_code", 1)
            return self.code
        if self.context is not None and self.context.run.profiler is not None:
            self.context.run.profiler.end()
        sampler.SAMPLER.remove(self.recorder)
        if taken := self.taken():
            status.facts["usage"] = taken
        state, code, error, again = State.done, 0, None, ""
        if isinstance(failure, Stopped):
            state, error, again = _stopped(str(failure), status, self.judge)
            numbers = {"SIGUSR2": signal.SIGUSR2, "SIGINT": signal.SIGINT}
            code, self.trace = 128 + numbers.get(str(failure), signal.SIGTERM), None
        elif isinstance(failure, GateError):
            state, code, error, self.trace = State.gate, failure.exit_code, str(failure), None
        elif isinstance(failure, CircuitsError):
            state, code, error = State.failed, 1, str(failure)
            if isinstance(failure, UserError):
                status.facts["wrong_input"] = True
                self.trace = self.trace if failure.__cause__ is not None else None  # else the line says it all
        elif isinstance(failure, Exception):
            state, code, error = State.failed, 1, _explain(failure, self.cfg)
        if self.trace:
            log.write(self.trace.rstrip())
        error, self.trace = error and private.hide(error), self.trace and private.hide(self.trace)
        log.write(f"error: {error}" if error else "done")
        try:
            status.finish(state, code, error, self.trace)
            _provenance(self.directory, self.record, self.cfg, status)
        except CircuitsError as e:  # a full disk: the exit code still tells
            log.write(f"error: {e}")
            code = code or 1
        self.stop.last_words.remove(self._cut_off)
        self.code, self.again = code, again
        return code


def on_cluster() -> bool:
    """Whether a job of ours runs this (not somebody's own ``salloc`` session)."""
    from circuits.store.leases import worker_job

    return worker_job() is not None


def _stopped(reason: str, status: Any, judge: Judge | None) -> tuple[State, str, str]:
    """Of an element that was asked to stop: its state, the line, and whether Slurm is to be asked to queue it again, or has."""
    if judge is None:
        return State.interrupted, f"stopped ({reason}); {KEPT}", ""
    verdict = judge(reason, status.facts["timeouts"])
    status.facts["timeouts"] += verdict.timed_out
    state = State.failed if verdict.timed_out and not verdict.again else State.interrupted
    return state, verdict.error, "ask" if verdict.again else "queued" if verdict.queued else ""


def _set_threads(count: int) -> None:
    """The task's threads, whatever the shell or an element before us in this process had."""
    os.environ.update(OMP_NUM_THREADS=str(count), MKL_NUM_THREADS=str(count))
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()


class Log:
    """Lines with their time; to standard output, and to run.log when a launcher has not already sent that there."""

    def __init__(self, path: Path, echo: bool = True) -> None:
        self._file: IO[str] | None = None
        self._echo = echo
        if os.environ.get("CIRCUITS_STDOUT_IS_LOG") != str(path):
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")

    def write(self, text: str) -> None:
        """One entry."""
        line = f"{time.strftime('%H:%M:%S')} {private.hide(text)}"
        try:
            if self._echo:
                print(line, flush=True)
            if self._file is not None:
                print(line, file=self._file, flush=True)
        except OSError:
            pass  # a full disk or a closed terminal; the run itself says so where it matters

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _context(directory: Path, record: dict[str, Any], cfg: Any, status: Any, stop: StopFlag, log: Log) -> Any:
    """What the element's task is given, once its gates have been asked."""
    from circuits.files import write_json
    from circuits.run import provenance, tracked
    from circuits.run.context import Context
    from circuits.run.parts import Run
    from circuits.run.tracking import Tracker
    from circuits.store import inputs, registry
    from circuits.store.contents import Contents
    from circuits.store.store import Store

    kind = registry.modules()[record["task"]].KIND
    outputs = Path(cfg.outputs)
    contents = Contents(outputs / "artifacts" / ".hashes.json")
    store = Store(outputs / "artifacts", say=log.write)
    name = f"{record['sweep']}/{record['name']}"
    log.write(f"{name}: {' '.join(record['overrides']) or 'defaults'}; pid {os.getpid()}")
    write_json(
        directory / "provenance.json",
        {"code": provenance.code(), "command": record["command"], "began": status.facts["began"]},
    )
    place = directory if (directory / SWEEP).exists() else directory.parent
    if edited := provenance.edited_since(place / SWEEP):
        log.write(f"warning: {edited}")
    for remark in inputs.remarks(inputs.walk(kind, cfg, tuple(record["layers"]))):
        log.write(f"warning: {remark}")
    tags = tracked.tags(kind, cfg, None)
    tracker = Tracker(directory, cfg.tracking, record["group"], tags, log.write, kind.name)
    layers = tuple(record["layers"])
    try:
        parts = Run(
            cfg,
            layers,
            directory,
            store,
            contents,
            status,
            stop,
            tracker,
            log.write,
            name,
            record["overrides"],
            record["swept"],
        )
        context = Context(parts, kind)
        with stop.cutting():
            _same_keys(context, record)
        for gate in kind.gates(cfg):
            context.gate_of(gate)
    except BaseException:
        tracker.close()
        raise
    return context


def _same_keys(context: Any, record: dict[str, Any]) -> None:
    """An element runs what was submitted: its keys must not have changed since (an edited file, other code)."""
    from circuits.errors import UserError
    from circuits.store.keys import unit

    for key, submitted in ((context.key(one), record["keys"][unit(one)]) for one in context.units):
        if key.hash != submitted:
            raise UserError(
                f"{key.id}: the artifact's key changed since this element was launched ({submitted[:12]} → {key.hash[:12]}): "
                "a file that the config names, or the code's version of the kind, was edited; launch it again"
            )


def _explain(error: Exception, cfg: Any) -> str:
    """One line for an error that nobody foresaw; out of memory names what to lower."""
    first = str(error).splitlines()[0] if str(error) else ""
    kind = type(error).__name__
    if kind == "OutOfMemoryError" or isinstance(error, MemoryError) or "can't allocate memory" in first:
        from circuits.schema.reading import lookup
        from circuits.store import registry

        keys = registry.kind(cfg.task.name).memory_keys
        named = " or ".join(f"{key} ({lookup(cfg, key)})" for key in keys)
        return (
            f"out of memory: {f'lower {named}, ' if named else ''}take fewer layers in one run, or use precision=bf16"
        )
    return f"{kind}: {first}"


def _provenance(directory: Path, record: dict[str, Any], cfg: Any, status: Any) -> None:
    from circuits.files import write_json
    from circuits.run import provenance

    facts = status.facts
    write_json(
        directory / "provenance.json",
        {
            "task": record["task"],
            "sweep": record["sweep"],
            "element": record["name"],
            "command": record["command"],
            "overrides": record["overrides"],
            "seed": cfg.seed,
            "code": provenance.code(),
            "environment": provenance.environment(),
            "inputs": sorted({key for artifact in facts["artifacts"] for key in artifact.get("inputs", [])}),
            "artifacts": [artifact["id"] for artifact in facts["artifacts"]],
            "began": facts["began"],
            "ended": facts["ended"],
            "state": facts["state"],
            "exit_code": facts["exit_code"],
            "wall_s": facts["wall_s"],
            "peak_rss_bytes": facts["peak_rss_bytes"],
            "peak_gpu_bytes": facts["peak_gpu_bytes"],
            **({"usage": facts["usage"]} if "usage" in facts else {}),
        },
    )
