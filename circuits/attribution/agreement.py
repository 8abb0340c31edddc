"""How far scores can be trusted: exact patching beside them, and what the prompts that were drawn decide.

One large edge can make a correlation, so Pearson's r stands with and without it. What is not verified is bounded: of `n` edges
drawn at random from the rest none exceeded the largest of them, so with 95% confidence at most a share of 3/n does (the rule of
three).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from circuits.attribution.nodes import Nodes

Array = NDArray[np.float64]
BLOCK = 50
"""Resamplings whose means of all edges are held at once."""


def agreement(score: Array, exact: Array, random: NDArray[np.bool_] | None = None, rest: int = 0) -> dict[str, Any]:
    """Numbers of agreement over edges.

    Args:
        score: mean scores ``[edges]``.
        exact: mean effects of patching them.
        random: which of them are the random sample of the rest.
        rest: how many edges were not verified.
    """
    found: dict[str, Any] = {"n": len(score)}
    sizes = np.abs(exact)
    largest = int(sizes.argmax()) if len(sizes) else 0
    kept = np.arange(len(score)) != largest
    large = sizes > 0.02
    found |= {
        "pearson": _pearson(score, exact),
        "pearson_without_largest": _pearson(score[kept], exact[kept]),
        "spearman_sizes": _spearman(np.abs(score), sizes),
        "sign": float((np.sign(score[large]) == np.sign(exact[large])).mean()) if large.any() else None,
        "signs": int(large.sum()),
        "slope": float((score @ exact) / (score @ score)) if float(score @ score) > 0 else None,
        "error": float(np.abs(score - exact).mean()) if len(score) else None,
    }
    if random is not None and random.any():
        sample = sizes[random]
        n = len(sample)
        high = float(np.quantile(_means(sample), 0.95))
        found["hidden"] = {
            "sample": n,
            "rest": rest,
            "largest": float(sample.max()),
            "share_larger": min(1.0, 3 / n),
            "mean": float(sample.mean()),
            "total_at_most": high * rest,
        }
    return found


def _means(sample: Array, resamples: int = 2000) -> Array:
    rng = np.random.default_rng(0)
    return np.asarray(sample[rng.integers(0, len(sample), (resamples, len(sample)))].mean(1))


def _pearson(a: Array, b: Array) -> float | None:
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 2 and a.std() > 0 and b.std() > 0 else None


def _spearman(a: Array, b: Array) -> float | None:
    return float(stats.spearmanr(a, b).statistic) if len(a) > 2 and a.std() > 0 and b.std() > 0 else None


@dataclass(frozen=True)
class Stability:
    """How a circuit depends on the prompts that were drawn.

    Attributes:
        edges: the share of resamplings in which each edge is among the `n` largest, ``[edges]``.
        nodes: and in which each writer has such an edge, ``[writers]``.
        jaccard: overlap of a resampling's edges with the whole sample's, the mean.
        jaccard_low: its 5th percentile.
    """

    edges: NDArray[np.float32]
    nodes: NDArray[np.float32]
    jaccard: float | None
    jaccard_low: float | None


def stability(
    scores: NDArray[np.float32], nodes: Nodes, n: int, clusters: Sequence[object], *, resamples: int, seed: int
) -> Stability:
    """Draw the prompts again and again, and choose anew.

    Args:
        scores: ``[prompts, edges]``.
        nodes: of the model.
        n: edges of a circuit.
        clusters: what is drawn: prompts with an equal entry are drawn together.
        resamples: how often.
        seed: of the draws.
    """
    import torch

    total = torch.from_numpy(np.ascontiguousarray(scores))
    count = torch.zeros(total.shape[1])
    by_node = torch.zeros(len(nodes.writers))
    writer = torch.from_numpy(nodes.edges[:, 0].copy())
    whole = set(torch.topk(total.mean(0).abs(), n).indices.tolist()) if len(total) else set()
    mine = torch.zeros(total.shape[1], dtype=torch.bool)
    mine[list(whole)] = True
    _, index = np.unique(np.array([str(c) for c in clusters]), return_inverse=True)
    k = int(index.max()) + 1 if len(index) else 0
    rng = np.random.default_rng(seed)
    overlaps: list[float] = []
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        drawn = rng.multinomial(k, np.full(k, 1 / k), size=size)[:, index].astype(np.float32)
        means = (torch.from_numpy(drawn / drawn.sum(1, keepdims=True)) @ total).abs_()
        chosen = torch.topk(means, n, dim=1, sorted=False).indices
        count += torch.bincount(chosen.flatten(), minlength=len(count)).float()
        both = mine[chosen].sum(1).double()
        overlaps += (both / (2 * n - both)).tolist()
        for row in chosen:
            by_node[writer[row].unique()] += 1
    if not resamples:
        return Stability(np.zeros(total.shape[1], np.float32), np.zeros(len(nodes.writers), np.float32), None, None)
    return Stability(
        (count / resamples).numpy(), (by_node / resamples).numpy(), float(np.mean(overlaps)), float(np.quantile(overlaps, 0.05))
    )  # fmt: skip


def wordings(
    scores: NDArray[np.float32], factors: Sequence[dict[str, str]], n: int, least: int = 4
) -> list[dict[str, Any]]:
    """Overlap of the circuits of prompts that differ in one factor (their wording, their opening …), for factors of 2 to 6 values.

    Beside it the overlap of two random halves of equal sizes: what unlike prompts of one value already make.
    """
    found = []
    rng = np.random.default_rng(0)
    for name in sorted({name for mine in factors for name in mine}):
        values = [mine.get(name) for mine in factors]
        counted = {v: values.count(v) for v in dict.fromkeys(values) if v is not None}
        if not 2 <= len(counted) <= 6 or min(counted.values()) < least:
            continue
        members = [np.flatnonzero(np.array([v == value for v in values])) for value in counted]
        found.append(
            {
                "factor": name,
                "values": list(counted),
                "jaccard": _overlap([scores[rows] for rows in members], n),
                "random": _overlap([scores[rows] for rows in _shuffled(members, rng)], n),
            }
        )
    return found


def _shuffled(members: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    order, at, found = rng.permutation(np.concatenate(members)), 0, []
    for rows in members:
        found.append(order[at : at + len(rows)])
        at += len(rows)
    return found


def _overlap(parts: Sequence[NDArray[np.float32]], n: int) -> float:
    chosen = [set(np.argsort(-np.abs(part.mean(0)), kind="stable")[:n].tolist()) for part in parts]
    pairs = [(a, b) for i, a in enumerate(chosen) for b in chosen[:i]]
    return float(np.mean([len(a & b) / len(a | b) for a, b in pairs]))
