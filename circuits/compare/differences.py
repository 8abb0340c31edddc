"""Two or more sweeps side by side: matched artifacts, and how far each metric moved from the first sweep to another.

Artifacts match by layer and by the values of every key that any of the sweeps sweeps over, or in which artifacts of one layer
differ. A difference is given with an interval where there is a ground for one: the paired bootstrap where both artifacts keep the
values of the same prompts (``per_prompt.parquet``, see :func:`circuits.stats.answers.values`), else their own intervals, taken for
independent; else it says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from circuits import tables
from circuits.compare.equal import TERMS, Unequal, unequal
from circuits.drawing.style import natural
from circuits.report.types import ArtifactRef
from circuits.stats.answers import values
from circuits.stats.paired import Interval, independent_interval, paired_interval

SAMPLES = "per_prompt.parquet"
How = Literal["paired", "from both intervals", "no interval", "deterministic", "same artifact"]


@dataclass(frozen=True)
class Measure:
    """A metric that is compared: its name in metrics.json, its heading, its format, the name of its interval.

    `exact`: nothing random is in it, of whatever it was measured.
    """

    name: str
    heading: str
    format: str
    interval: str
    exact: bool = False


@dataclass(frozen=True)
class Place:
    """What artifacts are matched by."""

    layer: int | None
    swept: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        parts = [] if self.layer is None else [f"layer {self.layer}"]
        return ", ".join([*parts, *(f"{key}={value}" for key, value in self.swept)]) or "all"

    @property
    def series(self) -> str:
        """Without the layer."""
        return ", ".join(f"{key}={value}" for key, value in self.swept)


@dataclass(frozen=True)
class One:
    """An artifact of a sweep, with its saved metrics."""

    sweep: str
    place: Place
    ref: ArtifactRef
    metrics: Mapping[str, Any]

    @property
    def series(self) -> str:
        """``A``, or ``A, sae.k=8`` where something besides the layer is swept."""
        return f"{self.sweep}, {self.place.series}" if self.place.swept else self.sweep

    def value(self, measure: Measure) -> float | None:
        """The measured value; None when there is none or it is not finite."""
        found = self.metrics.get(measure.name)
        good = isinstance(found, (int, float)) and not isinstance(found, bool) and math.isfinite(found)
        return float(found) if good else None  # type: ignore[arg-type]

    def interval(self, measure: Measure) -> Interval | None:
        """Its interval; one without width is none: the measurement had nothing random in it."""
        found = self.metrics.get(measure.interval)
        if not isinstance(found, (list, tuple)) or len(found) != 2 or found[0] == found[1]:
            return None
        return float(found[0]), float(found[1])

    def deterministic(self, measure: Measure) -> bool:
        """Whether the measurement has nothing random in it, by its kind or by an interval without width."""
        found = self.metrics.get(measure.interval)
        share = "%" in measure.format  # a share of 0 or 1 has no width either: all resamples are alike
        return measure.exact or (not share and isinstance(found, (list, tuple)) and len(set(found)) == 1)


@dataclass(frozen=True)
class Difference:
    """A metric of one matched artifact: from `base` to `other`."""

    base: One
    other: One
    measure: Measure
    a: float
    b: float
    interval: Interval | None
    how: How
    n: int | None = None  # samples, where paired
    unequal: tuple[Unequal, ...] = ()  # what was not alike when both were measured

    @property
    def series(self) -> str:
        """The colour it is drawn in: one per sweep, or per sweep and swept value."""
        return self.other.series

    @property
    def place(self) -> Place:
        """Where it is."""
        return self.base.place

    @property
    def value(self) -> float:
        """How far it moved."""
        return self.b - self.a

    @property
    def moved(self) -> bool | None:
        """Whether the interval excludes no difference; None where there is no interval to say so."""
        if self.how == "same artifact":
            return False
        if self.how == "deterministic":
            return self.value != 0
        return None if self.interval is None else self.interval[0] > 0 or self.interval[1] < 0

    @property
    def verdict(self) -> str:
        """``higher``, ``lower (at another L0)``, ``no difference shown``, or why there is no telling."""
        if self.moved is None or self.how == "same artifact":
            return self.how
        exact = ", exact" if self.how == "deterministic" else ""
        if not self.moved:
            return (f"equal{exact}" if exact else "no difference shown") + self._terms
        return f"{'higher' if self.value > 0 else 'lower'}{exact}{self._terms}"

    @property
    def _terms(self) -> str:
        """On what unequal terms; a term itself is on none."""
        if self.measure.name in {term.metric for term in TERMS}:
            return ""
        phrases = dict.fromkeys(one.phrase for one in self.unequal)
        return f" ({', '.join(phrases)})" if phrases else ""


def differences(base: Sequence[One], other: Sequence[One], measures: Sequence[Measure]) -> list[Difference]:
    """Every metric of every artifact of `other` that has its match in `base`, in the order of `base`."""
    there = {one.place: one for one in other}
    found = []
    for one in base:
        match = there.get(one.place)
        if match is None:
            continue
        terms = unequal(one.metrics, match.metrics, one.ref.path, match.ref.path)
        for measure in measures:
            a, b = one.value(measure), match.value(measure)
            if a is not None and b is not None:
                found.append(replace(_difference(one, match, measure, a, b), unequal=terms))
    return found


def warnings(found: Sequence[Difference]) -> list[str]:
    """What was not alike in the two sweeps of each comparison, with the values: a reader has to know before any verdict."""
    said = []
    for base, other in dict.fromkeys((d.base.sweep, d.other.sweep) for d in found):
        mine = [d for d in found if (d.base.sweep, d.other.sweep) == (base, other)]
        pairs = len({d.place for d in mine})
        for heading in dict.fromkeys(term.heading for d in mine for term in d.unequal):
            terms = {d.place: term for d in mine for term in d.unequal if term.heading == heading}
            values = [_values(term.a for term in terms.values()), _values(term.b for term in terms.values())]
            there = (
                f"{values[0]} in {base} and {values[1]} in {other}"
                if all(values)
                else f"not those of {base} in {other}"
            )
            where = str(next(iter(terms))) if len(terms) == 1 else f"{len(terms)} of {pairs} pairs"
            said.append(f"{heading}: {there} ({where})")
    return [f"Not like for like: {'; '.join(said)}."] if said else []


def _values(values: Iterable[str | None]) -> str:
    """``16.0``, ``11.2 to 11.7``; empty where there are none."""
    known = sorted({value for value in values if value is not None}, key=natural)
    return "" if not known else known[0] if len(known) == 1 else f"{known[0]} to {known[-1]}"


def unmatched(ones: Sequence[One], others: Sequence[One]) -> list[One]:
    """The artifacts of `ones` that have no match among `others`."""
    places = {one.place for one in others}
    return [one for one in ones if one.place not in places]


def _difference(one: One, other: One, measure: Measure, a: float, b: float) -> Difference:
    if one.ref.key == other.ref.key:
        return Difference(one, other, measure, a, b, None, "same artifact")
    if pair := _paired(one, other, measure.name, a, b):
        return Difference(one, other, measure, a, b, pair[0], "paired", pair[1])
    mine, its = one.interval(measure), other.interval(measure)
    if mine and its:
        return Difference(one, other, measure, a, b, independent_interval(a, mine, b, its), "from both intervals")
    exact = one.deterministic(measure) and other.deterministic(measure)
    return Difference(one, other, measure, a, b, None, "deterministic" if exact else "no interval")


def _paired(mine: One, its: One, metric: str, a: float, b: float) -> tuple[Interval, int] | None:
    """The paired interval over the prompts that both keep, and their number; None unless they are what the metric is a mean of."""
    one, other = samples(mine.ref.path), samples(its.ref.path)
    if one is None or other is None or one.index.names != other.index.names:
        return None
    x, y = values(one, metric, mine.metrics), values(other, metric, its.metrics)
    if x is None or y is None:
        return None
    rows = one.assign(_value=x)
    splits = sorted(set(one["split"]) & set(other["split"])) if "split" in one and "split" in other else []
    for split in [None, *splits]:
        left = rows if split is None else rows[rows["split"] == split]
        right = y if split is None else y[other["split"] == split]
        both = left.join(right.rename("_other"), how="inner")
        if not (len(both) == len(left) == len(right) and len(both) > 1):
            continue
        pair = both["_value"], both["_other"]
        if all(math.isclose(v.mean(), m, rel_tol=1e-6, abs_tol=1e-9) for v, m in zip(pair, (a, b), strict=True)):
            unit = _unit(mine, its)
            interval = paired_interval(*pair, list(both[unit]) if unit in both else None, seed=0)
            return (interval, len(both)) if interval else None
    return None


def _unit(mine: One, its: One) -> str:
    """The column of what is drawn together: the unit that both measurements name, else the group."""
    named = {one.metrics.get("cluster") for one in (mine, its)}
    return str(named.pop()) if len(named) == 1 and None not in named else "group"


@lru_cache(maxsize=64)
def samples(directory: Path) -> pd.DataFrame | None:
    """The per-prompt values of an artifact by sample id and text (an id alone can name another prompt); None when it keeps none."""
    path = directory / SAMPLES
    if not path.exists():
        return None
    table = tables.read(path)
    if "sample" not in table or not table["sample"].is_unique:
        return None
    names = ["sample", *(["prompt"] if "prompt" in table else [])]
    return table.set_index(names, drop=False).rename_axis(index=[f"_{name}" for name in names])


def table(found: Sequence[Difference]) -> pd.DataFrame:
    """All differences, one a row, with everything they rest on."""
    rows = []
    for d in found:
        a, b, between = (
            pair or (None, None) for pair in (d.base.interval(d.measure), d.other.interval(d.measure), d.interval)
        )
        rows.append(
            {
                "layer": d.place.layer,
                **dict(d.place.swept),
                "metric": d.measure.name,
                "base": d.base.sweep,
                "other": d.other.sweep,
            }
            | {"base_value": d.a, "base_ci_low": a[0], "base_ci_high": a[1]}
            | {"other_value": d.b, "other_ci_low": b[0], "other_ci_high": b[1]}
            | {"difference": d.value, "difference_ci_low": between[0], "difference_ci_high": between[1]}
            | {"interval": d.how, "n_paired": d.n, "verdict": d.verdict}
            | {"base_artifact": d.base.ref.label, "other_artifact": d.other.ref.label}
        )
    return pd.DataFrame(rows)
