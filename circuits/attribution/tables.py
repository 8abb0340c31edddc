"""A study's tables and the numbers of ``metrics.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from circuits.attribution.agreement import Stability, agreement, stability, wordings
from circuits.attribution.choose import connected
from circuits.attribution.formats import mib
from circuits.attribution.nodes import LOGITS
from circuits.attribution.study import Ask, Found, circuit, matrix, to_verify
from circuits.data import tensorfile
from circuits.errors import UserError
from circuits.files import write_json
from circuits.stats.many import Clustered, intervals

Array = NDArray[np.float64]


@dataclass
class Study:
    """What was found, as it is saved."""

    scores: NDArray[np.float32]
    samples: Sequence[str]
    edges: pd.DataFrame
    nodes: pd.DataFrame
    exact: pd.DataFrame
    metrics: dict[str, Any]
    circuit: dict[str, Any]
    pieces: pd.DataFrame = field(default_factory=pd.DataFrame)

    def write(self, directory: Path) -> None:
        """All files of the artifact."""
        tensorfile.save(
            directory / "scores.safetensors", {"scores": torch.from_numpy(self.scores)}, {"samples": list(self.samples)}
        )
        for name, table in (
            ("edges", self.edges),
            ("nodes", self.nodes),
            ("exact", self.exact),
            ("pieces", self.pieces),
        ):
            if len(table):
                table.to_parquet(directory / f"{name}.parquet", index=False)
        write_json(directory / "circuit.json", self.circuit)
        write_json(directory / "metrics.json", self.metrics)


def tables(
    ask: Ask, found: Found, chosen: NDArray[np.int64], random: NDArray[np.bool_], samples: Sequence[str], exact: Array,
    missed: Mapping[str, Any] | None = None,
) -> Study:  # fmt: skip
    """The tables of a study from its scores, the exact effects of the `chosen` edges on `samples`, and what was found `missed`."""
    s, nodes = ask.settings, ask.nodes
    if float(np.abs(found.other - found.base).max()) < 1e-6:
        raise UserError(
            f"the metric is {found.base.mean():.4g} in both runs of every prompt: no edge can make a difference; other corrupt "
            "prompts or metric=full_target may"
        )
    mean = found.scores.mean(0, dtype=np.float64)
    kept = circuit(ask, mean)
    n = int(kept.sum())
    clusters = [p.prompt for p in ask.prompts]
    drawn = stability(
        found.scores, nodes, max(n, 1), clusters, resamples=s.bootstraps, seed=ask.draw("bootstrap")
    )  # fmt: skip
    live = connected(matrix(nodes, kept).astype(bool), nodes)[tuple(nodes.edges.T)]
    edges = _edges(ask, found, mean, kept, live, drawn, chosen, random, exact)
    place = {p.id: i for i, p in enumerate(ask.prompts)}
    at = [place[sample] for sample in samples]
    compared = found.scores[at][:, chosen].mean(0, dtype=np.float64) if len(chosen) else np.zeros(0)
    truth = agreement(compared, exact.mean(0), random, len(mean) - len(chosen)) if len(chosen) else {"n": 0}
    names = nodes.edge_names
    long = pd.DataFrame(
        {
            "edge": np.repeat([names[e] for e in chosen], len(samples)),
            "sample": list(samples) * len(chosen),
            "random": np.repeat(random, len(samples)),
            "exact": exact.T.ravel(),
            "score": found.scores[at][:, chosen].T.ravel().astype(np.float64),
        }
    )
    metrics = _metrics(ask, found, mean, kept, live, drawn, truth, edges) | {"missed": dict(missed or {})}
    return Study(
        found.scores, ask.prompts.samples, edges, _nodes(ask, mean, kept, drawn), long, metrics,
        mib(nodes, mean, kept, ask.lm.dims.width), _pieces(ask, found, mean),
    )  # fmt: skip


def _edges(
    ask: Ask, found: Found, mean: Array, kept: Any, live: Any, drawn: Stability, chosen: Any, random: Any, exact: Array
) -> pd.DataFrame:
    nodes = ask.nodes
    scores = found.scores
    error = (
        scores.std(0, ddof=1, dtype=np.float64) / np.sqrt(len(scores))
        if len(scores) > 1
        else np.full(len(mean), np.nan)
    )
    truth, how = np.full(len(mean), np.nan), np.full(len(mean), "", dtype=object)
    if len(chosen):
        truth[chosen] = exact.mean(0)
        how[chosen] = np.where(random, "random", "largest")
    order = np.argsort(-np.abs(mean), kind="stable")
    rank = np.empty(len(mean), dtype=np.int64)
    rank[order] = np.arange(1, len(mean) + 1)
    return pd.DataFrame(
        {
            "edge": nodes.edge_names,
            "writer": [nodes.writers[u] for u in nodes.edges[:, 0]],
            "reader": [nodes.reader_names[v] for v in nodes.edges[:, 1]],
            "score": mean,
            "standard_error": error,
            "rank": rank,
            "inclusion": drawn.edges,
            "in_circuit": kept,
            "connected": live,
            "exact": truth,
            "verified": how,
        }
    ).sort_values("rank", ignore_index=True)


def _nodes(ask: Ask, mean: Array, kept: Any, drawn: Stability) -> pd.DataFrame:
    """The writers: a node's score is the sum of its edges', which is the effect of putting the other run's value into all of
    them."""
    nodes = ask.nodes
    total, used = matrix(nodes, mean), matrix(nodes, kept)
    layer = [-1, *(i for i in range(nodes.layers) for _ in range(nodes.per_layer))]
    return pd.DataFrame(
        {
            "node": nodes.writers,
            "layer": layer,
            "head": [-1, *(h if h < nodes.heads else -1 for _ in range(nodes.layers) for h in range(nodes.per_layer))],
            "score": total.sum(1),
            "size": np.abs(total).sum(1),
            "edges_in_circuit": used.sum(1).astype(int),
            "inclusion": drawn.nodes,
        }
    )


def _pieces(ask: Ask, found: Found, mean: Array) -> pd.DataFrame:
    """Scores of the largest edges by stretch of the pair."""
    if found.by_piece is None:
        return pd.DataFrame()
    order = np.argsort(-np.abs(found.by_piece).max(0), kind="stable")[:1000]
    names = ask.nodes.edge_names
    return pd.DataFrame(
        [
            {"edge": names[e], "piece": piece, "score": float(found.by_piece[k, e]), "all": float(mean[e])}
            for e in order
            for k, piece in enumerate(found.pieces)
        ]
    )


def _metrics(
    ask: Ask,
    found: Found,
    mean: Array,
    kept: Any,
    live: Any,
    drawn: Stability,
    truth: dict[str, Any],
    edges: pd.DataFrame,
) -> dict[str, Any]:
    s, nodes = ask.settings, ask.nodes
    sizes = np.abs(mean)
    effect = found.other - found.base
    low, high = intervals(
        Clustered.of(effect[None], [p.prompt for p in ask.prompts]), seed=ask.draw("effect"), resamples=2000
    )
    into = matrix(nodes, mean)[:, nodes.reader_names.index(LOGITS)]
    kept_into = matrix(nodes, np.where(kept, mean, 0.0))[:, -1]
    difference = float(effect.mean())
    best = edges.iloc[0]
    return {
        "n": len(found.scores),
        "level": "components",
        "method": s.method,
        "steps": s.steps,
        "direction": s.direction.value,
        "positions": s.positions,
        "metric": s.metric.value,
        "split": s.split.value,
        "choose": s.choose.value,
        "edges": len(mean),
        "writers": len(nodes.writers),
        "readers": len(nodes.readers),
        "circuit_edges": int(kept.sum()),
        "circuit_share": float(kept.mean()),
        "connected_edges": int(live.sum()),
        "circuit_nodes": int((matrix(nodes, kept).sum(1) > 0).sum()),
        "base": float(found.base.mean()),
        "other": float(found.other.mean()),
        "difference": difference,
        "difference_ci": [float(low[0]), float(high[0])],
        "kept_mass": float(sizes[kept].sum() / sizes.sum()) if sizes.sum() else None,
        "completeness": float(into.sum() / difference) if difference else None,
        "kept_completeness": float(kept_into.sum() / difference) if difference else None,
        "strongest": str(best["edge"]),
        "strongest_score": float(best["score"]),
        "jaccard": drawn.jaccard,
        "jaccard_low": drawn.jaccard_low,
        "certain_edges": int((drawn.edges >= 0.95).sum()) if s.bootstraps else None,
        "wordings": wordings(found.scores, [dict(p.factors) for p in ask.prompts], max(int(kept.sum()), 1)),
        "verified": truth,
        "pearson": truth.get("pearson"),
        "pearson_without_largest": truth.get("pearson_without_largest"),
        "model": {"layers": nodes.layers, "heads": nodes.heads, "kv_heads": nodes.kv_heads, "parallel": nodes.parallel,
                  "width": ask.lm.dims.width},
    }  # fmt: skip


__all__ = ["Study", "tables", "to_verify"]
