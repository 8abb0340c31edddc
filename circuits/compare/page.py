"""The page of a comparison: what differs, how far each metric moved, the values of every sweep by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from circuits.compare.differences import Difference, Measure, One, table
from circuits.drawing.style import Looks
from circuits.report.charts import Point, by_layer
from circuits.report.content import Answer, Block, Cell, Column, Figure, Note, Part, Table
from circuits.report.page import write
from circuits.report.types import ReportInput
from circuits.report.words import ABSENT, number, plural

FLOOR = -0.5  # values far below zero would flatten all others

INTERVALS = {
    "paired": "paired bootstrap over the same prompts, those of one sampling unit drawn together",
    "from both intervals": "from the two artifacts' own 95% intervals, taken for independent (on the same held-out data too wide)",
    "no interval": "no interval: nothing was saved to compute one from",
    "deterministic": "deterministic measurements: nothing random in them, the difference is exact",
    "same artifact": "both sweeps show the same artifact",
}


def build(
    report: ReportInput,
    out: Path,
    *,
    sweeps: Mapping[str, Sequence[One]],
    measures: Sequence[Measure],
    found: Sequence[Difference],
    config: Mapping[str, Sequence[str]],
    warned: Sequence[str],
    notes: Sequence[str],
    verdict: str = "",
    units: Sequence[Block] = (),
) -> Path:
    """Write ``out/report.html`` and ``out/figures/``.

    Args:
        report: title, question, commands and the elements of all sweeps.
        out: the directory.
        sweeps: the artifacts of every sweep, the base first.
        measures: what was compared; the first is the page's answer.
        found: the differences.
        config: what differs in the config: key → its value in every sweep.
        warned: what a reader has to know before the answer (forced, not like for like).
        notes: what else (unmatched, not measured).
        verdict: what is said of effects of units, where there are any.
        units: their tables.
    """
    looks = Looks(one.series for ones in sweeps.values() for one in ones)
    by_measure = {m: [d for d in found if d.measure == m] for m in measures}
    shown = [m for m in measures if by_measure[m]]
    flat = [m for m in shown if _flat(by_measure[m])]
    moves = {m: figure for m in shown if (figure := _difference_figure(by_measure[m], looks))}
    blocks: list[Block] = [Note(text) for text in notes]
    blocks += [_config_table(list(sweeps), config)]
    for measure in (m for m in shown if m not in flat):
        blocks += [
            b
            for b in (moves.get(measure) if measure != shown[0] else None, _values_figure(sweeps, measure, looks))
            if b
        ]
    if flat:
        names = ", ".join(measure.heading for measure in flat)
        blocks.append(Note(f"Not drawn, because it is the same in every pair: {names}; the table has the values."))
    first: list[Block] = [moves[shown[0]]] if shown and shown[0] in moves else []
    if found:
        first.append(_table(found))
    said = [verdict, *warned, _sentence(by_measure[shown[0]]) if shown else ""]
    answer = Answer(" ".join(text for text in said if text), (*units, *first)) if first or units else None
    labels = list(sweeps)
    part = Part(
        "What was compared",
        f"{' and '.join(labels[1:])} against {labels[0]}: {plural(len({d.place for d in found}), 'matched artifact')}, "
        f"{plural(len(shown), 'metric')}. {_grounds(found) if found else ''}".rstrip(),
        tuple(blocks),
        answer,
    )
    refs = list({one.ref.key: one.ref for ones in sweeps.values() for one in ones}.values())
    return write(report, [part], out, refs)


def _flat(found: Sequence[Difference]) -> bool:
    """Whether a figure would show the same values again and again, without intervals (L0 of TopK SAEs)."""
    same = len({(d.a, d.b) for d in found}) == 1
    return same and not any(one.interval(d.measure) for d in found for one in (d.base, d.other)) and len(found) > 1


def _sentence(found: Sequence[Difference]) -> str:
    """The answer in words, for the first metric."""
    heading = found[0].measure.heading
    parts = []
    for other in dict.fromkeys(d.other.sweep for d in found):
        mine = [d for d in found if d.other.sweep == other]
        words = [f"{n} {word}" for word in dict.fromkeys(d.verdict for d in mine) if (n := _count(mine, word))]
        parts.append(f"{other} against {mine[0].base.sweep}: {', '.join(words)}")
    return f"{heading[:1].upper()}{heading[1:]}, {'; '.join(parts)}."


def _count(found: Sequence[Difference], verdict: str) -> int:
    return sum(d.verdict == verdict for d in found)


def _grounds(found: Sequence[Difference]) -> str:
    """What the intervals rest on, and that they are not corrected."""
    used = [INTERVALS[how] for how in dict.fromkeys(d.how for d in found)]
    n = len([d for d in found if d.interval])
    many = (
        f" {plural(n, 'interval')}, not corrected for their number: of twenty about one misses by chance."
        if n > 1
        else ""
    )
    return f"Intervals of differences: {'; '.join(used)}.{many}"


def _difference_figure(found: Sequence[Difference], looks: Looks) -> Figure | None:
    """How far a metric moved, by layer: zero is no difference."""
    measure = found[0].measure
    points = [
        Point(d.place.layer or 0, d.series, d.value, d.interval, f"{d.place}: {_moved(d)}\n{d.other.ref.label}")
        for d in found
    ]
    fractions = "%" in measure.format
    sheet, _ = by_layer(
        f"difference-{_slug(measure)}", looks, points, f"difference in {measure.heading}", fractions=fractions, height=2.2,
        across_label=_where(found),
    )  # fmt: skip
    having = sum(d.interval is not None for d in found)
    bars = "No intervals: the table says why."
    if having:
        bars = (
            f"Bars: 95% intervals of the difference{'' if having == len(found) else f', for {having} of {len(found)}'}."
        )
    caption = f"Value minus that of {found[0].base.sweep}; above zero is more. {bars} {_artifacts(found)}"
    return sheet.finish(
        title=f"Difference in {measure.heading} from {found[0].base.sweep}",
        caption=caption,
        alt=f"Difference in {measure.heading}, {plural(len(found), 'point')}",
        data=table(found),
    )


def _values_figure(sweeps: Mapping[str, Sequence[One]], measure: Measure, looks: Looks) -> Figure | None:
    """A metric's values by layer, one colour per sweep."""
    points, rows = [], []
    for label, ones in sweeps.items():
        for one in ones:
            value, interval = one.value(measure), one.interval(measure)
            if value is None:
                continue
            points.append(
                Point(
                    one.place.layer or 0,
                    one.series,
                    value,
                    interval,
                    f"{label}, {one.place}: {_number(measure, value)}\n{one.ref.label}",
                )
            )
            low, high = interval or (None, None)
            rows.append({"sweep": label, "layer": one.place.layer, **dict(one.place.swept), measure.name: value}
                        | {f"{measure.name}_ci_low": low, f"{measure.name}_ci_high": high, "artifact": one.ref.label})  # fmt: skip
    if not points:
        return None
    floor = FLOOR if min(p.value for p in points) < 4 * FLOOR else None
    sheet, below = by_layer(
        f"values-{_slug(measure)}", looks, points, measure.heading, fractions="%" in measure.format, height=2.2,
        across_label="sweep", floor=floor,
    )  # fmt: skip
    having = sum(p.interval is not None for p in points)
    bars = (
        f"Bars: 95% intervals, for {having} of {len(points)} artifacts."
        if having
        else "No intervals were saved for it."
    )
    sunk = f" {plural(below, 'value')} below {floor} drawn at the lower edge." if below else ""
    return sheet.finish(
        title=measure.heading[:1].upper() + measure.heading[1:],
        caption=f"As saved, also of artifacts without a match. {bars}{sunk}",
        alt=f"{measure.heading} of {plural(len(sweeps), 'sweep')}, {plural(len(points), 'artifact')}",
        data=pd.DataFrame(rows),
    )


def _table(found: Sequence[Difference]) -> Table:
    swept = list(dict.fromkeys(key for d in found for key, _ in d.place.swept))
    layered = any(d.place.layer is not None for d in found)
    columns = [
        *([Column("layer", True)] if layered else []),
        *(Column(key) for key in swept),
        Column("metric"),
        Column("sweep"),
    ]
    columns += [Column(found[0].base.sweep, True, "the base"), Column("value", True), Column("difference", True)]
    columns += [Column("95% interval", True), Column("verdict"), Column("interval from"), Column("artifacts")]
    rows = []
    for d in found:
        values = dict(d.place.swept)
        place = [Cell(ABSENT if d.place.layer is None else str(d.place.layer), d.place.layer)] if layered else []
        rows.append(
            (
                *place,
                *(Cell(values.get(key, ABSENT)) for key in swept),
                Cell(d.measure.heading),
                Cell(d.other.sweep),
                Cell(_number(d.measure, d.a), d.a),
                Cell(_number(d.measure, d.b), d.b),
                Cell(signed(d.measure, d.value), d.value),
                Cell(between(d) or ABSENT, d.interval[0] if d.interval else None),
                Cell(d.verdict),
                Cell(f"{d.how}, n = {d.n}" if d.n else d.how, hint=INTERVALS[d.how]),
                Cell(f"{d.base.ref.label} → {d.other.ref.label}", code=True),
            )
        )
    return Table("Differences", tuple(columns), tuple(rows), "Press a heading to sort.")


def _config_table(labels: Sequence[str], config: Mapping[str, Sequence[str]]) -> Block:
    if not config:
        return Note("Nothing that these results depend on differs in the configs.")
    rows = tuple((Cell(key, code=True), *(Cell(value) for value in values)) for key, values in config.items())
    return Table("What differs in the config", (Column("key"), *(Column(label) for label in labels)), rows)


def _number(measure: Measure, value: float) -> str:
    return number(value, measure.format)


def signed(measure: Measure, value: float) -> str:
    """``+0.012``, ``−3.1%``."""
    text = number(value, measure.format, sign="+")
    return text.replace("-", "−")


def between(d: Difference) -> str:
    """``[−0.004, +0.012]``; empty without an interval."""
    return f"[{signed(d.measure, d.interval[0])}, {signed(d.measure, d.interval[1])}]" if d.interval else ""


def _moved(d: Difference) -> str:
    text = f"{d.other.sweep} {signed(d.measure, d.value)} {between(d)}".strip()
    return f"{text}, {d.verdict}"


def _where(found: Sequence[Difference]) -> str:
    """The label of an axis of sweeps."""
    if all(d.place.layer is None and not d.place.swept for d in found):
        return "sweep"
    return f"sweep ({'; '.join(dict.fromkeys(str(d.place) for d in found))[:80]})"


def _artifacts(found: Sequence[Difference]) -> str:
    return f"n = {plural(len(found), 'pair')} of artifacts, named in the table and in the CSV."


def _slug(measure: Measure) -> str:
    return measure.name.replace("_", "-")
