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
from circuits.run import sweep
from circuits.run.states import LIVE, ended, facts_of, hints
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
        states = [facts.get("state", "waiting") for facts in facts_of(found).values()]
        live = live or any(state in LIVE for state in states)
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
    known = facts_of(found)
    for item in record["elements"]:
        facts = known[item["index"]]
        state = facts.get("state", "waiting")
        live = live or state in LIVE
        table.add_row(str(item["index"]), item["name"], state, _detail(facts), human_time(facts.get("wall_s") or None))
    console.print(table)
    for item in record["elements"]:
        facts = known[item["index"]]
        if facts.get("error"):
            log = relative(found.directory(item) / "run.log")
            console.print(f"  {item['index']}  {facts['error']}     log {log}", markup=False)
    for line in dict.fromkeys(str(facts["queue_error"]) for facts in known.values() if facts.get("queue_error")):
        console.print(f"note: {line}; what is shown is from the runs' own files", markup=False)
    for line in hints(found, known):
        console.print(line, markup=False)
    if not live:
        ended(found)
    return live


def _detail(facts: dict[str, Any]) -> str:
    progress = facts.get("progress")
    if facts.get("state") == "running" and progress:
        total = f"/{progress['total']:g}" if progress["total"] else ""
        rate = f"  {progress['rate']:.3g} {progress['unit']}/s" if progress["rate"] else ""
        left = f"  {human_time(progress['eta_s'])} left" if progress["eta_s"] is not None else ""
        return f"{progress['phase']}  {progress['done']:g}{total}{rate}{left}"
    if facts.get("state") == "pending":
        again = "queued again, " if facts.get("requeued") else ""
        return f"{facts.get('job', '')}  {again}{facts.get('reason', '')}"
    if facts.get("note"):
        return str(facts["note"])
    found = facts.get("artifacts") or []
    return found[0]["id"] if len(found) == 1 else f"{len(found)} artifacts" if found else ""


def _verify(console: Console, cfg: BaseConfig) -> int:
    """Check every hash of every artifact below ``outputs``; exit code 1 when one is damaged."""
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
