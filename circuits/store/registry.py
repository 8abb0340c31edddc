"""Which tasks and kinds there are, from the files alone: conf/task/*.yaml and circuits/tasks/*.py.

A module of ``circuits/tasks`` may declare ``KIND`` (an object of its subclass of ``Kind``: what it makes), ``READS`` (keys,
sections and fields that it reads besides), ``NAMES`` (the kinds whose artifacts it finds by the config, each with the condition
under which that is the kind), ``Options`` (a dataclass of its own options, at the root under the task's name, or under ``SECTION``;
presets of them stand in ``conf/<section>/``, the default among them is ``PRESET``) and ``READ_WHEN`` (on what else it depends
whether one of these is read). Importing one costs no torch: tasks import their library inside functions.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from circuits import schema
from circuits.errors import UserError, suggest
from circuits.schema import BaseConfig
from circuits.schema.reading import When
from circuits.store import places
from circuits.store.kinds import Kind

TASKS = "circuits.tasks"


@lru_cache
def modules() -> dict[str, ModuleType]:
    """All modules of circuits/tasks by name; one that begins with an underscore is a part of another."""
    package = importlib.import_module(TASKS)  # by its name: what stands on the store is not imported by it
    names = [info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")]
    return {name: importlib.import_module(f"{TASKS}.{name}") for name in sorted(names)}


@lru_cache
def kinds() -> dict[str, Kind]:
    """All artifact kinds by name.

    Raises:
        UserError: one needs a kind that does not exist, or, over others, itself; two sections of reports are of one kind.
    """
    every = [getattr(module, "KIND", None) for module in modules().values()]
    found: dict[str, Kind] = {kind.name: kind for kind in every if kind is not None}
    for one in found.values():
        if unknown := sorted(set(one.needed) - set(found)):
            raise UserError(f"kind {one.name} needs {unknown[0]}" + suggest(unknown[0], found, "kinds"))
        _refuse_circle(one.name, found, ())
    _refuse_two_sections(places.CODE / "circuits" / "report" / "sections")
    return found


def _refuse_two_sections(directory: Path) -> None:
    """Seen in the files' text: pages are made when all the work is done, and drawing takes a second to import."""
    found: dict[str, str] = {}
    for file in sorted(directory.glob("*.py")):
        for kind in re.findall(r"^@section\(\s*[\"'](\w+)[\"']", file.read_text(encoding="utf-8"), re.MULTILINE):
            if kind in found:
                raise UserError(f"two sections of {kind}: in {found[kind]} and {file.name} of {directory}")
            found[kind] = file.name


def _refuse_circle(name: str, known: dict[str, Kind], trail: tuple[str, ...]) -> None:
    if name in trail:
        raise UserError(f"kinds need each other in a circle: {' → '.join([*trail[trail.index(name) :], name])}")
    for other in known[name].needed:
        if other in known:
            _refuse_circle(other, known, (*trail, name))


def kind(name: str) -> Kind:
    """The kind called `name`.

    Raises:
        UserError: there is none; the message lists them.
    """
    if name not in kinds():
        raise UserError(f"{name}: no such kind of artifact" + suggest(name, kinds(), "kinds"))
    return kinds()[name]


def section(task: str) -> str | None:
    """Where the own options of `task` stand in the config: under the task's name, or what its module calls ``SECTION``."""
    module = modules().get(task)
    return getattr(module, "SECTION", task) if hasattr(module, "Options") else None


def options() -> dict[str, type]:
    """Tasks' own option dataclasses, by section.

    Raises:
        UserError: two tasks have a section of one name.
    """
    found: dict[str, type] = {}
    for name, module in modules().items():
        if (where := section(name)) is None:
            continue
        if found.setdefault(where, module.Options) is not module.Options:
            raise UserError(
                f"circuits/tasks/{name}.py: another task has options in a section {where}; give SECTION another name"
            )
    return found


def presets() -> dict[str, str]:
    """The groups of presets for tasks' own options (``conf/<section>/*.yaml``), and what is chosen where nothing is said.

    Raises:
        UserError: a group without a default.
    """
    found = {}
    for name, module in modules().items():
        where = section(name)
        if where is None or not (there := places.choices(where)):
            continue
        found[where] = getattr(module, "PRESET", "default")
        if found[where] not in there:
            raise UserError(
                f"conf/{where}: no {found[where]}.yaml; circuits/tasks/{name}.py names the default as PRESET"
            )
    return found


def starts(task: str) -> tuple[Kind, ...]:
    """The kind that `task` makes, or those whose artifacts it may name by its config (``NAMES``)."""
    module = modules().get(task)
    made: Kind | None = getattr(module, "KIND", None)
    return (made,) if made is not None else tuple(kind(name) for name in getattr(module, "NAMES", {}))


def start_of(task: str, cfg: BaseConfig) -> Kind | None:
    """The one of :func:`starts` that `cfg` is about."""
    conditions: Mapping[str, When] = getattr(modules().get(task), "NAMES", {})
    return next((one for one in starts(task) if one.name not in conditions or conditions[one.name].holds(cfg)), None)


#: Run-level keys that a task without a kind reads, whatever its module names.
ALWAYS = ("outputs", "multirun", "task")


@lru_cache
def own(task: str) -> frozenset[str]:
    """What `task` reads beside what its kind and that one's inputs do: keys, sections and fields, dotted."""
    module = modules().get(task)
    if everything(task):
        return frozenset((*(f.name for f in dataclasses.fields(BaseConfig)), *options()))
    return frozenset((*getattr(module, "READS", ()), *filter(None, [section(task)])))


@lru_cache
def everything(task: str) -> bool:
    """Whether `task` hands on whatever is typed to others that may read it (``READS = ("*",)``)."""
    return "*" in getattr(modules().get(task), "READS", ())


def run_keys(task: str) -> tuple[str, ...]:
    """The run-level keys that `task` reads: all, where it makes something."""
    found = schema.RUN_KEYS if hasattr(modules().get(task), "KIND") else ALWAYS
    return (*found, *(key for key in own(task) if key in schema.RUN_KEYS))


@lru_cache
def reads(task: str) -> frozenset[str]:
    """The root keys and sections that `task` or its inputs may read."""
    found = {name.split(".")[0] for name in own(task)}
    for current, _ in chain(task):
        found.update(section.split(".")[0] for section in current.sections)
        if current.layers != "none":
            found.add("layer")
    return frozenset(found)


def chain(task: str) -> list[tuple[Kind, bool]]:
    """The task's kind and all that it may need under some config, each with whether it is made in the task's runs."""
    first, makes, found = starts(task), hasattr(modules().get(task), "KIND"), []
    waiting, seen = [(start, tuple(start.needed)) for start in first], set()
    while waiting:
        current, needs = waiting.pop()
        if (current.name, needs) in seen:
            continue
        seen.add((current.name, needs))
        found.append((current, makes if current in first else current.inline))
        waiting += [(kind(name), current.needed.get(name) or tuple(kind(name).needed)) for name in needs]
    return found
