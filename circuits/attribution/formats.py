"""Circuits as files of others: the JSON of the MIB benchmark (EAP-IG's graph), GraphML, and Neuronpedia's graphs read as circuits.

MIB (arXiv:2504.13151): ``{"cfg": …, "nodes": {name: {"in_graph", "score"}}, "edges": {"a0.h1->m3": {"score", "in_graph"}}}``;
readers of heads carry ``<q>``, ``<k>``, ``<v>``, one of each per query head. A key or value that a group of heads shares is
written once per head of the group, with an equal part of the score; read back, the parts are summed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuits.attribution.neuronpedia import Graph, is_graph, parsed
from circuits.attribution.neuronpedia_components import edges_of
from circuits.attribution.nodes import Nodes
from circuits.errors import UserError

Array = NDArray[np.float64]
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold, and tokens may."""


def mib(nodes: Nodes, scores: Array, kept: NDArray[np.bool_], width: int) -> dict[str, Any]:
    """A circuit as MIB has it; `scores` and `kept` by edge."""
    group = nodes.heads // nodes.kv_heads
    edges: dict[str, dict[str, Any]] = {}
    used: set[str] = set()
    for (u, v), score, inside in zip(nodes.edges.tolist(), scores.tolist(), kept.tolist(), strict=True):
        reader = nodes.readers[v]
        names = [reader.name]
        if reader.part in ("k", "v"):
            names = [f"a{reader.layer}.h{reader.item * group + i}<{reader.part}>" for i in range(group)]
        for name in names:
            edges[f"{nodes.writers[u]}->{name}"] = {"score": score / len(names), "in_graph": inside}
        if inside:
            used |= {nodes.writers[u], *(name.partition("<")[0] for name in names)}
    return {
        "cfg": {
            "n_layers": nodes.layers,
            "n_heads": nodes.heads,
            "n_key_value_heads": nodes.kv_heads,
            "parallel_attn_mlp": nodes.parallel,
            "d_model": width,
        },
        "nodes": {name: {"in_graph": name in used} for name in [*nodes.writers, "logits"]},
        "edges": edges,
    }


def read(path: Path, nodes: Nodes) -> tuple[Array, NDArray[np.bool_]]:
    """Scores and the chosen edges, by edge, of a circuit in a file: MIB's JSON, or a Neuronpedia graph of heads and MLPs that we
    wrote, which has the edges of the circuit only (all others have score 0).

    Raises:
        UserError: it cannot be read, it is neither, or it is of another model; without the path, which the caller knows.
    """
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"cannot be read ({e})") from e
    if is_graph(given):
        return from_mib({"edges": edges_of(parsed(given))}, nodes)
    return from_mib(given if isinstance(given, Mapping) else {}, nodes)


def from_mib(given: Mapping[str, Any], nodes: Nodes) -> tuple[Array, NDArray[np.bool_]]:
    """Scores and the chosen edges of a MIB circuit, by edge.

    Raises:
        UserError: no such file; nodes that this model has not; a score that is no number.
    """
    edges = given.get("edges")
    if not isinstance(edges, Mapping) or not edges:
        raise UserError("no circuit: it has no 'edges' ({'a0.h1->m3': {'score': …, 'in_graph': …}})")
    number = {(int(u), int(v)): i for i, (u, v) in enumerate(nodes.edges)}
    scores, kept = np.zeros(len(number)), np.zeros(len(number), dtype=bool)
    for name, told in edges.items():
        i = number[nodes.find(plain(str(name)))]
        facts = told if isinstance(told, Mapping) else {"score": told}
        score = facts.get("score", facts.get("weight", 0.0))
        if not isinstance(score, (int, float)) or isinstance(score, bool) or not np.isfinite(score):
            raise UserError(f"edge {name!r}: its score is {score!r}, and must be a finite number")
        scores[i] += score
        kept[i] |= bool(facts.get("in_graph", False))
    return scores, kept


def plain(name: str) -> str:
    """An edge's name as we write it: `a0.h1->a2.h3<q>`; spaces and `.hook` words of others left out."""
    return re.sub(r"\s+", "", name)


def graphml(nodes: Nodes, scores: Array, kept: NDArray[np.bool_]) -> str:
    """The kept edges as GraphML; node attributes ``layer`` and ``kind``, edge attributes ``score`` and ``part``."""
    import networkx as nx

    graph = nx.MultiDiGraph()
    for (u, v), score, inside in zip(nodes.edges.tolist(), scores.tolist(), kept.tolist(), strict=True):
        if not inside:
            continue
        reader = nodes.readers[v]
        targets = [nodes.writers[w] for w in nodes.feeds(v)] or ["logits"]
        for target in targets:
            graph.add_edge(nodes.writers[u], target, score=score, part=reader.part)
    return "\n".join(nx.generate_graphml(graph))


def graphml_of(graph: Graph) -> str:
    """A graph of Neuronpedia's as GraphML: attributes ``layer kind position label …`` of nodes, ``weight`` of edges."""
    import networkx as nx

    made = nx.DiGraph()
    names = {"feature_type": "kind", "ctx_idx": "position", "clerp": "label"}
    for node in graph.nodes:
        facts = {
            names.get(k, k): v for k, v in node.items() if k in (*names, "layer", "feature", "influence", "activation")
        }
        made.add_node(
            node["node_id"],
            **{k: _UNWRITABLE.sub("�", v) if isinstance(v, str) else v for k, v in facts.items() if v is not None},
        )
    for link in graph.links:
        made.add_edge(link["source"], link["target"], weight=float(link["weight"]))
    return "\n".join(nx.generate_graphml(made))
