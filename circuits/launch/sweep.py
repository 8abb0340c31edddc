"""A sweep: its directory, its record, its launch. A plain run is a sweep of one.

::

    multirun/2026-11-20/sae-3f2a/      outputs/runs/2026-11-20/sae-77b0/      (a single run: the sweep's directory is the element's)
        sweep.json                         sweep.json
        000-layer=0/                       config.yaml  element.json  status.json  provenance.json
            config.yaml  element.json      metrics.jsonl  run.log  wandb/
            status.json  run.log …         report.html  report.md  figures/
        report.html  report.md  figures/
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.errors import UserError, suggest
from circuits.files import disk_errors, exists, read_json, write_json
from circuits.launch.plan import Element, Shape
from circuits.prose import put
from circuits.run import config, private, provenance, status
from circuits.state import State
from circuits.store import registry
from circuits.store.keys import unit
from circuits.store.kinds import Kind
from circuits.store.leases import owner
from circuits.store.places import RECORD, safe_name
from circuits.store.places import SWEEP as FILE

ID_LENGTH = 48  # letters of a name that stand in the sweep's id, which is typed and shown in tables

SHOWN = 6  # sweeps that a note names


@dataclass
class Sweep:
    """A sweep on disk."""

    path: Path
    record: dict[str, Any]

    @property
    def id(self) -> str:
        """``sae-3f2a``."""
        return self.path.name

    def directory(self, element: dict[str, Any] | Element) -> Path:
        """An element's directory."""
        if isinstance(element, Element):
            return self.path if len(self.record["elements"]) == 1 else self.path / element.name
        return self.path / element["dir"]


def create(
    elements: Sequence[Element], base: Path, launcher: Mapping[str, Any] | None = None, shape: Shape | None = None
) -> Sweep:
    """Make the sweep's directory and its elements' directories; names never collide."""
    cfg = elements[0].cfg
    parent = Path(cfg.multirun) if len(elements) > 1 else Path(cfg.outputs) / "runs"
    day = parent / dt.date.today().isoformat()
    stem = safe_name(cfg.name or "", ID_LENGTH).strip("_-.") or (shape.name if shape else cfg.task.name)
    with disk_errors(day):
        day.mkdir(parents=True, exist_ok=True)
        while True:
            path = day / f"{stem}-{secrets.token_hex(2)}"
            if any(parent.glob(f"*/{path.name}")):
                continue  # an id is unique over all days
            try:
                path.mkdir()
                break
            except FileExistsError:
                continue
        record = private.hidden({**_record(elements, path, base, shape), "hydra_launcher": dict(launcher or {})})
        sweep = Sweep(path, record)
        for element in elements:
            _write_element(sweep, element)
        write_json(path / FILE, record)
    return sweep


def _record(elements: Sequence[Element], path: Path, base: Path, shape: Shape | None) -> dict[str, Any]:
    cfg = elements[0].cfg
    return {
        "id": path.name,
        "task": "pipeline" if shape else cfg.task.name,
        "name": cfg.name,
        "group": cfg.name or path.name,
        "note": cfg.note,
        "command": command(),
        "directory": str(base),
        "created": status.now(),
        "launcher": {"backend": cfg.cluster.backend.value, **owner()},
        "code": provenance.code(),
        "store": str(Path(cfg.outputs) / "artifacts"),
        **({"pipeline": shape_record(shape)} if shape else {}),
        "elements": [
            {
                "index": element.index,
                "name": element.name,
                "task": element.task,
                **({"stage": element.stage} if element.stage else {}),
                "dir": "." if len(elements) == 1 else element.name,
                "overrides": element.overrides,
                "swept": element.swept,
                "layers": list(element.layers),
                "artifacts": {unit(layer): key.id for layer, key in element.keys.items()},
            }
            for element in elements
        ],
    }


def shape_record(shape: Shape) -> dict[str, Any]:
    """A pipeline's shape in its record."""
    barriers = {str(index): sorted(before) for index, before in shape.barriers.items()}
    after = {stage: list(before) for stage, before in shape.after.items()}
    return {"name": shape.name, "about": shape.about, "canary": shape.canary, "barriers": barriers, "after": after}


def shape_of(sweep: Sweep) -> Shape | None:
    """The shape of a recorded pipeline; None of any other sweep."""
    found = sweep.record.get("pipeline")
    if found is None:
        return None
    barriers = {int(index): frozenset(before) for index, before in found["barriers"].items()}
    return Shape(found["name"], found["about"], barriers, found["canary"], found["after"])


def _write_element(sweep: Sweep, element: Element) -> None:
    directory = sweep.directory(element)
    directory.mkdir(exist_ok=True)
    config.save(element.cfg, directory / "config.yaml")
    write_json(
        directory / RECORD,
        {
            "sweep": sweep.id,
            "group": sweep.record["group"],
            "name": element.name,
            "index": element.index,
            "task": element.cfg.task.name,
            "command": sweep.record["command"],
            "overrides": element.overrides,
            "swept": element.swept,
            "layers": list(element.layers),
            "keys": {unit(layer): key.hash for layer, key in element.keys.items()},
        },
        durable=False,
    )
    status.write_plain(directory, State.waiting, task=element.cfg.task.name)


def relaunched(sweep: Sweep) -> None:
    """This process is the launcher now: its elements wait for it, not for one that is gone."""
    sweep.record["launcher"] |= owner()
    file = sweep.path / FILE
    launched = file.stat()
    write_json(file, sweep.record)
    os.utime(
        file, ns=(launched.st_atime_ns, launched.st_mtime_ns)
    )  # code that was edited after the first launch is named


def command() -> str:
    """The command line as a person would type it again; secrets are not in it."""
    return "python launch.py " + " ".join(
        shlex.quote(private.word(word)) for word in sys.argv[1:] if word != "--multirun"
    )


def kind_of(sweep: Sweep, element: Mapping[str, Any] | None = None) -> Kind:
    """What an element's task makes, by its entry in the sweep's record; without one: what the sweep's (first) task makes."""
    return registry.kind((element or sweep.record["elements"][0]).get("task") or sweep.record["task"])


def load(path: Path) -> Sweep:
    """The sweep in directory `path`."""
    return Sweep(path, read_json(path / FILE))


def every(outputs: Path, multirun: Path) -> list[Sweep]:
    """All sweeps and single runs, newest first."""
    found = []
    for parent in (outputs / "runs", multirun):
        for record in parent.glob(f"*/*/{FILE}"):
            try:
                found.append(load(record.parent))
            except ValueError:
                continue  # being written
    return sorted(found, key=lambda sweep: (sweep.record["created"], sweep.id), reverse=True)


def find(of: str, outputs: Path, multirun: Path, key: str = "of") -> Sweep:
    """The sweep that `of` names: its id, its name (the newest that has it, said so) or its directory; `key` is where it stood.

    Raises:
        UserError: there is none; the message lists the nearest.
    """
    given = Path(of)
    for path in (given, given.parent if exists(given / RECORD) else given):  # a sweep's directory, or an element's
        if exists(path / FILE):
            return load(path.resolve())
    sweeps = every(outputs, multirun)
    found = [sweep for sweep in sweeps if of in (sweep.id, sweep.record["name"])]
    if not found:
        recent = [sweep.id for sweep in sweeps[:10]]
        raise UserError(f"{key}={of}: no such sweep below {multirun} or {outputs}/runs" + suggest(of, recent, "newest"))
    if len(found) > 1:
        older = " ".join(sweep.id for sweep in found[1:SHOWN]) + (" …" if len(found) > SHOWN else "")
        newest = f"{found[0].id} ({found[0].record['created']})"
        told = f"{len(found)} sweeps have this name; this is the newest, {newest}; older: {older}"
        put(f"note: {key}={of}: {told}")
    return found[0]
