"""Circuits from scores: which edges are kept, and which of them lead anywhere.

``top_n`` and ``threshold`` look at sizes alone. ``greedy`` begins at the logits and takes, one at a time, the largest edge whose
reader belongs to a node that is already in (Hanna et al., arXiv:2403.17806). ``influence`` follows circuit-tracer's measure:
with A the sizes into each node divided by their sum, and w the weight of the logits, w (A + A² + …) says what share of all paths
goes through a node; an edge's share is its A times the influence of the node that it enters.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from circuits.attribution.nodes import Nodes
from circuits.attribution.settings import Choice, Settings, count

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def choose(scores: Array, nodes: Nodes, settings: Settings) -> Mask:
    """The edges of a circuit ``[writers, readers]`` by mean scores of the same shape."""
    n = count(settings.edges, len(nodes.edges))
    if settings.choose is Choice.threshold:
        return np.asarray((np.abs(scores) >= settings.threshold) & nodes.mask)
    return ranked(scores, nodes, settings.choose, n)


def ranked(scores: Array, nodes: Nodes, how: Choice, n: int) -> Mask:
    """The first `n` edges by a way of ranking them."""
    if how is Choice.greedy:
        return greedy(scores, nodes, n)
    sizes = influence(scores, nodes) if how is Choice.influence else np.abs(scores)
    return top(sizes, nodes, n)


def top(sizes: Array, nodes: Nodes, n: int) -> Mask:
    """The `n` largest edges; ties by their order."""
    flat = np.where(nodes.mask, sizes, -np.inf).ravel()
    kept = np.zeros(flat.shape, dtype=bool)
    kept[np.argsort(-flat, kind="stable")[:n]] = True
    return kept.reshape(sizes.shape) & nodes.mask


def greedy(scores: Array, nodes: Nodes, n: int) -> Mask:
    """From the logits down, the largest edge first."""
    sizes, belongs = np.abs(scores), readers_of(nodes)
    kept = np.zeros(scores.shape, dtype=bool)
    heap: list[tuple[float, int, int]] = []
    offered: set[int] = set()

    def offer(v: int) -> None:
        if v not in offered:
            offered.add(v)
            for u in range(int(nodes.reach[v])):
                heapq.heappush(heap, (-float(sizes[u, v]), u, v))

    offer(len(nodes.readers) - 1)
    while heap and n > 0:
        _, u, v = heapq.heappop(heap)
        kept[u, v] = True
        n -= 1
        for reader in belongs[u]:
            offer(reader)
    return kept


def influence(scores: Array, nodes: Nodes) -> Array:
    """What share of all paths from the logits goes through each edge."""
    sizes = np.where(nodes.mask, np.abs(scores), 0.0)
    belongs = readers_of(nodes)
    at = np.zeros(len(nodes.writers))  # of each writer, from the last to the first: whatever reads it comes later
    edge = np.zeros(scores.shape)
    into_logits = sizes[:, -1]
    edge[:, -1] = into_logits / max(into_logits.sum(), 1e-300)
    at += edge[:, -1]
    heads_of = {v: nodes.feeds(v) for v in range(len(nodes.readers))}
    for u in reversed(range(1, len(nodes.writers))):
        whole = sum(float(sizes[:, v].sum()) / len(heads_of[v]) for v in belongs[u])
        if whole <= 0 or at[u] <= 0:
            continue
        for v in belongs[u]:
            share = sizes[:, v] / len(heads_of[v]) / whole * at[u]
            edge[:, v] += share
            at += share
    return edge


def connected(kept: Mask, nodes: Nodes) -> Mask:
    """The edges that lie on a path from the input to the logits within `kept`."""
    belongs = readers_of(nodes)
    up = np.zeros(len(nodes.writers), dtype=bool)  # reached from the input
    up[0] = True
    for u in range(1, len(nodes.writers)):
        up[u] = any(bool((kept[:, v] & up).any()) for v in belongs[u])
    down = np.zeros(len(nodes.writers), dtype=bool)  # leads to the logits
    live = np.zeros(len(nodes.readers), dtype=bool)
    live[-1] = True
    for u in reversed(range(len(nodes.writers))):
        down[u] = bool((kept[u] & live).any())
        for v in belongs[u]:
            live[v] = live[v] or down[u]
    return np.asarray(kept & up[:, None] & live[None])


def readers_of(nodes: Nodes) -> dict[int, list[int]]:
    """The readers whose work enters each writer; those of keys and values enter all heads of their group."""
    found: dict[int, list[int]] = {u: [] for u in range(len(nodes.writers))}
    for v in range(len(nodes.readers)):
        for u in nodes.feeds(v):
            found[u].append(v)
    return found


def random_like(kept: Mask, nodes: Nodes, rng: np.random.Generator, by_degree: bool = False) -> Mask:
    """A random circuit of as many edges; with `by_degree` each reader keeps its number of edges."""
    found = np.zeros(kept.shape, dtype=bool)
    if not by_degree:
        chosen = rng.choice(len(nodes.edges), int(kept.sum()), replace=False)
        found[tuple(nodes.edges[chosen].T)] = True
        return found
    for v in np.flatnonzero(kept.any(0)):
        found[rng.choice(int(nodes.reach[v]), int(kept[:, v].sum()), replace=False), v] = True
    return found
