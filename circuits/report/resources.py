"""The page's section of what the elements took: beside what was asked for, over time, by phase, by operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from circuits.drawing.style import GRID, Looks
from circuits.report.charts import multiples
from circuits.report.content import Block, Cell, Column, Figure, Note, Part, Table
from circuits.report.sheet import drawing, reference, stroke
from circuits.report.types import Cost
from circuits.report.words import ABSENT, percent, plural, seconds, size

DRAWN = 24  # elements with curves: the longest
POINTS = 240  # of a curve
FEWEST = 3  # samples of a curve
OPERATORS = 12  # of a profiled phase
PANELS = {
    "processor": "processor, of its cores",
    "memory": "memory, GB",
    "GPU busy": "GPU busy",
    "GPU memory": "GPU memory, GB",
}
PROFILES = 8  # profiled phases that have a table on the page


def resources(costs: Sequence[Cost], next_time: str) -> Part | None:
    """The section; None where no element has run."""
    known = [cost for cost in costs if cost.seconds is not None]
    if not known:
        return None
    blocks: list[Block] = [_table(known)]
    if hints := list(dict.fromkeys(cost.hint for cost in known if cost.hint)):
        blocks.append(Note("; ".join(hints) + "."))
    if next_time:
        blocks.append(Note(f"Next time: {next_time}"))
    if (figure := _figure(known)) is not None:
        blocks.append(figure)
    if any(cost.phases for cost in known):
        blocks.append(_phases(known))
    profiles = [block for cost in known for block in _profiles(cost)]
    blocks += profiles[:PROFILES]
    if len(profiles) > PROFILES:
        blocks.append(
            Note(f"{plural(len(profiles) - PROFILES, 'more profile')}: in the directories of the other elements.")
        )
    return Part("Resources", _lead(known), tuple(blocks))


def _lead(costs: Sequence[Cost]) -> str:
    """The whole in a sentence."""
    parts = [f"{seconds(sum(cost.seconds or 0 for cost in costs))} of {plural(len(costs), 'element')}"]
    longest = max(costs, key=lambda cost: cost.seconds or 0)
    of = f" of {_limit(longest.asked_seconds)} asked for" if longest.asked_seconds else ""
    parts.append(f"the longest took {seconds(longest.seconds)}{of}")
    if held := [cost for cost in costs if cost.memory]:
        most = max(held, key=lambda cost: cost.memory or 0)
        of = f" of {_slurm(most.asked_memory)} asked for" if most.asked_memory else ""
        parts.append(f"the most memory was {size(most.memory)}{of}")
    if busy := [share for cost in costs if (share := _share(cost.cores, cost.asked_cores)) is not None]:
        parts.append(f"processors were {percent(sum(busy) / len(busy))} busy")
    if gpus := [cost.gpu_busy for cost in costs if cost.gpu_busy is not None]:
        parts.append(f"GPUs were {percent(sum(gpus) / len(gpus))} busy")
    return "; ".join(parts) + "."


def _slurm(count: int | None) -> str:
    """As it is asked for, in units of 1024: ``32G``."""
    return ABSENT if count is None else f"{count / (1 << 30):.3g}G"


def _share(used: float | None, given: float | None) -> float | None:
    return None if used is None or not given else used / given


def _table(costs: Sequence[Cost]) -> Table:
    gpus = any(cost.gpu_busy is not None or cost.gpu_memory for cost in costs)
    columns = [
        Column("#", True),
        Column("element"),
        Column("time", True, "of all its turns, of task.resources.time"),
        Column("peak memory", True, "of its process, or of its job where accounting says so; of task.resources.memory"),
        Column("cores busy", True, "in the mean: of its job where accounting says so, else of its longest phase"),
    ]
    if gpus:
        columns += [
            Column("GPU busy", True, "in the mean of its longest phase"),
            Column("usual", False, "for work of this kind"),
            Column("GPU memory", True, "peak that torch allocated, of the whole GPU"),
            Column("hottest", True),
        ]
    return Table("Asked for and taken", tuple(columns), tuple(_row(cost, gpus) for cost in costs))


def _row(cost: Cost, gpus: bool) -> tuple[Cell, ...]:
    time, memory = _share(cost.seconds, cost.asked_seconds), _share(cost.memory, cost.asked_memory)
    busy = _share(cost.cores, cost.asked_cores)
    cells = [
        Cell(str(cost.index), cost.index),
        Cell(cost.name, code=True),
        Cell(seconds(cost.seconds) + _of(time, _limit(cost.asked_seconds)), cost.seconds),
        Cell(size(cost.memory) + _of(memory, _slurm(cost.asked_memory)), cost.memory),
        Cell((ABSENT if cost.cores is None else f"{cost.cores:.2f}") + _of(busy, str(cost.asked_cores)), cost.cores),
    ]
    if gpus:
        share, band = _share(cost.gpu_memory, cost.gpu_memory_of), cost.gpu_band
        cells += [
            Cell(percent(cost.gpu_busy), cost.gpu_busy),
            Cell(f"{100 * band[0]:.0f}–{100 * band[1]:.0f}%" if band else ABSENT),
            Cell(size(cost.gpu_memory) + _of(share, "it"), cost.gpu_memory),
            Cell(ABSENT if cost.celsius is None else f"{cost.celsius:.0f} °C", cost.celsius),
        ]
    return tuple(cells)


def _of(share: float | None, whole: str) -> str:
    """`` · 8% of 12 h``."""
    return "" if share is None else f" · {100 * share:.{0 if share >= 0.01 else 1}f}% of {whole}"


def _limit(given: float | None) -> str:
    """Whole hours as such."""
    return f"{given / 3600:.0f} h" if given and given % 3600 == 0 else seconds(given)


# -- over time -------------------------------------------------------------------------------------------------------


def _figure(costs: Sequence[Cost]) -> Figure | None:
    """Curves of the elements whose samples are enough for one, as shares of what each was given."""
    shown = sorted((cost for cost in costs if len(cost.samples) >= FEWEST), key=lambda cost: -(cost.seconds or 0))
    data = pd.DataFrame([row for cost in shown[:DRAWN] for row in _curve(cost)])
    if data.empty:
        return None
    panels: list[str] = [panel for panel in PANELS if data[panel].notna().any()]
    last = data["seconds"].max()
    unit, scale = ("seconds", 1.0) if last < 180 else ("minutes", 60.0) if last < 3 * 3600 else ("hours", 3600.0)
    looks = Looks(cost.series for cost in shown[:DRAWN])
    with drawing():
        x = f"{unit} since the element began"
        sheet, placed = multiples("usage", looks, looks.series, panels, x, "", title=PANELS.__getitem__, own_y=True)
        for panel, axes in placed.items():
            if panel == "GPU busy" and (bands := {cost.gpu_band for cost in shown if cost.gpu_band}):
                axes.axhspan(*sorted(bands)[0], color=GRID, linewidth=0)
            for (_, series), mine in data.groupby(["element", "series"], sort=False):
                (line,) = axes.plot(mine["seconds"] / scale, mine[panel], **stroke(looks[str(series)]), alpha=0.8)
                sheet.tell(line, str(mine["element"].iloc[0]))
            _y_axis(axes, panel, float(data[panel].max()), _asked(shown, panel))
            axes.set_xlim(0, last / scale)
    left = f" The {DRAWN} longest of {len(costs)} elements." if len(costs) > DRAWN else ""
    band = " Grey: what is usual for this work." if "GPU busy" in panels else ""
    caption = (
        "One sample a second; in long runs means (of what is busy) and peaks (of what is held). Dashed: what was asked for, "
        f"where that is near.{band}{left}"
    )
    alt = f"{', '.join(panels)} over time of {plural(min(len(shown), DRAWN), 'element')}"
    return sheet.finish(title="What the elements took while they ran", caption=caption, alt=alt, data=data)


def _asked(costs: Sequence[Cost], panel: str) -> float | None:
    """What all of them were given of it, in GB, where it is one amount."""
    given = {cost.asked_memory if panel == "memory" else cost.gpu_memory_of for cost in costs}
    return (given.pop() or 0) / 1e9 or None if len(given) == 1 else None


def _y_axis(axes: Axes, panel: str, most: float, given: float | None) -> None:
    """Shares up to all of it; gigabytes up to the peak, with a line at what was given where that is near."""
    if panel in ("processor", "GPU busy"):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        axes.set_ylim(0, max(1.05, 1.05 * most))
        return
    near = given is not None and given < 2.5 * most
    if near and given is not None:
        reference(axes, y=given, dashed=True)
    axes.set_ylim(0, 1.15 * max(most, given or 0 if near else 0))


def _curve(cost: Cost) -> list[dict[str, Any]]:
    """Points of an element's curves, thinned to `POINTS`."""
    every = -(-len(cost.samples) // POINTS)
    rows = []
    for i in range(0, len(cost.samples), every):
        some = cost.samples[i : i + every]
        cards = [card for row in some for card in row.get("gpus") or ()]
        busy = [card["busy"] for card in cards if card["busy"] is not None]
        held = [card["memory"] / 1e9 for card in cards if card["memory"] is not None]
        gpu = cost.gpu_busy is not None
        rows.append(
            {
                "element": cost.name,
                "series": cost.series,
                "seconds": some[-1]["t"],
                "processor": _share(sum(row["cpu"] for row in some) / len(some), cost.asked_cores),
                "memory": max(row["rss"] for row in some) / 1e9,
                "GPU busy": sum(busy) / len(busy) if busy and gpu else None,
                "GPU memory": max(held) if held and gpu else None,
                "phase": some[-1]["phase"],
            }
        )
    return rows


def _phases(costs: Sequence[Cost]) -> Table:
    """Seconds of each phase, over all elements."""
    total: dict[str, list[float]] = {}
    for cost in costs:
        for phase, spent in cost.phases.items():
            total.setdefault(phase, []).append(spent)
    whole = sum(map(sum, total.values())) or 1.0
    columns = (
        Column("phase"),
        Column("elements", True),
        Column("in all", True),
        Column("share", True),
        Column("longest", True),
    )
    rows = tuple(
        (
            Cell(phase or "before the first step"),
            Cell(str(len(spent)), len(spent)),
            Cell(seconds(sum(spent)), sum(spent)),
            Cell(percent(sum(spent) / whole), sum(spent)),
            Cell(seconds(max(spent)), max(spent)),
        )
        for phase, spent in sorted(total.items(), key=lambda one: -sum(one[1]))
    )
    return Table("Where the time went", columns, rows, "From one sample a second.", folded=True)


# -- profiles --------------------------------------------------------------------------------------------------------


def _profiles(cost: Cost) -> list[Block]:
    found: Mapping[str, Any] = cost.profile
    blocks: list[Block] = [_operators(cost, window) for window in found.get("windows") or ()]
    if found.get("snapshot"):
        blocks.append(
            Note(
                f"{cost.name}: at most {size(found.get('peak_bytes'))} of GPU memory in use, {size(found.get('reserved_bytes'))} "
                f"reserved; every allocation: {cost.place}/{found['snapshot']} (pytorch.org/memory_viz)."
            )
        )
    return blocks


def _operators(cost: Cost, window: Mapping[str, Any]) -> Table:
    """The operators of a window that take the most."""
    by = window["by"]
    whole = window["total"] or 1
    shown = window["operators"][:OPERATORS]

    def text(one: Mapping[str, Any]) -> str:
        return size(one["bytes"]) if by == "bytes" else seconds_fine(one[by] / 1e6)

    head = {"bytes": "allocated", "gpu_us": "on the GPU", "cpu_us": "on the processor"}[by]
    columns = (Column("operator"), Column("calls", True), Column(head, True, "in itself"), Column("share", True))
    rows = tuple(
        (
            Cell(one["name"][:90], code=True),
            Cell(f"{one['calls']:,}", one["calls"]),
            Cell(text(one), one[by]),
            Cell(percent(one[by] / whole), one[by]),
        )
        for one in shown
    )
    where = f"{cost.place}/{window['trace']} (ui.perfetto.dev), {cost.place}/{window['table']}"
    caption = f"{plural(window['amount'], window['unit'])}, {seconds(window['seconds'])}. {where}"
    return Table(f"Profile of {cost.name}: {window['phase']}", columns, rows, caption, folded=True)


def seconds_fine(value: float) -> str:
    """``812 µs``, ``12.3 ms``, ``1.5 s``."""
    if value < 1e-3:
        return f"{1e6 * value:.0f} µs"
    return f"{1e3 * value:.1f} ms" if value < 1 else seconds(value)
