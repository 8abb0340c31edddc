"""Submitting a sweep so that a client killed between any two steps leaves no orphan and no double.

The steps, under a store-wide lease::

    announce   outputs/artifacts/.submissions/<sweep>.json: who submits what, under which tag
    sbatch     each array, held; the tag is its comment
    depend     elements that wait for others (one scontrol)
    closing    of a pipeline: the job that makes its page, after all others
    record     jobs.json in the sweep's directory: every array's id; from here on the submission stands
    claim      beside every artifact to be made: which element of which job will make it
    release    the arrays; then the announcement goes

Whoever submits next looks at announcements whose process is gone: with a record the submission is *rolled forward* (claims,
release), without one it is *rolled back* (what carries its tag is cancelled: nobody was told of it). sbatch is never repeated
blindly.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import psutil

from circuits import slurm_commands as commands
from circuits.console import console
from circuits.errors import CircuitsError, RunError
from circuits.files import read_json, write_json
from circuits.launch.plan import After
from circuits.launch.slurm.script import Array
from circuits.run import status
from circuits.state import State, state_of
from circuits.store.leases import Lease, owner, process_alive
from circuits.store.store import Store

RECORD = "jobs.json"
NOTES, SUBMIT = ".submissions", "submit.lease"
INTERRUPTED = "its submission was interrupted; the same command submits it"
STRAY_S = 20.0  # a client killed while sbatch ran: its job may appear this much later


@contextlib.contextmanager
def alone(store: Store, say: Callable[[str], None]) -> Iterator[None]:
    """The store-wide lease on submitting; what an interrupted submission left is settled first."""
    folder = store.root / NOTES
    folder.mkdir(parents=True, exist_ok=True)
    lease = Lease(folder / SUBMIT)
    told: list[str] = []

    def waiting(holder: dict[str, Any]) -> None:
        if not told:
            told.append("")
            say(f"waiting for another submission into this store (pid {holder['pid']} on {holder['host']})")

    lease.wait(waiting, lambda: False)
    try:
        commands.forget()
        settle(store, say)
        yield
    finally:
        lease.release()


def settle(store: Store, say: Callable[[str], None]) -> None:
    """Roll interrupted submissions forward or back. Only under :func:`alone`."""
    for path in sorted((store.root / NOTES).glob("*.json")):
        try:
            note = read_json(path)
        except ValueError:
            path.unlink(missing_ok=True)  # it was never announced whole, so nothing was submitted
            continue
        if note.get("cluster") not in (None, commands.cluster()):
            continue  # another cluster's: only from there can its jobs be asked for, released or cancelled
        if process_alive(note["host"], note["pid"], note["started"], note.get("machine")):
            continue  # cannot be: it would hold the lease
        if note.get("uid", os.getuid()) != os.getuid():
            continue  # a colleague's: only they may touch their jobs
        sweep = Path(note["sweep"])
        record = read_record(sweep)
        if record is not None and record["tag"] == note["tag"]:
            _claim(store, record)
            _wait_again(sweep, note, record)
            commands.release([array["job"] for array in record["arrays"]])  # what closes a study was never held
            say(f"{sweep.name}: its submission was interrupted and is now complete")
        else:
            found = _strays(note)
            commands.cancel(found)
            _never_started(sweep, note, INTERRUPTED)
            say(f"{sweep.name}: its submission was interrupted; {' '.join(found) or 'nothing'} of it was cancelled")
        path.unlink(missing_ok=True)


def _wait_again(sweep: Path, note: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """What is still held waits, whatever became of it in an earlier submission; what was released may have begun."""
    queued = commands.queue(",".join(array["job"] for array in record["arrays"]))
    jobs = [job for array in record["arrays"] for job in places_of(array).values()]
    for job, (name, task) in zip(jobs, _announced(note), strict=True):
        if job in queued and queued[job].reason == "JobHeldUser":
            status.wait_again(sweep / name, task)


def _strays(note: Mapping[str, Any]) -> list[str]:
    """Arrays under the note's tag. An sbatch whose client was killed may still be talking to the controller: it is waited for.

    On this machine its process can be seen; one on another login node is given `STRAY_S` seconds from the announcement.
    """
    here = note["host"] == socket.gethostname()
    end = time.time() + STRAY_S
    while True:
        busy = _sbatch_runs() if here else time.time() - note["announced"] < STRAY_S
        found = commands.tagged(note["tag"])  # after the look at processes: what has ended by then is in the queue
        if not busy or time.time() > end:
            return found
        time.sleep(0.3)


def _sbatch_runs() -> bool:
    """Whether an sbatch of this user still runs on this machine: the lease on submitting is ours, so its client is gone."""
    for process in psutil.process_iter(["name", "uids"]):
        if process.info["name"] == "sbatch" and process.info["uids"].real == os.getuid():
            return True
    return False


def _announced(note: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The directory and the task of each announced element; an older version announced one task for all."""
    directories = note["directories"]
    return zip(directories, note.get("tasks") or [note["task"]] * len(directories), strict=True)


def _never_started(sweep: Path, note: Mapping[str, Any], why: str) -> None:
    for name, task in _announced(note):
        directory = sweep / name
        if state_of(status.read(directory)) is State.waiting:
            status.write_plain(directory, State.failed, task=task, error=why, exit_code=1)


def places(job: str, elements: Sequence[int], packs: Sequence[Sequence[int]], offset: int = 0) -> dict[int, str]:
    """The array element (``48133_4``) that runs each element: its own number's, or that of its pack's first."""
    leads = {member: pack[0] for pack in packs for member in pack}
    return {element: f"{job}_{leads.get(element, element) - offset}" for element in elements}


def places_of(array: Mapping[str, Any]) -> dict[int, str]:
    """The same of an array in ``jobs.json``."""
    return places(array["job"], array["elements"], array.get("packs", ()), array.get("offset", 0))


def read_record(sweep: Path) -> dict[str, Any] | None:
    """``jobs.json`` of a sweep; None when nothing of it was submitted."""
    try:
        return read_json(sweep / RECORD)
    except FileNotFoundError:
        return None


class Submission:
    """One submission of some elements of a sweep. Its steps are methods, called in order by :meth:`run`."""

    STEPS = ("announce", "sbatch", "depend", "close", "record", "claim", "release")

    def __init__(
        self,
        store: Store,
        sweep: Path,
        arrays: Sequence[Array],
        directories: Mapping[int, str],
        claims: Mapping[int, Sequence[Path]],
        after: Mapping[int, After],
        tasks: Mapping[int, str],
        closing: Callable[[Sequence[str]], str] | None = None,
    ) -> None:
        """
        Args:
            store: where the artifacts will go.
            sweep: the sweep's directory.
            arrays: what to submit; all carry one tag.
            directories: each element's directory, relative to the sweep's.
            claims: for each element, the claim notes of the artifacts that it will make.
            after: for each element, what must have ended well before it starts: elements of this submission, and array elements
                of others.
            tasks: each element's task, for the statuses of elements that never start.
            closing: of a pipeline, from the arrays' numbers to the script of the job that comes after them.
        """
        self.store, self.sweep, self.arrays, self.tasks = store, sweep, list(arrays), tasks
        self.directories, self.claims, self.after = directories, claims, after
        self.tag = arrays[0].tag
        self.jobs: list[str] = []
        self._closing, self._closer = closing, ""
        self._note = store.root / NOTES / f"{sweep.name}.json"
        self._before = read_record(sweep)

    def run(self, between: Callable[[str], None] = lambda step: None) -> list[str]:
        """All steps; the arrays' ids. `between` is told each step that is done.

        Raises:
            SlurmError: Slurm refused; nothing of it stays in the queue.
        """
        try:
            for step in self.STEPS:
                getattr(self, f"_{step}")()
                between(step)
        except BaseException as e:  # Ctrl-C as well: nothing that nobody was told of may stay
            self._roll_back(f"not submitted ({e})" if isinstance(e, CircuitsError) else INTERRUPTED)
            raise
        self._note.unlink(missing_ok=True)
        return self.jobs

    def _announce(self) -> None:
        facts = {
            **owner(),
            "uid": os.getuid(),
            "cluster": commands.cluster(),
            "announced": time.time(),
            "sweep": str(self.sweep),
            "tag": self.tag,
            **self._places(),
        }
        write_json(self._note, facts)

    def _sbatch(self) -> None:
        for array in self.arrays:
            commands.check_fits(array.text())
            self.jobs.append(commands.submit(array.text(), console().tell))

    def _record(self) -> None:
        if (
            not self._note.exists()
        ):  # a client that was frozen for a minute: somebody took it for dead and cancelled its jobs
            raise RunError(
                f"{self.sweep.name}: this submission was taken over by another one; run the same command again"
            )
        arrays = [
            {
                "job": job,
                "elements": list(array.elements),
                "packs": [list(pack) for pack in array.packs],
                **({"offset": array.offset} if array.offset else {}),
                "request": array.request.shown,
            }
            for job, array in zip(self.jobs, self.arrays, strict=True)
        ]
        earlier = [*self._before["earlier"], *self._before["arrays"]] if self._before else []
        claims = {str(element): [str(path) for path in paths] for element, paths in self.claims.items()}
        write_json(
            self.sweep / RECORD,
            {
                "tag": self.tag,
                "cluster": commands.cluster(),
                "submitted": status.now(),
                "arrays": arrays,
                "earlier": earlier,
                "claims": claims,
                "after": {
                    str(element): list(after.elements) for element, after in self.after.items() if after.elements
                },
                **({"closing": self._closer} if self._closer else {}),
            },
        )

    def _depend(self) -> None:
        job_of: dict[int, str] = {}
        for job, array in zip(self.jobs, self.arrays, strict=True):
            job_of |= places(job, array.elements, array.packs, array.offset)
        # The exit code of a pack is not that of each of its elements, and a pack may wait for several: these look for themselves.
        counts = Counter(job_of.values())
        wanted: dict[str, list[str]] = {}
        ended: dict[str, list[str]] = {}
        for element, after in self.after.items():
            mine = job_of[element]
            for job in [*(job_of[other] for other in after.elements if other in job_of), *after.jobs]:
                into = ended if counts[job] > 1 or counts[mine] > 1 else wanted
                if job != mine and job not in into.setdefault(mine, []):
                    into[mine].append(job)
        try:
            commands.depend(*({job: ids for job, ids in found.items() if ids} for found in (wanted, ended)))
        except commands.SlurmError:
            # The site forbids changing a job's dependency: the whole array waits for all that any of its elements needs.
            self._depend_whole()

    def _close(self) -> None:
        if self._closing is not None:
            self._closer = commands.submit(self._closing(self.jobs), console().tell)

    def _depend_whole(self) -> None:
        """Each array submitted again after those that it waits for, so that their numbers are known."""
        array_of = {element: number for number, array in enumerate(self.arrays) for element in array.elements}
        waits = {
            number: {
                array_of[other]
                for e in array.elements
                for other in self.after.get(e, After()).elements
                if other in array_of
            }
            - {number}
            for number, array in enumerate(self.arrays)
        }
        for number in _in_order(waits):
            array = self.arrays[number]
            jobs = {job for element in array.elements for job in self.after.get(element, After()).jobs}
            if ids := sorted({*jobs, *(self.jobs[other] for other in waits[number])}):
                commands.cancel([self.jobs[number]])
                self.jobs[number] = commands.submit(_depending(array.text(), ids), console().tell)

    def _claim(self) -> None:
        record = read_record(self.sweep)
        assert record is not None  # written two steps ago
        _claim(self.store, record)

    def _release(self) -> None:
        for array in self.arrays:
            for element in array.elements:
                status.wait_again(self.sweep / self.directories[element], self.tasks[element])
        commands.release(self.jobs)

    def _roll_back(self, why: str) -> None:
        """Slurm refused, the disk is full, or we were interrupted. What cannot be cancelled now stays announced."""
        record = read_record(self.sweep)
        if record is not None and record["tag"] == self.tag:
            return  # it stands; the next submission claims and releases it
        with contextlib.suppress(RunError):
            commands.cancel(sorted({*self.jobs, *commands.tagged(self.tag)}))
            if not _sbatch_runs():
                self._note.unlink(missing_ok=True)
        _never_started(self.sweep, self._places(), why)

    def _places(self) -> dict[str, list[str]]:
        """The directories of what is submitted, and the task of each."""
        elements = [element for array in self.arrays for element in array.elements]
        return {"directories": [self.directories[e] for e in elements], "tasks": [self.tasks[e] for e in elements]}


def _in_order(waits: Mapping[int, set[int]]) -> list[int]:
    """The numbers, each after those that it waits for.

    Raises:
        RunError: two wait for each other (elements of one array make inputs for those of another, and the other way).
    """
    try:
        return list(TopologicalSorter(waits).static_order())
    except CycleError as e:
        raise RunError(
            "this cluster forbids a dependency of single elements, and whole arrays would wait for each other; start the tasks one "
            "after the other"
        ) from e


def _depending(script: str, ids: Sequence[str]) -> str:
    return script.replace("#SBATCH --hold", f"#SBATCH --hold\n#SBATCH --dependency=afterok:{':'.join(ids)}", 1)


def _claim(store: Store, record: Mapping[str, Any]) -> None:
    """The claims of a record; one that somebody else holds stays theirs (their element makes it, ours finds it)."""
    commands.forget()
    for array in record["arrays"]:
        for element, job in places_of(array).items():
            for path in record["claims"].get(str(element), []):
                if commands.element_alive(job) is False:
                    continue  # rolled forward late: it has ended already
                where = record.get("cluster")
                facts = owner(job=job, tag=record["tag"], by=f"Slurm job {job}", uid=os.getuid(), cluster=where)
                store.note_at(Path(path)).take(facts)
