"""``task=report of=SWEEP``: the page of a sweep from its saved files; made at the end of every local sweep, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError
from circuits.launch import stagewise, states, sweep
from circuits.launch.keeping import moved
from circuits.run import config, private
from circuits.schema import BaseConfig
from circuits.schema.fields import named_file
from circuits.state import state_of
from circuits.store.layers import ranges
from circuits.tasks import _costs

if TYPE_CHECKING:
    from circuits.report.types import Stage

READS = ("of",)


@dataclass
class Options:
    """Options of the report."""

    out: str | None = named_file(None)  # where to put it; null: into the sweep's directory


def run(cfg: BaseConfig) -> int:
    """Make the page of the sweep that ``of=`` names."""
    if cfg.of is None:
        raise UserError("report: of which sweep? of=SWEEP; task=status lists them")
    found = sweep.find(cfg.of, Path(cfg.outputs), Path(cfg.multirun))
    if not any(state_of(facts).live for facts in states.facts_of(found).values()):
        states.ended(found)
    out: str | None = getattr(cfg, "report").out  # noqa: B009 (joined to the schema at run time)
    print(make(found.path, Path(out) if out else None, Path(cfg.outputs) / "artifacts"))
    return 0


def make(path: Path, out: Path | None = None, store: Path | None = None) -> Path:
    """Make the page of the sweep in directory `path`; where it is. `store`: where its artifacts are now, if it was moved."""
    from circuits.report.page import build
    from circuits.report.types import ReportInput

    found = sweep.load(path)
    record = found.record
    elements = moved.elements(found, store)
    facts = {one.index: one.status for one in elements}
    return build(
        ReportInput(
            title=record["name"] or record["id"],
            question=_question(found),
            sweep_id=record["id"],
            command=private.public(record["command"]),
            again=f"python launch.py task=report of={record['id']}",
            elements=elements,
            created=record["created"],
            costs=_costs.costs(found, elements),
            next_time=_costs.next_line(found, facts),
            checks=_costs.checks(found, elements, out or path),
            stages=_stages(found, facts),
        ),
        out or path,
    )


def _stages(found: sweep.Sweep, facts: Mapping[int, Mapping[str, Any]]) -> list[Stage]:
    """A pipeline's stages; none of any other sweep."""
    from circuits.report.types import Stage

    if "pipeline" not in found.record:
        return []
    tasks = {item["stage"]: item["task"] for item in found.record["elements"]}
    after = found.record["pipeline"].get("after", {})  # an older version wrote none
    return [
        Stage(name, tasks[name], int(count), fared, took, after.get(name, ()))
        for name, count, fared, took in stagewise.rows(found, facts)
    ]


def _question(found: sweep.Sweep) -> str:
    """One sentence from the config: what was asked."""
    record, kind = found.record, sweep.kind_of(found)
    if about := record.get("pipeline", {}).get("about"):
        return f"{about[:1].upper()}{about[1:]}" + (f". Note: {record['note']}" if record.get("note") else "")
    cfg = config.load(found.directory(record["elements"][0]) / "config.yaml")
    layers = ranges(sorted({layer for item in record["elements"] for layer in item["layers"]}))
    where = f" at layer{'' if layers.isdigit() else 's'} {layers}" if layers else ""
    swept = sorted({key for item in record["elements"] for key in item["swept"]} - {"layer"})
    asked = kind.question(cfg)
    over = f", over {' and '.join(swept)}" if swept else ""
    note = f" Note: {record['note']}" if record.get("note") else ""
    return f"{asked}{where}{over}?{note}"
