"""What an element will take: time, memory and room, from what the store has measured of its kind. No torch.

Every manifest says how long its artifact took, how long the run had gone on by then, and the peaks of memory. An element's estimate
comes from the artifact of its kind whose config (with that of its inputs) differs in the fewest values::

    wall  =  before  +  made · Π_k planned_k / measured_k          k: the kind's ``work`` keys (steps, prompts, batch)

`before` is what the run spent until it began (starting, loading the model). A run that makes several artifacts together is one
measurement. Nothing is said where nothing was measured: then the plan takes what was asked for, and says so.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from circuits.files import read_json
from circuits.launch.plan import Element
from circuits.store import registry
from circuits.store.keys import Key
from circuits.store.store import Store

NEWEST = 24  # artifacts of a kind that are looked at
MODEL = ("model.id", "model.embedded.layers", "model.embedded.width")


@dataclass(frozen=True)
class Estimate:
    """Of one element: seconds, bytes; by which artifact, and how alike that one's config is."""

    wall_s: float
    memory: int
    gpu_memory: int | None
    bytes: int
    by: str
    unlike: tuple[str, ...]
    """The keys in which they differ; empty: the very same work."""
    other_model: bool


@dataclass(frozen=True)
class _Measured:
    """One run of a kind, by its artifacts."""

    id: str
    config: Mapping[str, Any]
    before_s: float
    made_s: float
    units: int
    memory: int
    gpu_memory: int | None
    bytes: int


class Rates:
    """What a store has measured."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._runs = cache(self._read)
        self._known: dict[str, Estimate | None] = {}

    def of(self, element: Element) -> Estimate | None:
        """The estimate of an element; None where nothing of its kind was measured."""
        mine = " ".join(key.hash for key in element.keys.values())
        if mine not in self._known:
            self._known[mine] = self._nearest(element)
        return self._known[mine]

    def _nearest(self, element: Element) -> Estimate | None:
        kind, keys = registry.kind(element.task), list(element.keys.values())
        runs = self._runs(kind.name)
        if not runs or not keys:
            return None
        planned = flat(keys[0])
        nearest = min(runs, key=lambda run: (_model(run.config) != _model(planned), len(_unlike(run.config, planned))))
        share = len(keys) / nearest.units
        made = nearest.made_s * share * _ratio(kind.work, nearest.config, planned)
        unlike = tuple(_unlike(nearest.config, planned))
        room = element.bytes[0] or nearest.bytes
        if not unlike:
            room = nearest.bytes
        return Estimate(
            nearest.before_s + made,
            nearest.memory,
            nearest.gpu_memory,
            room * len(keys),
            nearest.id,
            unlike,
            _model(nearest.config) != _model(planned),
        )

    def _read(self, kind: str) -> list[_Measured]:
        groups: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
        for place in self._newest(kind):
            try:
                manifest = read_json(place / "manifest.json")
            except (OSError, ValueError):
                continue  # being written, or damaged: whoever reads it says so
            if "cost" in manifest and not manifest["cost"].get("resumed"):
                groups.setdefault(manifest.get("by") or place.name, []).append((place, manifest))
        return [self._measured(found) for found in groups.values()]

    def _newest(self, kind: str) -> list[Path]:
        folder = self.store.root / kind
        if not folder.is_dir():
            return []
        complete = [
            path
            for path in folder.iterdir()
            if path.name[0] != "." and path.suffix not in (".partial", ".lease", ".claim")
        ]
        dated = [(path.stat().st_mtime, path) for path in complete if path.is_dir()]
        return [path for _, path in heapq.nlargest(NEWEST, dated)]

    def _measured(self, found: Sequence[tuple[Path, dict[str, Any]]]) -> _Measured:
        costs = [manifest["cost"] for _, manifest in found]
        place, first = min(found, key=lambda pair: pair[1]["cost"]["run_s"])
        inside = sum(m["made_in_s"] for m in self._inputs(first) if m.get("by") == first.get("by") and "made_in_s" in m)
        run_s = max(cost["run_s"] for cost in costs)
        before = max(0.0, first["cost"]["run_s"] - first["made_in_s"] - inside)
        gpu = [cost["peak_gpu_bytes"] for cost in costs if cost.get("peak_gpu_bytes")]
        size = sum(facts["bytes"] for _, manifest in found for facts in manifest["files"].values())
        return _Measured(
            f"{first['kind']}/{place.name}",
            self._flat_of(first),
            before,
            max(0.0, run_s - before - inside),
            len(found),
            max(cost["peak_rss_bytes"] for cost in costs),
            max(gpu, default=None),
            size // len(found),
        )

    def _inputs(self, manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The manifests of all that an artifact was made from, of those that are still there."""
        for facts in manifest.get("inputs", {}).values():
            try:
                found = read_json(self.store.root / facts["id"] / "manifest.json")
            except (OSError, ValueError):
                continue
            yield found
            yield from self._inputs(found)

    def _flat_of(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for one in [*self._inputs(manifest), manifest]:
            found |= _leaves(json.loads(one["payload"])["config"])
        return found


def flat(key: Key) -> dict[str, Any]:
    """Every value of the configs that entered a key and its inputs' keys, by its dotted name."""
    found: dict[str, Any] = {}
    for one in key.inputs.values():
        found |= flat(one)
    return found | _leaves(json.loads(key.payload)["config"])


def _leaves(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{path}.{name}" if path else name
        if isinstance(value, dict) and value:
            found |= _leaves(value, key)
        else:
            found[key] = value
    return found


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))


def _model(config: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(config.get(key) for key in MODEL)


def _ratio(work: Sequence[str], measured: Mapping[str, Any], planned: Mapping[str, Any]) -> float:
    ratio = 1.0
    for key in work:
        before, now = measured.get(key), planned.get(key)
        if isinstance(before, (int, float)) and isinstance(now, (int, float)) and before > 0:
            ratio *= now / before
    return ratio
