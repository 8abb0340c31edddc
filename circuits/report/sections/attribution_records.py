"""One circuit as it was saved, for the section's figures and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import pandas as pd

from circuits.report.registry import Entry, View
from circuits.report.saved import load_metrics, load_table, part
from circuits.report.sections.prompts import name
from circuits.report.words import ABSENT, visible

NEEDED = ("n", "edges", "circuit_edges", "method")  # of metrics.json
EDGES = ("score", "standard_error", "rank", "inclusion", "in_circuit", "connected", "exact")
EDGE_TEXTS = ("edge", "writer", "reader", "verified")
NODES = ("layer", "head", "score", "size", "edges_in_circuit", "inclusion")
EXACT = ("random", "exact", "score")
PIECES = ("score", "all")
SAID = ("attribution.method", "behaviour", "model", "model.id")  # swept keys that the label says


R = TypeVar("R", bound="Read")


class Read:
    """What every measurement of circuits has on a page."""

    entry: Entry
    metrics: Mapping[str, Any]
    condition: str

    @property
    def label(self) -> str:
        """Of the artifact."""
        return self.entry.ref.label

    @property
    def n(self) -> int:
        """Prompts."""
        return int(self.metrics["n"])

    @property
    def unit(self) -> str:
        """Of the metric: first tokens are compared by their logits, whole answers by their log-probabilities."""
        given = self.metrics.get("metric") or part(self.entry.element.config, "attribution").get("metric")
        return "nats" if given == "full_target" else "logits"

    @property
    def compared(self) -> str:
        """What the metric is."""
        return f"{'log-probability' if self.unit == 'nats' else 'logit'} difference, {self.unit}"


@dataclass(frozen=True, eq=False)
class Record(Read):
    """One measurement: `condition` is what sets it apart on the page, `study` the same without its method."""

    entry: Entry
    study: str
    condition: str
    metrics: Mapping[str, Any]
    edges: pd.DataFrame
    nodes: pd.DataFrame
    exact: pd.DataFrame
    pieces: pd.DataFrame

    @property
    def method(self) -> str:
        """How edges were scored."""
        return visible(str(self.metrics["method"]))

    @cached_property
    def circuit(self) -> pd.DataFrame:
        """The edges of the circuit, the largest first."""
        return self.edges[self.edges["in_circuit"] > 0]

    @property
    def verified(self) -> Mapping[str, Any]:
        """How far scores agree with exact patching."""
        return part(self.metrics, "verified")

    @property
    def patched(self) -> str:
        """What an edge's score and exact effect stand for."""
        run, other = ("corrupt", "clean") if self.metrics.get("direction") == "denoising" else ("clean", "corrupt")
        return (
            f"A score estimates how far the {self.compared.split(',')[0]} of target and foil moves in the {run} run when one edge "
            f"carries the {other} run's value: above 0 towards the target, below 0 towards the foil."
        )

    @property
    def sample(self) -> str:
        """n, interval and control of a claim, for captions."""
        return (
            f"n = {int(self.metrics['n']):,} prompts; ± one standard error over prompts; deterministic, without seeds."
        )

    @property
    def source(self) -> str:
        """Where the numbers come from."""
        return f"From {self.label}."


def read_all(view: View) -> tuple[list[Record], list[str]]:
    """Every circuit that can be read, and a line for each file that cannot."""
    return read_each(view, _read, ("condition", "study"))


def read_each(
    view: View, read: Callable[[Entry, list[str]], R | None], named: Sequence[str] = ("condition",)
) -> tuple[list[R], list[str]]:
    """What `read` makes of each artifact, and its problems; the names of those with equal conditions end in their keys."""
    problems: list[str] = []
    records = [record for entry in view.entries if (record := read(entry, problems))]
    same = Counter(r.condition for r in records)
    return [
        replace(r, **{name: f"{getattr(r, name)}, {r.entry.ref.key[:6]}" for name in named})  # type: ignore[type-var]  # each is a dataclass
        if same[r.condition] > 1
        else r
        for r in records
    ], problems


def _read(entry: Entry, problems: list[str]) -> Record | None:
    metrics = load_metrics(entry.ref, NEEDED, problems, null=False)
    edges = load_table(entry.ref, "edges.parquet", EDGES, problems, EDGE_TEXTS)
    if metrics is None or edges is None or not {*EDGES, *EDGE_TEXTS} <= set(edges):
        return None
    edges = clean(edges, EDGES, EDGE_TEXTS).sort_values("rank", kind="stable", ignore_index=True)
    nodes = optional(entry, "nodes.parquet", NODES, ("node",), problems, required=True)
    exact = optional(entry, "exact.parquet", EXACT, ("edge", "sample"), problems)
    pieces = optional(entry, "pieces.parquet", PIECES, ("edge", "piece"), problems)
    bare, method = name(entry), str(metrics["method"])
    study = bare.removesuffix(f"-{method}")
    swept = [f"{key}={value}" for key, value in entry.element.swept.items() if key not in SAID]
    return Record(
        entry, visible(", ".join([study, *swept])), visible(", ".join([bare, *swept])), metrics, edges, nodes, exact, pieces
    )  # fmt: skip


def optional(
    entry: Entry, file: str, numbers: Sequence[str], texts: Sequence[str], problems: list[str], required: bool = False
) -> pd.DataFrame:
    """A table that some studies have; empty, with a line in `problems`, where it is damaged or `required` and missing."""
    wanted = required or (entry.ref.path / file).exists()
    table = load_table(entry.ref, file, numbers, problems, texts) if wanted else None
    empty = pd.DataFrame(columns=[*numbers, *texts])
    if table is None:
        return clean(empty, numbers, texts)
    if lacking := [text for text in texts if text not in table]:
        problems.append(f"{entry.ref.label}: {file} lacks {', '.join(lacking)}")
    whole = {*numbers, *texts} <= set(table)
    return clean(table if whole else empty, numbers, texts)


def clean(table: pd.DataFrame, numbers: Sequence[str], texts: Sequence[str]) -> pd.DataFrame:
    """Numbers as floats; names without anything that could not be seen."""
    found = table.astype(dict.fromkeys(numbers, float))
    return found.assign(**{text: found[text].astype(str).map(visible) for text in texts})


def signed(value: float | None) -> str:
    """``-13.21``, ``+0.0042``: two decimals, or two digits where these would show nothing."""
    if value is None:
        return ABSENT
    return f"{value:+.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:+.2g}"


def with_error(value: float | None, error: float | None) -> str:
    """``-13.21 ± 0.67``."""
    return signed(value) + ("" if value is None or error is None else f" ± {signed(error).lstrip('+')}")
