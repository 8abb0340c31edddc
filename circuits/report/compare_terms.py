"""On what terms sweeps are compared: what has to be alike, and what differs in their configs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.files import read_json
from circuits.report.compare import Measure, One
from circuits.report.provenance import flatten
from circuits.report.style import natural
from circuits.report.types import ArtifactRef

LIKE = ("data", "behaviour", "model", "precision.dtype", "baseline.metric")
"""Sections and keys that must be equal for a difference to mean something."""
LIKE_INPUTS = ("tiny", "tokens", "prompts")
"""Kinds of inputs that are data or a model."""

Pair = tuple[dict[str, None], dict[str, None]]  # the values of two sweeps, in the order of the matches


def unlike(ones: Sequence[One], others: Sequence[One]) -> list[str]:
    """The keys of data, model, number format and what was measured in which matched artifacts differ, each with both values."""
    there = {one.place: one for one in others}
    keyed: dict[str, Pair] = {}
    unexplained: dict[str, Pair] = {}
    for one in ones:
        if (match := there.get(one.place)) is None:
            continue
        mine, its = _identity(one.ref.path), _identity(match.ref.path)
        found = _differing(mine.own, its.own)
        for name in dict.fromkeys([*mine.inputs, *its.inputs]):
            a, b = mine.inputs.get(name), its.inputs.get(name)
            if a is None or b is None or a.key != b.key:
                inside = _differing(a.config if a else {}, b.config if b else {})
                found = {**inside, **found}
                if not inside:
                    _add(unexplained, {f"input {name}": (a.key if a else None, b.key if b else None)})
        _add(keyed, found)
    return [f"{key} ({_short(a)} and {_short(b)})" for key, (a, b) in (keyed or unexplained).items()]


def unmeasured(ones: Sequence[One], others: Sequence[One], measures: Sequence[Measure]) -> list[str]:
    """The metrics that only one artifact of a matched pair has: nothing can be said of them there."""
    there = {one.place: one for one in others}
    pairs = [(one, there[one.place]) for one in ones if one.place in there]
    notes: dict[tuple[str, str], list[str]] = {}
    for measure in measures:
        for a, b in [*pairs, *((b, a) for a, b in pairs)]:
            if a.value(measure) is None and b.value(measure) is not None:
                notes.setdefault((measure.heading, a.sweep), []).append(str(a.place))
    return [
        f"No {what} was measured in {sweep} ({'; '.join(at[:6])}{' …' if len(at) > 6 else ''})."
        for (what, sweep), at in notes.items()
    ]


@dataclass(frozen=True)
class Input:
    """An input that is data or a model: its key, and what entered that, where its manifest is still there."""

    key: str
    config: Mapping[str, str]


@dataclass(frozen=True)
class Identity:
    """What data, model and number format an artifact was made from, as it entered its key."""

    own: Mapping[str, str]
    inputs: Mapping[str, Input]


def _identity(artifact: Path) -> Identity:
    manifest = _manifest(artifact)
    payload = _payload(manifest)
    flat = flatten(payload.get("config", {}))
    own = {key: value for key, value in flat.items() if any(key == s or key.startswith(f"{s}.") for s in LIKE)}
    inputs = {}
    for name, key in payload.get("inputs", {}).items():
        if name in LIKE_INPUTS:
            place = artifact.parents[1] / manifest.get("inputs", {}).get(name, {}).get("id", "")
            made = _payload(_manifest(place))
            inputs[name] = Input(key, flatten({**made.get("config", {}), **made.get("extra", {})}))
    return Identity(own, inputs)


def entered(ref: ArtifactRef) -> dict[str, str]:
    """The config that entered an artifact's key, flat."""
    return flatten(_payload(_manifest(ref.path)).get("config", {}))


def variant_keys(refs: Sequence[ArtifactRef]) -> list[str]:
    """The keys in which artifacts of one layer and one run differ (``activations.site``)."""
    by_layer: dict[int | None, list[dict[str, str]]] = {}
    for ref in refs:
        by_layer.setdefault(ref.layer, []).append(entered(ref))
    keys = dict.fromkeys(key for configs in by_layer.values() for config in configs for key in config)
    return [
        key for key in keys if any(len({config.get(key) for config in configs}) > 1 for configs in by_layer.values())
    ]


def _manifest(artifact: Path) -> dict[str, Any]:
    path = artifact / "manifest.json"
    return read_json(path) if path.exists() else {}


def _payload(manifest: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(manifest.get("payload", "{}"))
    return found


def _differing(a: Mapping[str, str], b: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    return {key: (a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)}


def _add(to: dict[str, Pair], found: Mapping[str, tuple[str | None, str | None]]) -> None:
    for key, pair in found.items():
        for values, value in zip(to.setdefault(key, ({}, {})), pair, strict=True):
            if value is not None:
                values[value] = None


def differing(configs: Mapping[str, Sequence[Mapping[str, Any]]], read: Collection[str]) -> dict[str, list[str]]:
    """The keys below the sections `read` whose values are not the same in all sweeps: key → its values in each sweep."""
    values: list[dict[str, set[str]]] = []
    for mine in configs.values():
        found: dict[str, set[str]] = {}
        for config in mine:
            for key, value in flatten({k: v for k, v in config.items() if k in read}).items():
                found.setdefault(key, set()).add(value)
        values.append(found)
    keys = dict.fromkeys(key for found in values for key in found)
    return {
        key: [", ".join(sorted(found.get(key, {"–"}), key=natural)) for found in values]
        for key in keys
        if len({frozenset(found.get(key, ())) for found in values}) > 1
    }


def _short(values: Collection[str]) -> str:
    """Values as an error shows them; hashes cut."""
    if not values:
        return "absent"
    return " ".join(value[:12] if re.fullmatch(r"[0-9a-f]{40,}", value) else value[:60] for value in values)
