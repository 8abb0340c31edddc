"""The section of baselines: the difference between target and foil prompt by prompt, calibration, and what the gate says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from circuits.report.content import Answer, Block, Cell, Column, Figure, Part, Table
from circuits.report.registry import Entry, View, section
from circuits.report.saved import load_json, load_table
from circuits.report.sections.prompts import name
from circuits.report.sheet import Sheet, drawing, label_axes, marks, stroke
from circuits.report.style import INK, MUTED, PAPER
from circuits.report.words import decimal, listed, percent, plural, plus_minus, span, whole

SPREAD = 0.22  # of the dots of one behaviour, up and down


@dataclass(frozen=True)
class Record:
    """One baseline: its summary, the differences by prompt, and the success rate that its element was asked for."""

    entry: Entry
    metrics: Mapping[str, Any]
    rows: pd.DataFrame | None
    success: float | None

    @property
    def name(self) -> str:
        """``ioi-gpt2``."""
        return name(self.entry)

    def interval(self, key: str) -> tuple[float, float] | None:
        """A saved interval."""
        found = self.metrics.get(f"{key}_ci")
        return (float(found[0]), float(found[1])) if isinstance(found, list) and len(found) == 2 else None


@section("baseline", order=20)
def baseline(view: View) -> Part:
    """Read every baseline of the sweep and show it."""
    problems: list[str] = []
    records = [record for entry in view.entries if (record := _read(entry, problems)).metrics]
    figure = _differences(view, records)
    first: list[Block] = [block for block in (figure, _table(records)) if block]
    blocks = [block for block in (_reliability(view, records), _splits(records)) if block]
    return Part(
        title="Baseline",
        lead=f"{plural(len(records), 'behaviour')}, target against foil.",
        blocks=tuple(blocks),
        answer=Answer(_sentence(records), tuple(first)),
        problems=tuple(problems),
    )


def _read(entry: Entry, problems: list[str]) -> Record:
    metrics = load_json(entry.ref, "metrics.json", problems)
    rows = load_table(entry.ref, "per_prompt.parquet", ("diff",), problems)
    asked = [a["metrics"] for a in entry.element.status.get("artifacts", []) if a.get("id") == entry.ref.label]
    return Record(entry, metrics, rows, asked[0].get("success_rate") if asked else None)


def _sentence(records: Sequence[Record]) -> str:
    if not records:
        return "No baseline could be read."
    rights = [float(r.metrics["pair_acc"]) for r in records]
    text = f"The target is preferred to the foil in {span([100 * v for v in rights], 0)}% of the prompts"
    failed = [r.name for r in records if r.entry.element.state == "gate"]
    gate = f"; below its gate: {listed(failed)}" if failed else "; every gate is passed"
    return f"{text} ({plural(len(records), 'behaviour')}){gate}."


def _sample(records: Sequence[Record]) -> str:
    sizes = {int(r.metrics["n"]) for r in records}
    n = f"{min(sizes):,}" if len(sizes) == 1 else ", ".join(f"{r.name} {r.metrics['n']:,}" for r in records)
    each = " each" if len(sizes) == 1 and len(records) > 1 else ""
    units = {str(r.metrics.get("cluster", "prompt")) for r in records}
    return f"n = {n} prompts{each}. Bars: 95% bootstrap intervals of the mean, the unit drawn is the {' or '.join(sorted(units))}."


def _differences(view: View, records: Sequence[Record]) -> Figure | None:
    """Every prompt's difference as a dot, the mean with its interval on top: one strip a behaviour."""
    drawn = [(record, record.rows) for record in records if record.rows is not None and len(record.rows)]
    if not drawn:
        return None
    with drawing():
        sheet = Sheet("baseline-differences", view.looks, [""], height=0.52 * len(drawn) + 0.75)
        axes = sheet.axes
        for i, (record, rows) in enumerate(drawn):
            look, y = view.looks[record.entry.element.series], len(drawn) - 1 - i
            values = rows["diff"].to_numpy(float)
            jitter = np.random.default_rng(0).uniform(-SPREAD, SPREAD, len(values))
            axes.plot(
                values, y - 0.1 + jitter, linestyle="none", marker="o", markersize=2.2, color=look.color, alpha=0.45
            )
            mean, interval = float(record.metrics["logit_diff"]), record.interval("logit_diff")
            if interval:
                axes.hlines(y - 0.1, *interval, color=INK, linewidth=2.0, zorder=4)
            style: dict[str, Any] = {**marks(look), "markersize": 6.5, "markeredgecolor": PAPER, "zorder": 5}
            (artist,) = axes.plot([mean], [y - 0.1], **style)
            sheet.tell(artist, [f"{record.name}: {plus_minus(mean, interval, 2)}\n{record.entry.ref.label}"])
            axes.text(
                0.005, y + 0.26, record.name, transform=axes.get_yaxis_transform(), fontsize=8, color=INK, va="center"
            )
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.set_yticks([])
        axes.set_ylim(-0.5, len(drawn) - 0.5)
        axes.grid(False, axis="y")
        whole_answers = any(r.metrics.get("metric") == "full_target" for r, _ in drawn)
        unit = "log-probability difference target − foil (nats)" if whole_answers else "logit difference target − foil"
        label_axes(axes, unit, "")
    shown = [record for record, _ in drawn]
    means = [float(r.metrics["logit_diff"]) for r in shown]
    caption = (
        f"One dot a prompt; large markers: means. Right of zero the model prefers the target. {_sample(shown)} "
        f"Control: zero, where a model without the behaviour stands, since answers are balanced. "
        f"From {listed([r.entry.ref.label for r in shown])}."
    )
    data = pd.concat([rows.assign(behaviour=r.name, artifact=r.entry.ref.label) for r, rows in drawn])
    alt = f"Difference between target and foil by prompt, {plural(len(drawn), 'behaviour')}, means {span(means, 2)}"
    return sheet.finish(title="Target against foil, prompt by prompt", caption=caption, alt=alt, data=data)


def _reliability(view: View, records: Sequence[Record]) -> Figure | None:
    """Accuracy by confidence, of the choice between the two answers and of the next token."""
    drawn = [r for r in records if isinstance(r.metrics.get("calibration"), Mapping)]
    if not drawn:
        return None
    rows = []
    titles = {"binary": "target or foil", "multiclass": "next token"}
    with drawing():
        series = [r.entry.element.series for r in drawn]
        sheet = Sheet("baseline-calibration", view.looks, series, height=2.9, grid=(1, 2), titled=True)
        for axes, (kind, title) in zip(sheet.panels.flat, titles.items(), strict=True):
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
            for r in drawn:
                bins = r.metrics["calibration"][kind]["bins"]
                points = [p for p in zip(bins["confidence"], bins["accuracy"], bins["count"], strict=True) if p[2]]
                look = view.looks[r.entry.element.series]
                axes.plot([p[0] for p in points], [p[1] for p in points], **stroke(look), alpha=0.7)
                (artist,) = axes.plot([p[0] for p in points], [p[1] for p in points], **marks(look), clip_on=False)
                sheet.tell(artist, [f"{r.name}: confidence {c:.2f}, right {100 * a:.0f}% of {n}" for c, a, n in points])
                rows += [(r.name, kind, c, a, n, r.entry.ref.label) for c, a, n in points]
            axes.set_title(title, fontsize=8, color=INK)
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
            label_axes(axes, "confidence", "share right" if kind == "binary" else "")
    data = pd.DataFrame(rows, columns=["behaviour", "choice", "confidence", "accuracy", "n", "artifact"])
    caption = (
        "Ten equal bins of confidence; the dashed diagonal is perfect calibration (the control). Left: the larger of σ(d) "
        "and 1 − σ(d) of the difference d, right where d > 0. Right: the most likely next token, right where it is the "
        f"target's first. {_sample(drawn).split(' Bars')[0]} From {listed([r.entry.ref.label for r in drawn])}."
    )
    alt = f"Reliability diagrams of {plural(len(drawn), 'behaviour')}"
    return sheet.finish(title="Calibration", caption=caption, alt=alt, data=data)


def _table(records: Sequence[Record]) -> Table:
    columns = (
        Column("behaviour"),
        Column("difference", True, "mean of target − foil, ± the larger arm of the 95% interval"),
        Column("right", True, "share of prompts with a difference above zero"),
        Column("success", True, "share with a difference a token above behaviour.min_logit_diff"),
        Column("gate"),
        Column("top 1", True, "the target is the most likely of all tokens"),
        Column("ECE", True, "expected calibration error of the choice between the two"),
        Column("Brier", True),
        Column("NLL", True, "nats"),
        Column("prompts", True),
        Column("artifact"),
    )
    rows = []
    for r in records:
        state = "below" if r.entry.element.state == "gate" else "passed" if r.entry.element.finished else "–"
        m = r.metrics
        rows.append(
            (
                Cell(r.name),
                Cell(plus_minus(m["logit_diff"], r.interval("logit_diff"), 2), m["logit_diff"]),
                Cell(percent(m["pair_acc"]), m["pair_acc"]),
                Cell(percent(r.success), r.success),
                Cell(state),
                Cell(percent(m["top1"]), m["top1"]),
                *(Cell(decimal(m[key]), m[key]) for key in ("ece", "brier", "nll")),
                Cell(whole(m["n"]), m["n"]),
                Cell(r.entry.ref.label, code=True),
            )
        )
    return Table("Baselines", columns, tuple(rows), _sample(records) if records else "")


def _splits(records: Sequence[Record]) -> Table | None:
    columns = (
        Column("behaviour"),
        Column("split"),
        Column("difference", True),
        Column("right", True),
        Column("top 1", True),
    )
    rows = [
        (
            Cell(r.name),
            Cell(split),
            Cell(plus_minus(part["logit_diff"], _pair(part.get("logit_diff_ci")), 2), part["logit_diff"]),
            Cell(percent(part["pair_acc"]), part["pair_acc"]),
            Cell(percent(part["top1"]), part["top1"]),
            Cell(whole(part["n"]), part["n"]),
        )
        for r in records
        for split, part in r.metrics.get("splits", {}).items()
    ]
    return Table("By split", (*columns, Column("prompts", True)), tuple(rows), folded=True) if rows else None


def _pair(value: Any) -> tuple[float, float] | None:
    return (float(value[0]), float(value[1])) if value else None
