"""A legacy config as layers of files, and which of its fields were understood: none is lost unnoticed.

A condition lies over what all conditions share, a battery's overrides over the battery. The field of the uppermost layer counts,
as it did in the lab; looking at it marks it in every layer. What nothing looked at is left over, and is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Path_ = tuple[str, ...]


@dataclass
class Source:
    """A parsed file, the fields of it that were looked at, and what is to be said of some of them."""

    file: Path
    data: Mapping[str, Any]
    taken: set[Path_] = field(default_factory=set)
    notes: dict[Path_, str] = field(default_factory=dict)

    def take(self, path: Path_) -> None:
        """Mark a field, with all that is in it."""
        self.taken.add(path)

    def told(self, unread: Mapping[str, str]) -> Iterator[str]:
        """``FILE: shared.seeds=[0, 1]: why``, one line a field that is told: those left over, and those with a note.

        Args:
            unread: reasons of fields that are known to have no place here, by their last name.
        """
        for path, value in leaves(self.data):
            prefixes = [path[:n] for n in range(len(path), 0, -1)]
            reason = next((self.notes[p] for p in prefixes if p in self.notes), None)
            if reason is None and not any(p in self.taken for p in prefixes):
                names = [name.split("[")[0] for name in reversed(path)]
                reason = next((unread[name] for name in names if name in unread), "no such field is known here")
            if reason is not None:
                yield f"{self.file}: {dotted(path)}={shown(value)}: {reason}"


@dataclass(frozen=True)
class Layer:
    """A part of a file: below `prefix`."""

    source: Source
    prefix: Path_ = ()


class View:
    """Layers as one config; the last one counts."""

    def __init__(self, *layers: Layer) -> None:
        self.layers = layers

    def get(self, *names: str, default: Any = None) -> Any:
        """The value of a field, which is then taken."""
        found = default
        for layer in self.layers:
            there, value = _walk(layer.source.data, (*layer.prefix, *names))
            if there:
                found = value
                layer.source.take((*layer.prefix, *names))
        return found

    def peek(self, *names: str) -> Any:
        """Its value, without taking it; None where no layer has it."""
        found = [_walk(layer.source.data, (*layer.prefix, *names)) for layer in self.layers]
        return next((value for there, value in reversed(found) if there), None)

    def has(self, *names: str) -> bool:
        """Whether any layer has it; that takes nothing."""
        return any(_walk(layer.source.data, (*layer.prefix, *names))[0] for layer in self.layers)

    def items(self, name: str) -> list[View]:
        """The items of a list, each as a config of its own; a list in a lower layer is covered as a whole."""
        holders = [layer for layer in self.layers if _walk(layer.source.data, (*layer.prefix, name))[0]]
        found: list[View] = []
        for layer in holders:
            value = _walk(layer.source.data, (*layer.prefix, name))[1]
            listed = value if isinstance(value, list) else [value]
            places = [(*layer.prefix, f"{name}[{i}]") for i in range(len(listed))]
            if layer is holders[-1]:
                found = [View(Layer(layer.source, place)) for place in places]
            for path in () if layer is holders[-1] else (*places, (*layer.prefix, name)):
                layer.source.take(path)
        return found

    @property
    def value(self) -> Any:
        """All of the uppermost layer."""
        return View(self.layers[-1]).peek()

    def note(self, *names: str, why: str) -> None:
        """Say something of a field, where it counts."""
        for layer in reversed(self.layers):
            if _walk(layer.source.data, (*layer.prefix, *names))[0]:
                layer.source.notes[(*layer.prefix, *names)] = why
                return

    def drop(self, *names: str, why: str) -> None:
        """A field that has no place here, and why."""
        self.get(*names)
        self.note(*names, why=why)


def leaves(data: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every field of a config that is no object; a list of objects field by field (``groups[0].label``), another list as one."""
    if isinstance(data, Mapping) and data:
        for name, value in data.items():
            yield from leaves(value, (*path, str(name)))
    elif isinstance(data, list) and any(isinstance(item, Mapping) for item in data):
        for i, item in enumerate(data):
            yield from leaves(item, (*path[:-1], f"{path[-1]}[{i}]") if path else (f"[{i}]",))
    else:
        yield path, data


def dotted(path: Path_) -> str:
    """``shared.model.name``."""
    return ".".join(path)


def shown(value: Any) -> str:
    """A value in JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _walk(data: Any, path: Path_) -> tuple[bool, Any]:
    """Whether a path is there, and its value; ``groups[0]`` is an item of a list."""
    for name in path:
        key, _, index = name.partition("[")
        if not isinstance(data, Mapping) or key not in data:
            return False, None
        data = data[key]
        if index:
            number = int(index.rstrip("]"))
            if not isinstance(data, list) or number >= len(data):
                return False, None
            data = data[number]
    return True, data
