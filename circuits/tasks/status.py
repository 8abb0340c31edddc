"""``task=status``: all runs and sweeps, newest first, or the elements of one (``of=SWEEP``)."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import Damaged
from circuits.launch import stagewise, sweep
from circuits.launch.states import ended, facts_of, hints, load, look_twice, on_cluster
from circuits.prose import put
from circuits.schema import BaseConfig
from circuits.schema.reading import When
from circuits.state import State, counts, state_of
from circuits.store.store import verify
from circuits.tasks import _costs, _history
from circuits.words import duration, one_line, visible

if TYPE_CHECKING:
    from circuits.console import Terminal

READS = ("of",)
NEWEST = 30


class Format(Enum):
    """How the history is written."""

    text = "text"  # a table for the terminal
    csv = "csv"  # for a spreadsheet or pandas
    markdown = "markdown"  # a table for a notebook: … > notebook.md


@dataclass
class Options:
    """Options of status."""

    watch: bool = False  # again every 2 s until everything has ended
    verify: bool = False  # check every hash of the artifacts
    all: bool = (
        False  # every sweep, not only the newest 30; every element of one, not only those that run or ended badly
    )
    history: bool = False  # every run there has been, the oldest first, with its result: a lab notebook
    format: Format = Format.text  # of the history: text, csv, markdown


_LIST = When("status.history", (False,))
READ_WHEN = {
    "status.all": (_LIST,),
    "status.history": (When("of", (None,)),),
    "status.watch": (_LIST,),
    "status.format": (When("status.history", (True,)),),
}


def run(cfg: BaseConfig) -> int:
    """Show the table; exit code 1 when something asked for with ``verify`` is damaged."""
    from circuits.console import console

    options: Any = getattr(cfg, "status")  # noqa: B009 (joined to the schema at run time)
    shown = console()
    if options.history:
        _notebook(shown, cfg, options.format)
        return _verify(shown, cfg) if options.verify else 0
    while True:
        outputs, multirun = Path(cfg.outputs), Path(cfg.multirun)
        sweeps = [sweep.find(cfg.of, outputs, multirun)] if cfg.of else sweep.every(outputs, multirun)
        look_twice(sweeps if options.all else sweeps[:NEWEST], put)
        if cfg.of is None:
            live = _overview(shown, sweeps, options.all)
        else:
            live = _one(shown, sweeps[0], options.all, busy=not options.watch)
        if not (options.watch and live):
            break
        time.sleep(2)
    return _verify(shown, cfg) if options.verify else 0


def _notebook(shown: Terminal, cfg: BaseConfig, form: Format) -> None:
    """Print the notebook; CSV and Markdown as they are, for a file."""
    from circuits.console import Rows

    found = _history.lines(sweep.every(Path(cfg.outputs), Path(cfg.multirun)))
    if form is not Format.text:
        sys.stdout.write(_history.as_csv(found) if form is Format.csv else _history.as_markdown(found))
        return
    if not found:
        shown.tell("no runs yet; try: python launch.py task=sae layer=0")
        return
    table = Rows(_history.HEADINGS, texts=(3, 4, 5, 6, 7, 8), spare=(9, 4, 3))
    for line in found:
        table.add(*_history.cells(line))
    shown.table(table)


def _overview(shown: Terminal, sweeps: list[sweep.Sweep], everything: bool) -> bool:
    from circuits.console import Rows, relative

    if not sweeps:
        shown.tell("no runs yet; try: python launch.py task=sae layer=0")
        return False
    headings = ("started", "id", "task", "elements", "state", "directory", "note")
    table = Rows(headings, texts=(4, 5, 6), spare=(5, 0))  # the directory is made of the day and the id
    live = False
    for found in sweeps if everything else sweeps[:NEWEST]:
        states = [state_of(facts) for facts in facts_of(found).values()]
        live = live or any(state.live for state in states)
        started = found.record["created"][:16].replace("T", " ")
        counted = "  ".join(f"{count} {state}" for state, count in counts(states).items())
        note = found.record["note"] or ""
        table.add(started, found.id, found.record["task"], str(len(states)), counted, relative(found.path), note)
    shown.table(table)
    if len(sweeps) > NEWEST and not everything:
        shown.tell(f"… and {len(sweeps) - NEWEST} older ones: status.all=true")
    return live


def _one(shown: Terminal, found: sweep.Sweep, everything: bool, busy: bool = True) -> bool:
    from circuits.console import Rows, relative

    record = found.record
    shown.tell(f"{found.id} · {record['task']} · {record['created']} · {relative(found.path)}")
    shown.tell(f"  {record['command']}")
    if record["note"]:
        shown.tell(f"  note: {visible(record['note'])}")
    known = facts_of(found)
    live = any(state_of(facts).live for facts in known.values())
    if "pipeline" in record:
        stages = Rows([""] * 4, texts=(2,))
        for row in stagewise.rows(found, known):
            stages.add(*row)
        shown.table(stages)
    table = Rows([""] * 5, texts=(1, 3))
    items = record["elements"] if everything else stagewise.telling(found, known)
    for item in items:
        facts = known[item["index"]]
        wall = facts.get("wall_s")
        table.add(str(item["index"]), item["name"], state_of(facts), _detail(facts), duration(wall) if wall else "")
    shown.table(table)
    if len(items) < len(record["elements"]):
        shown.tell(f"… and {len(record['elements']) - len(items):,} more elements: status.all=true")
    for item in items:
        facts = known[item["index"]]
        if facts.get("error"):
            log = relative(found.directory(item) / "run.log")
            shown.tell(f"  {item['index']}  {one_line(facts['error'])}     log {log}")
    for line in dict.fromkeys(str(facts["queue_error"]) for facts in known.values() if facts.get("queue_error")):
        shown.tell(f"note: {line}; what is shown is from the runs' own files")
    for line in hints(found, known):
        shown.tell(line)
    for line in load(found, known) if busy else ():  # not at every look of a watch: it asks Slurm again
        shown.tell(line)
    if not live:
        ended(found)
        if words := _costs.next_line(found, known):
            shown.tell(f"next time {words}" + ("" if on_cluster(found) else "      (on a cluster)"))
    return live


def _detail(facts: dict[str, Any]) -> str:
    from circuits.launch.terminal import done_of, speed

    progress = facts.get("progress")
    if state_of(facts) is State.running and progress:
        return "  ".join(part for part in (progress["phase"], done_of(progress), speed(progress)) if part)
    if state_of(facts) is State.pending:
        again = "queued again, " if facts.get("requeued") else ""
        expected = f", expected {facts['expected']}" if facts.get("expected") else ""
        return f"{facts.get('job', '')}  {again}{facts.get('reason', '')}{expected}"
    if state_of(facts) is State.waiting:
        return facts.get("reason") or ""
    if facts.get("note"):
        return str(facts["note"])
    found = facts.get("artifacts") or []
    return found[0]["id"] if len(found) == 1 else f"{len(found)} artifacts" if found else ""


def _verify(shown: Terminal, cfg: BaseConfig) -> int:
    """Check every hash of every artifact below ``outputs``; exit code 1 when one is damaged."""
    bad, count = 0, 0
    for manifest in sorted((Path(cfg.outputs) / "artifacts").glob("*/[!.]*/manifest.json")):
        count += 1
        try:
            verify(manifest.parent, deep=True)
        except Damaged as e:
            bad += 1
            shown.tell(f"damaged: {e}")
    shown.tell(f"{count:,} artifacts checked, {bad:,} damaged")
    return 1 if bad else 0
