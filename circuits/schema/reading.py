"""What of a config is read, given the rest of it. One table for the whole schema, as data; standard library only.

A group's module lists its conditions in ``READ_WHEN``: the field ``sae.ram`` is read while ``sae.source`` is ``store``. From that
come the refusal of an override that nothing reads (:mod:`circuits.command.reading` adds what tasks and their inputs read) and
of a value beside its default in a yaml (:func:`problems`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from operator import attrgetter
from typing import Any

SET = "…"  # any value but null
SOME = "at least 1"

#: The field that a choice from a group stands for: ``sae=relu`` is about ``sae.architecture``.
CHOICE_OF = {
    "task": "task.name", "model": "model.id", "behaviour": "behaviour.name", "data": "data.source", "sae": "sae.architecture",
    "cluster": "cluster.backend", "precision": "precision.dtype", "tracking": "tracking.mode",
}  # fmt: skip
_GROUP_OF = {CHOICE_OF[group]: group for group in ("task", "model", "behaviour", "data", "sae", "cluster")}


@dataclass(frozen=True)
class When:
    """A condition: something is read only while the field `key` has one of `values`, as they are written in yaml.

    Attributes:
        strict: a value beside its default is refused too where it is not read, whoever wrote it.
        hint: what to write instead, where there is something else.
        but: values with which it is not read, where `values` are none.
        other: another condition, under which it is read, too.
    """

    key: str
    values: tuple[Any, ...]
    strict: bool = True
    hint: str = ""
    but: tuple[Any, ...] = ()
    other: When | None = None

    def holds(self, cfg: Any) -> bool:
        """Whether it is so in `cfg`."""
        if self.other is not None and self.other.holds(cfg):
            return True
        value = plain(lookup(cfg, self.key))
        if self.but:
            return value not in self.but
        if SET in self.values and value is not None:
            return True
        if isinstance(value, (list, tuple)):  # several at once, each of which is read
            return any(plain(one) in self.values for one in value)
        return value in self.values or (SOME in self.values and value > 0)

    def says(self, cfg: Any) -> str:
        """Who does not read it in `cfg`, and what would: ``sae=relu does not read it; sae=topk does``."""
        reads = self.hint or wanted(self.key, self.values)
        if self.other is not None:
            reads += f", or {wanted(self.other.key, self.other.values)}"
        return f"{_shown(self.key, lookup(cfg, self.key), cfg)} does not read it; {reads}"


Table = Mapping[str, Sequence[When]]


def wanted(key: str, values: Sequence[Any]) -> str:
    """Which values of `key` would read something: ``sae=topk, batchtopk do``."""
    named = [value for value in values if value not in (SET, SOME, None)]
    if not named:
        return f"leave {_written(key)} out" if None in values else f"{_written(key)}=N does"
    return f"{_written(key)}={', '.join(_text(value) for value in named)} {'do' if len(named) > 1 else 'does'}"


def failing(table: Table, path: str, cfg: Any) -> When | None:
    """The first condition on `path`, or on a section that it is in, that does not hold."""
    parts = path.split(".")
    for length in range(1, len(parts) + 1):
        for when in table.get(".".join(parts[:length]), ()):
            if not when.holds(cfg):
                return when
    return None


def problems(table: Table, cfg: Any, default: Any) -> list[str]:
    """Values beside their default that this config does not read, one line each."""
    found = []
    for path, conditions in table.items():
        value = lookup(cfg, path)
        if value == lookup(default, path):
            continue
        unmet = next((when for when in conditions if when.strict and not when.holds(cfg)), None)
        if unmet is not None:
            found.append(f"{_written(path)}={_text(value)}: {unmet.says(cfg)}")
    return found


def lookup(cfg: Any, path: str) -> Any:
    """``lookup(cfg, "model.embedded.steps")``; None below what is null."""
    try:
        return _getter(path)(cfg)
    except AttributeError:
        for name in path.split("."):
            cfg = getattr(cfg, name, None)
        return cfg


_getter = lru_cache(maxsize=None)(attrgetter)  # a config is asked for 200 values an element


def plain(value: Any) -> Any:
    """A value as yaml has it."""
    return value.value if isinstance(value, Enum) else value


def _shown(key: str, value: Any, cfg: Any) -> str:
    if key == "cluster.backend":
        return f"cluster={cfg.cluster.name}"
    return f"{_written(key)}={_text(value)}"


def _written(key: str) -> str:
    """As it is typed: ``sae.from``, and ``sae`` for the field that the choice from that group stands for."""
    return _GROUP_OF.get(key, key).removesuffix("_")


def _text(value: Any) -> str:
    value = plain(value)
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
