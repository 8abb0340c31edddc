"""Graphs of features as they were saved, for the section's figures and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from circuits.report.registry import Entry, View
from circuits.report.saved import load_json, load_metrics, load_table, number, part
from circuits.report.sections.attribution_records import Read, clean, optional, read_each, signed
from circuits.report.sections.prompts import name
from circuits.report.words import ABSENT, visible

LEVEL = "features"  # what metrics.json says of itself
NEEDED = ("n",)
NODES = ("layer", "position", "feature", "activation", "effect", "influence", "kept")
NODE_TEXTS = ("sample", "node", "kind", "token", "label")
LINKS = ("weight",)
LINK_TEXTS = ("sample", "source", "target")
FEATURES = ("layer", "feature", "prompts", "frequency", "effect_mean", "effect_se", "activation_mean")
KINDS = ("embedding", "feature", "error", "logit")
SAID = ("behaviour", "model", "model.id")
TOKEN = 16  # letters of a token that are drawn


@dataclass(frozen=True, eq=False)
class FeatureRecord(Read):
    """One measurement: `condition` is what sets it apart on the page."""

    entry: Entry
    condition: str
    metrics: Mapping[str, Any]
    nodes: pd.DataFrame
    links: pd.DataFrame
    features: pd.DataFrame

    @property
    def graphs(self) -> int:
        """Prompts that have a graph."""
        return len(self.samples)

    @property
    def site(self) -> str:
        """Where features read, and where they write if that is another place."""
        site, target = (visible(str(self.metrics.get(key) or "")) for key in ("site", "target_site"))
        return f"{site} → {target}" if target and target != site else site

    @property
    def layers(self) -> list[int]:
        """Layers that have features."""
        given = self.metrics.get("layers")
        known = [int(layer) for layer in given] if isinstance(given, (list, tuple)) else []
        return known or sorted({int(layer) for layer in self.nodes.loc[self.nodes["kind"] == "feature", "layer"]})

    @property
    def samples(self) -> list[str]:
        """Prompts that have a graph, in the order of the artifact."""
        there = dict.fromkeys(self.nodes["sample"])
        said = [visible(str(sample)) for sample in part(self.metrics, "samples")]
        return [s for s in said if s in there] + [s for s in there if s not in said]

    def value(self, key: str) -> float | None:
        """A number of the metrics; None where it is lacking, or a word."""
        found = self.metrics.get(key)
        return number(self.metrics, key) if isinstance(found, (int, float)) else None

    def prompt(self, sample: str) -> tuple[list[str], str]:
        """A prompt's tokens, and its text."""
        found = {visible(str(key)): given for key, given in part(self.metrics, "samples").items()}.get(sample)
        given = found if isinstance(found, Mapping) else {}
        tokens = given.get("tokens")
        named = [visible(str(token)) for token in tokens] if isinstance(tokens, (list, tuple)) else []
        return named, visible(str(given.get("text") or "".join(named)))

    @property
    def checks(self) -> pd.DataFrame:
        """Effects that were predicted and measured by taking out a feature, or the `together` strongest at once."""
        columns = ("layer", "feature", "sample", "predicted", "measured")
        given = [row for row in self.metrics.get("checks") or [] if isinstance(row, Mapping) and {*columns} <= set(row)]
        rows = [{key: row[key] for key in columns} | {"together": row.get("together", 1)} for row in given]
        table = pd.DataFrame(rows, columns=[*columns, "together"])
        for key in ("predicted", "measured", "layer", "feature", "together"):
            table[key] = pd.to_numeric(table[key], errors="coerce")
        return table.dropna(subset=["predicted", "measured", "layer", "feature"]).reset_index(drop=True)

    @property
    def source(self) -> str:
        """n, and where the numbers come from."""
        return f"n = {self.n:,} prompts; deterministic, without seeds. From {self.label}."


def is_features(entry: Entry) -> bool:
    """Whether an artifact holds graphs of features; one that cannot be read is left to the section of edges."""
    return load_json(entry.ref, "metrics.json", []).get("level") == LEVEL


def read_all(view: View) -> tuple[list[FeatureRecord], list[str]]:
    """Every measurement that can be read, and a line for each file that cannot."""
    return read_each(view, _read)


def _read(entry: Entry, problems: list[str]) -> FeatureRecord | None:
    metrics = load_metrics(entry.ref, NEEDED, problems, null=False)
    nodes = load_table(entry.ref, "nodes.parquet", NODES, problems, NODE_TEXTS)
    if metrics is None or nodes is None or not {*NODES, "sample", "node", "kind"} <= set(nodes):
        return None
    for text in ("token", "label"):
        nodes[text] = nodes[text].fillna("") if text in nodes else ""
    nodes = clean(nodes, NODES, NODE_TEXTS)
    nodes = nodes[nodes["kind"].isin(KINDS) & nodes[["layer", "position"]].notna().all(axis=1)].reset_index(drop=True)
    nodes["feature"] = nodes["feature"].fillna(-1)
    links = optional(entry, "links.parquet", LINKS, LINK_TEXTS, problems, required=True)
    features = load_table(entry.ref, "features.parquet", FEATURES, problems, ("label",))
    if features is None or not {*FEATURES} <= set(features):
        features = pd.DataFrame(columns=[*FEATURES])
    features["label"] = features["label"].fillna("") if "label" in features else ""
    features = clean(features, FEATURES, ("label",)).dropna(subset=["layer", "feature"])
    swept = [f"{key}={value}" for key, value in entry.element.swept.items() if key not in SAID]
    condition = visible(", ".join([name(entry), *swept]))
    return FeatureRecord(entry, condition, metrics, nodes, links, features)


def shown_token(text: str) -> str:
    """A token as it stands below a column: short, and the spaces around it seen."""
    bare = text.strip(" ")
    seen = text.replace(bare, bare.replace(" ", "\u00a0")).replace(" ", "·") if bare else text.replace(" ", "·") or "∅"
    return seen if len(seen) <= TOKEN else f"{seen[: TOKEN - 1]}…"


def called(row: Mapping[Any, Any]) -> str:
    """A node's name for a reader: ``L3/45 · Mary (7)``."""
    kind, position, token = row["kind"], int(row["position"]), shown_token(str(row["token"]))
    if kind == "feature":
        return f"L{int(row['layer'])}/{int(row['feature'])} {token} ({position})"
    if kind == "error":
        return f"L{int(row['layer'])} error {token} ({position})"
    return f"logit {answer(row)}" if kind == "logit" else f"token {token} ({position})"


def answer(row: Mapping[Any, Any]) -> str:
    """What a logit stands for."""
    return shown_token(str(row["label"] or row["token"]))


def effect(row: Mapping[Any, Any]) -> float | None:
    """Its effect on the metric; tokens and logits whose effect was not taken have 0 there."""
    found = number(row, "effect")
    return None if found == 0 and row["kind"] in ("embedding", "logit") else found


def told(row: Mapping[Any, Any], unit: str) -> str:
    """What is shown when a reader points at a node."""
    lines = [called(row) + (f": {row['label']}" if row["label"] and row["kind"] != "logit" else "")]
    values = [
        f"{word} {text}"
        for word, text in (
            (f"effect on the metric ({unit})", signed(effect(row))),
            ("influence", signed(number(row, "influence")).lstrip("+")),
            ("activation", signed(number(row, "activation")).lstrip("+")),
        )
        if text != ABSENT
    ]
    return "\n".join([*lines, *values])
