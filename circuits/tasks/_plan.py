"""A plan as people see it: a table for the terminal, and a page with its drawing."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from circuits.console import Rows, relative
from circuits.schema import Backend
from circuits.words import duration, size

if TYPE_CHECKING:
    from circuits.launch.forecast import Stage
    from circuits.launch.pipeline import Planned

HEADINGS = (
    "stage",
    "task",
    "elements",
    "cached",
    "to run",
    "jobs",
    "longest",
    "GPU-h",
    "CPU-h",
    "memory",
    "GPU mem.",
    "disk",
    "after",
)


def lines(made: Planned) -> list[str | Rows]:
    """The whole plan, for a terminal."""
    found, cfg = made.forecast, made.plan.cfg
    place = f"cluster={cfg.cluster.name}" + (
        "" if made.asked else " (sbatch is not here: what only the cluster knows was not asked)"
    )
    out: list[str | Rows] = [f"plan of {made.study.name} · {cfg.model.id.rstrip('/').rsplit('/', 1)[-1]} · {place}"]
    if made.study.about:
        out.append(f"  {made.study.about}")
    table = Rows(HEADINGS, texts=(12,))
    for stage in found.stages:
        table.add(*_cells(stage, found.after.get(stage.name, []), _here(made)))
    out.append(table)
    out.append(f"total   {total(made)}")
    out += [f"  {line}" for line in sources(made)]
    room = f"disk    {size(found.total('bytes'))} to be written; {made.free} at {relative(Path(cfg.outputs))}"
    out.append(room)
    if cfg.cluster.balance:
        out.append(f"balance {cfg.cluster.balance}      (what your account has left; on {cfg.cluster.name})")
    return out


def _here(made: Planned) -> bool:
    return made.plan.cfg.cluster.backend is Backend.local


def _cells(stage: Stage, after: list[str], here: bool) -> list[str]:
    known = stage.measured == stage.to_run
    mark = "" if known else "≥ " if here else "≤ "
    if here and not stage.measured and stage.to_run:
        counts = [
            stage.name,
            stage.task,
            *map(str, (stage.elements, stage.cached + stage.adopted, stage.to_run, stage.jobs)),
        ]
        return [*counts, "not known", "", "", "", "", size(stage.bytes), " ".join(after)]
    run = stage.to_run > 0
    return [
        stage.name,
        stage.task,
        str(stage.elements),
        str(stage.cached + stage.adopted),
        str(stage.to_run),
        str(stage.jobs),
        f"{mark}{duration(stage.longest_s)}" if run else "",
        f"{mark}{stage.gpu_hours:.2f}" if run and stage.gpu_hours else "",
        f"{mark}{stage.cpu_hours:.2f}" if run else "",
        size(stage.memory) if stage.memory else "",
        size(stage.gpu_memory) if stage.gpu_memory else "",
        size(stage.bytes) if run else "",
        " ".join(after),
    ]


def total(made: Planned) -> str:
    """The sums, and the wall time."""
    found = made.forecast
    units = found.total("gpu_hours") * made.rate + found.total("cpu_hours") * made.cpu_rate
    known = all(stage.measured == stage.to_run for stage in found.stages)
    parts = [
        f"{found.total('elements'):.0f} elements, {found.total('cached'):.0f} cached, {found.total('to_run'):.0f} to run in "
        f"{found.total('jobs'):.0f} jobs",
        f"{found.total('gpu_hours'):.2f} GPU-hours",
        f"{found.total('cpu_hours'):.2f} CPU-hours",
        f"{units:.2f} service units",
        _whole(made, known),
    ]
    return " · ".join(parts)


def _whole(made: Planned, known: bool) -> str:
    seconds = made.forecast.wall_s
    if _here(made):
        return (
            duration(seconds)
            if known
            else f"{duration(seconds)} and what is not known"
            if seconds
            else "time not known"
        )
    return f"{'' if known else 'at most '}{duration(seconds)} without waiting in a queue"


def sources(made: Planned) -> list[str]:
    """Where each stage's numbers come from."""
    told = []
    if unknown := [stage.name for stage in made.forecast.stages if stage.to_run and not stage.measured]:
        limit = "" if _here(made) else "; the time asked for is taken"
        told.append(f"{', '.join(unknown)}: nothing of this kind has been measured in this store yet{limit}")
    for stage in made.forecast.stages:
        if not stage.measured:
            continue
        if stage.same == stage.measured:
            told.append(f"{stage.name}: measured on {stage.by}, the same config")
        else:
            told.append(f"{stage.name}: measured on {stage.by}, scaled to this config")
    return told


def page(made: Planned) -> str:
    """A self-contained page: the drawing, the table, where the numbers come from."""
    from circuits.drawing import stages as drawing

    found = made.forecast
    notes = {
        stage.name: [
            stage.task,
            f"{stage.to_run} of {stage.elements}, {duration(stage.longest_s)} each" if stage.to_run else "cached",
        ]
        for stage in found.stages
    }
    picture = drawing.svg(found.after, notes)
    head = "".join(f"<th>{escape(text)}</th>" for text in HEADINGS)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(stage, found.after.get(stage.name, []), _here(made)))
        + "</tr>"
        for stage in found.stages
    )
    told = "".join(f"<li>{escape(line)}</li>" for line in sources(made))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>plan of {escape(made.study.name)}</title><style>{STYLE}</style>"
        f"<h1>{escape(made.study.name)}</h1><p>{escape(made.study.about)}</p>{picture}"
        f"<p><b>{escape(total(made))}</b></p><table><tr>{head}</tr>{body}</table><ul>{told}</ul></html>\n"
    )


STYLE = (
    ":root{--ink:#1f2430;--muted:#626b7a;--paper:#fff}body{font:14px DejaVu Sans,sans-serif;color:var(--ink);margin:2rem;"
    "max-width:75rem}td,th{padding:.2rem .8rem .2rem 0;text-align:left;border-bottom:1px solid #dfe3ea}"
    "@media (prefers-color-scheme:dark){:root{--ink:#e6e9ef;--muted:#9aa4b5;--paper:#1b1f27}body{background:#14171d}}"
)
