"""One judged circuit as it was saved, for the section's figures and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import pandas as pd

from circuits.report.registry import Entry, View
from circuits.report.saved import load_metrics, load_table, number, part
from circuits.report.sections.attribution_records import Read, clean, optional, read_each
from circuits.report.sections.prompts import name
from circuits.report.words import visible

NEEDED = ("n", "edges", "ablation", "model", "empty", "chosen_edges", "faithfulness")  # of metrics.json
CURVE = ("number", "share", "edges", "metric", "f", "low", "high")
ALONE = ("number", "share", "metric")
MINIMALITY = ("in_circuit", "change", "p", "q")
SAID = ("attribution.method", "faithfulness.ablation", "faithfulness.rank", "behaviour", "model", "model.id")
NULL_WORDS = {"random": "random circuits", "random by reader": "random, each reader with as many edges"}
Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Record(Read):
    """One measurement: `condition` is what sets it apart on the page, `study` the same without its method and ablation."""

    entry: Entry
    study: str
    condition: str
    method: str
    metrics: Mapping[str, Any]
    curve: pd.DataFrame
    alone: pd.DataFrame
    minimality: pd.DataFrame

    @property
    def ablation(self) -> str:
        """What edges outside a circuit carry."""
        return visible(str(self.metrics["ablation"]))

    @property
    def rank(self) -> str:
        """How edges are ranked."""
        return visible(str(self.metrics.get("rank", "top_n")))

    def value(self, key: str) -> float | None:
        """A number of the metrics."""
        return number(self.metrics, key)

    def interval(self, key: str) -> Interval | None:
        """A 95% interval of the metrics."""
        return interval(self.metrics.get(key))

    def rows(self, circuit: str) -> pd.DataFrame:
        """The curve's rows of a kind of circuit, by share of edges."""
        found = self.curve[self.curve["circuit"] == circuit]
        return found.sort_values(["share", "number"], kind="stable", ignore_index=True)

    def prompts(self) -> pd.DataFrame:
        """By prompt the metric of the whole ``model``, of the ``chosen`` circuit and of its ``complement``.

        Empty where the curve does not go up to all edges, so that the whole model's metric was not kept.
        """
        whole = self.alone[(self.alone["circuit"] == "circuit") & (self.alone["share"] >= 1)]
        found = whole.drop_duplicates("sample").set_index("sample")[["metric"]].rename(columns={"metric": "model"})
        for circuit in ("chosen", "complement"):
            mine = self.alone[self.alone["circuit"] == circuit].drop_duplicates("sample").set_index("sample")["metric"]
            found[circuit] = mine.reindex(found.index)
        return found.dropna(subset=["model", "chosen"]).reset_index()

    @property
    def held(self) -> str:
        """Which prompts a circuit is judged on; nothing is known of those that somebody else's circuit was chosen on."""
        foreign = part(self.entry.element.config, "faithfulness").get("circuit")
        return "" if foreign else " that it was not chosen on"

    @property
    def put(self) -> str:
        """What is done to the model."""
        carried = {
            "counterfactual": "what its writer adds in the pair's other run", "zero": "nothing", "mean": "its writer's mean",
            "resample": "what its writer adds on another prompt", "optimal": "the constant that suits circuits best",
        }  # fmt: skip
        return f"every edge outside it carries {carried.get(self.ablation, self.ablation)} ({self.ablation} ablation)"

    @property
    def source(self) -> str:
        """Where the numbers come from, for captions."""
        return f"n = {self.n:,} prompts{self.held}; deterministic, without seeds of the model. From {self.label}."


def read_all(view: View) -> tuple[list[Record], list[str]]:
    """Every judgement that can be read, and a line for each file that cannot."""
    return read_each(view, _read)


def _read(entry: Entry, problems: list[str]) -> Record | None:
    metrics = load_metrics(entry.ref, NEEDED, problems, null=False)
    curve = load_table(entry.ref, "curve.parquet", CURVE, problems, ("circuit",))
    if metrics is None or curve is None or not {*CURVE, "circuit"} <= set(curve):
        return None
    alone = optional(entry, "alone.parquet", ALONE, ("circuit", "sample"), problems, required=True)
    minimality = optional(entry, "minimality.parquet", MINIMALITY, ("edge",), problems)
    method = _method(entry, metrics)
    bare = name(entry).removesuffix(f"-{metrics['ablation']}")
    study = bare.removesuffix(f"-{method}")
    swept = [f"{key}={value}" for key, value in entry.element.swept.items() if key not in SAID]
    ranked = [] if metrics.get("rank", "top_n") == "top_n" else [f"ranked by {metrics['rank']}"]
    condition = ", ".join([name(entry), *ranked, *swept])
    tables = clean(curve, CURVE, ("circuit",)), alone, minimality
    return Record(entry, visible(", ".join([study, *swept])), visible(condition), visible(method), metrics, *tables)


def _method(entry: Entry, metrics: Mapping[str, Any]) -> str:
    """How edges were scored, or the file of somebody else's circuit; without a config what the label says."""
    config = entry.element.config
    foreign = part(config, "faithfulness").get("circuit")
    given = (
        PurePath(str(foreign)).stem if foreign else metrics.get("method") or part(config, "attribution").get("method")
    )
    if given:
        return str(given)
    return name(entry).removesuffix(f"-{metrics['ablation']}").rpartition("-")[2]


def interval(ends: Any) -> Interval | None:
    """``[low, high]`` as it was saved; None where there is none."""
    if not isinstance(ends, (list, tuple)) or len(ends) != 2 or any(end is None or pd.isna(end) for end in ends):
        return None
    return float(ends[0]), float(ends[1])


def between(ends: Interval | None, digits: int = 3) -> str:
    """``0.852 to 0.955``."""
    return f"{_plain(ends[0], digits)} to {_plain(ends[1], digits)}" if ends else ""


def _plain(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"


def plain(value: float | None, digits: int = 3) -> str:
    """A fixed number of decimals, without a minus before a zero."""
    return "–" if value is None else _plain(value, digits)


def share(value: float | None) -> str:
    """``0.1%``, ``5%``, ``12.5%`` of the edges."""
    return "–" if value is None else f"{float(f'{100 * value:.3g}'):g}%"
