"""``task=status status.history=true``: every run and sweep there has been, one line each, as a lab notebook keeps them."""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.errors import CircuitsError
from circuits.launch.states import facts_of
from circuits.launch.sweep import Sweep
from circuits.run import config, private
from circuits.schema import BaseConfig
from circuits.state import State, counts, state_of
from circuits.store import inputs, registry
from circuits.store.kinds import Column
from circuits.store.labels import behaviour_name
from circuits.store.layers import ranges
from circuits.words import ABSENT, duration, markdown, number, visible

VALUES = 6  # of a swept key, before it is told how many there are


@dataclass(frozen=True)
class Line:
    """One sweep or run; texts are without secrets."""

    started: str
    id: str
    task: str
    model: str
    behaviour: str
    swept: str
    states: str
    headline: str
    note: str
    commit: str
    wall_s: float | None
    directory: str
    command: str


def lines(sweeps: Iterable[Sweep]) -> list[Line]:
    """The notebook, the oldest first; what cannot be read any more is a line with what is known."""
    return sorted((_line(found) for found in sweeps), key=lambda line: (line.started, line.id))


def _line(found: Sweep) -> Line:
    record = found.record
    try:
        known = facts_of(found)
        states = "  ".join(f"{n} {state}" for state, n in counts(state_of(facts) for facts in known.values()).items())
    except (CircuitsError, OSError, ValueError) as e:
        known, states = {}, f"not readable ({type(e).__name__})"
    models, behaviours = _about(found)
    return Line(
        started=record["created"],
        id=found.id,
        task=record["task"],
        model=", ".join(models),
        behaviour=", ".join(behaviours),
        swept=_swept(record["elements"]),
        states=states,
        headline=_headline(known.values()),
        note=private.hide(record.get("note") or ""),
        commit=_commit(record.get("code") or {}),
        wall_s=_wall(known.values()),
        directory=str(found.path),
        command=private.hide(record["command"]),
    )


def _commit(code: Mapping[str, Any]) -> str:
    """``1a2b3c4d5e``, with a + where something was not committed."""
    return f"{str(code.get('commit') or '')[:10]}{'+' if code.get('dirty') else ''}"


def _about(found: Sweep) -> tuple[list[str], list[str]]:
    """Models and, where prompts are what is measured, behaviours; of the elements that may differ in them."""
    models: dict[str, None] = {}
    behaviours: dict[str, None] = {}
    elements = found.record["elements"]
    alike = not any(key.split(".")[0] in ("model", "behaviour") for item in elements for key in item["swept"])
    one_task = len({item.get("task") for item in elements}) == 1
    for item in elements[:1] if alike and one_task else elements:
        try:
            cfg = config.load(found.directory(item) / "config.yaml")
            models[f"{Path(cfg.model.id).name}{_revision(cfg)}"] = None
            if _has_prompts(item.get("task") or found.record["task"], cfg):
                behaviours[behaviour_name(cfg)] = None
        except (CircuitsError, OSError, ValueError, AttributeError):
            continue
    return list(models), list(behaviours)


def _revision(cfg: BaseConfig) -> str:
    return f"@{cfg.model.revision[:10]}" if cfg.model.revision else ""


def _has_prompts(task: str, cfg: BaseConfig) -> bool:
    kind = registry.kinds().get(task)
    if kind is None:
        return False
    return kind.name == "prompts" or any(one.kind == "prompts" for one in inputs.of(kind, cfg))


def _swept(elements: Sequence[Mapping[str, Any]]) -> str:
    """``layer=0-3  sae.k=16,32``."""
    values: dict[str, dict[str, None]] = {}
    for item in elements:
        for key, value in item["swept"].items():
            values.setdefault(key, {})[str(value)] = None
    parts = []
    for key, mine in values.items():
        if key == "layer" and all(value.isdigit() for value in mine):
            parts.append(f"layer={ranges(sorted(map(int, mine)))}")
        else:
            shown = ",".join(list(mine)[:VALUES])
            parts.append(f"{key}={shown}" + (f",… ({len(mine)})" if len(mine) > VALUES else ""))
    return "  ".join(parts)


def _headline(known: Iterable[Mapping[str, Any]]) -> str:
    """The first metric of each kind of artifact: its value, or its range over the sweep."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for facts in known:
        for artifact in facts.get("artifacts") or []:
            found.setdefault(artifact["kind"], []).append(artifact["metrics"])
    parts = []
    for name, measured in found.items():
        kind = registry.kinds().get(name)
        if kind is not None and kind.columns and (told := _told(kind.columns[0], measured)):
            parts.append(told)
    return "; ".join(parts)


def _told(column: Column, measured: Sequence[Mapping[str, Any]]) -> str:
    have = [metrics for metrics in measured if metrics.get(column.metric) is not None]
    if not have:
        return ""
    if len(have) == 1:
        return f"{column.title(have)} {column.text(have[0])}"
    values = sorted(float(metrics[column.metric]) for metrics in have)
    low, high = (number(value, column.format) for value in (values[0], values[-1]))
    return f"{column.title(have)} {low}" + ("" if low == high else f" to {high}") + f" (n = {len(have)})"


def _wall(known: Iterable[Mapping[str, Any]]) -> float | None:
    """Seconds from the first element's beginning to the last one's end."""
    began, ended = [], []
    for facts in known:
        if state_of(facts) is State.cached:  # it took nothing
            continue
        try:
            began.append(dt.datetime.fromisoformat(facts["began"]).timestamp())
            ended.append(dt.datetime.fromisoformat(facts["ended"]).timestamp())
        except (KeyError, TypeError, ValueError):
            continue
    return max(0.0, max(ended) - min(began)) if ended else None


# -- forms -----------------------------------------------------------------------------------------------------------

HEADINGS = ("started", "id", "task", "model", "behaviour", "swept", "state", "result", "note", "commit", "wall")


def cells(line: Line) -> list[str]:
    """A line as people read it, in the order of `HEADINGS`."""
    started = line.started[:16].replace("T", " ")
    wall = ABSENT if line.wall_s is None else duration(line.wall_s)
    texts = (
        line.id,
        line.task,
        line.model,
        line.behaviour,
        line.swept,
        line.states,
        line.headline,
        line.note,
        line.commit,
    )
    return [started, *texts, wall]


def as_csv(found: Sequence[Line]) -> str:
    """For a spreadsheet or pandas: whole times, seconds as numbers, the directory and the command."""
    names = [*Line.__dataclass_fields__]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(names)
    rows.writerows(["" if (value := getattr(line, name)) is None else value for name in names] for line in found)
    return text.getvalue()


def as_markdown(found: Sequence[Line]) -> str:
    """A table for a notebook's page."""
    rows = [HEADINGS, ["---"] * len(HEADINGS), *([_escaped(cell) for cell in cells(line)] for line in found)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _escaped(text: str) -> str:
    """`text` as one cell, with nothing in it that Markdown would read."""
    return markdown(visible(re.sub(r"\s+", " ", text.replace("  ", ", "))))
