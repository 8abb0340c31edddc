"""Why something was made anew, and what an element waits for. No torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from circuits.errors import UserError
from circuits.files import exists, read_json
from circuits.launch.planning import keys_of
from circuits.launch.slurm.submission import read_record
from circuits.launch.states import facts_of
from circuits.launch.sweep import Sweep, kind_of
from circuits.run import config
from circuits.state import State, state_of
from circuits.store import nearest
from circuits.store.contents import Contents
from circuits.store.layers import ranges
from circuits.store.places import RECORD
from circuits.words import one_line

SHOWN = 4  # differences that a line names


def artifact_of(name: str, root: Path) -> Path | None:
    """The directory of the artifact that `name` names by its id or its place; None where it names none."""
    for place in (root / name, Path(name)):
        if "/" in name and exists(place / "manifest.json"):
            return place.resolve()
    return None


def of_artifact(place: Path) -> str:
    """How an artifact differs from the nearest other one of its kind."""
    manifest = read_json(place / "manifest.json")
    told = _unlike(place.parents[1], manifest["kind"], json.loads(manifest["payload"]), place.name)
    return f"{manifest['kind']}/{place.name}: made by {manifest.get('by', '?')}; {told}"


def _unlike(root: Path, kind: str, payload: Mapping[str, Any], besides: str = "", sweep: str | None = None) -> str:
    found = nearest.of(root, kind, payload, besides, sweep)
    if found is None:
        return f"no other {kind} is in the store" if sweep is None else f"no {kind} was in the store before"
    name, differences = found
    more = f"; {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    told = "; ".join(differences[:SHOWN]) or "alike in its config"
    return f"nearest {kind}/{name}: {told}{more}"


def only(sweep: Sweep, of: str) -> Collection[int]:
    """The element whose directory `of` is; of a sweep, all."""
    record = Path(of) / RECORD
    if exists(record) and len(sweep.record["elements"]) > 1:
        return [read_json(record)["index"]]
    return [item["index"] for item in sweep.record["elements"]]


def of_sweep(sweep: Sweep, indices: Collection[int]) -> Iterator[str]:
    """A line for each of these elements."""
    known, root = facts_of(sweep), Path(sweep.record["store"])
    contents = Contents(root / ".hashes.json")
    after = (read_record(sweep.path) or {}).get("after", {})
    for item in sweep.record["elements"]:
        if item["index"] in indices:
            yield f"{item['name']}  {_line(sweep, item, known[item['index']], root, contents, after.get(str(item['index']), []))}"


def _line(
    sweep: Sweep, item: Mapping[str, Any], facts: Mapping[str, Any], root: Path, contents: Contents, after: list[int]
) -> str:
    state = state_of(facts)
    if state is State.cached:
        return f"cached: {' '.join(a['id'] for a in facts.get('artifacts') or []) or 'made by another run meanwhile'}"
    if state.live and state is not State.running:
        for_whom = f"elements {ranges(after)}" if len(after) > 1 else f"element {after[0]}" if after else ""
        parts = [facts.get("job"), facts.get("reason"), f"for {for_whom}, which make its inputs" if for_whom else None]
        return f"{state}: " + (", ".join(str(part) for part in parts if part) or "nothing keeps it")
    reasons = list(_reasons(sweep, item, root, contents))
    ended = f"{state}: {one_line(facts['error'])}; " if facts.get("error") and state is not State.done else f"{state}; "
    return ended + " · ".join(reasons)


def _reasons(sweep: Sweep, item: Mapping[str, Any], root: Path, contents: Contents) -> Iterator[str]:
    """Why each artifact of an element was, or is, to be made."""
    directory = sweep.directory(dict(item))
    for unit, name in item["artifacts"].items():
        place = root / name
        where = f"{unit}: " if len(item["artifacts"]) > 1 else ""
        if exists(place / "manifest.json"):
            manifest = read_json(place / "manifest.json")
            mine = str(manifest.get("by", "")).startswith(f"{sweep.id}/")
            made = "" if mine else f"made by {manifest.get('by', '?')}; "
            yield where + made + _unlike(root, manifest["kind"], json.loads(manifest["payload"]), place.name, sweep.id)
            continue
        cfg = config.load(directory / "config.yaml")
        kind = kind_of(sweep, item)
        try:
            keys = keys_of(kind, cfg, tuple(item["layers"]), contents)
        except UserError as e:
            yield f"{where}{one_line(str(e))}"
            continue
        key = next((key for key in keys.values() if key.id == name), None)
        if key is None:
            yield f"{where}{name}: its key has changed since (an edited file, or other code)"
        else:
            yield where + _unlike(root, key.kind, json.loads(key.payload), sweep=sweep.id)
