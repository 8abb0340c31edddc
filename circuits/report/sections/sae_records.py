"""What an SAE artifact's files say: checked numbers, intervals, training history; anything amiss is a line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from circuits.report.registry import Entry, View
from circuits.report.saved import load_metrics, load_table

NUMBERS = (
    "explained_variance",
    "mse",
    "l0",
    "dead_fraction",
    "n_rows",
    "n_sequences",
    "ce_clean",
    "ce_spliced",
    "ce_zero",
    "ce_score",
    "kl",
    "passes",
    "steps",
    "d_in",
    "d_sae",
)
LATER = (
    "dense_fraction",
    "norm_ratio",
    "relative_bias",
    "decoder_cosine",
    "twin_fraction",
)  # older artifacts lack them
HISTORY = ("step", "loss", "explained_variance", "l0")


@dataclass(frozen=True)
class Density:
    """How many features fire how often: a histogram over log10 firing rate, and how many never fired."""

    edges: np.ndarray
    counts: np.ndarray
    never: int


@dataclass(frozen=True, eq=False)
class Record:
    """One trained SAE; a value that was not measured or could not be read is absent from `numbers`."""

    entry: Entry
    layer: int | None
    series: str
    numbers: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    control: float | None
    baselines: Mapping[str, float]
    """Explained variance of the frozen baselines, by name."""
    massive: tuple[float, float] | None
    """Shares of rows and of variance that are left out as massive."""
    density: Density | None
    history: pd.DataFrame | None
    architecture: str
    site: str

    @property
    def label(self) -> str:
        """The artifact's name in the store."""
        return self.entry.ref.label

    def get(self, name: str) -> float | None:
        """A measured value, or None."""
        return self.numbers.get(name)

    def identity(self, swept: Sequence[str]) -> dict[str, Any]:
        """The first columns of every data file: layer and swept values."""
        return {"layer": self.layer} | {key: self.entry.element.swept.get(key, "") for key in swept}


def read_all(view: View) -> tuple[list[Record], list[str]]:
    """Every artifact of the view, in the order layer, series; and what was wrong with their files."""
    problems: list[str] = []
    records = [_read(entry, problems) for entry in view.entries]
    far = 1 << 30
    records.sort(key=lambda r: (far if r.layer is None else r.layer, view.looks.rank(r.series), r.label))
    return records, problems


def _read(entry: Entry, problems: list[str]) -> Record:
    ref = entry.ref
    wrong: list[str] = []
    metrics = load_metrics(ref, (), problems) or {}
    numbers = _numbers(metrics, wrong) if metrics else {}
    intervals = {
        name: pair for name in ("explained_variance", "l0", "ce_score") if (pair := _interval(metrics, name, wrong))
    }
    density = _density(metrics, wrong)
    control = _control(metrics, wrong)
    baselines = _baselines(metrics, wrong)
    massive = _massive(metrics, wrong)
    if wrong:
        problems.append(f"{ref.label}: metrics.json: {'; '.join(wrong)}")
    history = load_table(ref, "history.parquet", HISTORY, problems)
    layer = ref.layer if ref.layer is not None else metrics.get("layer")
    return Record(
        entry=entry,
        layer=layer if isinstance(layer, int) and not isinstance(layer, bool) else None,
        series=entry.element.series,
        numbers=numbers,
        intervals=intervals,
        control=control,
        baselines=baselines,
        massive=massive,
        density=density,
        history=history if history is not None and "step" in history else None,
        architecture=str(metrics.get("architecture", "")),
        site=str(metrics.get("site", "")),
    )


def _numbers(metrics: Mapping[str, Any], wrong: list[str]) -> dict[str, float]:
    lacking = [name for name in NUMBERS if name not in metrics]
    if lacking:
        wrong.append(f"lacks {', '.join(lacking)}")
    found = {}
    for name in (*NUMBERS, *LATER):
        value = metrics.get(name)
        if value is None:  # written as null: not measured, which is no fault
            continue
        if not _is_number(value):
            wrong.append(f"{name} is {value!r}, not a finite number")
        else:
            found[name] = float(value)
    return found


def _interval(metrics: Mapping[str, Any], name: str, wrong: list[str]) -> tuple[float, float] | None:
    value = metrics.get(f"{name}_ci")
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]:
        return float(value[0]), float(value[1])
    wrong.append(f"{name}_ci is {value!r}, not [low, high]")
    return None


def _control(metrics: Mapping[str, Any], wrong: list[str]) -> float | None:
    control = metrics.get("control")
    value = control.get("explained_variance") if isinstance(control, dict) else control
    if value is None or _is_number(value):
        return None if value is None else float(value)
    wrong.append(f"control.explained_variance is {value!r}, not a finite number")
    return None


def _baselines(metrics: Mapping[str, Any], wrong: list[str]) -> dict[str, float]:
    found = {}
    for name, measured in (metrics.get("baselines") or {}).items():
        value = measured.get("explained_variance") if isinstance(measured, dict) else None
        if value is not None and _is_number(value):
            found[str(name)] = float(value)
        else:
            wrong.append(f"baselines.{name}.explained_variance is {value!r}, not a finite number")
    return found


def _massive(metrics: Mapping[str, Any], wrong: list[str]) -> tuple[float, float] | None:
    match metrics.get("massive"):
        case None:
            return None
        case {"rows": rows, "variance": variance} if _is_number(rows) and _is_number(variance):
            return float(rows), float(variance)
        case other:
            wrong.append(f"massive is {other!r}, not shares of rows and variance")
            return None


def _density(metrics: Mapping[str, Any], wrong: list[str]) -> Density | None:
    density = metrics.get("density")
    if density is None:
        return None
    match density:
        case {"edges": list(edges), "counts": list(counts), "never": never} if len(edges) == len(
            counts
        ) + 1 > 1 and all(map(_is_number, [*edges, *counts, never])):
            return Density(np.array(edges, float), np.array(counts, float), int(never))
    wrong.append("density is not {edges, counts, never} with one edge more than counts")
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
