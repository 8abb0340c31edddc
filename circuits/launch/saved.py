"""A sweep's saved files as the report reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.files import read_json
from circuits.launch import states, sweep
from circuits.run import config, private
from circuits.state import state_of
from circuits.store import registry

if TYPE_CHECKING:
    from circuits.report.types import Element

DECIDING = (
    "layer",
    "seed",
    "note",
    "force",
    "precision",
)  # beside the sections that the task reads; the rest is yours, or the machine's


def elements(found: sweep.Sweep) -> list[Element]:
    """A sweep's elements, with their states and the artifacts they answered with."""
    known = states.facts_of(found)
    return [_element(found, item, known[item["index"]]) for item in found.record["elements"]]


def _element(found: sweep.Sweep, item: dict[str, Any], facts: dict[str, Any]) -> Element:
    from circuits.report.types import ArtifactRef, Element

    directory = found.directory(item)
    provenance = directory / "provenance.json"
    given = config.read(directory / "config.yaml")
    task = item.get("task") or found.record["task"]
    shown = {*(name.split(".")[0] for name in registry.reads(task)), *DECIDING}
    refs = [
        ArtifactRef(
            kind=a["kind"], key=a["id"].rsplit("-", 1)[-1], path=Path(a["path"]), layer=a["layer"], label=a["id"]
        )
        for a in facts.get("artifacts") or []
    ]
    return Element(
        index=item["index"],
        name=item["name"],
        overrides=private.public(item["overrides"]),
        swept=item["swept"],
        state=state_of(facts),
        error=private.public(facts.get("error")),
        log=str(Path(item["dir"]) / "run.log"),
        wall_s=facts.get("wall_s"),
        artifacts=refs,
        config=private.public({key: value for key, value in given.items() if key in shown}),
        status=private.public(facts),
        provenance=private.public(read_json(provenance)) if provenance.exists() else {},
    )
