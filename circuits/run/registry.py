"""Which tasks and kinds there are, from the files alone: conf/task/*.yaml and circuits/tasks/*.py.

A module of ``circuits/tasks`` may declare ``KIND`` (what it makes), ``READS`` (root keys and sections that a service task
reads), ``Options`` (a dataclass of its own options, at the root under the task's name). Importing one costs no torch: tasks
import their library inside functions.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from types import ModuleType

import circuits.tasks
from circuits.errors import UserError, suggest
from circuits.run.kinds import Kind
from circuits.schema import BaseConfig


@lru_cache
def modules() -> dict[str, ModuleType]:
    """All modules of circuits/tasks by name; one that begins with an underscore is a part of another."""
    names = [info.name for info in pkgutil.iter_modules(circuits.tasks.__path__) if not info.name.startswith("_")]
    return {name: importlib.import_module(f"circuits.tasks.{name}") for name in sorted(names)}


@lru_cache
def kinds() -> dict[str, Kind]:
    """All artifact kinds by name."""
    found = [getattr(module, "KIND", None) for module in modules().values()]
    return {kind.name: kind for kind in found if kind is not None}


def kind(name: str) -> Kind:
    """The kind called `name`.

    Raises:
        UserError: there is none; the message lists them.
    """
    if name not in kinds():
        raise UserError(f"{name}: no such kind of artifact" + suggest(name, kinds(), "kinds"))
    return kinds()[name]


def options() -> dict[str, type]:
    """Tasks' own option dataclasses, by task name."""
    return {name: module.Options for name, module in modules().items() if hasattr(module, "Options")}


@lru_cache
def reads(task: str) -> frozenset[str]:
    """The root keys and sections that `task` or its inputs read."""
    module = modules().get(task)
    own = set(getattr(module, "READS", ()))
    if hasattr(module, "Options"):
        own.add(task)
    start: Kind | None = getattr(module, "KIND", None)
    waiting, seen = ([(start, start.may_need)] if start else []), set()
    while waiting:
        current, needs = waiting.pop()
        if (current.name, needs) in seen:
            continue
        seen.add((current.name, needs))
        own.update(current.sections)
        if current.layers != "none":
            own.add("layer")
        waiting += [(kind(name), current.through.get(name, kind(name).may_need)) for name in needs]
    return frozenset(own)


def sections(of: Kind, cfg: BaseConfig) -> frozenset[str]:
    """The config sections (``sae``, ``model.embedded``) that `of`, its inputs and its gates read under this very config."""
    cfg = of.normal(cfg)
    found = {*of.sections, *getattr(modules()[of.name], "READS", ())}
    for name in (*of.inputs(cfg), *of.gates(cfg)):
        other, _, part = name.partition(":")
        found |= sections(kind(other), of.part(cfg, part) if part else cfg)
    return frozenset(found)
