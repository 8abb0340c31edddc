"""The section of baselines: the difference between target and foil prompt by prompt, calibration, and what the gate says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from circuits.drawing.style import INK, PAPER, Looks
from circuits.report.content import Answer, Block, Cell, Column, Figure, Part, Table
from circuits.report.registry import Entry, View, either, section
from circuits.report.saved import load_metrics, load_table
from circuits.report.sections import pictures
from circuits.report.sections.prompts import name
from circuits.report.sheet import Sheet, drawing, identity, label_axes, marks, reference, stroke
from circuits.report.words import ABSENT, decimal, listed, percent, plural, plus_minus, span, visible, whole
from circuits.state import State

LISTED = 50  # prompts that failed, the worst first
SPREAD = 0.22  # of the dots of one behaviour, up and down
NAMED = ("behaviour", "model", "model.id", "behaviour.success_threshold", "behaviour.min_logit_diff")
SHOWN = ("sample", "prompt", "target", "foil", "top_token", "top_probability", "normalised_diff")  # of a failed prompt
NEEDED = ("n", "logit_diff", "pair_acc", "top1", "ece", "brier", "nll")


@dataclass(frozen=True, eq=False)
class Record:
    """One baseline: its summary and the differences by prompt."""

    entry: Entry
    metrics: Mapping[str, Any]
    rows: pd.DataFrame | None

    @property
    def name(self) -> str:
        """``ioi-gpt2``."""
        return name(self.entry)

    @property
    def series(self) -> str:
        """The name, and what was swept besides: thresholds are no part of a measurement."""
        swept = [f"{k}={v}" for k, v in self.entry.element.swept.items() if k not in NAMED]
        return ", ".join([self.name, *swept])

    def interval(self, key: str) -> tuple[float, float] | None:
        """A saved interval."""
        return _pair(self.metrics.get(f"{key}_ci"))


@dataclass(frozen=True)
class Gate:
    """What one element asked of a baseline: the success rate under its thresholds, and whether that is enough."""

    record: Record
    state: str
    success: float | None
    interval: tuple[float, float] | None
    share: float | None
    least: float | None

    @property
    def told(self) -> str:
        """``below 0.8``."""
        return self.state if self.share is None or self.state == ABSENT else f"{self.state} {self.share:g}"


@section("baseline", order=20)
def baseline(view: View) -> Part:
    """Show every baseline of the sweep, of text and of pictures."""
    return either(view, pictures.of_pictures, pictures.baselines, _texts)


def _texts(view: View) -> Part:
    """Read every baseline of text and show it."""
    problems: list[str] = []
    records = [record for entry in view.entries if (record := _read(entry, problems))]
    gates = [gate for record in records for gate in _gates(record)]
    looks = Looks(r.series for r in records)
    figure = _differences(looks, records)
    first: list[Block] = [block for block in (figure, _table(records, gates)) if block]
    blocks = [block for block in (*map(_failed, gates), _reliability(looks, records), _splits(records)) if block]
    return Part(
        title="Baseline",
        lead=f"{plural(len(records), 'measurement')}, target against foil.",
        blocks=tuple(blocks),
        answer=Answer(_sentence(records, gates), tuple(first)),
        problems=tuple(problems),
    )


def _read(entry: Entry, problems: list[str]) -> Record | None:
    metrics = load_metrics(entry.ref, NEEDED, problems, null=False)
    if metrics is None:
        return None
    rows = load_table(entry.ref, "per_prompt.parquet", ("diff",), problems, SHOWN)
    return Record(entry, metrics, rows if rows is not None and "diff" in rows else None)


def _gates(record: Record) -> list[Gate]:
    """One for each element that asked for this measurement, equal ones once."""
    found = []
    for element in record.entry.elements:
        status = [a["metrics"] for a in element.status.get("artifacts") or [] if a.get("id") == record.entry.ref.label]
        shown: Mapping[str, Any] = status[0] if status else {}
        behaviour = element.config.get("behaviour") or {}
        state = "below" if element.state is State.gate else "passed" if element.finished else ABSENT
        asked = behaviour.get("success_threshold"), behaviour.get("min_logit_diff")
        found.append(Gate(record, state, shown.get("success_rate"), _pair(shown.get("success_rate_ci")), *asked))
    return list(dict.fromkeys(found))


def _sentence(records: Sequence[Record], gates: Sequence[Gate]) -> str:
    if not records:
        return "No baseline could be read."
    rights = [float(r.metrics["pair_acc"]) for r in records]
    text = f"The target is preferred to the foil in {span([100 * v for v in rights], 1)}% of the prompts"
    several = {id(g.record) for g in gates if sum(other.record is g.record for other in gates) > 1}
    below = [
        g.record.series + (f" (success_threshold={g.share})" if id(g.record) in several else "")
        for g in gates
        if g.state == "below"
    ]
    gate = f"; below its gate: {listed(below, 6, 'measurement')}" if below else "; every gate is passed"
    return f"{text} ({plural(len(records), 'measurement')}){gate}."


def _sample(records: Sequence[Record]) -> str:
    sizes = {int(r.metrics["n"]) for r in records}
    n = f"{min(sizes):,}" if len(sizes) == 1 else ", ".join(f"{r.series} {r.metrics['n']:,}" for r in records)
    each = " each" if len(sizes) == 1 and len(records) > 1 else ""
    units = {str(r.metrics.get("cluster", "prompt")) for r in records}
    return f"n = {n} prompts{each}. Bars: 95% bootstrap intervals of the mean, the unit drawn is the {' or '.join(sorted(units))}."


def _differences(looks: Looks, records: Sequence[Record]) -> Figure | None:
    """Every prompt's difference as a dot, the mean with its interval on top: one strip a behaviour."""
    drawn = [(record, record.rows) for record in records if record.rows is not None and len(record.rows)]
    if not drawn:
        return None
    with drawing():
        sheet = Sheet("baseline-differences", looks, [""], height=0.52 * len(drawn) + 0.75)
        axes = sheet.axes
        for i, (record, rows) in enumerate(drawn):
            look, y = looks[record.series], len(drawn) - 1 - i
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
                0.005, y + 0.26, record.series, transform=axes.get_yaxis_transform(), fontsize=8, color=INK, va="center"
            )
        reference(axes, x=0)
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
    data = pd.concat([rows[["diff"]].assign(behaviour=r.series, artifact=r.entry.ref.label) for r, rows in drawn])
    alt = f"Difference between target and foil by prompt, {plural(len(drawn), 'behaviour')}, means {span(means, 2)}"
    return sheet.finish(title="Target against foil, prompt by prompt", caption=caption, alt=alt, data=data)


def _reliability(looks: Looks, records: Sequence[Record]) -> Figure | None:
    """Accuracy by confidence, of the choice between the two answers and of the next token."""
    titles = {"binary": "target or foil", "multiclass": "next token"}
    drawn = [r for r in records if set(titles) <= set(r.metrics.get("calibration") or ())]
    if not drawn:
        return None
    rows = []
    with drawing():
        series = [r.series for r in drawn]
        sheet = Sheet("baseline-calibration", looks, series, height=2.9, grid=(1, 2), titled=True)
        for axes, (kind, title) in zip(sheet.panels.flat, titles.items(), strict=True):
            identity(axes, 0, 1, dashed=True)
            for r in drawn:
                bins = r.metrics["calibration"][kind]["bins"]
                points = [p for p in zip(bins["confidence"], bins["accuracy"], bins["count"], strict=True) if p[2]]
                look = looks[r.series]
                axes.plot([p[0] for p in points], [p[1] for p in points], **stroke(look), alpha=0.7)
                (artist,) = axes.plot([p[0] for p in points], [p[1] for p in points], **marks(look), clip_on=False)
                sheet.tell(artist, [f"{r.name}: confidence {c:.2f}, right {100 * a:.0f}% of {n}" for c, a, n in points])
                rows += [(r.series, kind, c, a, n, r.entry.ref.label) for c, a, n in points]
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


def _table(records: Sequence[Record], gates: Sequence[Gate]) -> Table:
    columns = (
        Column("behaviour"),
        Column("difference", True, "mean of target − foil, ± the larger arm of the 95% interval"),
        Column("right", True, "share of prompts with a difference above zero"),
        Column("least", True, "behaviour.min_logit_diff: a prompt succeeds with a larger difference a token"),
        Column("success", True, "share of the prompts that succeed, and its 95% interval"),
        Column("gate", False, "passed or below behaviour.success_threshold"),
        Column("top 1", True, "the target is the most likely of all tokens"),
        Column("ECE", True, "expected calibration error of the choice between the two"),
        Column("Brier", True),
        Column("NLL", True, "nats"),
        Column("prompts", True),
        Column("artifact"),
    )
    rows = []
    for gate in gates:
        r, m = gate.record, gate.record.metrics
        between = f" [{percent(gate.interval[0])}, {percent(gate.interval[1])}]" if gate.interval else ""
        rows.append(
            (
                Cell(r.series),
                Cell(plus_minus(m["logit_diff"], r.interval("logit_diff"), 2), m["logit_diff"]),
                Cell(percent(m["pair_acc"]), m["pair_acc"]),
                Cell(ABSENT if gate.least is None else f"{gate.least:g}", gate.least),
                Cell(percent(gate.success) + between, gate.success),
                Cell(gate.told),
                Cell(percent(m["top1"]), m["top1"]),
                *(Cell(decimal(m[key]), m[key]) for key in ("ece", "brier", "nll")),
                Cell(whole(m["n"]), m["n"]),
                Cell(r.entry.ref.label, code=True),
            )
        )
    several = len(gates) > len(records)
    note = " One row for each set of thresholds that was asked of a measurement." if several else ""
    return Table("Baselines", columns, tuple(rows), _sample(records) + note if records else "")


def _failed(gate: Gate) -> Table | None:
    """The prompts that did not succeed under the gate's threshold, the worst first, with what the model would say."""
    rows, record = gate.record.rows, gate.record
    if rows is None or not set(SHOWN) <= set(rows):
        return None
    least = 0.0 if gate.least is None else gate.least
    failed = rows[~(rows["normalised_diff"] > least)].sort_values("normalised_diff", kind="stable")
    if not len(failed):
        return None
    columns = (
        Column("id"),
        Column("prompt"),
        Column("target"),
        Column("foil"),
        Column("difference", True, "target − foil, a token"),
        Column("the model says", False, "the most likely next token"),
        Column("probability", True, "of that token"),
    )
    cells = tuple(
        (
            Cell(str(row["sample"]), code=True),
            Cell(visible(str(row["prompt"]))),
            *(Cell(visible(str(row[name])), code=True) for name in ("target", "foil")),
            Cell(decimal(row["normalised_diff"], 2), row["normalised_diff"]),
            Cell(visible(str(row["top_token"])), code=True),
            Cell(percent(row["top_probability"]), row["top_probability"]),
        )
        for row in failed.head(LISTED).to_dict("records")
    )
    more = f" The {LISTED} worst are shown; per_prompt.parquet has all." if len(failed) > LISTED else ""
    title = f"Failed: {len(failed)} of {len(rows)} prompts of {record.series}"
    return Table(title, columns, cells, f"A difference a token of at most {least:g}.{more}", folded=True)


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
            Cell(r.series),
            Cell(split),
            Cell(plus_minus(part.get("logit_diff"), _pair(part.get("logit_diff_ci")), 2), part.get("logit_diff")),
            *(Cell(percent(part.get(key)), part.get(key)) for key in ("pair_acc", "top1")),
            Cell(whole(part.get("n")), part.get("n")),
        )
        for r in records
        for split, part in r.metrics.get("splits", {}).items()
    ]
    return Table("By split", (*columns, Column("prompts", True)), tuple(rows), folded=True) if rows else None


def _pair(value: Any) -> tuple[float, float] | None:
    """A saved interval."""
    return (float(value[0]), float(value[1])) if isinstance(value, list) and len(value) == 2 else None
