"""What the checklist is asked of: the elements of a sweep as they were saved, and how an answer is put."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from circuits.state import State

SHOWN = 2  # names in a reason
Answer = tuple[bool | None, str]
"""Whether it holds (None: it does not arise), and why."""


@dataclass(frozen=True)
class Evidence:
    """An element as it was saved, and the manifests of its artifacts by id (None: it is not there)."""

    name: str
    state: State
    config: Mapping[str, Any]
    status: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    manifests: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """All that is asked about."""

    elements: Sequence[Evidence]
    locked: Mapping[str, str] | None
    """Versions that the lock file pins, by package; None without one."""
    scheduler: bool = False
    scripts: int = 0
    """Job scripts that are kept with the sweep."""

    @cached_property
    def manifests(self) -> dict[str, Mapping[str, Any]]:
        """Of all artifacts that are there, each once."""
        return {id: m for one in self.elements for id, m in one.manifests.items() if m is not None}

    @property
    def ran(self) -> list[Evidence]:
        """The elements that ran, and not only answered from the store."""
        return [one for one in self.elements if one.provenance.get("ended")]

    def payloads(self) -> dict[str, Mapping[str, Any]]:
        """What decided each artifact."""
        return {id: json.loads(m["payload"]) for id, m in self.manifests.items() if m.get("payload")}

    def environments(self) -> dict[str, Mapping[str, Any]]:
        """Where each artifact was made."""
        return {id: m.get("environment") or {} for id, m in self.manifests.items()}


def named(names: Iterable[str]) -> str:
    """Some of them, and how many more there are."""
    every = sorted(names)
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN} more" if len(every) > SHOWN else "")


def unless(lacking: Iterable[str], well: str, ill: str) -> Answer:
    """It holds where nothing lacks it; else who does."""
    names = list(lacking)
    return (False, f"{ill}: {named(names)}") if names else (True, well)
