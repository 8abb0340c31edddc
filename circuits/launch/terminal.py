"""What a sweep looks like in the terminal: a header, a live table (plain lines when not a terminal), and the end table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from circuits.console import Rows, console
from circuits.console import relative as relative
from circuits.launch.outcome import summary_lines
from circuits.launch.sweep import Sweep
from circuits.prose import put
from circuits.run import status
from circuits.state import State, state_of
from circuits.store import registry
from circuits.store.kinds import Kind
from circuits.store.layers import ranges
from circuits.words import duration, left, number, one_line, visible, whole

if TYPE_CHECKING:
    from circuits.launch.plan import Element, Standing

LINE_EVERY_S = 30.0  # between progress lines of one element when not a terminal
SHOWN = 40  # rows of the live table
BAR = 16  # columns of a progress bar
STYLES = {State.failed: "red", State.gate: "yellow", State.done: "green"}


class View:
    """Shows one sweep from its elements' status files."""

    def __init__(
        self, sweep: Sweep, elements: Sequence[Element], facts: Callable[[], Mapping[int, dict[str, Any]]] | None = None
    ) -> None:
        """`facts` tells how each element fares, by its number; without it their status files do."""
        self.sweep, self.elements, self._facts = sweep, elements, facts
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
        threads = sorted({element.cfg.task.resources.cpus or 1 for element in standing.to_run})
        if threads and threads[-1] > 1:
            number = "-".join(map(str, dict.fromkeys((threads[0], threads[-1]))))
            parts.append(f"{number} threads" + (" each" if len(self.elements) > 1 else ""))
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
        tasks = dict.fromkeys(element.task for element in self.elements)
        parts = [" → ".join(tasks), cfg.model.id.rstrip("/").rsplit("/", 1)[-1]]
        if layers:
            parts.append(f"layers {ranges(layers)}" if len(layers) != 1 else f"layer {layers[0]}")
        return [*parts, *([f"{len(self.elements)} elements"] if len(self.elements) > 1 else [])]

    def _counts(self, standing: Standing, adopted: str) -> None:
        counts = [(len(standing.to_run), "to run"), (len(standing.cached), "cached"), (len(standing.adopted), adopted)]
        counts.append((len(standing.refused), "refused by a gate"))
        if len(self.elements) > 1 or standing.adopted:
            self.say("  " + " · ".join(f"{count} {word}" for count, word in counts if count))

    def live(self) -> None:
        """Begin the live table, on a terminal that can be drawn on."""
        if self.console.alive:
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

    def _table(self, states: Sequence[tuple[Element, dict[str, Any]]]) -> Group:
        rows = Rows([""] * 7, texts=(1, 2, 5, 6), spare=(3,))
        room = max(1, min(SHOWN, self.console.height - 4))
        shown = sorted(states, key=lambda pair: state_of(pair[1]) not in (State.running, State.failed))[:room]
        for element, facts in sorted(shown, key=lambda pair: pair[0].index):
            rows.add(str(element.index), _label(element), *self._cells(facts))
        if len(states) > room:
            rows.add("", f"… and {len(states) - room:,} more", *[""] * 5)
        return Group(*rows.lines(self.console.width))

    def _cells(self, facts: dict[str, Any]) -> tuple[str | Text, ...]:
        """State or phase, bar, steps, numbers or what went wrong, rate or time."""
        state, progress = state_of(facts), facts.get("progress")
        if state is State.running and progress:
            return progress["phase"], _bar(progress), done_of(progress), _numbers(progress), speed(progress)
        note = facts.get("error") or facts.get("reason") or facts.get("note") or self._metrics_text(facts)
        wall = facts.get("wall_s")
        return Text(state, style=STYLES.get(state, "")), "", "", one_line(note), duration(wall) if wall else ""

    def _line(self, element: Element, facts: dict[str, Any]) -> None:
        """One line per event: a new state, a new phase, or progress every `LINE_EVERY_S`."""
        state, progress = state_of(facts), facts.get("progress") or {}
        if state in (State.waiting, State.pending, State.starting):
            return
        event = (state, progress.get("phase") if state is State.running else None)
        told, when = self._told.get(element.index, ((None, None), 0.0))
        if event == told and (state is not State.running or time.monotonic() - when < LINE_EVERY_S):
            return
        self._told[element.index] = (event, time.monotonic())
        parts = [str(element.index), _label(element), state]
        if state is State.running and progress:
            parts += [progress["phase"], done_of(progress), _numbers(progress), speed(progress)]
        elif state is not State.running:
            single = len(self.elements) == 1  # what went wrong follows at once
            said = "" if single and facts.get("error") else facts.get("error") or self._metrics_text(facts)
            parts += [one_line(said), duration(facts["wall_s"]) if facts.get("wall_s") else ""]
        self.say("  " + "  ".join(part for part in parts if part))

    def _metrics_text(self, facts: dict[str, Any]) -> str:
        found = facts.get("artifacts") or []
        if len(found) != 1:
            return f"{len(found)} artifacts" if found else facts.get("note") or ""
        return "  ".join(
            f"{c.title([found[0]['metrics']])} {number(found[0]['metrics'][c.metric], c.format)}"
            for c in registry.kind(found[0]["kind"]).columns
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
            for task, stage in dict.fromkeys((element.task, element.stage) for element, _ in states):
                rows = [(e.swept, facts) for e, facts in states if (e.task, e.stage) == (task, stage)]
                if stage and any(facts.get("artifacts") for _, facts in rows):
                    self.say(f"{stage}:")
                self.console.table(end_table(registry.kind(task), rows))
        kept = sum(1 for _, facts in states if state_of(facts).well)
        if interrupted:
            self._interrupted(interrupted, states, kept)
            return
        for wrong, line in summary_lines([(e.index, _label(e), self.sweep.directory(e), f) for e, f in states]):
            put(line) if wrong else self.say(line)

    def _interrupted(self, why: str, states: Sequence[tuple[Element, dict[str, Any]]], kept: int) -> None:
        """What is kept, what did not come to a safe point, and how to go on."""
        rest = len(states) - kept
        for element, facts in states:
            state, ((told, _), _) = facts.get("state"), self._told.get(element.index, ((None, None), 0.0))
            if state in (State.interrupted, State.failed, State.killed) and state != told and facts.get("error"):
                label = f"  {element.index}  {_label(element)}  " if len(states) > 1 else "  "
                self.say(f"{label}{facts['error']}")
        done = f"{kept} of {len(states)} done and kept" if kept else ""
        go_on = f"the same command resumes {'the rest' if kept else 'it' if rest == 1 else 'them'}" if rest else ""
        self.say(f"interrupted ({why}): {'; '.join(filter(None, (done, go_on)))}")

    def say(self, text: str) -> None:
        """A line to standard output."""
        self.console.tell(text)

    def note(self, text: str) -> None:
        """A line to standard error, once."""
        if text not in self._notes:
            self._notes.add(text)
            put(f"note: {visible(text)}")


def _label(element: Element) -> str:
    swept = ",".join(f"{k}={v}" for k, v in element.swept.items())
    if element.stage:
        return f"{element.stage} {swept}".rstrip()
    if swept or element.layers:
        return swept or f"layer={ranges(element.layers)}"
    return " ".join(key.label for key in element.keys.values())


def done_of(progress: Mapping[str, Any]) -> str:
    """``20/1,000``, exact; ``412,000`` where nobody knows of how many; nothing before the first."""
    if progress["total"]:
        return f"{whole(progress['done'])}/{whole(progress['total'])}"
    return whole(progress["done"]) if progress["done"] else ""


def speed(progress: Mapping[str, Any]) -> str:
    """``2.51 step/s  2 min 10 s left``."""
    rate = progress.get("rate")
    shown = f"{rate:,.0f}" if rate and rate >= 1000 else f"{rate:.3g}" if rate else ""
    eta = progress.get("eta_s")
    parts = [f"{shown} {progress['unit']}/s" if shown else "", f"{left(eta)} left" if eta else ""]
    return "  ".join(part for part in parts if part)


def _numbers(progress: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{name} {f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'}"
        for name, value in progress["metrics"].items()
    )


def _bar(progress: Mapping[str, Any]) -> Text | str:
    if not progress["total"]:
        return ""
    full = round(BAR * min(1.0, progress["done"] / progress["total"]))
    return Text("━" * full, style="green") + Text("─" * (BAR - full), style="dim")


def end_table(kind: Kind, rows: Sequence[tuple[Mapping[str, str], Mapping[str, Any]]]) -> Rows:
    """One row per artifact: swept values, layer, the kind's columns with their intervals, and the artifact's id. Swept values are
    folded where the terminal is narrow; nothing else gives way."""
    swept = list(dict.fromkeys(key for values, _ in rows for key in values if key not in ("layer", "task")))
    layered = any(item["layer"] is not None for _, facts in rows for item in facts.get("artifacts") or [])
    measured = [item["metrics"] for _, facts in rows for item in facts.get("artifacts") or []]
    first = ["layer"] if layered else []
    titles = [column.title(measured) for column in kind.columns]
    table = Rows([*first, *swept, *titles, "artifact"], texts=range(len(first), len(first) + len(swept)))
    for values, facts in rows:
        for item in facts.get("artifacts") or []:
            cells = [*([str(item["layer"])] if layered else []), *(values.get(key, "") for key in swept)]
            table.add(*cells, *(column.text(item["metrics"]) for column in kind.columns), item["id"])
    return table
