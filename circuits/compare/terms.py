"""On what terms sweeps are compared: what has to be alike, and what differs in their configs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.compare.differences import Measure, One
from circuits.compare.equal import manifest
from circuits.drawing.style import natural
from circuits.report.provenance import flatten
from circuits.report.types import ArtifactRef

LIKE = ("data", "behaviour", "model", "precision.dtype", "baseline.metric", "intervention.metric")
"""Sections and keys that must be equal for a difference to mean something."""
LIKE_INPUTS = ("tiny", "tokens", "prompts")
"""Kinds of inputs that are data or a model."""

CONTENT = ("model.id", "behaviour.path", "behaviour.splits", "data.path", "sae.from_")
"""What enters a key by its content, and is shown by its name."""

Pair = tuple[dict[str, None], dict[str, None]]  # the values of two sweeps, in the order of the matches


def unlike(ones: Sequence[One], others: Sequence[One], besides: Collection[str] = ()) -> list[str]:
    """The keys of data, model, number format and what was measured in which matched artifacts differ, each with both values.

    `besides`: keys that may differ.
    """
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
    kept = {key: pair for key, pair in keyed.items() if key not in besides} or unexplained
    return [f"{key} ({_short(a)} and {_short(b)})" for key, (a, b) in kept.items()]


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
    own_manifest = manifest(artifact)
    payload = _payload(own_manifest)
    flat = flatten(payload.get("config", {}))
    own = {key: value for key, value in flat.items() if any(key == s or key.startswith(f"{s}.") for s in LIKE)}
    inputs = {}
    for name, key in payload.get("inputs", {}).items():
        if name in LIKE_INPUTS:
            place = artifact.parents[1] / own_manifest.get("inputs", {}).get(name, {}).get("id", "")
            made = _payload(manifest(place))
            inputs[name] = Input(key, flatten({**made.get("config", {}), **made.get("extra", {})}))
    return Identity(own, inputs)


def entered(ref: ArtifactRef) -> dict[str, str]:
    """The config that entered an artifact's key, flat."""
    return flatten(_payload(manifest(ref.path)).get("config", {}))


def variant_keys(refs: Sequence[ArtifactRef]) -> list[str]:
    """The keys in which artifacts of one layer and one run differ (``activations.site``)."""
    by_layer: dict[int | None, list[dict[str, str]]] = {}
    for ref in refs:
        by_layer.setdefault(ref.layer, []).append(entered(ref))
    keys = dict.fromkeys(key for configs in by_layer.values() for config in configs for key in config)
    return [
        key for key in keys if any(len({config.get(key) for config in configs}) > 1 for configs in by_layer.values())
    ]


def _payload(of: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(of.get("payload", "{}"))
    return found


def _differing(a: Mapping[str, str], b: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    return {key: (a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)}


def _add(to: dict[str, Pair], found: Mapping[str, tuple[str | None, str | None]]) -> None:
    for key, pair in found.items():
        for values, value in zip(to.setdefault(key, ({}, {})), pair, strict=True):
            if value is not None:
                values[value] = None


def differing(
    sweeps: Mapping[str, Sequence[One]], configs: Mapping[str, Sequence[Mapping[str, Any]]], asked: Collection[str] = ()
) -> dict[str, list[str]]:
    """The keys that decide these results and are not the same in all sweeps: key → its values in each sweep.

    What decides is what entered the keys of the artifacts and of their inputs, files by content, and what is `asked` of a
    measurement (thresholds); values are shown as the config has them: a path and not its hash, a default where it was left out.
    """
    typed = {label: _values_of(flatten(config) for config in mine) for label, mine in configs.items()}
    made = {label: _values_of(_all_entered(one.ref.path) for one in mine) for label, mine in sweeps.items()}
    for label, found in made.items():
        found |= {key: typed[label].get(key, {}) for key in asked}
    keys = dict.fromkeys(key for found in made.values() for key in found)
    differ = [key for key in keys if len({frozenset(found.get(key, ())) for found in made.values() if found}) > 1]
    shown: dict[str, list[str]] = {}
    for key in differ:
        name = next((name for name in _prefixes(key) if any(name in found for found in typed.values())), key)
        own = name == key and key not in CONTENT
        values = [(own and made[label].get(key)) or typed[label].get(name) or {"–": None} for label in sweeps]
        shown[re.sub(r"_(?=\.|$)", "", name)] = [", ".join(sorted(found, key=natural)) for found in values]
    return shown


def _values_of(configs: Iterable[Mapping[str, str]]) -> dict[str, dict[str, None]]:
    """The values of every key over several flat configs, each once."""
    found: dict[str, dict[str, None]] = {}
    for config in configs:
        for key, value in config.items():
            found.setdefault(key, {})[value] = None
    return found


def _all_entered(artifact: Path) -> dict[str, str]:
    """The config that entered the keys of an artifact and of everything that it was made from, flat."""
    own = manifest(artifact)
    inputs = [artifact.parents[1] / facts.get("id", "") for facts in own.get("inputs", {}).values()]
    found = {key: value for place in inputs for key, value in _all_entered(place).items()}
    return found | flatten(_payload(own).get("config", {}))


def _prefixes(key: str) -> list[str]:
    """``a.b.c``, ``a.b``, ``a``: where the content of a file entered as several values, the config has one."""
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _short(values: Collection[str]) -> str:
    """Values as an error shows them; hashes cut."""
    if not values:
        return "absent"
    return " ".join(value[:12] if re.fullmatch(r"[0-9a-f]{40,}", value) else value[:60] for value in values)
