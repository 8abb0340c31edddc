"""``cluster=slurm|csd3|ncc``: one array per sweep and resource request, detached. The elements are run by the nodes."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from circuits.errors import CircuitsError, UserError
from circuits.files import disk_errors
from circuits.run import answers, status, terminal
from circuits.run.layers import ranges
from circuits.run.leases import elsewhere
from circuits.run.packs import packs
from circuits.run.places import CODE
from circuits.run.plan import Element, Standing
from circuits.run.slurm import commands, preflight, script, states
from circuits.run.slurm.request import Request, cluster_environment, request_of, secret_environment
from circuits.run.slurm.submission import Submission
from circuits.run.store import NOTES as HELD
from circuits.run.store import Store
from circuits.run.sweep import Sweep
from circuits.schema import ClusterConfig
from circuits.state import State, state_of

WATCH_S = 2.0  # between looks at the queue while waiting


class SlurmLauncher:
    """Submits the elements of one sweep. `after` names, for an element, the array elements that it waits for."""

    def __init__(
        self,
        sweep: Sweep,
        elements: list[Element],
        standing: Standing,
        store: Store,
        launcher: Mapping[str, Any],
        after: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        self.sweep, self.elements, self.standing, self.store = sweep, elements, standing, store
        self.cfg, self.launcher, self.after = elements[0].cfg, launcher, after or {}
        self.view = terminal.View(sweep, elements, lambda: states.facts_of(sweep))

    def submit(self) -> int | None:
        """Submit what is to be made; the exit code, or None when it is to be waited for (``cluster.wait=true``)."""
        for element in self.standing.cached:
            answers.answer_cached(self.sweep, element, self.store, self.view.note)
        mine = set(states.jobs_of(self.sweep).values())
        for element in self.standing.adopted:
            self._adopt(element, mine)
        requests = requests_of(self.standing.to_run, self.launcher)
        arrays = self.arrays(requests)
        self._header(requests)
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

    def arrays(self, requests: Mapping[int, Request]) -> list[script.Array]:
        """One array per distinct request, with the elements' original numbers."""
        plain = re.sub(r"[^ -~]", "_", self.sweep.id)  # squeue pads its columns by bytes, and cuts long ones
        tag = f"circuits:{plain[:80]}:{secrets.token_hex(4)}"
        folder = self.sweep.path / "slurm"
        groups: dict[Request, list[int]] = {}
        for index, request in requests.items():
            groups.setdefault(request, []).append(index)
        packed = [tuple(e.index for e in pack) for pack in packs([e for e in self.elements if e.index in requests])]
        cluster = self.cfg.cluster
        return [
            script.Array(
                request,
                tuple(sorted(members)),
                folder,
                tag,
                cluster.python or sys.executable,
                self.sweep.path / "code" if cluster.snapshot else CODE,
                [*cluster.setup, *_modules(cluster, request)],
                cluster_environment(self.cfg),
                tuple(pack for pack in packed if len(pack) > 1 and pack[0] in members),
                None if cluster.dry_run else commands.cluster(),
            )
            for request, members in groups.items()
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
        submission = Submission(
            self.store, self.sweep.path, arrays, directories, claims, self.after, self.cfg.task.name
        )
        return submission.run()

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
                task=self.cfg.task.name,
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
                    self.sweep.directory(element), State.failed, task=self.cfg.task.name, error=error, exit_code=1
                )
                self.standing.adopted.remove(element)


def _named(holder: dict[str, Any]) -> str:
    """A maker as others find it: the job in this cluster's queue, else the process."""
    job = holder.get("job") or holder.get("worker_job")
    return str(job) if job and not elsewhere(holder) else f"pid {holder['pid']} on {holder['host']}"


def _modules(cluster: ClusterConfig, request: Request) -> list[str]:
    names = [*cluster.modules, *(cluster.gpu if request.gpus else cluster.cpu).modules]
    return [f"load_modules {shlex.join(names)}"] if names else []


def _again(fact: Mapping[str, Any]) -> bool:
    """An element that is ending, or an interrupted one of which the queue cannot tell."""
    return bool(fact.get("ending")) or (state_of(fact) is State.interrupted and bool(fact.get("queue_error")))


def requests_of(elements: Sequence[Element], launcher: Mapping[str, Any]) -> dict[int, Request]:
    """Each element's resource request by its number."""
    return {element.index: request_of(element.cfg, launcher) for element in elements}


def refuse(elements: Sequence[Element], launcher: Mapping[str, Any], dry: bool) -> None:
    """Everything that the preset or the cluster would refuse.

    Raises:
        UserError: with all findings. A dry run asks no cluster: it may be made anywhere.
    """
    found = [*preflight.written_findings(elements), *preflight.secret_findings(elements[0].cfg, launcher)]
    if not found:
        requests = requests_of(elements, launcher)
        found = preflight.local_findings(elements, requests, launcher)
        if not dry:
            try:
                found += preflight.cluster_findings(elements[0].cfg.cluster.name, requests)
            except CircuitsError as e:
                found.append(str(e))
    if found:
        raise UserError(found)


def refuse_memory(to_run: Sequence[Element], launcher: Mapping[str, Any]) -> None:
    """Elements, or packs of them, that do not fit the memory that they ask for.

    Raises:
        UserError: with what is needed, what there is, and how many fit.
    """
    if found := preflight.memory_findings(to_run, requests_of(to_run, launcher)):
        raise UserError(found)


def snapshot(place: Path) -> None:
    """A copy of the code as it is now: what the nodes will import, whatever is edited meanwhile."""
    if place.exists():
        return
    whole = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    for name in ("circuits", "conf"):
        shutil.copytree(CODE / name, whole / name, ignore=shutil.ignore_patterns("__pycache__", "user"))
    whole.rename(place)


def dry_run(elements: Sequence[Element], to_run: Sequence[Element], launcher: Mapping[str, Any]) -> None:
    """Print exactly what would be submitted; the sweep's directory, which does not exist yet, is named in its place."""
    first = elements[0].cfg
    sweep = Sweep(
        Path(first.multirun) / "DRY-RUN", {"id": "DRY-RUN", "task": first.task.name, "elements": [{}] * len(elements)}
    )
    arrays = SlurmLauncher(sweep, list(elements), Standing(), None, launcher).arrays(requests_of(to_run, launcher))  # type: ignore[arg-type]
    if not arrays:
        print("nothing to submit: every element is cached or being made")
    for array in arrays:
        print(array.text())
