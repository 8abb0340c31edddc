"""What to say of inputs that do not exist: what is nearest to them, and the one command that makes them all."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuits.schema import BaseConfig
from circuits.schema.reading import lookup, plain
from circuits.store import inputs, nearest, registry
from circuits.store.contents import Contents
from circuits.store.keys import key_of
from circuits.store.kinds import Input, Kind, Layers
from circuits.store.layers import ranges

SHOWN = 3  # ids that a message names
PLACE = {"outputs", "multirun", "user", "cluster", "tracking"}
"""Where a run goes and what it tells: its inputs are made there, too."""


@dataclass(frozen=True)
class Asked:
    """What was asked for: the config and layers of an element, the overrides as they were typed, and where to look."""

    cfg: BaseConfig
    layers: Layers
    overrides: Sequence[str]
    contents: Contents
    root: Path  # the store's


def told(needy: Kind, missing: Sequence[Input], run: Asked) -> str:
    """One line for a kind `needy` that misses these inputs, all of one kind."""
    kind = registry.kind(missing[0].kind)
    keys = [key_of(kind, one.cfg, one.layers, run.contents) for one in missing]
    made_by = f"make {'it' if len(keys) == 1 else 'them'} with: {_command(run, needy, kind, missing)}"
    if len(keys) == 1:
        return f"{needy.name} needs {keys[0].id}, which does not exist{nearest.told(run.root, keys[0])}; {made_by}"
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    ids = " ".join(key.id for key in keys[:SHOWN])
    return f"{needy.name} needs {ids}{more}, which do not exist; {made_by}"


def _command(run: Asked, needy: Kind, kind: Kind, missing: Sequence[Input]) -> str:
    """The command line that makes these under the run's overrides; what is made by who needs it: that one's."""
    task = needy.name if kind.inline else kind.name
    made = needy if kind.inline else kind
    read = {section.split(".")[0] for section in inputs.sections(made, run.cfg if kind.inline else missing[0].cfg)}
    read |= {name.split(".")[0] for name in registry.own(task)} | PLACE
    if "layer" in registry.reads(task):
        read.add("layer")
    own = {} if kind.inline else _words(run, kind, missing)
    typed = [word.partition("=") for word in run.overrides]
    kept = [f"{key.removesuffix('_')}{sign}{value}" for key, sign, value in typed  # the field of ``from`` is ``from_``
            if key.split(".")[0] in read and key not in own]  # fmt: skip
    return shlex.join(["python", "launch.py", f"task={task}", *kept, *(f"{key}={value}" for key, value in own.items())])


def _words(run: Asked, kind: Kind, missing: Sequence[Input]) -> dict[str, str]:
    """What the command has to say beside what was typed: where the inputs' configs are not the run's, and other layers."""
    found: dict[str, str] = {}
    heads = {section.split(".")[0] for section in kind.sections}
    for key in dict.fromkeys(key for one in missing for key in _differing(run.cfg, one.cfg, heads)):
        values = list(dict.fromkeys(_text(lookup(one.cfg, key)) for one in missing))
        if len(values) == 1 and all(_idle(run, kind, one, key) for one in missing):
            continue
        listed = ",".join(values)  # a list where one run makes several, else a sweep
        found[key.removesuffix("_")] = f"[{listed}]" if key == kind.several and len(values) > 1 else listed
    layers = sorted({layer for one in missing for layer in one.layers})
    if kind.layers != "none" and not set(layers) <= set(run.layers):
        found["layer"] = f"[{ranges(layers)}]" if "," in ranges(layers) else ranges(layers)
    return found


def _differing(cfg: BaseConfig, other: BaseConfig, sections: set[str]) -> Iterator[str]:
    """The dotted keys in which two configs differ."""
    for section in sorted(sections):
        mine, its = getattr(cfg, section), getattr(other, section)
        if mine is its:
            continue
        if not dataclasses.is_dataclass(mine):
            if mine != its:
                yield section
            continue
        for field in dataclasses.fields(mine):
            if getattr(mine, field.name) != getattr(its, field.name):
                yield f"{section}.{field.name}"


def _idle(run: Asked, kind: Kind, one: Input, key: str) -> bool:
    """Whether the artifact is the same with the run's own value of `key`: then the command need not say it."""
    if "." not in key:
        return False
    section, name = key.split(".")
    own = replace(getattr(one.cfg, section), **{name: lookup(run.cfg, key)})
    cfg = replace(one.cfg, **{section: own})
    return key_of(kind, cfg, one.layers, run.contents).hash == key_of(kind, one.cfg, one.layers, run.contents).hash


def _text(value: Any) -> str:
    """A value as the command line has it."""
    value = plain(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
