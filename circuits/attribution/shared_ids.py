"""Errors and features of one id, in graphs that others wrote.

circuit-tracer long called the error of layer L at position p ``0_L_p``, which is also what it calls feature L of layer 0. The nodes
are told apart by their ``feature_type``. Whose a link is, is told by what an error cannot be (a target, or a source of what its own
layer and those before read), and by the order of the links: into one target, sources stand as they do in the list of nodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


def is_error(node: Mapping[str, Any]) -> bool:
    """Whether a node is what an SAE or a transcoder leaves out."""
    return "error" in node["feature_type"]


def told_apart(
    nodes: list[dict[str, Any]], links: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Errors that share their id with another node have a name of their own, in `nodes` and in `links`."""
    at = defaultdict(list)
    for i, node in enumerate(nodes):
        at[node["node_id"]].append(i)
    shared: dict[str, tuple[int, int]] = {}
    for name, places in at.items():
        errors = [i for i in places if is_error(nodes[i])]
        if len(places) == 2 and len(errors) == 1:
            shared[name] = (next(i for i in places if i not in errors), errors[0])
    if not shared:
        return nodes, links, []
    new = {}
    for name, (_, i) in shared.items():
        new[name] = f"err_{nodes[i]['layer']}_{nodes[i]['ctx_idx']}"
        while new[name] in at:
            new[name] += "_"
        nodes[i]["node_id"] = new[name]
    runs = defaultdict(list)
    for link in links:
        runs[link["target"]].append(link)
    doubtful = 0
    for target, run in runs.items():
        if any(link["source"] in shared for link in run):
            place = shared[target][0] if target in shared else next(iter(at[target]), None)
            doubtful += _sources(run, None if place is None else nodes[place], nodes, at, shared, new)
    remarks = [
        f"errors that shared their id with a feature are renamed: {' '.join(f'{a} → {b}' for a, b in new.items())}"
    ]
    if doubtful:
        remarks.append(
            f"{doubtful} links may be an error's or the feature's of the same id, and are taken as the feature's"
        )
    return nodes, links, remarks


def _sources(
    run: list[dict[str, Any]], target: Mapping[str, Any] | None, nodes: Sequence[Mapping[str, Any]],
    at: Mapping[str, list[int]], shared: Mapping[str, tuple[int, int]], new: Mapping[str, str],
) -> int:  # fmt: skip
    """Name the sources of the links into one target; how many could be either's."""
    fixed = [at[link["source"]][0] if link["source"] in at and link["source"] not in shared else None for link in run]
    known = [place for place in fixed if place is not None]
    ordered = known == sorted(known)
    seen: set[str] = set()
    doubtful = 0
    for i, link in enumerate(run):
        name = link["source"]
        if name not in shared:
            continue
        feature, error = shared[name]
        twice = sum(other["source"] == name for other in run[i + 1 :]) > 0
        before = max((p for p in fixed[:i] if p is not None), default=-1) if ordered else -1
        after = min((p for p in fixed[i + 1 :] if p is not None), default=len(nodes)) if ordered else len(nodes)
        early = target is not None and not _after(target, nodes[error])
        maybe_error = not early and before < error < after and not (twice and feature < error)
        maybe_feature = name not in seen and before < feature < after and not (twice and error < feature)
        if maybe_error and not maybe_feature:
            link["source"] = new[name]
        elif maybe_error:
            doubtful += 1
        seen.add(name)
    return doubtful


def _after(target: Mapping[str, Any], error: Mapping[str, Any]) -> bool:
    """Whether a target reads what the error's layer writes; where no number says so, it may."""
    ends = str(target["layer"]), str(error["layer"])
    return target["feature_type"] == "logit" or not all(end.isdigit() for end in ends) or int(ends[0]) > int(ends[1])
