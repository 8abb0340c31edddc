"""``cluster=local``: a bounded pool of worker processes on this machine.

Each worker runs the element's own command in its own session. We hold its standard input: when this process ends, however
it ends, the worker reads end-of-file, saves a checkpoint and exits. Its output goes to the element's log, never through a
pipe of ours (a broken pipe would cost the last checkpoint). A failing element never stops another.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from circuits.errors import CircuitsError, UserError
from circuits.files import read_json
from circuits.run import element as element_module
from circuits.run import gates, machine, registry, status, terminal
from circuits.run.content import Contents
from circuits.run.leases import HEARTBEAT_S, Note, owner
from circuits.run.places import CODE
from circuits.run.plan import Element, Standing
from circuits.run.signals import PARENT_PIPE, StopFlag
from circuits.run.store import Store
from circuits.run.sweep import Sweep, kind_of
from circuits.schema import BaseConfig

POLL_S = 0.1
LOOK_S = 1.0  # between looks at what others are making


class Interrupted(BaseException):
    """This launcher was asked to end (Ctrl-C, TERM, or the terminal closed)."""


@dataclass
class Worker:
    """A running element."""

    element: Element
    process: subprocess.Popen[bytes]
    gpu: int | None


class LocalLauncher:
    """Runs the elements of one sweep and shows how they fare."""

    def __init__(self, sweep: Sweep, elements: list[Element], standing: Standing, store: Store) -> None:
        self.sweep, self.elements, self.standing, self.store = sweep, elements, standing, store
        self.cfg = elements[0].cfg
        self.waiting = list(standing.to_run)
        self.adopted = list(standing.adopted)
        self.workers: list[Worker] = []
        self.claims: dict[int, list[tuple[Note, str]]] = {}  # by element
        self._beaten = self._looked = time.monotonic()
        self.view = terminal.View(sweep, elements)

    def run(self) -> int:
        """All elements to their end; the sweep's exit code."""
        for element in self.standing.cached:
            self._answer_cached(element)
        self.view.header(self.standing, self._pool_size())
        try:
            with _ending_signals(), self._claimed():
                if self.cfg.cluster.workers == 0:
                    self._run_here()
                else:
                    self._run_pool()
        except Interrupted as e:
            self._end_workers()  # first: a terminal that is gone must not keep us from it
            self.view.close()
            self.view.summary(interrupted=str(e))
            return 130
        finally:
            self._end_workers()
        self.view.close()
        self._log_cached()
        self.view.summary()
        self._report()
        return self._exit_code()

    # -- the pool ------------------------------------------------------------------------------------------------

    def _pool_size(self) -> int:
        return pool_size(self.cfg, len(self.standing.to_run) + len(self.adopted))

    def _run_pool(self) -> None:
        size = self._pool_size()
        while self.waiting or self.workers or self.adopted:
            while self.waiting and len(self.workers) < size:
                self.workers.append(self._start(self.waiting.pop(0)))
            for worker in [w for w in self.workers if w.process.poll() is not None]:
                self.workers.remove(worker)
                self._ended(worker)
            self._look_at_adopted()
            self._beat_claims()
            self.view.update()
            time.sleep(POLL_S)

    def _start(self, element: Element) -> Worker:
        directory = self.sweep.directory(element)
        log = directory / element_module.LOG
        gpu = self._free_gpu(element)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "circuits.run.element", str(directory)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._environment(element, log, gpu),
            )
        return Worker(element, process, gpu)

    def _environment(self, element: Element, log: Path, gpu: int | None) -> dict[str, str]:
        threads = str(element.cfg.task.resources.cpus)
        path = os.pathsep.join([str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])])
        extra = {
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "GOMP_SPINCOUNT": os.environ.get(
                "GOMP_SPINCOUNT", "10000"
            ),  # waiting threads soon sleep: cores may be busy
            "TQDM_DISABLE": "1",  # progress bars of libraries would fill the log
            PARENT_PIPE: "1",
            "CIRCUITS_GRACE_S": str(self.cfg.cluster.grace_s),
            "CIRCUITS_STDOUT_IS_LOG": str(log),
        }
        if gpu is not None:
            extra["CUDA_VISIBLE_DEVICES"] = self._visible(gpu)
        return {**os.environ, **extra}

    @staticmethod
    def _visible(gpu: int) -> str:
        names = os.environ.get("CUDA_VISIBLE_DEVICES")
        return names.split(",")[gpu].strip() if names else str(gpu)

    def _free_gpu(self, element: Element) -> int | None:
        """A GPU of its own for each worker; none when there is none, or the config names a device itself."""
        count = machine.gpus()
        if not element.cfg.task.resources.gpus or not count or element.cfg.model.device != "auto":
            return None
        used = [worker.gpu for worker in self.workers]
        return min(range(count), key=used.count)

    def _ended(self, worker: Worker) -> None:
        """Close a finished worker; say on its behalf how it ended if it could not."""
        self._drop_claims(worker.element.index)
        assert worker.process.stdin is not None  # opened with PIPE
        worker.process.stdin.close()
        directory = self.sweep.directory(worker.element)
        facts = status.read(directory)
        code = worker.process.returncode
        if facts.get("state") in status.FINISHED and facts.get("state") != "killed":
            return
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (often: out of memory)" if name == "SIGKILL" else ""
            error = f"killed by {name}{hint}; the last checkpoint is kept"
        else:
            error = _last_error(directory / element_module.LOG) or f"ended with exit code {code} without a word"
        facts.update(state="failed", error=error, exit_code=code, ended=status.now())
        try:
            status.write_plain(directory, **facts)
        except CircuitsError as e:  # the disk is full: the table and the exit code still tell
            self.view.note(str(e))

    def _run_here(self) -> None:
        """Every element in this process, one after the other; a signal lets the running one save its checkpoint."""
        stop = StopFlag()

        def end(number: int, frame: FrameType | None) -> None:
            stop.reason = signal.Signals(number).name

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        while self.waiting or self.adopted:
            if self.waiting:
                element = self.waiting.pop(0)
                element_module.run(self.sweep.directory(element), stop)
                self._drop_claims(element.index)
            if stop.reason is not None:
                raise Interrupted(stop.reason)
            self._look_at_adopted()
            self._beat_claims()
            time.sleep(0 if self.waiting else POLL_S)

    def _end_workers(self) -> None:
        """Ask every worker for its last checkpoint, then end what is still there with its whole session."""
        for worker in self.workers:
            worker.process.terminate()
        deadline = time.monotonic() + self.cfg.cluster.grace_s
        for worker in self.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
            self._ended(worker)
        self.workers = []

    # -- what others have or are making --------------------------------------------------------------------------

    def _answer_cached(self, element: Element) -> None:
        """The element's answer from the store, gates included."""
        kind = kind_of(self.sweep)
        contents = Contents(self.store.root / ".hashes.json")
        asked = gates.refusals(kind.gates(element.cfg), element.cfg, self.store.find, contents)
        entries, gate = [], "; ".join(asked) or None
        for one, key in element.keys.items():
            layer = one[0] if isinstance(one, tuple) else one
            artifact = self.store.find(key)
            if artifact is None:
                raise UserError(f"{key.id} went away while it was being read; run the same command again")
            metrics = read_json(artifact.path / "metrics.json")
            shown = {**metrics, **kind.derived(element.cfg, metrics)}
            entries.append(status.entry(kind, artifact, layer, shown, cached=True))
            gate = gate or kind.gate(element.cfg, metrics)
            self._note_provenance(artifact)
        facts: dict[str, Any] = {"task": kind.name, "began": status.now(), "ended": status.now(), "artifacts": entries}
        if gate:
            facts.update(error=gate, exit_code=3)
        status.write_plain(self.sweep.directory(element), "gate" if gate else "cached", **facts)

    def _note_provenance(self, artifact: Any) -> None:
        """Say when an answer from the store was made by other code, or from another build of an input."""
        here, there = self.sweep.record["code"], artifact.manifest["code"]
        if here["commit"] != there["commit"]:
            self.view.note(
                f"{artifact.id} was made by commit {(there['commit'] or '?')[:10]}; this is {(here['commit'] or '?')[:10]}"
            )
        for name, facts in artifact.manifest["inputs"].items():
            path = self.store.root / facts["id"]
            manifest = path / "manifest.json"
            if manifest.exists() and facts["content"]:
                from circuits.run.store import content_hash

                found = read_json(manifest)
                now = content_hash(found["files"], found.get("measured", ()))
                if now != facts["content"]:
                    self.view.note(
                        f"{artifact.id} was made from another build of its input {name} ({facts['id']}: content "
                        f"{facts['content'][:10]} then, {now[:10]} now); reuse=force makes it anew"
                    )

    def _look_at_adopted(self) -> None:
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        for element in list(self.adopted):
            missing = [key for key in element.keys.values() if self.store.find(key) is None]
            if not missing:
                self.adopted.remove(element)
                self._answer_cached(element)
                self.standing.cached.append(element)
            elif any(self.store.holder(key) is None for key in missing):
                self.adopted.remove(element)  # whoever had it is gone: it is ours now
                self.waiting.append(element)

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        """Claims on what this sweep will make, for other submitters to see; lost ones are theirs to make."""
        facts = owner(by=self.sweep.id)
        for element in list(self.waiting):
            notes = [
                Note(self.store.beside(key, "claim")) for key in element.keys.values() if self.store.find(key) is None
            ]
            taken = [note for note in notes if note.take(facts)]
            self.claims[element.index] = [(note, facts["token"]) for note in taken]
            # What another element of this very sweep will make is not waited for here: the worker waits on its lease.
            ours = any((note.read() or {}).get("token") == facts["token"] for note in notes)
            if notes and not ours and self.cfg.reuse.value == "cached":
                self.waiting.remove(element)
                self.adopted.append(element)
        try:
            yield
        finally:
            for index in list(self.claims):
                self._drop_claims(index)

    def _beat_claims(self) -> None:
        """Touch our claims, for watchers on other hosts."""
        if time.monotonic() - self._beaten < HEARTBEAT_S:
            return
        self._beaten = time.monotonic()
        for claimed in self.claims.values():
            for note, _ in claimed:
                with contextlib.suppress(OSError):
                    os.utime(note.path)

    def _drop_claims(self, index: int) -> None:
        """An element that has ended claims nothing: if it failed, whoever waits for its artifact makes it."""
        for note, token in self.claims.pop(index, []):
            note.drop(token)

    # -- the end -------------------------------------------------------------------------------------------------

    def _log_cached(self) -> None:
        """Cached elements log their stored summary, so that a sweep is whole in W&B too."""
        from circuits.run.tracking import Tracker

        for element in self.standing.cached:
            cfg, directory = element.cfg, self.sweep.directory(element)
            model = cfg.model.id.rsplit("/", 1)[-1]
            tracker = Tracker(
                directory, cfg.tracking, self.sweep.record["group"], [cfg.task.name, model, "cached"], self.view.note
            )
            for item in status.read(directory)["artifacts"]:
                tracker.start(
                    item["layer"], item["id"], _named(element.name, item["layer"]), {"cached": True, **element.swept}
                )
                tracker.log(int(item["metrics"].get("steps", 0)), status.numbers(item["metrics"]), item["layer"])
                tracker.summary(item["metrics"], item["layer"])
            tracker.close()

    def _report(self) -> None:
        try:
            page = registry.modules()["report"].make(self.sweep.path)
            self.view.say(f"report  {terminal.relative(page)}")
        except Exception as e:  # the sweep is done, whatever became of its page
            self.view.note(f"no report ({type(e).__name__}: {e}); task=report of={self.sweep.id} makes it again")

    def _exit_code(self) -> int:
        codes = set()
        for element in self.elements:
            facts = status.read(self.sweep.directory(element))
            codes.add({"done": 0, "cached": 0, "gate": 3}.get(facts.get("state", ""), facts.get("exit_code") or 1))
        codes.discard(0)
        if not codes:
            return 0
        return codes.pop() if len(codes) == 1 and codes <= {2, 3} else 1


def pool_size(cfg: BaseConfig, elements: int) -> int:
    """Worker processes: what ``cluster.workers`` says, else as many as cores and GPUs carry and elements need."""
    if cfg.cluster.workers is not None:
        return cfg.cluster.workers
    fits = max(1, machine.cores() // cfg.task.resources.cpus)
    if cfg.task.resources.gpus and machine.gpus():
        fits = max(1, machine.gpus() // cfg.task.resources.gpus)
    return max(1, min(fits, elements))


def _named(element: str, layer: int | None) -> str:
    return element if layer is None else f"{element}/L{layer}"


def _last_error(log: Path) -> str | None:
    """The last line of a log that says what went wrong."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines[-50:]):
        if "error:" in line.lower():
            return line.split("error:", 1)[-1].strip() or None
    return lines[-1].strip() if lines else None


@contextlib.contextmanager
def _ending_signals() -> Iterator[None]:
    """Ctrl-C, TERM and a closed terminal raise :class:`Interrupted`; a second one is not waited for politely."""

    def end(number: int, frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(signal.Signals(number).name)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    numbers = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]  # nohup stays nohup
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
