"""The graph of one prompt: rows of the most influential features, influence, pruning, replacement and completeness.

With A the sizes into each node divided by their sum, w the weights of the logits, influence is w (A + A² + …): what share of the
paths from the answer goes through a node. Rows are made for the most influential features first, and influence is taken anew as
they come. Nodes are kept up to a share of all influence, edges up to a share of what flows; tokens and logits always stay.
Replacement is the share of influence that ends in tokens and not in errors; completeness is the share of what flows into nodes
that is no error, weighted by their influence (circuit-tracer's measures).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from circuits.attribution.features.local import Local

Array = NDArray[np.float64]
GROW = 4
"""In how many turns the features whose rows are made are chosen."""


@dataclass(frozen=True)
class Target:
    """A logit (or a difference of two) that the graph explains.

    Attributes:
        token: the vocabulary id that it stands for.
        name: what it is called.
        direction: in the final norm's answer, ``[width]``.
        weight: its share of the answer.
    """

    token: int
    name: str
    direction: Tensor
    weight: float


@dataclass
class Graph:
    """One prompt's graph.

    Attributes:
        kind: of each node, ``feature error embedding logit``.
        layer: of each node; −1 of embeddings, the depth of logits.
        position: of each node.
        feature: feature or vocabulary id; −1 of errors.
        activation: f of features, the norm of errors' and embeddings' vectors, the logit of logits.
        effect: what each source contributes to the answer, through all that follows.
        influence: see the module.
        kept: after pruning.
        source, target, weight: the kept edges.
        facts: replacement, completeness, kept mass …
    """

    kind: NDArray[Any]
    layer: NDArray[np.int64]
    position: NDArray[np.int64]
    feature: NDArray[np.int64]
    activation: Array
    effect: Array
    influence: Array
    kept: NDArray[np.bool_]
    source: NDArray[np.int64]
    target: NDArray[np.int64]
    weight: Array
    facts: dict[str, Any]

    def ids(self) -> list[str]:
        """A name for each node, that no other has."""
        form = {"feature": "{layer}_{feature}_{position}", "error": "err_{layer}_{position}",
                "embedding": "E_{feature}_{position}", "logit": "{layer}_{feature}_{position}"}  # fmt: skip
        return [
            form[str(k)].format(layer=la, feature=f, position=p)
            for k, la, f, p in zip(
                self.kind, self.layer.tolist(), self.feature.tolist(), self.position.tolist(), strict=True
            )
        ]

    def tables(
        self, sample: str, tokens: Sequence[str], labels: Callable[[int, int], str]
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The kept nodes and edges."""
        ids = np.array(self.ids(), dtype=object)
        at = np.flatnonzero(self.kept)
        nodes = pd.DataFrame(
            {
                "sample": sample,
                "node": ids[at],
                "kind": self.kind[at],
                "layer": self.layer[at],
                "position": self.position[at],
                "feature": self.feature[at],
                "activation": self.activation[at],
                "effect": self.effect[at],
                "influence": self.influence[at],
                "kept": True,
                "token": [tokens[p] for p in self.position[at].tolist()],
                "label": [labels(la, f) if k == "feature" else "" for k, la, f in
                          zip(self.kind[at], self.layer[at].tolist(), self.feature[at].tolist(), strict=True)],
            }
        )  # fmt: skip
        links = pd.DataFrame(
            {"sample": sample, "source": ids[self.source], "target": ids[self.target], "weight": self.weight}
        )
        return nodes, links


def trace(
    local: Local,
    targets: Sequence[Target],
    *,
    max_features: int,
    node_share: float,
    edge_share: float,
    top_k: int,
    threshold: float,
    last_n: int | None = None,
) -> Graph:
    """Make the rows, and prune.

    Args:
        local: the prompt.
        targets: what is explained.
        max_features: features whose own sources are traced.
        node_share: of all influence, held by the nodes that are kept.
        edge_share: of what flows between kept nodes, held by the edges that are kept.
        top_k: edges into a node that are kept at most; 0: all.
        threshold: the smallest |weight| of an edge.
        last_n: trace features of the last so many positions only.
    """
    layers = local.dictionaries.layers
    layer = np.concatenate([np.full(len(local.active[i].value), i) for i in layers] or [np.zeros(0)]).astype(np.int64)
    position = np.concatenate([local.active[i].position.cpu().numpy() for i in layers])
    feature = np.concatenate([local.active[i].feature.cpu().numpy() for i in layers])
    n, pos = len(layer), len(local.ids)
    weights = np.array([t.weight for t in targets], dtype=np.float64)
    into_logits = local.logit_rows(torch.stack([t.direction for t in targets])).double().cpu().numpy()
    rows: dict[int, Array] = {}
    allowed = np.ones(n, dtype=bool) if last_n is None else position >= pos - last_n
    share = _influence(n, rows, into_logits, weights)
    for turn in range(GROW):
        want = min(max_features, int(allowed.sum())) * (turn + 1) // GROW - len(rows)
        order = [i for i in np.argsort(-share[:n], kind="stable") if allowed[i] and i not in rows and share[i] > 0][
            : max(want, 0)
        ]
        if not order:
            continue
        made = local.feature_rows(
            [int(layer[i]) for i in order], [int(position[i]) for i in order], [int(feature[i]) for i in order]
        )
        rows |= dict(zip(order, made.double().cpu().numpy(), strict=True))
        share = _influence(n, rows, into_logits, weights)
    return _pruned(local, targets, layer, position, feature, rows, into_logits, weights, share,
                   node_share, edge_share, top_k, threshold)  # fmt: skip


def _normal(row: Array) -> Array:
    size = np.abs(row)
    total = size.sum()
    return size / total if total > 0 else size


def _influence(n: int, rows: dict[int, Array], into_logits: Array, weights: Array) -> Array:
    """Influence of all sources. Features are visited from the last layer down, so one pass is the whole sum."""
    share = np.asarray((weights[:, None] * np.array([_normal(row) for row in into_logits])).sum(0))
    for i in sorted(rows, reverse=True):  # sources stand by layer, so whatever a feature feeds has been added before
        if share[i] > 0:
            share = share + share[i] * _normal(rows[i])
    return share


def _pruned(
    local: Local, targets: Sequence[Target], layer: Any, position: Any, feature: Any, rows: dict[int, Array],
    into_logits: Array, weights: Array, share: Array, node_share: float, edge_share: float, top_k: int, threshold: float,
) -> Graph:  # fmt: skip
    layers, pos, n = local.dictionaries.layers, len(local.ids), len(layer)
    depth, errors = local.anatomy.lm.dims.layers, len(layers) * pos
    sources = local.sources
    kinds = np.array(
        ["feature"] * n + ["error"] * errors + ["embedding"] * pos + ["logit"] * len(targets), dtype=object
    )
    all_layers = np.concatenate([layer, np.repeat(layers, pos), np.full(pos, -1), np.full(len(targets), depth)])
    every = np.concatenate(
        [position, np.tile(np.arange(pos), len(layers)), np.arange(pos), np.full(len(targets), pos - 1)]
    )
    ids = np.concatenate([feature, np.full(errors, -1), np.array(local.ids), np.array([t.token for t in targets])])
    value = np.concatenate([
        *(local.active[i].value.double().cpu().numpy() for i in layers),
        *(local.active[i].error.norm(dim=1).double().cpu().numpy() for i in layers),
        local._embedding[0].detach().float().norm(dim=1).double().cpu().numpy(),
        local.logits[[t.token for t in targets]].double().cpu().numpy(),
    ])  # fmt: skip
    order = np.argsort(-share[: n + errors], kind="stable")
    mass = np.cumsum(share[order])
    last = int(np.searchsorted(mass, node_share * mass[-1])) + 1 if len(mass) and mass[-1] > 0 else 0
    kept = np.zeros(len(kinds), dtype=bool)
    kept[order[:last]] = True
    kept[:n] &= np.array([i in rows for i in range(n)], dtype=bool) | (share[:n] > 0)
    kept[n + errors :] = True
    flows: list[tuple[float, int, int, float]] = []
    everything = [*((i, rows[i], share[i]) for i in rows if kept[i]),
                  *((sources + t, into_logits[t], weights[t]) for t in range(len(targets)))]  # fmt: skip
    total_mass = sum(float(np.abs(row).sum()) for _, row, _ in everything)
    for target, row, worth in everything:
        normal = _normal(row)
        near = np.flatnonzero(kept[:sources] & (np.abs(row) >= threshold))
        if top_k:
            near = near[np.argsort(-np.abs(row[near]), kind="stable")[:top_k]]
        flows += [(float(normal[s] * worth), int(s), target, float(row[s])) for s in near]
    flows.sort(key=lambda flow: -flow[0])
    flow_mass = np.cumsum([flow[0] for flow in flows])
    stop = int(np.searchsorted(flow_mass, edge_share * flow_mass[-1])) + 1 if len(flows) else 0
    flows = flows[:stop]
    used = {s for _, s, _, _ in flows} | {t for _, _, t, _ in flows}
    for i in range(n + errors):
        kept[i] = kept[i] and i in used
    error, token = float(share[n : n + errors].sum()), float(share[n + errors :].sum())
    complete = _completeness(rows, into_logits, weights, share, n, errors)
    return Graph(
        kinds, all_layers.astype(np.int64), every.astype(np.int64), ids.astype(np.int64), value,
        np.zeros(len(kinds)), np.concatenate([share, weights]), kept,
        np.array([s for _, s, _, _ in flows], dtype=np.int64), np.array([t for _, _, t, _ in flows], dtype=np.int64),
        np.array([w for _, _, _, w in flows], dtype=np.float64),
        {
            "features": n,
            "traced": len(rows),
            "nodes": int(kept.sum()),
            "links": len(flows),
            "replacement": token / (token + error) if token + error > 0 else None,
            "completeness": complete,
            "kept_mass": float(sum(abs(w) for _, _, _, w in flows) / total_mass) if total_mass else None,
        },
    )  # fmt: skip


def _completeness(
    rows: dict[int, Array], into_logits: Array, weights: Array, share: Array, n: int, errors: int
) -> float | None:
    pairs = [*((row, share[i]) for i, row in rows.items()), *zip(into_logits, weights, strict=True)]
    whole = sum(worth for _, worth in pairs)
    if whole <= 0:
        return None
    return float(sum(worth * (1 - _normal(row)[n : n + errors].sum()) for row, worth in pairs) / whole)
