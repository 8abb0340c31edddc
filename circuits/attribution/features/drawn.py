"""The graphs of a study of features: of some prompts, one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from circuits.attribution.features.dictionaries import Dictionaries
from circuits.attribution.features.effects import contributions
from circuits.attribution.features.graph import Graph, Target, trace
from circuits.attribution.features.local import Local
from circuits.attribution.settings import Explained, Reference
from circuits.attribution.study import Ask
from circuits.data import kept_tables
from circuits.data.prompts import Prompt
from circuits.models.modules import module_at

TOP_P, TOP_N = 0.95, 10


def targets(ask: Ask, local: Local, p: Prompt) -> list[Target]:
    """What a graph explains: target − foil, or the likeliest logits, each against the mean of all."""
    lm = ask.lm
    head = module_at(lm.model, lm.family.lm_head).weight
    name = lambda i: lm.tokenizer.decode([i]) if lm.tokenizer is not None else str(i)  # noqa: E731
    if ask.settings.logits is Explained.difference:
        a, b = p.target_ids[0], p.foil_ids[0]
        return [Target(a, f"{name(a)} − {name(b)}", (head[a] - head[b]).float(), 1.0)]
    chance = local.logits.softmax(-1)
    value, index = chance.topk(min(TOP_N, len(chance)))
    stop = int((value.cumsum(0) < TOP_P).sum()) + 1
    mean = head.float().mean(0)
    return [
        Target(int(i), name(int(i)), head[i].float() - mean, float(v))
        for i, v in zip(index[:stop].tolist(), value[:stop].tolist(), strict=True)
    ]


def drawn(
    ask: Ask,
    d: Dictionaries,
    tell: Callable[[int, int], None],
    labels: Mapping[int, Mapping[int, str]],
    place: Path | None,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, dict[str, Any]]]:
    """Nodes and links of all graphs, and each one's facts by its prompt's id; kept one by one in `place`."""
    empty = pd.DataFrame({"sample": []})
    found = draw(ask, d, tell, labels, place, range(graphs_of(ask)))
    nodes, links = (
        pd.concat([made[0][name] for made in found] or [empty], ignore_index=True) for name in ("nodes", "links")
    )
    return nodes, links, {p.id: made[1] for p, made in zip(ask.prompts.prompts, found, strict=False)}


def draw(
    ask: Ask, d: Dictionaries, tell: Callable[[int, int], None], labels: Mapping[int, Mapping[int, str]], place: Path | None,
    which: range,
) -> list[kept_tables.Found]:  # fmt: skip
    """Some graphs; those that `place` has are read there."""
    found = []
    for done, i in enumerate(which):
        make = partial(_graph, ask, d, ask.prompts[i], labels)
        found.append(make() if place is None else kept_tables.once(_place(place, labels, i), make))
        tell(done + 1, len(which))
    return found


def graphs_of(ask: Ask) -> int:
    """Of how many prompts a graph is drawn."""
    return min(ask.settings.graphs, len(ask.prompts))


def undrawn(ask: Ask, place: Path, labels: Mapping[int, Mapping[int, str]]) -> int:
    """How many graphs `place` has not."""
    return sum(not _place(place, labels, i).is_dir() for i in range(graphs_of(ask)))


def _place(place: Path, labels: Mapping[int, Mapping[int, str]], i: int) -> Path:
    named = hashlib.sha256(repr(labels).encode()).hexdigest()[:12]  # labels enter no key, and stand in the tables
    return place / f"graph-{i}-{named}"


def _graph(ask: Ask, d: Dictionaries, p: Prompt, labels: Mapping[int, Mapping[int, str]]) -> kept_tables.Found:
    """The nodes and links of one prompt's graph."""
    s, lm = ask.settings, ask.lm
    local = Local(ask.anatomy, d, p.ids, copies=max(1, min(64, s.max_features, 2048 // len(p.ids))))
    chosen = targets(ask, local, p)
    graph = trace(
        local, chosen, max_features=s.max_features, node_share=s.node_share, edge_share=s.edge_share, top_k=s.top_k,
        threshold=s.min_weight, last_n=s.last_n,
    )  # fmt: skip
    _contribute(ask, d, p, graph)
    words = [lm.tokenizer.decode([t]) if lm.tokenizer is not None else str(t) for t in p.ids]
    nodes, links = graph.tables(p.id, words, lambda la, f: labels.get(la, {}).get(f, ""))
    nodes.loc[nodes["kind"] == "logit", "token"] = [t.name for t in chosen]
    facts = {**graph.facts, "tokens": words, "text": p.prompt or "".join(words)}
    return {"nodes": nodes, "links": links}, facts, {}


def _contribute(ask: Ask, d: Dictionaries, p: Prompt, graph: Graph) -> None:
    """α of every feature node, and of the errors, into the graph."""
    s = ask.settings
    c = contributions(
        ask.anatomy, d, p, s.steps if s.method == "eap_ig_inputs" else 1, s.reference is Reference.corrupt
    )
    alpha = torch.cat([c.alpha[layer] for layer in d.layers]).double().cpu().numpy()
    errors = torch.cat([c.errors[layer] for layer in d.layers]).double().cpu().numpy()
    graph.effect[: len(alpha)] = alpha
    graph.effect[len(alpha) : len(alpha) + len(errors)] = errors
