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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from circuits import host
from circuits.errors import CircuitsError
from circuits.launch import answers, cores, memory, planning, terminal
from circuits.launch import element as element_module
from circuits.launch.packs import next_pack, packs
from circuits.launch.plan import Element, Plan
from circuits.launch.sweep import Sweep
from circuits.run import machine, status
from circuits.run.running import KEPT
from circuits.run.signals import PARENT_PIPE, SAME_SIGNAL_S, StopFlag, Stopped
from circuits.schema import BaseConfig
from circuits.state import State, state_of
from circuits.store import pulse
from circuits.store.keys import Key
from circuits.store.layers import ranges
from circuits.store.leases import Lease, Note, owner
from circuits.store.places import CODE, LAUNCHER, LOG
from circuits.store.store import Store

POLL_S = 0.1
LOOK_S = 1.0  # between looks at what others are making
AGAIN_ENDS_IT = "Ctrl-C again ends it"


class Interrupted(BaseException):
    """This launcher was asked to end (Ctrl-C, TERM, or the terminal closed)."""


@dataclass
class Worker:
    """A process that runs a pack of elements: one, unless ``pack=N`` says otherwise."""

    elements: list[Element]
    process: subprocess.Popen[bytes]
    gpus: list[int]
    since: int  # bytes that its log had before it
    memory_kills: int | None = None  # of the kernel, before it
    ended_by_us: str = ""  # why, where this launcher did not wait for its end


class Local:
    """This machine as a backend: nothing is queued, a run waits for its inputs by itself."""

    def refuse(self, elements: Sequence[Element]) -> None:
        """Nothing, before it is known what of them is there."""

    def alone(self, store: Store, say: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
        """Many may launch at a time."""
        return contextlib.nullcontext()

    def settle(self, store: Store, keys: Iterable[Key]) -> None:
        """The launcher stays, and looks again."""

    def job_of(self, holder: Mapping[str, Any]) -> str | None:
        """There is no queue."""
        return None

    def requests(self, elements: Sequence[Element]) -> Mapping[int, Any]:
        """None."""
        return {}

    def packs(self, elements: Sequence[Element], store: Store) -> list[list[Element]]:
        """As ``pack=N`` says."""
        return packs(elements)

    def start(self, plan: Plan, sweep: Callable[[], Sweep]) -> Callable[[], int]:
        """Refuse what does not fit here, then run."""
        pool = pool_size(plan.cfg, len(plan.standing.to_run))
        memory.refuse(plan.packs, pool)
        planning.room(plan.standing.to_run, pool)
        return LocalLauncher(sweep(), plan).run


class LocalLauncher:
    """Runs the elements of one plan and shows how they fare."""

    def __init__(self, sweep: Sweep, plan: Plan) -> None:
        self.sweep, self.elements, self.standing, self.store = sweep, plan.elements, plan.standing, plan.store
        self.cfg, self.after = plan.cfg, {index: set(after.elements) for index, after in plan.after.items()}
        self.waiting = list(self.standing.to_run)
        self.adopted = list(self.standing.adopted)
        self.workers: list[Worker] = []
        self.told: dict[int, str | None] = {}  # what an element that waits was last said to wait for
        self.claims: dict[int, list[tuple[Note, str]]] = {}  # by element
        self._looked = time.monotonic()
        self._gpu_memory = machine.gpu_memory()
        self.view = terminal.View(sweep, plan.elements)

    def run(self) -> int:
        """All elements to their end; the sweep's exit code."""
        answers.answer_all(self.sweep, self.standing.cached, self.store, self.view.note)
        answers.refuse(self.sweep, self.standing.refused)
        for element in (*self.waiting, *self.adopted):  # when recovered, they may have ended before
            status.wait_again(self.sweep.directory(element), element.cfg.task.name)
        self.view.header(self.standing, self._pool_size())
        with _ending_signals() as again:
            try:
                with self._claimed():
                    if self.cfg.cluster.workers == 0:
                        self._run_here()
                    else:
                        self._run_pool()
            except (Interrupted, Stopped) as e:  # the latter: asked again, between two elements in this process
                self._stop_workers()  # first: a terminal that is gone must not keep us from it
                with contextlib.suppress(OSError):
                    self.view.close()
                    self._say_stopping()
                self._end_workers(again)
                with contextlib.suppress(OSError):
                    self.view.summary(interrupted=str(e))
                return 130
            finally:
                self._stop_workers()
                self._end_workers(again)
        self.view.close()
        cached = [self.sweep.directory(element) for element in self.standing.cached]
        with answers.telling(self.sweep, cached, self.view.note):
            self.view.summary()
            known = {element.index: status.read(self.sweep.directory(element)) for element in self.elements}
            answers.write_failed(self.sweep, known, self.view.note)
            page = answers.make_report(self.sweep, self.view.note)
        if page is not None:
            self.view.say(f"report  {terminal.relative(page)}")
        return answers.exit_code(known.values())

    # -- the pool ------------------------------------------------------------------------------------------------

    def _pool_size(self) -> int:
        return pool_size(self.cfg, len(self.standing.to_run) + len(self.adopted))

    def _run_pool(self) -> None:
        size = self._pool_size()
        while self.waiting or self.workers or self.adopted:
            while len(self.workers) < size and (ready := self._ready()):
                pack = next_pack(ready)
                self.waiting = [element for element in self.waiting if element not in pack]
                self.workers.append(self._start(pack))
            for worker in [w for w in self.workers if w.process.poll() is not None]:
                self.workers.remove(worker)
                self.waiting[:0] = self._ended(worker)
            self._look_at_adopted()
            self._tell_why()
            self.view.update()
            time.sleep(POLL_S)

    def _ready(self) -> list[Element]:
        """The elements whose turn it is. One whose input was not made has no turn: it is closed, and says why."""
        for element in list(self.waiting):
            for before in sorted(self.after.get(element.index, ())):
                state = state_of(status.read(self.sweep.directory(self.elements[before])))
                if state.well:
                    self.after[element.index].discard(before)
                elif not state.live:
                    self._give_up(element, f"element {before}, which makes an input of it, ended as {state}")
                    break
        return [element for element in self.waiting if not self.after.get(element.index)]

    def _tell_why(self) -> None:
        """Note what elements wait for, where it is something else than a free worker."""
        for element in self.waiting:
            before = sorted(self.after.get(element.index, ()))
            one = (
                "for element {}, which makes an input of it"
                if len(before) == 1
                else "for elements {}, which make its inputs"
            )
            turn = "for its turn" if self.cfg.cluster.workers == 0 else None
            self._note_why(element, one.format(ranges(before)) if before else turn)
        for element in self.adopted:
            self._note_why(element, "for another process, which makes the same")

    def _note_why(self, element: Element, why: str | None) -> None:
        if self.told.get(element.index) != why:
            self.told[element.index] = why
            status.waits(self.sweep.directory(element), why)

    def _give_up(self, element: Element, why: str) -> None:
        self.waiting.remove(element)
        self._drop_claims(element.index)
        directory = self.sweep.directory(element)
        status.write_plain(directory, State.cancelled, task=element.task, error=f"not started: {why}", exit_code=1)

    def _start(self, pack: list[Element]) -> Worker:
        element, directories = pack[0], [self.sweep.directory(one) for one in pack]
        for other in pack[1:]:
            self._note_why(other, "for its turn in the pack")
        directory = directories[0]
        log = directory / LOG
        gpus = self._free_gpus(element)
        since, memory_kills = log.stat().st_size if log.exists() else 0, host.memory_kills()
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "circuits.launch.element", *map(str, directories)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._environment(element, log, gpus),
            )
        return Worker(pack, process, gpus, since, memory_kills)

    def _environment(self, element: Element, log: Path, gpus: list[int]) -> dict[str, str]:
        threads = str(element.cfg.task.resources.cpus or 1)
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
        if machine.gpus():  # by the numbers that nvidia-smi shows, and not the fastest first
            extra["CUDA_DEVICE_ORDER"] = os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        if gpus:
            extra["CUDA_VISIBLE_DEVICES"] = self._visible(gpus)
        return {**os.environ, **extra}

    @staticmethod
    def _visible(gpus: list[int]) -> str:
        """The names of some of the GPUs that we see."""
        names = os.environ.get("CUDA_VISIBLE_DEVICES")
        return ",".join(names.split(",")[gpu].strip() if names else str(gpu) for gpu in gpus)

    def _free_gpus(self, element: Element) -> list[int]:
        """The GPUs of a worker: those that fewest others of ours use, and of these the ones with the most free memory. None when
        there are none, or the config names one by its number: the worker finds that itself."""
        if element.cfg.model.device not in ("auto", "cuda"):
            return []
        used, known = [gpu for worker in self.workers for gpu in worker.gpus], self._gpu_memory
        numbers = machine.gpus_for(element.cfg.model.device)
        numbers.sort(key=lambda gpu: (used.count(gpu), -known[gpu].free if gpu in known else 0))
        return numbers[: element.cfg.task.resources.gpus]

    def _ended(self, worker: Worker) -> list[Element]:
        """Close a finished worker; say on its behalf how it ended if it could not. The elements that it never began."""
        assert worker.process.stdin is not None  # opened with PIPE
        worker.process.stdin.close()
        left = [one for one in worker.elements[1:] if state_of(status.read(self.sweep.directory(one))) is State.waiting]
        for element in worker.elements:
            if element not in left:
                self._drop_claims(element.index)
                self._last_word(element, worker)
        return left

    def _last_word(self, element: Element, worker: Worker) -> None:
        """How an element ended, where its process could not say so itself."""
        directory, code = self.sweep.directory(element), worker.process.returncode
        facts = status.read(directory)
        if not state_of(facts).live and state_of(facts) is not State.killed:
            return
        state = State.failed
        if worker.ended_by_us:
            state, error, code = State.interrupted, f"{worker.ended_by_us}; {KEPT}", 130
        elif code < 0:
            error = f"{killed_by(-code, worker.memory_kills, host.memory_kills())}; {KEPT}"
        else:
            error = status.last_error(directory / LOG, worker.since) or f"ended with exit code {code} without a word"
        facts.update(state=state, error=error, exit_code=code, ended=status.now())
        try:
            status.write_plain(directory, **facts)
        except CircuitsError as e:  # the disk is full: the table and the exit code still tell
            self.view.note(str(e))

    def _run_here(self) -> None:
        """Every element in this process, one after the other; a signal lets the running one save its checkpoint."""
        stop = _Here().install(numbers=heard(), watch=False)
        while self.waiting or self.adopted:
            self._tell_why()
            if ready := self._ready():
                element = ready[0]
                self.waiting.remove(element)
                element_module.run(self.sweep.directory(element), stop)
                self._drop_claims(element.index)
            if stop.reason is not None:
                raise Interrupted(stop.reason)
            self._look_at_adopted()
            time.sleep(0 if self.waiting else POLL_S)

    def _stop_workers(self) -> None:
        """Ask every worker for its last checkpoint."""
        for worker in self.workers:
            worker.process.terminate()

    def _say_stopping(self) -> None:
        if self.workers:
            self.view.say(f"stopping: saving checkpoints, up to {self.cfg.cluster.grace_s:g} s; {AGAIN_ENDS_IT}")

    def _end_workers(self, again: Callable[[], bool]) -> None:
        """Wait for the workers that were asked to stop, then end what is still there with its whole session.

        Their time is ``cluster.grace_s``, or until we are asked `again`.
        """
        deadline = time.monotonic() + self.cfg.cluster.grace_s
        while any(worker.process.poll() is None for worker in self.workers):
            if again() or time.monotonic() >= deadline:
                break
            time.sleep(POLL_S / 2)
        grace = f"came to no safe point within cluster.grace_s={self.cfg.cluster.grace_s:g} s, and was ended by the launcher"
        why = "ended at once: the launcher was asked to stop a second time" if again() else grace
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.ended_by_us = why
            elif worker.process.returncode == -signal.SIGTERM:  # of ours, before it could hear it
                worker.ended_by_us = "stopped as it started"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
            for element in self._ended(worker):
                self._drop_claims(element.index)
                error = "not begun; the same command runs it"
                status.write_plain(
                    self.sweep.directory(element),
                    State.interrupted,
                    task=element.task,
                    error=error,
                    exit_code=130,
                )
        self.workers = []

    # -- what others have or are making --------------------------------------------------------------------------

    def _answer_cached(self, element: Element) -> None:
        answers.answer_cached(self.sweep, element, self.store, self.view.note)

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
        launcher = Lease(self.sweep.path / LAUNCHER, by=self.sweep.id)
        launcher.acquire()
        pulse.PULSE.add(self._beat)
        for element in list(self.waiting):
            notes = [self.store.note(key, "claim") for key in element.keys.values() if self.store.find(key) is None]
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
            pulse.PULSE.remove(self._beat)
            launcher.release()

    def _beat(self) -> None:
        """A sign of life of our claims, for watchers on other hosts."""
        for claimed in list(self.claims.values()):
            for note, token in claimed:
                with contextlib.suppress(OSError):
                    note.beat(token)

    def _drop_claims(self, index: int) -> None:
        """An element that has ended claims nothing: if it failed, whoever waits for its artifact makes it."""
        for note, token in self.claims.pop(index, []):
            note.drop(token)


def pool_size(cfg: BaseConfig, elements: int) -> int:
    """Worker processes: what ``cluster.workers`` says, else as many as cores and GPUs carry and elements need."""
    fits = max(1, machine.cores() // (cfg.task.resources.cpus or 1))
    if cfg.task.resources.gpus and (numbers := machine.gpus_for(cfg.model.device)):
        fits = max(1, len(numbers) // cfg.task.resources.gpus)
    return cores.workers(elements, cfg.pack, cfg.cluster.workers, fits)


def heard() -> list[signal.Signals]:
    """The signals that end a launcher, but for what it was started to ignore: nohup stays nohup."""
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def _ending_signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C, TERM and a closed terminal raise :class:`Interrupted`, once; yields whether we were asked again since then."""
    came: list[float] = []

    def end(number: int, frame: FrameType | None) -> None:
        came.append(time.monotonic())
        if len(came) == 1:
            raise Interrupted(signal.Signals(number).name)

    before = {number: signal.signal(number, end) for number in heard()}
    try:
        yield lambda: bool(came) and came[-1] - came[0] > SAME_SIGNAL_S
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Here(StopFlag):
    """Of an element that runs in the launcher's own process: a second signal ends it where it stands."""

    def first(self, name: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that is gone
            os.write(2, f"stopping: saving a checkpoint; {AGAIN_ENDS_IT}\n".encode())

    def second(self, name: str, number: int) -> None:
        if not self._cut:
            self._cut = True
            raise Stopped(f"{name}, asked again")


def killed_by(number: int, before: int | None, after: int | None) -> str:
    """Who ended a process with signal `number`: what is known of it. The counts are of :func:`circuits.host.memory_kills`."""
    name = signal.Signals(number).name
    if number == signal.SIGKILL and None not in (before, after) and after != before:
        return f"killed by {name}: the kernel ran out of memory and ended a process meanwhile (see dmesg)"
    return f"killed by {name}, sent by something else than this launcher"
