"""On what terms sweeps are compared: what has to be alike, and what differs in their configs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from circuits.files import read_json
from circuits.report.compare import One
from circuits.report.provenance import flatten
from circuits.report.style import natural

LIKE = (
    "data",
    "behaviour",
    "model",
    "precision.dtype",
)  # sections that must be equal for a difference to mean something
LIKE_INPUTS = ("tiny", "tokens", "prompts")  # kinds of inputs that are data or a model


def unlike(ones: Sequence[One], others: Sequence[One]) -> list[str]:
    """The keys of data, model and number format in which two sweeps differ, each with both values."""
    expected, found = _identity(ones), _identity(others)
    differing = [key for key in dict.fromkeys([*expected, *found]) if expected.get(key) != found.get(key)]
    configured = [key for key in differing if not key.startswith("input ")]  # they explain the inputs
    return [f"{key} ({_short(expected.get(key))} and {_short(found.get(key))})" for key in configured or differing]


def _identity(ones: Sequence[One]) -> dict[str, frozenset[str]]:
    """What data, model and number format the artifacts were made from, as it entered their keys: key → its values."""
    found: dict[str, set[str]] = {}
    for one in ones:
        manifest = one.ref.path / "manifest.json"
        payload = json.loads(read_json(manifest)["payload"]) if manifest.exists() else {}
        flat = flatten(payload.get("config", {}))
        flat = {key: value for key, value in flat.items() if any(key == s or key.startswith(f"{s}.") for s in LIKE)}
        flat |= {f"input {name}": value for name, value in payload.get("inputs", {}).items() if name in LIKE_INPUTS}
        for key, value in flat.items():
            found.setdefault(key, set()).add(value)
    return {key: frozenset(values) for key, values in found.items()}


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


def _short(values: frozenset[str] | None) -> str:
    """Values as an error shows them; hashes cut."""
    if not values:
        return "absent"
    return " ".join(value[:12] if re.fullmatch(r"[0-9a-f]{40,}", value) else value[:60] for value in sorted(values))
