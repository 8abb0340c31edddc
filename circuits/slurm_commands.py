"""Slurm's own commands, asked in one place: bounded in time, their errors as one line, nothing of an outer job passed on."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from circuits.errors import RunError, UserError

TIMEOUT_S = 60.0  # a controller that is restarting answers within this
MEMO_S = 2.0  # how long one look at the queue serves
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")


class SlurmError(RunError):
    """A Slurm command said no; the message is its own first line."""


def present() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def asks() -> bool:
    """Whether a queue can be asked from this machine."""
    return shutil.which("squeue") is not None


_clusters: dict[str | None, str] = {}


def cluster() -> str | None:
    """Which cluster's queue is asked here: its name and controller, as job numbers mean nothing on another; None if unknown."""
    if given := os.environ.get("CIRCUITS_SLURM_CLUSTER"):  # in a job of ours
        return given
    conf = os.environ.get("SLURM_CONF")
    if conf not in _clusters:
        try:
            facts = config_values("ClusterName", "SlurmctldHost[0]")
        except (SlurmError, UserError):
            return None
        _clusters[conf] = "@".join(value.split("(")[0] for value in facts if value)
    return _clusters[conf]


def environment() -> dict[str, str]:
    """Ours without what an ``salloc`` or ``srun`` session around us set: it would shape the new job, or break it."""
    ours = {k: v for k, v in os.environ.items() if k in KEPT or not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    return {**ours, "SLURM_BITSTR_LEN": "0"}  # an array's numbers are written out, however many


def ask(words: Sequence[str], given: str | None = None, timeout: float = TIMEOUT_S) -> str:
    """What a command prints.

    Raises:
        UserError: the command is not on this machine.
        SlurmError: it failed or did not answer.
    """
    try:
        done = subprocess.run(
            list(words), input=given, capture_output=True, text=True, timeout=timeout, check=False, env=environment()
        )
    except FileNotFoundError as e:
        raise UserError(f"{words[0]} is not on this machine: a Slurm cluster is reached from its login node") from e
    except subprocess.TimeoutExpired as e:
        raise SlurmError(f"{words[0]} did not answer within {timeout:g} s; is the Slurm controller up?") from e
    if done.returncode != 0:
        raise SlurmError(one_line(words[0], done.stderr or done.stdout, done.returncode))
    return done.stdout


def one_line(command: str, text: str, code: int) -> str:
    """A command's complaint: its error lines joined, its name once in front."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line.split("error:", 1)[-1].strip() for line in lines if "error" in line.lower()] or lines[:1]
    return f"{command}: {'; '.join(dict.fromkeys(said)) or f'exit code {code}'}"


@dataclass(frozen=True)
class Job:
    """One array element (or a pending rest of an array) in the queue."""

    id: str  # 48133_4
    state: str  # PENDING RUNNING COMPLETING …
    reason: str
    tag: str
    restarts: int = 0
    start: str = ""  # when Slurm expects it to start: 2026-11-29T17:00; "" where it does not say


_WIDTHS = (64, 32, 128, 256, 16, 32)
_FORMAT = ",".join(
    f"{name}:{width}"
    for name, width in zip(
        ("JobArrayID", "State", "ReasonList", "Comment", "RestartCnt", "StartTime"), _WIDTHS, strict=True
    )
)


def queue(job: str | None = None) -> dict[str, Job]:
    """What stands in the queue now, by element: of `job` (or several, with commas), or all jobs of this user.

    Raises:
        SlurmError: the controller does not answer.
    """
    words = ["squeue", "--noheader", "--array", f"--Format={_FORMAT}"]
    words += [f"--jobs={job}"] if job else ["--me"]
    try:
        text = ask(words)
    except SlurmError as e:
        if "Invalid job id" in str(e):  # it left the queue, and its record has gone
            return {}
        raise
    found = {}
    for line in text.splitlines():
        cells = _cells(line, _WIDTHS)
        restarts = int(cells[4]) if cells[4].isdigit() else 0
        start = cells[5][:16] if cells[5][:1].isdigit() else ""
        found[cells[0]] = Job(cells[0], cells[1], cells[2].strip("()"), cells[3], restarts=restarts, start=start)
    _complete(found)
    return {id: job for id, job in found.items() if job.state not in _GONE}


def _complete(found: dict[str, Job]) -> None:
    """Add what ``squeue --array`` leaves out: the last of waiting elements whose numbers go up by one step (seen in 22.05.8).

    Short work and packs make such arrays. They are asked for once more as they stand, ``3_[0-975:25]``.
    """
    waiting: dict[str, list[Job]] = {}
    for job in found.values():
        array, _, number = job.id.partition("_")
        if job.state == "PENDING" and number.isdigit():
            waiting.setdefault(array, []).append(job)
    stepped = {}
    for array, jobs in waiting.items():
        places = sorted(int(job.id.partition("_")[2]) for job in jobs)
        steps = {after - before for before, after in itertools.pairwise(places)}
        if len(steps) == 1 and steps != {1}:
            stepped[array] = jobs[-1]
    if not stepped:
        return
    for line in ask(
        ["squeue", "--noheader", "--states=PENDING", f"--jobs={','.join(stepped)}", "--format=%i"]
    ).splitlines():
        array, _, inner = line.strip().partition("_")
        if array in stepped:
            for place in numbers(inner.strip("[]")):
                id = f"{array}_{place}"
                found.setdefault(id, replace(stepped[array], id=id))


#: States in which squeue still shows a job for a while although it has ended.
_GONE = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")


def _cells(line: str, widths: Iterable[int]) -> list[str]:
    """squeue pads every field to its width."""
    cells, start = [], 0
    for width in widths:
        cells.append(line[start : start + width].strip())
        start += width
    return cells


def forget() -> None:
    """The next look at the queue is a new one."""
    global _seen
    _seen = (float("-inf"), None)


_seen: tuple[float, dict[str, Job] | None] = (float("-inf"), None)


def element_alive(job: str, tag: str | None = None, uid: int | None = None) -> bool | None:
    """Whether array element `job` of user `uid` (ours) is queued or runs, under `tag` when given; None when nobody can tell.

    One look at the queue serves for `MEMO_S` seconds: a store may hold a thousand claims.
    """
    global _seen
    if not asks():
        return None
    if uid is not None and uid != os.getuid():
        try:
            return job in queue(job)
        except (SlurmError, UserError):
            return None
    if time.monotonic() - _seen[0] > MEMO_S:
        try:
            found = queue()
            _seen = (time.monotonic(), found)  # after the answer: a busy controller may take longer than one memo lasts
        except (SlurmError, UserError):
            _seen = (time.monotonic(), None)
    if _seen[1] is None:
        return None
    standing = _seen[1].get(job)
    return standing is not None and (tag is None or standing.tag == tag)


def tagged(tag: str) -> list[str]:
    """Ids of the arrays in the queue that carry `tag`."""
    return sorted({job.id.split("_")[0] for job in queue().values() if job.tag == tag})


LATER = ("Resource temporarily unavailable", "temporarily unable to accept job")
"""What a full controller says. The job is not taken; after a time-out, which is none of these, it may have been."""
WAITS_S = (3.0, 8.0, 15.0)
"""Between one try and the next."""


def submit(script: str, say: Callable[[str], None] = lambda text: None) -> str:
    """Hand a script to sbatch; the job's id. What says "later" is asked again after a while, and `say` is told.

    Raises:
        SlurmError: sbatch refused, in its own words.
    """
    waits = iter(WAITS_S)
    while True:
        try:
            return ask(["sbatch", "--parsable"], given=script).strip().split(";")[0]
        except SlurmError as e:
            wait = next(waits, None) if any(words in str(e) for words in LATER) else None
            if wait is None:
                raise
            say(f"{e}; again in {wait:g} s")
            time.sleep(wait)


def check_fits(script: str) -> None:
    """Whether any node could ever run it. sbatch does not look when a job is held, which would then wait for ever.

    Raises:
        SlurmError: no node has so much memory, so many cores or such GPUs.
    """
    try:
        ask(["sbatch", "--test-only"], given=script)
    except SlurmError as e:
        if "node configuration is not available" in str(e):  # anything else sbatch itself tells, or it may pass
            raise SlurmError(
                "sbatch: no node has what is asked for (Requested node configuration is not available); lower "
                "task.resources.memory, cpus or gpus, or choose another partition"
            ) from e


def release(jobs: Sequence[str]) -> None:
    """Let held arrays go. Elements that run, ended or were cancelled meanwhile make scontrol complain; only held ones matter."""
    for job in jobs:
        try:
            ask(["scontrol", "release", job])
        except SlurmError:
            if any(element.reason == "JobHeldUser" for element in queue(job).values()):
                raise


def cancel(jobs: Sequence[str]) -> None:
    """Cancel arrays; one that is gone is no error."""
    for job in jobs:
        try:
            ask(["scancel", job])
        except SlurmError as e:
            if "Invalid job id" not in str(e):
                raise


def depend(after: Mapping[str, Sequence[str]], ended: Mapping[str, Sequence[str]] | None = None) -> None:
    """Make each element wait until the elements that it names have succeeded: one ``scontrol`` for all of them.

    Args:
        after: ``48133_4`` → the ids that it waits for (``afterok``).
        ended: the same of those that only have to have ended (``afterany``).

    Raises:
        SlurmError: the site forbids it, or an id is not known.
    """
    kinds = {"afterok": after, "afterany": ended or {}}
    jobs = list(dict.fromkeys(job for given in kinds.values() for job in given))
    if not jobs:
        return
    lines = []
    for job in jobs:
        waits = [f"{kind}:{':'.join(given[job])}" for kind, given in kinds.items() if given.get(job)]
        lines.append(f"update JobId={job} Dependency={','.join(waits)}")
    try:
        done = subprocess.run(
            ["scontrol"], input="\n".join([*lines, "quit\n"]), capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            env=environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired as e:
        raise SlurmError(f"scontrol did not answer within {TIMEOUT_S:g} s; is the Slurm controller up?") from e
    said = f"{done.stdout}\n{done.stderr}"
    if done.returncode != 0 or "error" in said.lower() or "denied" in said.lower():
        raise SlurmError(one_line("scontrol", said.replace("scontrol:", ""), done.returncode))


def show(job: str, timeout: float = TIMEOUT_S) -> dict[str, str]:
    """``scontrol show job`` of one element as fields; empty when Slurm has forgotten it."""
    return remembered(job, timeout).get(job, {})


def remembered(array: str, timeout: float = TIMEOUT_S) -> dict[str, dict[str, str]]:
    """What the controller still remembers of an array's elements, as fields by element; one question for all of them.

    Nothing where it does not answer, and on nodes without scontrol.
    """
    try:
        text = ask(["scontrol", "--oneliner", "show", "job", array], timeout=timeout)
    except (SlurmError, UserError):
        return {}
    found = {}
    for line in text.splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        for number in numbers(fields.get("ArrayTaskId", "")):
            found[f"{fields['ArrayJobId']}_{number}"] = fields
    return found


def numbers(text: str) -> list[int]:
    """``0-2,7,10-30:10%2`` → 0 1 2 7 10 20 30."""
    found: list[int] = []
    for part in text.split("%")[0].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        if first.isdigit() and (last or first).isdigit():
            found += range(int(first), int(last or first) + 1, int(step) if step.isdigit() else 1)
    return found


def config_value(name: str) -> str | None:
    """One value of the cluster's configuration (``MaxArraySize``)."""
    return config_values(name)[0]


def config_values(*names: str) -> list[str | None]:
    """Values of the cluster's configuration; None for what it does not have."""
    lines = (line.partition("=") for line in ask(["scontrol", "show", "config"]).splitlines())
    known = {name.strip(): value.strip() for name, _, value in lines}
    return [known.get(name) for name in names]


@dataclass(frozen=True)
class Partition:
    """What ``sinfo`` says of a partition."""

    name: str
    limit: str  # 12:00:00 · infinite
    gres: str  # gpu:a100:4 · (null)
    default: bool = False  # where jobs go that name none


def partitions() -> dict[str, Partition]:
    """The cluster's partitions by name."""
    found: dict[str, Partition] = {}
    for line in ask(["sinfo", "--noheader", "--format=%P|%l|%G"]).splitlines():
        marked, limit, gres = line.split("|")
        name = marked.removesuffix("*")
        before = found.get(name)
        found[name] = Partition(name, limit, f"{before.gres},{gres}" if before else gres, marked != name)
    return found


def partitions_of(jobs: str) -> list[str]:
    """The partitions in whose queue these jobs (numbers with commas) stand."""
    return sorted(set(ask(["squeue", "--noheader", f"--jobs={jobs}", "--format=%P"]).split()))


def load(names: Sequence[str]) -> dict[str, str]:
    """Of each of these partitions: how many nodes are idle, how many jobs run and wait."""
    found = {}
    for name in names:
        nodes = ask(["sinfo", "--noheader", f"--partition={name}", "--format=%F"]).split(
            "/"
        )  # allocated/idle/other/total
        states = ask(["squeue", "--noheader", "--array", f"--partition={name}", "--format=%t"]).split()
        if len(nodes) == 4:
            running, waiting = sum(s in ("R", "CG") for s in states), states.count("PD")
            found[name] = f"{nodes[1]} of {nodes[3].strip()} nodes idle; {running:,} jobs run, {waiting:,} wait"
    return found


def accounts() -> set[str] | None:
    """The accounts that this user may charge, in lower case; None when the cluster keeps no accounts."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or ""
    try:
        import pwd

        user = pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        pass
    try:
        text = ask(
            ["sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={user}", "format=account"], timeout=15
        )
    except (SlurmError, UserError):
        return None
    found = {line.strip().lower() for line in text.splitlines() if line.strip()}
    return found or None


@dataclass(frozen=True)
class Accounted:
    """What accounting recorded of an array element."""

    state: str
    exit_code: str
    elapsed: str
    max_rss: str
    node: str
    total_cpu: str = ""  # of all processes of the job
    req_mem: str = ""
    time_limit: str = ""
    alloc_cpus: str = ""


def accounting(jobs: Sequence[str]) -> dict[str, Accounted]:
    """``sacct`` of arrays by element; empty when the cluster keeps no accounts."""
    if not jobs or not shutil.which("sacct"):
        return {}
    fields = "JobID,State,ExitCode,Elapsed,MaxRSS,NodeList,TotalCPU,ReqMem,Timelimit,AllocCPUS"
    try:
        text = ask(["sacct", "--noheader", "--parsable2", f"--jobs={','.join(jobs)}", f"--format={fields}"], timeout=30)
    except SlurmError:
        return {}
    found: dict[str, Accounted] = {}
    for line in text.splitlines():
        id, state, code, elapsed, rss, node, *more = line.split("|")
        element, _, step = id.partition(".")
        if "[" in element:  # elements that never started stand in one line: 48133_[3-5%2]
            job, _, inner = element.partition("_")
            found.update(
                {f"{job}_{n}": Accounted(state.split()[0], code, elapsed, "", "") for n in numbers(inner.strip("[]"))}
            )
        elif not step:
            found[element] = Accounted(state.split()[0], code, elapsed, "", node, *more)
        elif step == "batch" and element in found and rss:
            found[element] = replace(found[element], max_rss=rss, node=node)
    return found
