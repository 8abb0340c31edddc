"""Graphs of features as Neuronpedia and circuit-tracer show them, from ``nodes.parquet`` and ``links.parquet``. No torch.

One graph a prompt: its kept nodes under the ids of the table. Influence is written as circuit-tracer writes it: in the order of
influence, the share of all of it that is reached with a feature or an error, so that the page's slider (``node_threshold``) cuts
the weakest; tokens and logits, which pages always show, have none. A feature's number joins layer and index by Cantor's pairing;
by it a page looks for examples, ``features/{scan}/{number}.json``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from circuits.attribution.neuronpedia import About, Graph, slug_of
from circuits.errors import UserError

TYPES = {
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "embedding": "embedding",
    "logit": "logit",
}
"""What pages call our kinds of nodes; they know no other word for a feature."""


def feature_graphs(
    nodes: pd.DataFrame, links: pd.DataFrame, samples: Mapping[str, Mapping[str, Any]], about: About
) -> list[Graph]:
    """One graph a prompt.

    Args:
        nodes: ``nodes.parquet``.
        links: ``links.parquet``.
        samples: tokens and text of each prompt, by its id.
        about: what else is said.

    Raises:
        UserError: a prompt without tokens, a link's end that is no node, a weight that is not finite.
    """
    into = dict(tuple(links.groupby("sample", sort=False)))
    found: list[Graph] = []
    for sample, some in nodes.groupby("sample", sort=False):
        if (told := samples.get(str(sample))) is None:
            raise UserError(
                f"sample {sample}: its tokens are not known; there are those of {' '.join(samples) or 'none'}"
            )
        made = _feature_graph(str(sample), some, into.get(sample, links.iloc[:0]), told, about)
        while made.slug in {one.slug for one in found}:
            made.metadata["slug"] += "-2"
        found.append(made)
    return found


def _feature_graph(
    sample: str, nodes: pd.DataFrame, links: pd.DataFrame, told: Mapping[str, Any], about: About
) -> Graph:
    every, kept = set(nodes["node"]), nodes[nodes["kept"].astype(bool)]
    for source, target, weight in zip(links["source"], links["target"], links["weight"], strict=True):
        if lost := next((end for end in (source, target) if end not in every), None):
            raise UserError(f"sample {sample}: link {source} → {target}: there is no node {lost!r}")
        if not math.isfinite(weight):
            raise UserError(
                f"sample {sample}: link {source} → {target}: its weight is {weight}, and must be a finite number"
            )
    inside = set(kept["node"])
    tokens = [str(token) for token in told["tokens"]]
    what = f"features of {about.name}, prompt {sample}: {len(kept)} nodes"
    scale = float((about.pruning or {}).get("node_threshold", 1.0))
    reached = _reached(kept, scale)
    rows = [_node(row, tokens, reached.get(str(row["node"]))) for row in kept.to_dict("records")]
    logits = [node for node in rows if node["feature_type"] == "logit"]
    if logits:
        max(logits, key=lambda node: node["token_prob"])["is_target_logit"] = True
    return Graph(
        about.metadata(slug_of(about.name, sample), tokens, str(told["text"]), "features", what),
        rows,
        [
            {"source": source, "target": target, "weight": float(weight)}
            for source, target, weight in zip(links["source"], links["target"], links["weight"], strict=True)
            if source in inside and target in inside
        ],
    )


def _reached(nodes: pd.DataFrame, scale: float) -> dict[str, float]:
    """Of each feature and error, the share of influence that is reached with it, the most influential ones first."""
    sources = nodes[nodes["kind"].isin(["feature", "error"]) & np.isfinite(nodes["influence"].astype(float))]
    ordered = sources.sort_values("influence", ascending=False, kind="stable")
    sums = ordered["influence"].astype(float).clip(lower=0.0).cumsum()
    whole = float(sums.iloc[-1]) if len(sums) else 0.0
    return {str(n): float(s) / whole * scale for n, s in zip(ordered["node"], sums, strict=True)} if whole > 0 else {}


def _node(row: Mapping[Any, Any], tokens: Sequence[str], reached: float | None) -> dict[str, Any]:
    kind, layer, position, feature = str(row["kind"]), int(row["layer"]), int(row["position"]), int(row["feature"])
    if kind not in TYPES:
        raise UserError(f"node {row['node']}: it is a {kind!r}; choices: {' '.join(TYPES)}")
    label, said = (row[name] if isinstance(row[name], str) else "" for name in ("label", "token"))
    activation = float(row["activation"])
    share = float(row["influence"]) if kind == "logit" and math.isfinite(row["influence"]) else 0.0
    token = tokens[position] if 0 <= position < len(tokens) else ""
    number, place, shown = {
        "feature": (number_of(layer, feature), f"{layer}_{feature}-0", label),
        "error": (-1, f"{layer}_-1-{position}", label or f'Err: mlp "{token}"'),
        "embedding": (position, f"E_{feature}-{position}", label or f'Emb: "{token}"'),
        "logit": (feature, f"L_{feature}-{position}", _output(label or said or f"#{feature}", share)),
    }[kind]
    return {
        "node_id": str(row["node"]),
        "feature": number,
        "layer": "E" if kind == "embedding" else str(layer),
        "ctx_idx": position,
        "feature_type": TYPES[kind],
        "token_prob": share,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": place,
        "clerp": shown,
        "influence": reached,
        "activation": activation if kind == "feature" and math.isfinite(activation) else None,
    }


def _output(label: str, share: float) -> str:
    """A logit's label; pages read its share out of it, and fail where none is."""
    return label if "(p=" in label else f'Output "{label}" (p={share:.3f})'


def number_of(layer: int, feature: int) -> int:
    """One number for a feature of a layer, by Cantor's pairing."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def feature_file(layer: int, feature: int, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a page shows of a feature: `given` (``top_logits``, ``bottom_logits``, ``examples_quantiles`` …), or that nothing is
    known."""
    nothing = [{"quantile_name": "Top activations", "examples": []}]  # pages read the first one unasked
    known = {"top_logits": [], "bottom_logits": [], "examples_quantiles": nothing, **(given or {})}
    return {"index": number_of(layer, feature), "layer": layer, "feature": feature, **known}
