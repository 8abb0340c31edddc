"""Circuits of heads and MLPs as Neuronpedia shows graphs, and back. No torch.

One graph without positions: nodes under our own names, all edges from one to another as one link, whose ``parts`` say how much of
it enters by queries, keys and values. A key or value that a group of heads shares is divided among its heads, as MIB does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuits.attribution.neuronpedia import About, Graph, slug_of
from circuits.attribution.nodes import INPUT, LOGITS, PARTS, Nodes
from circuits.errors import UserError

HEAD, MLP = "attention head", "mlp"
"""What is said of our nodes; pages draw what they do not know as a circle."""


def component_graph(
    nodes: Nodes, scores: NDArray[np.float64], kept: NDArray[np.bool_], about: About, what: str
) -> Graph:
    """A circuit as one graph; `scores` and `kept` by edge, `what` in words.

    Raises:
        UserError: the circuit is empty, or a score is not finite.
    """
    parts: dict[tuple[str, str], dict[str, float]] = {}
    for (u, v), score, inside in zip(nodes.edges.tolist(), scores.tolist(), kept.tolist(), strict=True):
        if not inside:
            continue
        source, reader = nodes.writers[u], nodes.readers[v]
        if not math.isfinite(score):
            raise UserError(f"edge {source}->{reader.name}: its score is {score}, and must be a finite number")
        targets = [nodes.writers[w] for w in nodes.feeds(v)] or [LOGITS]
        for target in targets:
            parts.setdefault((source, target), {})[reader.part] = score / len(targets)
    if not parts:
        raise UserError("the circuit has no edges, and a graph of it no nodes")
    used = {LOGITS, *(end for pair in parts for end in pair)}
    return Graph(
        about.metadata(slug_of(about.name), ["all positions"], what, "components", what),
        [_component(name, i, nodes) for i, name in enumerate([*nodes.writers, LOGITS]) if name in used],
        [
            {"source": source, "target": target, "weight": sum(by.values())}
            | ({"parts": by} if set(by) <= set(PARTS) else {})
            for (source, target), by in parts.items()
        ],
    )


def _component(name: str, number: int, nodes: Nodes) -> dict[str, Any]:
    layer = "E" if name == INPUT else str(nodes.layers) if name == LOGITS else str((number - 1) // nodes.per_layer)
    kind = "embedding" if name == INPUT else "logit" if name == LOGITS else HEAD if "." in name else MLP
    return {
        "node_id": name,
        "feature": number,
        "layer": layer,
        "ctx_idx": 0,
        "feature_type": kind,
        "jsNodeId": name,
        "clerp": "" if name == LOGITS else name,  # pages look for a probability in what is written on a logit
        "influence": None,
        "activation": None,
    }


def edges_of(graph: Graph) -> dict[str, dict[str, Any]]:
    """The edges of a circuit that :func:`component_graph` wrote, as MIB names them.

    Raises:
        UserError: it is a graph of features, or not ours.
    """
    odd = next((n for n in graph.nodes if not re.fullmatch(r"input|logits|m\d+|a\d+\.h\d+", n["node_id"])), None)
    if odd is not None:
        raise UserError(
            f"a graph of {odd['feature_type']} nodes such as {odd['node_id']!r}, and a circuit of heads and MLPs "
            "(input, a0.h1, m3, logits) is wanted"
        )
    found: dict[str, dict[str, Any]] = {}
    for link in graph.links:
        source, target = link["source"], link["target"]
        parts = link.get("parts") if "." in target else {"": link["weight"]}
        if not isinstance(parts, Mapping) or not parts:
            raise UserError(
                f"link {source} → {target}: without 'parts' ({{'q': …, 'k': …, 'v': …}}) it is no edge of ours"
            )
        for part, score in parts.items():
            found[f"{source}->{target}{f'<{part}>' if part else ''}"] = {"score": score, "in_graph": True}
    return found
