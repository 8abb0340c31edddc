"""``cluster=slurm|csd3|ncc``: one array per sweep and resource request, detached. The elements are run by the nodes."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from circuits import slurm_commands as commands
from circuits.errors import CircuitsError, UserError
from circuits.files import disk_errors
from circuits.launch import answers, planning, terminal
from circuits.launch.estimate import Rates
from circuits.launch.packs import packs, short
from circuits.launch.plan import Element, Plan
from circuits.launch.slurm import allocation, preflight, script, states, submission
from circuits.launch.slurm.request import Request, cluster_environment, request_of, secret_environment
from circuits.launch.slurm.submission import Submission
from circuits.launch.sweep import Sweep
from circuits.run import config, status
from circuits.schema import Resources
from circuits.state import State, state_of
from circuits.store.keys import Key
from circuits.store.layers import ranges
from circuits.store.leases import elsewhere
from circuits.store.places import CODE
from circuits.store.store import NOTES as HELD
from circuits.store.store import Store

WATCH_S = 2.0  # between looks at the queue while waiting
CLOSING_TIME, CLOSING_MEMORY = "30", "4G"  # of the job that makes a study's page


class Slurm:
    """A cluster as a backend. `launcher` are the ``hydra.launcher.*`` values that were given."""

    def __init__(self, launcher: Mapping[str, Any]) -> None:
        self.launcher, self.dry = launcher, False

    def refuse(self, elements: Sequence[Element]) -> None:
        """Everything that the preset or the cluster would refuse. A dry run asks no cluster: it may be made anywhere."""
        self.dry = elements[0].cfg.cluster.dry_run
        found = [*preflight.written_findings(elements), *preflight.secret_findings(elements[0].cfg, self.launcher)]
        if not found:
            requests = self.requests(elements)
            found = preflight.local_findings(elements, requests, self.launcher)
            if not self.dry:
                try:
                    found += preflight.cluster_findings(elements[0].cfg.cluster.name, requests)
                except CircuitsError as e:
                    found.append(str(e))
        if found:
            raise UserError(found)

    def alone(self, store: Store, say: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
        """One submission into a store at a time; one that was interrupted is settled first. A dry run submits nothing."""
        return contextlib.nullcontext() if self.dry else submission.alone(store, say)

    def settle(self, store: Store, keys: Iterable[Key]) -> None:
        """This launcher leaves: it looks at what others hold until it knows who of them lives."""
        store.settle(keys)

    def job_of(self, holder: Mapping[str, Any]) -> str | None:
        """An array element in this cluster's queue."""
        job = holder.get("job") or holder.get("worker_job")
        return str(job) if job and not elsewhere(holder) else None

    def requests(self, elements: Sequence[Element]) -> Mapping[int, Request]:
        """Each element's resource request by its number."""
        return {element.index: request_of(element.cfg, self.launcher) for element in elements}

    def packs(self, elements: Sequence[Element], store: Store) -> list[list[Element]]:
        """As ``pack=N`` says, and short work together, so that a queue is not filled with jobs of seconds."""
        requests = self.requests(elements)
        sizes = short(elements, Rates(store), lambda element: requests[element.index].minutes * 60.0)
        with contextlib.suppress(UserError):  # neighbours that cannot share a process
            if sizes and not preflight.memory_findings(joined := packs(elements, sizes), requests):
                return joined
        return packs(elements)

    def start(self, plan: Plan, sweep: Callable[[], Sweep]) -> Callable[[], int]:
        """Submit, or with ``cluster.dry_run`` show what would be; what is returned waits where that was asked for."""
        if found := preflight.memory_findings(plan.packs, plan.requests):
            raise UserError(found)
        cluster = plan.cfg.cluster
        if self.dry:
            dry_run(plan)
            return lambda: 0
        planning.room(plan.standing.to_run, cluster.parallelism or len(plan.standing.to_run))
        if cluster.allocation and plan.standing.to_run:
            return allocation.submit(sweep(), plan, self.launcher)
        job = SlurmLauncher(sweep(), plan)
        code = job.submit()
        return job.wait if code is None else lambda: code


class SlurmLauncher:
    """Submits the elements of one plan."""

    def __init__(self, sweep: Sweep, plan: Plan) -> None:
        self.sweep, self.plan, self.elements, self.standing, self.store = (
            sweep, plan, plan.elements, plan.standing, plan.store
        )  # fmt: skip
        self.cfg = plan.cfg
        self.view = terminal.View(sweep, plan.elements, lambda: states.facts_of(sweep))

    def submit(self) -> int | None:
        """Submit what is to be made; the exit code, or None when it is to be waited for (``cluster.wait=true``)."""
        answers.answer_all(self.sweep, self.standing.cached, self.store, self.view.note)
        answers.refuse(self.sweep, self.standing.refused)
        mine = set(states.jobs_of(self.sweep).values())
        for element in self.standing.adopted:
            self._adopt(element, mine)
        arrays = self.arrays()
        self._header(self.plan.requests)
        if arrays:
            jobs = self._submit(arrays)
            shown = " ".join(f"{job}_[{ranges(array.tasks)}]" for job, array in zip(jobs, arrays, strict=True))
            self.view.say(f"submitted {shown}      {terminal.relative(self.sweep.path)}")
            self.view.say(f"follow    python launch.py task=status of={self.sweep.id} status.watch=true")
            self.view.say(f"cancel    scancel {' '.join(jobs)}")
        else:
            self._all_answered()
            if not self.standing.adopted:
                return answers.exit_code(status.read(self.sweep.directory(element)) for element in self.elements)
        return None if self.cfg.cluster.wait else 0

    def _all_answered(self) -> None:
        """Nothing to submit: no element will end last, so the end is here."""
        cached = [self.sweep.directory(element) for element in self.standing.cached]
        answers.log_cached(self.sweep, cached, self.view.note)
        self.view.summary()
        if self.standing.adopted:
            return
        answers.write_failed(self.sweep, states.facts_of(self.sweep), self.view.note)
        page = answers.make_report(self.sweep, self.view.note)
        if page is not None:
            self.view.say(f"report  {terminal.relative(page)}")

    # -- what is submitted ---------------------------------------------------------------------------------------

    def arrays(self) -> list[script.Array]:
        """One array per distinct request, with the elements' original numbers."""
        plain = re.sub(r"[^ -~]", "_", self.sweep.id)  # squeue pads its columns by bytes, and cuts long ones
        tag = f"circuits:{plain[:80]}:{secrets.token_hex(4)}"
        folder = self.sweep.path / "slurm"
        limit = None if self.cfg.cluster.dry_run else commands.config_value("MaxArraySize")
        groups = list(grouped(self.plan.requests, int(limit) if limit and limit.isdigit() else None))
        packed = [tuple(element.index for element in pack) for pack in self.plan.packs]
        cluster = self.cfg.cluster
        return [
            script.Array(
                request,
                tuple(members),
                folder,
                tag,
                cluster.python or sys.executable,
                self.sweep.path / "code" if cluster.snapshot else CODE,
                [*cluster.setup, *script.modules(cluster, request)],
                cluster_environment(self.cfg),
                tuple(pack for pack in packed if len(pack) > 1 and pack[0] in members),
                None if cluster.dry_run else commands.cluster(),
                offset,
            )
            for request, members, offset in groups
        ]

    def _submit(self, arrays: Sequence[script.Array]) -> list[str]:
        os.environ.update(secret_environment(self.cfg))
        folder = self.sweep.path / "slurm"
        directories = {item["index"]: item["dir"] for item in self.sweep.record["elements"]}
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
            if self.cfg.cluster.snapshot:
                snapshot(self.sweep.path / "code")
            by_number = [""] * (max(directories) + 1)
            for element in self.elements:
                by_number[element.index] = str(self.sweep.directory(element))
            (folder / script.ELEMENTS).write_text("".join(f"{line}\n" for line in by_number), encoding="utf-8")
            for array in arrays:
                for pack in array.packs:
                    by_number[pack[0]] = "\t".join(by_number[member] for member in pack)
            for array in arrays:
                if array.packs:
                    array.listing.write_text("".join(f"{line}\n" for line in by_number), encoding="utf-8")
            for number, array in enumerate(arrays):
                (folder / f"array-{number}.sh").write_text(array.text(), encoding="utf-8")
        claims = {
            element.index: [
                self.store.beside(key, "claim") for key in element.keys.values() if self.store.find(key) is None
            ]
            for element in self.standing.to_run
        }
        for paths in claims.values():
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
        tasks = {element.index: element.task for element in self.elements}
        closing = self._closing(arrays[0]) if "pipeline" in self.sweep.record else None
        steps = Submission(self.store, self.sweep.path, arrays, directories, claims, self.plan.after, tasks, closing)
        return steps.run()

    def _closing(self, array: script.Array) -> Callable[[Sequence[str]], str]:
        """From the arrays' numbers to the script of the job that closes a study: in the queue without GPUs, half an hour."""
        cfg = config.copied(self.cfg)
        cfg.task.resources = Resources(gpus=0, cpus=1, memory=CLOSING_MEMORY, time=CLOSING_TIME)
        name, cluster = f"circuits-{self.sweep.record['pipeline']['name']}-report", cfg.cluster
        request = request_of(cfg, {})
        own = replace(array, request=request, setup=[*cluster.setup, *script.modules(cluster, request)])
        return lambda jobs: own.closing(name, self.sweep.path, jobs)

    def _adopt(self, element: Element, mine: set[str]) -> None:
        """Another job is making it: nothing to submit; status says whose it is. When recovered, it may be this sweep's own."""
        missing = [key for key in element.keys.values() if self.store.find(key) is None]
        notes = [self.store.note(key, suffix) for key in missing for suffix in HELD]
        held = {str(note.path): facts for note in notes if (facts := note.live()) is not None}
        names = sorted({_named(holder) for holder in held.values()})
        if not mine & set(names):
            note = f"being made by {', '.join(names)}"
            status.write_plain(
                self.sweep.directory(element),
                State.adopted,
                task=element.task,
                note=note,
                by=names,
                held=sorted(held),
            )

    def _header(self, requests: Mapping[int, Request]) -> None:
        first = next(iter(requests.values()), None)
        where = f"{self.cfg.cluster.name} ({first.shown})" if first else self.cfg.cluster.name
        known = [status.read(self.sweep.directory(element)) for element in self.standing.adopted]
        queued = sorted({name for facts in known for name in facts.get("by", [])})
        self.view.title(self.standing, where, f"already queued ({', '.join(queued)})" if queued else "already queued")

    # -- cluster.wait=true ---------------------------------------------------------------------------------------

    def wait(self) -> int:
        """Show the sweep until it has ended. Ctrl-C leaves; the jobs go on."""
        self.view.live()
        try:
            while True:
                facts = states.facts_of(self.sweep)
                self._follow_adopted(facts)
                self.view.update()
                if not any(state_of(fact).live or _again(fact) for fact in facts.values()):
                    break
                time.sleep(WATCH_S)
        except KeyboardInterrupt:
            self.view.close()
            self.view.say(
                f"left; the jobs go on. follow    python launch.py task=status of={self.sweep.id} status.watch=true"
            )
            return 0
        self.view.close()
        self.view.summary()
        final = states.facts_of(self.sweep)
        answers.write_failed(self.sweep, final, self.view.note)
        page = self.sweep.path / "report.html"
        if not page.exists():  # the last element was killed before it could make it
            answers.make_report(self.sweep, self.view.note)
        if page.exists():
            self.view.say(f"report  {terminal.relative(page)}")
        return answers.exit_code(final.values())

    def _follow_adopted(self, facts: dict[int, dict[str, Any]]) -> None:
        for element in list(self.standing.adopted):
            missing = [key for key in element.keys.values() if self.store.find(key) is None]
            if not missing:
                answers.answer_cached(self.sweep, element, self.store, self.view.note)
                self.standing.adopted.remove(element)
            elif all(self.store.holder(key) is None for key in missing):
                error = "whoever was making it ended without it; the same command submits it"
                status.write_plain(
                    self.sweep.directory(element), State.failed, task=element.task, error=error, exit_code=1
                )
                self.standing.adopted.remove(element)


def grouped(requests: Mapping[int, Request], limit: int | None) -> Iterator[tuple[Request, list[int], int]]:
    """Elements that share an array, in order, and the array's offset: equal requests, numbers below the cluster's `limit`."""
    groups: dict[Request, list[int]] = {}
    for index, request in sorted(requests.items()):
        groups.setdefault(request, []).append(index)
    for request, members in groups.items():
        shares: dict[int, list[int]] = {}
        for index in members:
            shares.setdefault(index // limit * limit if limit else 0, []).append(index)
        yield from ((request, share, offset) for offset, share in shares.items())


def _named(holder: dict[str, Any]) -> str:
    """A maker as others find it: the job in this cluster's queue, else the process."""
    job = holder.get("job") or holder.get("worker_job")
    return str(job) if job and not elsewhere(holder) else f"pid {holder['pid']} on {holder['host']}"


def _again(fact: Mapping[str, Any]) -> bool:
    """An element that is ending, or an interrupted one of which the queue cannot tell."""
    return bool(fact.get("ending")) or (state_of(fact) is State.interrupted and bool(fact.get("queue_error")))


def snapshot(place: Path) -> None:
    """A copy of the code as it is now: what the nodes will import, whatever is edited meanwhile."""
    if place.exists():
        return
    whole = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    for name in ("circuits", "conf"):
        shutil.copytree(CODE / name, whole / name, ignore=shutil.ignore_patterns("__pycache__", "user"))
    whole.rename(place)


def dry_run(plan: Plan) -> None:
    """Print exactly what would be submitted; the sweep's directory, which does not exist yet, is named in its place."""
    first = plan.cfg
    elements = [{"task": element.task} for element in plan.elements]
    sweep = Sweep(Path(first.multirun) / "DRY-RUN", {"id": "DRY-RUN", "task": first.task.name, "elements": elements})
    arrays = SlurmLauncher(sweep, plan).arrays()
    if not arrays:
        print("nothing to submit: every element is cached or being made")
    for array in arrays:
        print(array.text())
