"""The artifact of the store that is most like one that is not there, and the keys in which they differ. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from circuits.files import read_json
from circuits.store.keys import Key

MOST = 2000  # artifacts that are looked at, the newest
SHOWN = 4  # keys that are named
_LAYER = 3  # another layer is as far as so many keys


def told(root: Path, key: Key) -> str:
    """For the end of an error: ``; nearest there: sae/tiny-L2-topk-25d1dd88328f (sae.k=32, not 64)``, or nothing.

    Args:
        root: the store's directory, of all kinds.
        key: what does not exist.
    """
    wanted = json.loads(key.payload)
    place = root / key.kind
    changed = place.stat().st_mtime_ns if place.is_dir() else 0
    found = [(differing(wanted, payload), name) for name, payload, _ in _payloads(place, changed)]
    if not found:
        return f"; there is no artifact of kind {key.kind} in {root}"
    differences, name = min(found, key=lambda one: (_distance(one[0]), one[1]))
    listed = [f"{where}={_text(there)}, not {_text(here)}" for where, (here, there) in differences.items()]
    more = f"; {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return f"; nearest there: {key.kind}/{name} ({'; '.join(listed[:SHOWN]) or 'alike in its config'}{more})"


def of(
    root: Path, kind: str, payload: Mapping[str, Any], besides: str = "", sweep: str | None = None
) -> tuple[str, list[str]] | None:
    """The name of the artifact whose key is most like `payload`, and where it differs (``sae.k: 32 → 64``); None without any.

    Args:
        root: the store's directory, of all kinds.
        kind: of the artifact.
        payload: what entered a key, as in a manifest.
        besides: the name of the artifact itself, which is not meant.
        sweep: whose artifacts are not meant, either: they are as new.
    """
    place = root / kind
    changed = place.stat().st_mtime_ns if place.is_dir() else 0
    found = [
        (differing(payload, other), name)
        for name, other, by in _payloads(place, changed)
        if name != besides and (sweep is None or by.partition("/")[0] != sweep)
    ]
    if not found:
        return None
    differences, name = min(found, key=lambda one: (_distance(one[0]), one[1]))
    return name, [f"{where}: {_text(there)} → {_text(here)}" for where, (here, there) in differences.items()]


def differing(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two keys' payloads, by config key: as wanted, as it is there."""
    found = {
        where: (here, its)
        for where, here, its in _leaves(wanted.get("config", {}), there.get("config", {}))
        if here != its
    }
    if wanted.get("layers") != there.get("layers"):
        found = {"layer": (wanted.get("layers"), there.get("layers")), **found}
    if wanted.get("version") != there.get("version"):
        found["version of the kind"] = (wanted.get("version"), there.get("version"))
    if not found:  # the same words, made from something else
        parts = {"input": "inputs", "": "extra"}
        for what, part in parts.items():
            for name, here, its in _leaves(wanted.get(part, {}), there.get(part, {})):
                if here != its:
                    found[f"{what} {name}".strip()] = (here, its)
    return found


@lru_cache(maxsize=8)
def _payloads(place: Path, changed: int) -> tuple[tuple[str, dict[str, Any], str], ...]:
    """Name, key payload and maker of a kind's artifacts, read once until that has `changed`: a sweep may ask a thousand times."""
    manifests = sorted(place.glob("[!.]*/manifest.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = []
    for path in manifests[:MOST]:
        try:
            manifest = read_json(path)
            found.append((path.parent.name, json.loads(manifest["payload"]), str(manifest.get("by", ""))))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged: whoever reads it says so
    return tuple(found)


def _leaves(here: Any, there: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Values of two trees by dotted name; None where one has none."""
    if isinstance(here, dict) or isinstance(there, dict):
        mine, its = (tree if isinstance(tree, dict) else {} for tree in (here, there))
        for name in dict.fromkeys([*mine, *its]):
            where = name if path and name.startswith(f"{path}.") else f"{path}.{name}".lstrip(".")
            yield from _leaves(mine.get(name), its.get(name), where)
    else:
        yield path.removesuffix("_"), here, there


def _distance(differences: Mapping[str, Any]) -> int:
    return sum(_LAYER if where == "layer" else 1 for where in differences)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, str) and len(value) == 64:
        return value[:10]  # a hash
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
