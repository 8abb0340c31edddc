"""Where a page's numbers come from: what all runs share is shown once, what differs stands in a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from circuits.report.content import Block, Cell, Column, Listing, Note, Table
from circuits.report.saved import load_json
from circuits.report.types import ArtifactRef, Element
from circuits.report.words import ABSENT, seconds

LONGEST = 300


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys with JSON values; a text stands as it is."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            flat |= flatten(item, f"{name}.")
        else:
            text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, default=str)
            more = len(text) - LONGEST
            flat[name] = text if more <= 0 else f"{text[:LONGEST]}… ({more:,} more characters)"
    return flat


def shared_and_differing(records: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], list[str]]:
    """The entries equal in all records, and the keys of the others, in order of first appearance."""
    keys = list(dict.fromkeys(key for record in records for key in record))
    shared, differing = {}, []
    for key in keys:
        values = {record.get(key) for record in records}
        if len(values) == 1:
            shared[key] = records[0][key]
        else:
            differing.append(key)
    return shared, differing


def comparison(title: str, names: Sequence[str], values: Sequence[Mapping[str, Any]], heading: str) -> list[Block]:
    """Nested records of several things: the shared part as a listing, the rest as a table with one row per thing."""
    flat = [(name, flatten(value)) for name, value in zip(names, values, strict=True) if value]
    if not flat:
        return []
    shared, differing = shared_and_differing([record for _, record in flat])
    blocks: list[Block] = []
    if shared:
        everyone = "" if len(flat) == 1 else f", the same for all {len(flat)}"
        blocks.append(Listing(f"{title}{everyone}", tuple(f"{key}={value}" for key, value in shared.items())))
    if differing:
        rows = tuple((Cell(name), *(Cell(record.get(key, ABSENT)) for key in differing)) for name, record in flat)
        columns = (Column(heading), *(Column(key) for key in differing))
        blocks.append(Table(f"{title}: what differs", columns, rows, folded=True))
    return blocks


def provenance_blocks(elements: Sequence[Element], refs: Sequence[ArtifactRef]) -> tuple[list[Block], list[str]]:
    """Elements, artifacts and keys, environment, resolved configuration; and the manifests that could not be read."""
    problems: list[str] = []
    manifests = {ref.key: load_json(ref, "manifest.json", problems) for ref in refs}
    blocks: list[Block] = []
    if elements:
        blocks.append(_elements_table(elements))
    if refs:
        blocks.append(_artifacts_table(refs, manifests))
    else:
        blocks.append(Note("No artifact was made."))
    names = [element.name for element in elements]
    labels = [ref.label for ref in refs]
    made_in = [_public(_mapping(manifests[ref.key].get("environment"))) for ref in refs]
    blocks += comparison("Environment of the artifacts", labels, made_in, "artifact")
    blocks += comparison("Provenance of the runs", names, [_public(e.provenance) for e in elements], "element")
    blocks += comparison("Resolved configuration", names, [e.config for e in elements], "element")
    blocks += comparison("Status of the runs", names, [_public(e.status) for e in elements], "element")
    return blocks, problems


#: Of a machine or an account and not of a result: a page is passed on.
PRIVATE = (
    "hostname", "host", "pid", "process_started", "job", "slurm", "modules", "traceback", "path", "queue", "progress", "accounting",
    "usage",  # the section of resources has both
)  # fmt: skip


def _public(value: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what is nobody's business who reads the page: whose machine, which process, which account."""
    return {
        key: _public(member) if isinstance(member, Mapping) else member
        for key, member in value.items()
        if key not in PRIVATE
    }


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _elements_table(elements: Sequence[Element]) -> Table:
    columns = (
        Column("#", True),
        Column("element"),
        Column("overrides"),
        Column("state"),
        Column("wall time", True),
        Column("artifacts"),
        Column("log"),
    )
    rows = tuple(
        (
            Cell(str(e.index), e.index),
            Cell(e.name, code=True),
            Cell(" ".join(e.overrides), code=True),
            Cell(e.state),
            Cell(seconds(e.wall_s), e.wall_s),
            Cell(", ".join(ref.label for ref in e.artifacts) or ABSENT, code=True),
            Cell(e.log or ABSENT, code=True),
        )
        for e in elements
    )
    return Table("Elements", columns, rows)


def _artifacts_table(refs: Sequence[ArtifactRef], manifests: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = ("artifact", "key", "version", "code", "created", "inputs")
    rows = []
    for ref in refs:
        manifest = manifests[ref.key]
        inputs = flatten(_mapping(manifest.get("inputs")))
        rows.append(
            (
                Cell(ref.label, code=True),
                Cell(ref.key, code=True),
                Cell(str(manifest.get("version", ABSENT))),
                Cell(_code(_mapping(manifest.get("code"))), code=True),
                Cell(str(manifest.get("created", ABSENT))),
                Cell(" ".join(f"{name}={value}" for name, value in inputs.items()) or ABSENT, code=True),
            )
        )
    return Table("Artifacts and their keys", tuple(Column(name) for name in columns), tuple(rows))


def _code(code: Mapping[str, Any]) -> str:
    commit = str(code.get("commit") or ABSENT)[:12]
    return f"{commit} (with uncommitted changes)" if code.get("dirty") else commit
