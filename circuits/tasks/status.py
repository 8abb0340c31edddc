"""``task=status``: all runs and sweeps, newest first, or the elements of one (``of=SWEEP``)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuits.errors import Damaged
from circuits.run import status, sweep
from circuits.run.store import verify
from circuits.run.terminal import console as terminal_console
from circuits.run.terminal import human_time, relative
from circuits.schema import BaseConfig

READS = ("of",)
NEWEST = 30


@dataclass
class Options:
    """Options of status."""

    watch: bool = False  # again every 2 s until everything has ended
    verify: bool = False  # check every hash of the artifacts
    all: bool = False  # every sweep, not only the newest 30


def run(cfg: BaseConfig) -> int:
    """Show the table; exit code 1 when something asked for with ``verify`` is damaged."""
    options: Any = getattr(cfg, "status")  # noqa: B009 (joined to the schema at run time)
    console = terminal_console()
    while True:
        outputs, multirun = Path(cfg.outputs), Path(cfg.multirun)
        if cfg.of is None:
            live = _overview(console, sweep.every(outputs, multirun), options.all)
        else:
            live = _one(console, sweep.find(cfg.of, outputs, multirun))
        if not (options.watch and live):
            break
        time.sleep(2)
    return _verify(console, cfg) if options.verify else 0


def _overview(console: Console, sweeps: list[sweep.Sweep], everything: bool) -> bool:
    if not sweeps:
        console.print("no runs yet; try: python launch.py task=sae layer=0")
        return False
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for heading in ("started", "id", "task", "elements", "state", "directory", "note"):
        table.add_column(heading, no_wrap=True)
    live = False
    for found in sweeps if everything else sweeps[:NEWEST]:
        states = [_facts(found, item).get("state", "waiting") for item in found.record["elements"]]
        live = live or "running" in states or "waiting" in states
        started = found.record["created"][:16].replace("T", " ")
        counted = "  ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        note = found.record["note"] or ""
        table.add_row(
            started, found.id, found.record["task"], str(len(states)), counted, relative(found.path), Text(note)
        )
    console.print(table)
    if len(sweeps) > NEWEST and not everything:
        console.print(f"… and {len(sweeps) - NEWEST} older ones: status.all=true")
    return live


def _one(console: Console, found: sweep.Sweep) -> bool:
    record = found.record
    console.print(f"{found.id} · {record['task']} · {record['created']} · {relative(found.path)}", markup=False)
    console.print(f"  {record['command']}" + (f"\n  note: {record['note']}" if record["note"] else ""), markup=False)
    live = False
    table = Table.grid(padding=(0, 2))
    for item in record["elements"]:
        facts = _facts(found, item)
        state = facts.get("state", "waiting")
        live = live or state in ("running", "waiting")
        table.add_row(str(item["index"]), item["name"], state, _detail(facts), human_time(facts.get("wall_s") or None))
    console.print(table)
    for item in record["elements"]:
        facts = _facts(found, item)
        if facts.get("error"):
            console.print(
                f"  {item['index']}  {facts['error']}     log {relative(found.directory(item) / 'run.log')}",
                markup=False,
            )
    return live


def _facts(found: sweep.Sweep, item: dict[str, Any]) -> dict[str, Any]:
    """An element's status; one that waits for a launcher that is gone waits for nobody."""
    facts = status.read(found.directory(item))
    launcher = found.record["launcher"]
    if (
        facts.get("state") == "waiting"
        and status.process_alive(launcher["host"], launcher["pid"], launcher["started"]) is False
    ):
        return {**facts, "state": "never started"}
    return facts


def _detail(facts: dict[str, Any]) -> str:
    progress = facts.get("progress")
    if facts.get("state") == "running" and progress:
        total = f"/{progress['total']:g}" if progress["total"] else ""
        rate = f"  {progress['rate']:.3g} {progress['unit']}/s" if progress["rate"] else ""
        left = f"  {human_time(progress['eta_s'])} left" if progress["eta_s"] is not None else ""
        return f"{progress['phase']}  {progress['done']:g}{total}{rate}{left}"
    found = facts.get("artifacts") or []
    return found[0]["id"] if len(found) == 1 else f"{len(found)} artifacts" if found else ""


def _verify(console: Console, cfg: BaseConfig) -> int:
    """Check every hash of every artifact (of the named sweep's store)."""
    bad, count = 0, 0
    for manifest in sorted((Path(cfg.outputs) / "artifacts").glob("*/[!.]*/manifest.json")):
        count += 1
        try:
            verify(manifest.parent, deep=True)
        except Damaged as e:
            bad += 1
            console.print(f"damaged: {e}", markup=False)
    console.print(f"{count} artifacts checked, {bad} damaged")
    return 1 if bad else 0
