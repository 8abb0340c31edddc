"""How the elements of a submitted sweep fare: their own status files, the queue, and accounting where there is some.

The status file tells what the run itself knows (progress, errors, metrics); the queue tells what the run cannot know (that it
waits, and why; that it is gone). A run that is gone without a last word is explained by accounting, else by what Slurm still
remembers of the job, else by the fact alone. One ``squeue`` and at most one ``sacct`` a look, whatever the number of elements.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from circuits import slurm_commands as commands
from circuits.errors import CircuitsError
from circuits.files import read_json, write_json
from circuits.launch.slurm.script import SETUP
from circuits.launch.slurm.submission import NOTES, SUBMIT, places_of, read_record
from circuits.launch.sweep import Sweep
from circuits.run import status
from circuits.state import State, state_of
from circuits.store.leases import Note, elsewhere
from circuits.store.places import LOG

NOT_GONE = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "RESIZING", "SUSPENDED")
DEADLY = 2  # elements that died on a node, after which it is left out
BY_NODE = ("NODE_FAIL", "BOOT_FAIL")  # ends for which a node is to blame; beside a signal that nobody of ours sent
_ENDED = {
    "CANCELLED": "cancelled (scancel)",
    "TIMEOUT": "killed at its time limit before it could save; raise task.resources.time or cluster.signal_s",
    "OUT_OF_MEMORY": "killed by Slurm: out of memory; raise task.resources.memory",
    "NODE_FAIL": "its node failed",
    "PREEMPTED": "preempted",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "its deadline passed",
}


def far_cluster(sweep: Sweep) -> bool:
    """Whether `sweep` was submitted to a cluster whose queue cannot be asked from here."""
    record = read_record(sweep.path)
    return record is not None and elsewhere(record)


def jobs_of(sweep: Sweep) -> dict[int, str]:
    """Each element's array element (``48133_4``), the latest when it was submitted again."""
    record = read_record(sweep.path)
    if record is None:
        return {}
    found = {}
    for array in [*record["earlier"], *record["arrays"]]:
        found.update(places_of(array))
    return found


def facts_of(sweep: Sweep) -> dict[int, dict[str, Any]]:
    """Every element's status by its number, with ``job``, and for what waits in the queue its ``reason``.

    A controller that does not answer is said in ``queue_error`` of every element that is not known to have ended.
    """
    jobs = jobs_of(sweep)
    far = far_cluster(sweep)
    if (job := (read_record(sweep.path) or {}).get("allocation")) and not far:
        return _allocated(sweep, job)
    found = {
        item["index"]: status.read(sweep.directory(item), trust_running=not far) for item in sweep.record["elements"]
    }
    if far:
        return _far(sweep, found, jobs)
    for index, job in jobs.items():
        found[index]["job"] = job
    adopted = {index for index, facts in found.items() if state_of(facts) is State.adopted}
    open_ones = {i: facts for i, facts in found.items() if i in jobs and i not in adopted and not _final(facts)}
    _unsubmitted(sweep, {index: facts for index, facts in found.items() if index not in jobs})
    if not open_ones and not adopted:
        return found
    makers = {name for index in adopted for name in _jobs_in(found[index])}
    arrays = {name.split("_")[0] for name in {*makers, *(jobs[index] for index in open_ones)}}
    try:
        queued = commands.queue(",".join(sorted(arrays))) if arrays else {}
    except CircuitsError as e:
        for facts in open_ones.values():
            facts["queue_error"] = str(e)
        return found
    for item in sweep.record["elements"]:
        if item["index"] in adopted:
            _follow(sweep, item, found[item["index"]], queued)
    gone = {index: facts for index, facts in open_ones.items() if jobs[index] not in queued}
    leads = {jobs[index]: index for index in sorted(jobs, reverse=True)}  # of a pack its first
    for index, facts in open_ones.items():
        if index not in gone:
            _place(facts, queued[jobs[index]], leads[jobs[index]] == index)
    if gone:
        _explain(sweep, gone, jobs)
    return found


def load_of(jobs: Iterable[str]) -> list[str]:
    """How busy the partitions are in which these array elements wait: nodes idle, jobs that wait."""
    try:
        places = commands.partitions_of(",".join(sorted({job.split("_")[0] for job in jobs})))
        return [f"load      {name}: {told}" for name, told in commands.load(places).items()]
    except CircuitsError:
        return []  # the table stands without it


def _allocated(sweep: Sweep, job: str) -> dict[int, dict[str, Any]]:
    """Of a sweep inside one job that has not begun: all of it waits for that job."""
    found = {item["index"]: status.read(sweep.directory(item)) for item in sweep.record["elements"]}
    waiting = [facts for facts in found.values() if state_of(facts) is State.waiting]
    try:
        queued = commands.queue(job).get(job) if waiting else None
    except CircuitsError as e:
        for facts in waiting:
            facts["queue_error"] = str(e)
        return found
    for facts in waiting:
        if queued is None:
            facts["state"] = State.never_started
        elif queued.state == "PENDING":
            facts.update(state=State.pending, reason=queued.reason, job=job)
            if queued.start:
                facts["expected"] = queued.start
        else:
            facts.update(state=State.waiting, reason="for its job to begin", job=job)
    return found


def _far(sweep: Sweep, found: dict[int, dict[str, Any]], jobs: Mapping[int, str]) -> dict[int, dict[str, Any]]:
    """Of a sweep in another cluster's queue only its own files tell."""
    where = str((read_record(sweep.path) or {}).get("cluster"))
    for index, job in jobs.items():
        if not _final(found[index]):
            found[index]["queue_error"] = f"{where}: its queue cannot be asked from here (job {job.split('_')[0]})"
    return found


def _jobs_in(facts: Mapping[str, Any]) -> list[str]:
    """The array elements that an adopted element waits for (others may be processes)."""
    return [name for name in facts.get("by", []) if "_" in name and " " not in name]


def _unsubmitted(sweep: Sweep, left: Mapping[int, dict[str, Any]]) -> None:
    """Elements that wait although nobody will submit them any more: their launcher has gone, or is not the one who submits."""
    waiting = [facts for facts in left.values() if state_of(facts) is State.waiting]
    notes = Path(sweep.record["store"]) / NOTES
    if not waiting or (notes / f"{sweep.path.name}.json").exists():
        return
    launcher = sweep.record["launcher"]
    alive = status.process_alive(launcher["host"], launcher["pid"], launcher["started"], launcher.get("machine"))
    if alive is None:
        submits = Note(notes / SUBMIT).read() or {}
        alive = (submits.get("host"), submits.get("pid")) == (launcher["host"], launcher["pid"])
    for facts in waiting if not alive else ():
        facts["state"] = State.never_started


def _follow(sweep: Sweep, item: Mapping[str, Any], facts: dict[str, Any], queued: Mapping[str, commands.Job]) -> None:
    """An adopted element is cached once its maker has published, and lost when the maker is gone without it."""
    store = Path(sweep.record["store"])
    if all((store / id / "manifest.json").exists() for id in item["artifacts"].values()):
        facts.update(state=State.cached, note=None)
        return
    makers = _jobs_in(facts)
    known = makers or "held" in facts
    if known and not any(name in queued for name in makers) and not _held(facts.get("held", ())):
        facts.update(
            state=State.killed, exit_code=1, error="whoever was making it ended without it; the same command submits it"
        )


_notes: dict[Path, Note] = {}  # kept: silence on another host shows only to who looks twice


def _held(paths: Iterable[str]) -> bool:
    """Whether any of these leases and claims has an owner that lives, as far as can be told."""
    notes = [_notes.setdefault(Path(path), Note(Path(path))) for path in paths]
    return any(note.live() is not None for note in notes)


def _final(facts: Mapping[str, Any]) -> bool:
    """Whether the run itself had its last word (an interrupted one may be in the queue again)."""
    return state_of(facts).measured or state_of(facts) in (State.failed, State.cancelled)


def _place(facts: dict[str, Any], job: commands.Job, own: bool = True) -> None:
    """What the queue adds to a status. Of a pack whose job runs, only the first element's start is its `own`."""
    if job.state == "COMPLETING" and state_of(facts) is not State.waiting:
        facts["ending"] = True  # it has spoken, or will be explained when it is gone
    elif job.state in ("RUNNING", "COMPLETING", "CONFIGURING", "STOPPED", "SUSPENDED"):
        if not own and state_of(facts) in (State.waiting, State.interrupted):
            facts.update(state=State.waiting, reason="its turn in the pack", error=None)
        elif state_of(facts) in (State.waiting, State.interrupted):
            facts.update(state=State.starting, error=None)
    else:
        facts.update(state=State.pending, reason=job.reason, requeued=job.restarts > 0, error=None)
        if job.start:
            facts["expected"] = job.start


def _explain(sweep: Sweep, gone: Mapping[int, dict[str, Any]], jobs: Mapping[int, str]) -> None:
    """Elements that left the queue without a last word."""
    places = directories(sweep)
    again = {index: status.read(places[index], trust_running=True) for index in gone}
    for index, facts in list(gone.items()):  # it may have spoken while we asked the queue
        if _final(again[index]):
            facts.update(again[index], job=jobs[index])
    left = {index: facts for index, facts in gone.items() if not _final(facts)}
    if not left:
        return
    arrays = sorted({jobs[index].split("_")[0] for index in left})
    known = {job: (facts.state, facts.exit_code) for job, facts in commands.accounting(arrays).items()}
    shown: dict[str, dict[str, str]] = {}
    if any(known.get(jobs[index], ("FAILED",))[0] == "FAILED" for index in left):  # why, only the controller says
        shown = {job: facts for array in arrays for job, facts in commands.remembered(array).items()}
    after = (read_record(sweep.path) or {}).get("after", {})
    for index, facts in left.items():
        if state_of(facts) is State.waiting and (before := failed_before(places, after, index)):
            facts.update(state=State.cancelled, slurm="CANCELLED", exit_code=1, error=f"not started: {before}")
            continue
        mine = shown.get(jobs[index], {})
        if known.get(jobs[index], ("",))[0] in NOT_GONE:  # the queue was asked while the controller moved it
            facts.update(
                state=State.starting if state_of(facts) is State.waiting else state_of(facts), reason="starting"
            )
            continue
        state, code = known.get(jobs[index], (mine.get("JobState", ""), mine.get("ExitCode", "")))
        _last_word(facts, state, code, mine, places[index], sweep.path / "slurm")


def failed_before(places: Mapping[int, Path], after: Mapping[str, Iterable[int]], index: int) -> str | None:
    """Who of those that element `index` waits for did not end well, and how; None where nobody.

    Args:
        places: the directory of each element.
        after: of ``jobs.json``: whom each element waits for.
        index: the element's number.
    """
    for before in after.get(str(index), ()):
        state = state_of(status.read(places[before], trust_running=True))
        if state.badly or state is State.gate:
            return f"element {before}, which makes an input of it, ended as {state}"
        if state is State.waiting and (further := failed_before(places, after, before)):
            return f"element {before}, which makes an input of it, was not started: {further}"
    return None


def _signal(code: str) -> int:
    """The second half of Slurm's ``status:signal``; 0 where there is none."""
    number = code.partition(":")[2]
    return int(number) if number.isdigit() else 0


def _gone(state: str, code: str, begun: bool) -> str:
    """How a job ended of which Slurm knows no reason by name: its exit code is ``status:signal``."""
    status_, number = code.partition(":")[0], _signal(code)
    when = "" if begun else " before the run began"
    said = f" (Slurm says {state} {code})" if state else ""
    if number:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"killed by {name}{when}, without a word{said}"
    if status_.isdigit() and int(status_):
        return f"ended with exit code {status_}{when}, without a word{said}"
    return f"gone{when} without a word{said or ' (Slurm has forgotten the job)'}"


def _last_word(
    facts: dict[str, Any], slurm: str, code: str, shown: Mapping[str, str], directory: Path, folder: Path
) -> None:
    """The state and the line of an element that left the queue as Slurm's state and exit code say ("" when nobody knows).

    Slurm's record `shown` of the job and what it wrote into `folder` tell what went wrong before the run could say anything.
    """
    kept = "; what was saved is kept" if state_of(facts) is State.running else ""
    said = status.last_error(directory / LOG) if slurm == "FAILED" and state_of(facts) is not State.running else None
    early = said is not None and said.startswith(SETUP)  # in this turn, whatever became of those before
    spoke = state_of(facts) is State.interrupted and facts.get("error") and not early
    begun = state_of(facts) is not State.waiting
    error = facts["error"] if spoke else said if early or not begun else None
    if error is None and not begun and slurm == "FAILED":
        by_signal = _signal(code) in {number.value for number in signal.Signals}  # Slurm's own are none: 53
        error = status.last_error(folder / f"{facts.get('job')}.out") or (None if by_signal else _not_launched(shown))
    error = error or f"{_ENDED.get(slurm) or _gone(slurm, code, facts.get('state') == 'running')}{kept}"
    state = (
        State.cancelled if slurm == "CANCELLED" else
        State.interrupted if spoke else
        State.failed if early else State.killed
    )  # fmt: skip
    facts.update(state=state, error=error, slurm=slurm, exit_code=facts.get("exit_code") or 1)


def _not_launched(shown: Mapping[str, str]) -> str | None:
    """Of a job that ended although nothing of ours began: the controller's reason, where it has one of its own."""
    node, reason = shown.get("NodeList") or shown.get("BatchHost") or "its node", shown.get("Reason", "None")
    if reason in ("None", "NonZeroExitCode"):
        return None
    return f"its job ended on {node} before the run began ({reason}); scontrol show job {shown.get('JobId', '')} tells more"


def directories(sweep: Sweep) -> dict[int, Path]:
    """Each element's directory by its number."""
    return {item["index"]: sweep.directory(item) for item in sweep.record["elements"]}


def deadly_nodes(sweep: Sweep) -> dict[str, list[int]]:
    """Nodes on which at least `DEADLY` jobs died without a word of their own, with their elements' numbers (a pack's first)."""
    jobs = jobs_of(sweep)
    died = [index for index, facts in facts_of(sweep).items() if state_of(facts) is State.killed and index in jobs]
    if len(died) < DEADLY:
        return {}
    known = commands.accounting(sorted({jobs[index].split("_")[0] for index in died}))
    found: dict[str, list[int]] = {}
    for job, index in sorted({jobs[index]: index for index in reversed(died)}.items()):
        ended = known.get(job)
        if ended is None or not ended.node or set(ended.node) & set(",["):
            continue
        if ended.state in BY_NODE or (ended.state == "FAILED" and _signal(ended.exit_code)):
            found.setdefault(ended.node, []).append(index)
    return {node: sorted(indices) for node, indices in found.items() if len(indices) >= DEADLY}


def record_accounting(sweep: Sweep) -> None:
    """Put what ``sacct`` says of ended elements (elapsed time, peak memory, node) into their provenance; once, where it answers."""
    jobs = jobs_of(sweep)
    lacking, places = {}, directories(sweep)
    for index, job in jobs.items():
        place = places[index] / "provenance.json"
        if place.exists() and "accounting" not in (facts := read_json(place)):
            lacking[index] = (job, place, facts)
    if not lacking:
        return
    known = commands.accounting(sorted({job.split("_")[0] for job, _, _ in lacking.values()}))
    for job, place, facts in lacking.values():
        if job in known and known[job].state not in ("RUNNING", "PENDING", "COMPLETING"):
            write_json(place, {**facts, "accounting": {"job": job, **known[job].__dict__}}, durable=False)
