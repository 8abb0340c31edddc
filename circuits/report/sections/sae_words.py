"""What every caption of the SAE section owes its reader: n, intervals, control, artifacts, what is absent."""

from __future__ import annotations

from collections.abc import Sequence

from circuits.report.registry import View
from circuits.report.sections.sae_records import Record
from circuits.report.words import counts, listed, plural, plus_minus, ranges, span


def join(sentences: Sequence[str]) -> str:
    """A caption from its sentences; empty ones fall out."""
    return " ".join(sentence for sentence in sentences if sentence)


def who(record: Record) -> str:
    """``layer 3, sae.k=32``."""
    layer = "no layer" if record.layer is None else f"layer {record.layer}"
    return f"{layer}, {record.series}" if record.series else layer


def layers(records: Sequence[Record]) -> str:
    """``layers 0–3``; empty when no record has a layer."""
    found = {r.layer for r in records if r.layer is not None}
    return f"layer{'s' if len(found) > 1 else ''} {ranges(found)}" if found else ""


def value_with_interval(record: Record, name: str) -> str:
    """``0.942 ± 0.001``."""
    return plus_minus(record.get(name), record.intervals.get(name))


def bars(records: Sequence[Record], name: str) -> str:
    """What the vertical bars are, or that there are none."""
    having = sum(name in r.intervals for r in records)
    if having == len(records):
        return "Bars: 95% intervals over sequences (where none is seen, it is smaller than the marker)."
    if having:
        return f"Bars: 95% intervals over sequences, for the {having} of {len(records)} SAEs that have one."
    return "No intervals were saved for it."


def sample(records: Sequence[Record]) -> str:
    """The n of every point."""
    rows = [r.numbers["n_rows"] for r in records if "n_rows" in r.numbers]
    sequences = [r.numbers["n_sequences"] for r in records if "n_sequences" in r.numbers]
    if not rows or not sequences:
        return "The number of held-out rows was not saved."
    return f"n\u00a0=\u00a0{counts(rows)} held-out rows from {counts(sequences)} sequences for each SAE."


def control(records: Sequence[Record]) -> str:
    """The untrained SAE, as measured."""
    values = [r.control for r in records if r.control is not None]
    if not values:
        return "No untrained control was saved."
    text = f"Control: the same SAE before training, on the same rows, {span(values)}"
    lacking = len(records) - len(values)
    return f"{text}; {plural(lacking, 'SAE')} without one." if lacking else f"{text}."


def baselines(records: Sequence[Record]) -> str:
    """What the frozen baselines reach, and whether training gained anything beyond them."""
    having = [r for r in records if r.baselines and "explained_variance" in r.numbers]
    if not having:
        return ""
    names = list(dict.fromkeys(name for r in having for name in r.baselines))
    reached = ", ".join(
        f"{name.replace('_', ' ')} {span([r.baselines[name] for r in having if name in r.baselines])}" for name in names
    )
    text = f"Frozen baselines: {reached}."
    idle = [r for r in having if _low(r) <= max(r.baselines.values())]
    if not idle:
        return text
    which = (
        "these SAEs"
        if len(idle) == len(having)
        else f"{len(idle)} of {len(having)} SAEs ({listed([who(r) for r in idle])})"
    )
    return f"{text} Training gained nothing that a frozen part does not reach in {which}."


def massive(records: Sequence[Record]) -> str:
    """What of the rows is left out, and how much of the variance that was."""
    having = [r.massive for r in records if r.massive is not None]
    if not having:
        return ""
    rows, variance = max(rows for rows, _ in having), [share for _, share in having]
    of = "" if len(having) == len(records) else f" of {len(having)} of the {len(records)} SAEs"
    held = f"{min(variance):.0%}" if len(having) == 1 else f"{min(variance):.0%} to {max(variance):.0%}"
    return f"Massive activations{of} are left out: at most {rows:.2%} of the rows, with {held} of the variance."


def _low(record: Record) -> float:
    interval = record.intervals.get("explained_variance")
    return interval[0] if interval else record.numbers["explained_variance"]


def missing(records: Sequence[Record], drawn: Sequence[Record], what: str = "the value") -> str:
    """Which SAEs are not in the figure."""
    absent = [r.label for r in records if r not in drawn]
    if not absent:
        return ""
    more = f" and {len(absent) - 4} more" if len(absent) > 4 else ""
    return f"Not drawn, because {what} is missing: {', '.join(absent[:4])}{more}."


def below(n: int, floor: float | None) -> str:
    """That some values lie outside the axis."""
    return f"{plural(n, 'value')} below {floor}: drawn at the lower edge; hover or CSV for the value." if n else ""


def looks(view: View) -> str:
    """An admission when there are more series than looks."""
    return f"{len(view.looks.series)} series share 28 looks; hover names them." if view.looks.repeats else ""


def which(records: Sequence[Record]) -> str:
    """The artifacts the figure was drawn from."""
    return f"From {listed([r.label for r in records])}."
