"""What a sweep looks like in the terminal: a header, a live table (plain lines when not a terminal), and the end table."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from circuits.run import status
from circuits.run.kinds import Kind
from circuits.run.layers import ranges
from circuits.run.sweep import Sweep, kind_of

if TYPE_CHECKING:
    from circuits.run.plan import Element, Standing

LINE_EVERY_S = 30.0  # between progress lines of one element when not a terminal
SHOWN = 40  # rows of the live table; a terminal has no more


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """``launch.py … | head``: nobody reads any more; the sweep goes on in silence."""
        self.quiet = True


def console() -> Console:
    """Standard output; what is piped or logged is never cut to a terminal's width."""
    plain = _Console(highlight=False, soft_wrap=True)
    return plain if plain.is_terminal else _Console(highlight=False, soft_wrap=True, width=240)


def relative(path: Path) -> str:
    """`path` as it can be pasted here: relative when that is shorter."""
    try:
        inside = os.path.relpath(path)
    except ValueError:
        return str(path)
    return inside if len(inside) < len(str(path)) else str(path)


def human_time(seconds: float | None) -> str:
    """``41 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds is None:
        return ""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class View:
    """Shows one sweep from its elements' status files."""

    def __init__(
        self, sweep: Sweep, elements: Sequence[Element], facts: Callable[[], Mapping[int, dict[str, Any]]] | None = None
    ) -> None:
        """`facts` tells how each element fares, by its number; without it their status files do."""
        self.sweep, self.elements, self.kind, self._facts = sweep, elements, kind_of(sweep), facts
        self.console = console()
        self._live: Live | None = None
        self._told: dict[int, tuple[Any, float]] = {}
        self._notes: set[str] = set()
        self._drawn = 0.0

    # -- while it runs -------------------------------------------------------------------------------------------

    def header(self, standing: Standing, workers: int) -> None:
        """What is asked, how much of it is there already."""
        parts = self._asked()
        if len(self.elements) > 1 and standing.to_run:
            parts.append("in this process" if workers == 0 else f"{workers} worker{'s' if workers > 1 else ''}")
        threads = max((element.cfg.task.resources.cpus or 1 for element in standing.to_run), default=1)
        if threads > 1:
            parts.append(f"{threads} threads" + (" each" if len(self.elements) > 1 else ""))
        self.say(" · ".join([*parts, relative(self.sweep.path)]))
        self._counts(standing, "already being made")
        if standing.to_run and workers:
            self.live()

    def title(self, standing: Standing, where: str, queued: str) -> None:
        """The header of a sweep that goes to a cluster."""
        self.say(f"{' · '.join(self._asked())} → {where}")
        self._counts(standing, queued)

    def _asked(self) -> list[str]:
        cfg = self.elements[0].cfg
        layers = sorted({layer for element in self.elements for layer in element.layers})
        parts = [cfg.task.name, cfg.model.id.rstrip("/").rsplit("/", 1)[-1]]
        if layers:
            parts.append(f"layers {ranges(layers)}" if len(layers) != 1 else f"layer {layers[0]}")
        return [*parts, *([f"{len(self.elements)} elements"] if len(self.elements) > 1 else [])]

    def _counts(self, standing: Standing, adopted: str) -> None:
        counts = [(len(standing.to_run), "to run"), (len(standing.cached), "cached"), (len(standing.adopted), adopted)]
        if len(self.elements) > 1 or standing.adopted:
            self.say("  " + " · ".join(f"{count} {word}" for count, word in counts if count))

    def live(self) -> None:
        """Begin the live table, on a terminal."""
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()

    def _states(self) -> list[tuple[Element, dict[str, Any]]]:
        if self._facts is not None:
            found = self._facts()
            return [(element, found[element.index]) for element in self.elements]
        return [(element, status.read(self.sweep.directory(element))) for element in self.elements]

    def update(self) -> None:
        """Read the status files and show what changed."""
        if time.monotonic() - self._drawn < 0.25:
            return
        self._drawn = time.monotonic()
        states = self._states()
        if self._live is not None:
            self._live.update(self._table(states), refresh=True)
        else:
            for element, facts in states:
                self._line(element, facts)

    def _table(self, states: Sequence[tuple[Element, dict[str, Any]]]) -> Table:
        table = Table.grid(padding=(0, 2))
        shown = sorted(states, key=lambda pair: pair[1].get("state") not in ("running", "failed"))[:SHOWN]
        for element, facts in sorted(shown, key=lambda pair: pair[0].index):
            table.add_row(*self._cells(element, facts))
        if len(states) > SHOWN:
            table.add_row("", f"… and {len(states) - SHOWN} more")
        return table

    def _cells(self, element: Element, facts: dict[str, Any]) -> list[Any]:
        state, progress = facts.get("state", "waiting"), facts.get("progress")
        label = Text(_label(element))
        if state == "running" and progress:
            total = progress["total"]
            bar: Any = ProgressBar(total=total, completed=progress["done"], width=20) if total else Text("")
            done = f"{progress['done']:g}/{total:g}" if total else ""
            shown = "  ".join(f"{name} {value:.3g}" for name, value in progress["metrics"].items())
            return [str(element.index), label, bar, done, progress["phase"], shown, _speed(progress)]
        style = {"failed": "red", "gate": "yellow", "done": "green"}.get(state, "")
        note = facts.get("error") or facts.get("reason") or facts.get("note") or self._metrics_text(facts)
        return [
            str(element.index),
            label,
            Text(state, style=style),
            "",
            "",
            note,
            human_time(facts.get("wall_s") or None),
        ]

    def _line(self, element: Element, facts: dict[str, Any]) -> None:
        """One line per event: a new state, a new phase, or progress every `LINE_EVERY_S`."""
        state, progress = facts.get("state", "waiting"), facts.get("progress") or {}
        if state in ("waiting", "pending", "starting"):
            return
        event = (state, progress.get("phase") if state == "running" else None)
        told, when = self._told.get(element.index, ((None, None), 0.0))
        if event == told and (state != "running" or time.monotonic() - when < LINE_EVERY_S):
            return
        self._told[element.index] = (event, time.monotonic())
        text = f"  {element.index}  {_label(element)}  {state}"
        if state == "running" and progress:
            total = progress["total"]
            done = f"  {progress['done']:g}/{total:g}" if total else ""
            shown = "".join(f"  {name} {value:.3g}" for name, value in progress["metrics"].items())
            text += f"  {progress['phase']}{done}{shown}  {_speed(progress)}"
        elif state != "running":
            text += f"  {facts.get('error') or self._metrics_text(facts)}  {human_time(facts.get('wall_s') or None)}"
        self.say(text.rstrip())

    def _metrics_text(self, facts: dict[str, Any]) -> str:
        found = facts.get("artifacts") or []
        if len(found) != 1:
            return f"{len(found)} artifacts" if found else facts.get("note") or ""
        return "  ".join(
            f"{c.title([found[0]['metrics']])} {format(found[0]['metrics'][c.metric], c.format)}"
            for c in self.kind.columns
            if c.metric in found[0]["metrics"]
        )

    def close(self) -> None:
        """End the live table; the last states stay as lines."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        else:
            self._drawn = 0.0
            self.update()

    # -- the end -------------------------------------------------------------------------------------------------

    def summary(self, interrupted: str | None = None) -> None:
        """The end table; what failed, with its log; how to go on."""
        states = self._states()
        if any(facts.get("artifacts") for _, facts in states):
            self.console.print(end_table(self.kind, [(element.swept, facts) for element, facts in states]))
        bad = [(e, f) for e, f in states if f.get("state") not in ("done", "cached", "waiting", "adopted", "pending")]
        kept = sum(1 for _, facts in states if facts.get("state") in ("done", "cached"))
        if interrupted:
            self.say(
                f"interrupted ({interrupted}): {kept} of {len(states)} done and kept; the same command resumes the rest"
            )
            return
        if not bad:
            return
        if len(states) > 1:
            self.say(f"{len(bad)} of {len(states)} failed ({kept} done, kept):")
        for element, facts in bad:
            log = relative(self.sweep.directory(element) / "run.log")
            where = f"     log {log}" if facts.get("state") != "gate" or not facts.get("artifacts") else ""
            label = f"  {element.index}  {_label(element)}  " if len(states) > 1 else ""
            self._error(f"{label}{facts.get('error') or facts.get('state')}{where}", bare=len(states) > 1)
        if any(facts.get("state") != "gate" for _, facts in bad):
            self.say(f"again: the same command ({kept} answer from the store, {len(bad)} resume)")

    def say(self, text: str) -> None:
        """A line to standard output."""
        self.console.print(Text(text))

    def note(self, text: str) -> None:
        """A line to standard error, once."""
        if text not in self._notes:
            self._notes.add(text)
            print(f"note: {text}", file=sys.stderr)

    def _error(self, text: str, bare: bool) -> None:
        print(text if bare else f"error: {text}", file=sys.stderr)


def _label(element: Element) -> str:
    swept = ",".join(f"{k}={v}" for k, v in element.swept.items())
    if swept or element.layers:
        return swept or f"layer={ranges(element.layers)}"
    return " ".join(key.label for key in element.keys.values())


def _speed(progress: Mapping[str, Any]) -> str:
    rate = f"{progress['rate']:.3g} {progress['unit']}/s" if progress.get("rate") else ""
    left = f"{human_time(progress['eta_s'])} left" if progress.get("eta_s") is not None else ""
    return f"{rate}  {left}".strip()


def end_table(kind: Kind, rows: Sequence[tuple[Mapping[str, str], Mapping[str, Any]]]) -> Table:
    """One row per artifact: swept values, layer, the kind's columns with their intervals, and the artifact's id."""
    swept = list(dict.fromkeys(key for values, _ in rows for key in values if key != "layer"))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    layered = any(item["layer"] is not None for _, facts in rows for item in facts.get("artifacts") or [])
    for key in [*(["layer"] if layered else []), *swept]:
        table.add_column(key, no_wrap=True)
    measured = [item["metrics"] for _, facts in rows for item in facts.get("artifacts") or []]
    for column in kind.columns:
        table.add_column(column.title(measured), no_wrap=True)
    table.add_column("artifact", no_wrap=True, overflow="fold")
    for values, facts in rows:
        for item in facts.get("artifacts") or []:
            cells = [*([str(item["layer"])] if layered else []), *(values.get(key, "") for key in swept)]
            cells += [_cell(column, item["metrics"]) for column in kind.columns]
            table.add_row(*cells, item["id"])
    return table


def _cell(column: Any, metrics: Mapping[str, Any]) -> str:
    value = metrics.get(column.metric)
    if value is None:
        return "–"
    text = format(value, column.format)
    interval = metrics.get(column.interval) if column.interval else None
    if not interval:
        return text
    return f"{text} ± {format((interval[1] - interval[0]) / 2, '.1%' if '%' in column.format else '.3f')}"
