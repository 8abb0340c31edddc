"""One study of interventions as it was saved, for the section's figures and tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from circuits.report.registry import Entry, View
from circuits.report.saved import load_metrics, load_table, number, part
from circuits.report.sections.prompts import name
from circuits.report.words import ABSENT, counts, listed, plural, plus_minus, ranges, visible

WORDS = {
    "heads": "head", "head_groups": "group of heads", "sites": "site", "positions": "layer-position cell",
    "features": "feature group", "neurons": "neuron",
}  # fmt: skip
"""What one unit of a kind of study is called, where it has a name."""
NEEDED = ("n", "edits", "compared", "units")  # of metrics.json
NUMBERS = ("n", "effect", "low", "high", "q")  # columns without which a summary says nothing
TEXTS = ("unit", "edit", "control", "of", "verdict", "positions", "group")
OPTIONAL = (
    "layer", "item", "p", "q_by", "detectable", "bound", "abs_effect", "kl", "top1_error", "p_drop", "flip", "direct",
    "direct_frozen", "recovery", "recovery_low", "recovery_high", "null_n", "null_mean", "null_low", "null_high", "percentile",
    "p_null", "smallest_p", "clusters",
)  # fmt: skip
GROUPS = ("size", "joint", "sum", "synergy", "low", "high", "q", "additivity", "extra")
SHAPLEY = ("layer", "item", "shapley", "low", "high", "alone", "orders")
COLUMNS = ["condition", "unit", "edit", "n", "effect", "low", "high", "q", "verdict", "artifact"]  # of a figure's CSV
SAME = ("behaviour", "model", "model.id")  # swept keys that the artifact's name says


@dataclass(frozen=True, eq=False)
class Record:
    """One study: `condition` is what sets it apart on the page, `summary` has one row a unit and edit, controls included."""

    entry: Entry
    kind: str
    condition: str
    metrics: Mapping[str, Any]
    summary: pd.DataFrame
    groups: pd.DataFrame
    shapley: pd.DataFrame

    @property
    def label(self) -> str:
        """Of the artifact."""
        return self.entry.ref.label

    def option(self, key: str, default: Any = None) -> Any:
        """What the run was asked for."""
        value = part(self.entry.element.config, "intervention").get(key)
        return default if value is None else value

    @property
    def model(self) -> str:
        """Studies of one model can be compared unit by unit."""
        return str(part(self.entry.element.config, "model").get("id", ""))

    @cached_property
    def studied(self) -> pd.DataFrame:
        """The rows of units that are no controls, in the order measured; undefined effects included."""
        return self.summary[self.summary["control"] == ""]

    @cached_property
    def ranked(self) -> pd.DataFrame:
        """Studied rows whose effect is defined, the strongest first."""
        known = self.studied[self.studied["effect"].notna()]
        return known.loc[known["effect"].abs().sort_values(ascending=False, kind="stable").index]

    @cached_property
    def edits(self) -> list[str]:
        """In the order in which they were asked for."""
        present = list(dict.fromkeys(self.summary["edit"]))
        asked = [edit for edit in map(str, self.metrics["edits"]) if edit in present]
        return asked + [edit for edit in present if edit not in asked]

    @property
    def alpha(self) -> float:
        """The limit of q."""
        return float(self.option("alpha", 0.05))

    @property
    def unit(self) -> str:
        """Of an effect."""
        return "logits" if self.metrics["compared"] == "logit_diff" else "nats"

    @cached_property
    def top(self) -> list[str]:
        """Studied units by their largest |effect| under any edit."""
        return list(dict.fromkeys(self.ranked["unit"]))

    @property
    def controlled(self) -> bool:
        """Whether a studied unit has controls."""
        return "null_mean" in self.studied and bool(self.studied["null_mean"].notna().any())

    def verdicts(self, which: str) -> int:
        """How many rows of studied units have a verdict."""
        return int((self.studied["verdict"] == which).sum())

    @cached_property
    def _controls(self) -> Mapping[Any, Any]:
        found = self.summary[(self.summary["control"] != "") & self.summary["effect"].notna()]
        return {key: rows.to_numpy(float) for key, rows in found.groupby(["of", "edit"])["effect"]}

    def controls_of(self, row: Mapping[Any, Any]) -> NDArray[np.float64]:
        """Mean effects of the controls that a unit is held against: its own, or the random sets of its shape."""
        names = dict.fromkeys((str(row["unit"]), shape(str(row["unit"]))))
        return np.concatenate([self._controls.get((name, row["edit"]), np.empty(0)) for name in names if name])


def read_all(view: View) -> tuple[list[Record], list[str]]:
    """Every study that can be read, and a line for each file that cannot."""
    problems: list[str] = []
    records = [record for entry in view.entries if (record := _read(entry, problems))]
    for told in (lambda r: f"layers {ranges(r.metrics.get('layers') or [])}", lambda r: str(r.entry.ref.key)[:6]):
        same = Counter((r.kind, r.condition) for r in records)
        several = [r for r in records if same[r.kind, r.condition] > 1]
        if len({told(r) for r in several}) > 1:
            records = [replace(r, condition=f"{r.condition}, {told(r)}") if r in several else r for r in records]
    return records, problems


def _read(entry: Entry, problems: list[str]) -> Record | None:
    metrics = load_metrics(entry.ref, NEEDED, problems, null=False)
    summary = load_table(entry.ref, "summary.parquet", NUMBERS, problems, (*TEXTS, *OPTIONAL))
    if metrics is None or summary is None or not {*NUMBERS, "unit", "edit"} <= set(summary):
        return None
    for column in OPTIONAL:
        if column in summary:
            summary[column] = pd.to_numeric(summary[column], errors="coerce").astype(float)
    for column in TEXTS:
        found = summary[column].astype(object) if column in summary else pd.Series("", index=summary.index)
        summary[column] = found.where(found.notna(), "").astype(str).map(visible)
    groups = _extra(entry, "groups.parquet", GROUPS, ("edit", "unit", "super_additive"), problems)
    shapley = _extra(entry, "shapley.parquet", SHAPLEY, ("edit",), problems)
    bare = name(entry)
    units = str(part(entry.element.config, "intervention").get("units") or "")
    kind = units or next((kind for kind in WORDS if f"-{kind}-" in bare), "")
    swept = [f"{key}={value}" for key, value in entry.element.swept.items() if key not in SAME]
    condition = visible(", ".join([bare.rpartition(f"-{kind}-")[0] or bare, *swept]))
    return Record(entry, kind, condition, metrics, summary, groups, shapley)


def _extra(entry: Entry, file: str, numbers: Sequence[str], texts: Sequence[str], problems: list[str]) -> pd.DataFrame:
    """A table that only some studies have."""
    table = load_table(entry.ref, file, numbers, problems, texts) if (entry.ref.path / file).exists() else None
    if table is None or not {*numbers, *texts} <= set(table):
        return pd.DataFrame()
    named = {text: table[text].astype(str).map(visible) for text in texts[:2]}
    return table.astype(dict.fromkeys(numbers, float)).assign(**named)


def shape(unit: str) -> str:
    """``2 at L0, 1 at L3`` of ``L0.H2+L0.H4+L3.H1``: what random sets of heads are named after."""
    layers = Counter(int(layer) for layer in re.findall(r"(?:^|\+)L(\d+)\.H\d+", unit))
    return ", ".join(f"{n} at L{layer}" for layer, n in sorted(layers.items()))


def interval(row: Mapping[Any, Any], low: str = "low", high: str = "high") -> tuple[float, float] | None:
    """The ends of a row's interval."""
    ends = float(row.get(low, float("nan"))), float(row.get(high, float("nan")))
    return ends if ends[0] == ends[0] and ends[1] == ends[1] else None


def effect(row: Mapping[Any, Any], key: str = "effect", low: str = "low", high: str = "high") -> str:
    """``-12.12 [-14.23, -9.80]``."""
    value, ends = number(row, key), interval(row, low, high)
    if value is None:
        return "undefined"
    return f"{value:+.2f}" + (f" [{ends[0]:+.2f}, {ends[1]:+.2f}]" if ends else "")


def plus(row: Mapping[Any, Any], key: str = "effect", low: str = "low", high: str = "high") -> str:
    """``-12.12 ± 2.32``."""
    return plus_minus(number(row, key), interval(row, low, high), 2)


def chance(value: float | None) -> str:
    """A p or q: ``0.048``, ``3.2e-04``."""
    return ABSENT if value is None else f"{value:.3f}" if value >= 0.00095 or value == 0 else f"{value:.1e}"


def tell(r: Record, row: Mapping[Any, Any]) -> str:
    """What is shown when a reader points at a unit."""
    told = f"{row['unit']}, {row['edit']}: {effect(row)} {r.unit}"
    if (q := number(row, "q")) is not None:
        told += f", q {chance(q)}"
    return f"{told}, n {int(row['n'])}\n{r.condition}"


def sample(records: Sequence[Record], control: bool = False) -> str:
    """n, interval and control of a claim, for captions."""
    units = sorted({str(r.option("cluster", "prompt")) for r in records})
    n = counts([float(r.metrics["n"]) for r in records])
    text = f"n = {n} prompts; 95% bootstrap intervals, the unit drawn is the {' or '.join(units)}; deterministic, without seeds."
    held = any(r.controlled for r in records)
    told = "random units of equal size." if held else "the same prompts without edits, where every effect is 0."
    return f"{text} Control: {told}" if control else text


def sources(records: Sequence[Record]) -> str:
    """Where the numbers come from."""
    return f"From {listed([r.label for r in records])}."


SIGN = "Above 0 the edit favours the target, below 0 the foil."


def counted(r: Record) -> str:
    """``16 heads × 5 edits``."""
    n, word = r.studied["unit"].nunique(), WORDS.get(r.kind, "unit")
    units = f"{n:,} groups of heads" if r.kind == "head_groups" and n != 1 else plural(n, word)
    return f"{units} × {plural(len(r.edits), 'edit')}" if len(r.edits) > 1 else units


def table_of(records: Sequence[Record], *more: str) -> pd.DataFrame:
    """The CSV of a figure: studied units, with further columns."""
    rows = [r.studied.assign(condition=r.condition, artifact=r.entry.ref.key[:12]) for r in records]
    found = pd.concat(rows, ignore_index=True)
    return found[[column for column in (*COLUMNS, *more) if column in found]]
