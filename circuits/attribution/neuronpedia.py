"""Attribution graphs as Neuronpedia and circuit-tracer have them: one JSON file a prompt (schema 1.0.0). No torch.

``{"metadata": {slug, scan, prompt_tokens, prompt …}, "qParams": {pinnedIds, supernodes, clickedId, linkType, sg_pos}, "nodes":
[{node_id, feature, layer, ctx_idx, feature_type, jsNodeId, clerp …}], "links": [{source, target, weight}]}``, where ``clerp`` is a
node's label and a supernode is its name and its members' ids. What is written is whole: each id once, links between nodes that are
there, finite numbers. What is read may be anybody's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuits.attribution.graph_schema import shape, whole
from circuits.attribution.shared_ids import told_apart
from circuits.errors import UserError
from circuits.files import write_atomic


@dataclass
class Graph:
    """One graph.

    Attributes:
        metadata: as in the file.
        nodes: as in the file, each id once.
        links: as in the file, all between these nodes.
        pinned: ids of the nodes that are pinned.
        supernodes: name and members' ids of each group of nodes.
        clicked: the id of the node that is looked at, or nothing.
        view: what else a page keeps about how it is shown.
        remarks: what was mended while it was read, one line each.
    """

    metadata: dict[str, Any]
    nodes: list[dict[str, Any]]
    links: list[dict[str, Any]]
    pinned: list[str] = field(default_factory=list)
    supernodes: list[list[str]] = field(default_factory=list)
    clicked: str = ""
    view: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def slug(self) -> str:
        """Its name, and that of its file."""
        return str(self.metadata["slug"])

    @property
    def labels(self) -> dict[str, str]:
        """What is written on each node, by its id."""
        return {node["node_id"]: node["clerp"] for node in self.nodes}

    def file(self) -> dict[str, Any]:
        """The content of its file.

        Raises:
            UserError: an id stands twice, a link, a pin or a supernode names no node, a number is not finite.
        """
        params = {"linkType": "both", "sg_pos": "", **self.view, "pinnedIds": self.pinned, "clickedId": self.clicked}
        given = {
            "metadata": self.metadata,
            "qParams": {**params, "supernodes": self.supernodes},
            "nodes": self.nodes,
            "links": self.links,
        }
        known = {node.get("node_id") for node in self.nodes}
        named = [*self.pinned, *filter(None, [self.clicked]), *(one for group in self.supernodes for one in group[1:])]
        lost = (f"there is no node {one!r}, which is pinned, grouped or clicked" for one in named if one not in known)
        if problem := next((p for found in (shape(given), whole(self.nodes, self.links), lost) for p in found), None):
            raise UserError(f"graph {self.metadata.get('slug')!r}: {problem}")
        return given


@dataclass(frozen=True)
class About:
    """What is said of a graph beside its nodes.

    Attributes:
        model: its name, a hub's or a directory.
        name: of the study; the graphs' slugs begin with it.
        artifact: the id of the artifact that it is made from.
        command: the one that writes it.
        tainted: the gates that it was made against, where it was forced.
        pruning: ``node_threshold`` and ``edge_threshold``, where graphs of features were pruned by shares.
        features_url: the address at which the directory ``features`` will lie.
    """

    model: str
    name: str
    artifact: str = ""
    command: str = ""
    tainted: Sequence[str] = ()
    pruning: Mapping[str, float] | None = None
    features_url: str | None = None

    def metadata(self, slug: str, tokens: Sequence[str], text: str, level: str, what: str) -> dict[str, Any]:
        """The head of a graph's file."""
        found: dict[str, Any] = {
            "slug": slug,
            "scan": scan_of(self.model),
            "transcoder_list": [],
            "prompt_tokens": list(tokens),
            "prompt": text,
            "schema_version": 1,
            "info": {"description": what, "generator": {"name": "circuits", "version": "1"}},
            "generation_settings": {"level": level, "artifact": self.artifact, "model": self.model},
        }
        if self.pruning and level == "features":
            found |= {"pruning_settings": dict(self.pruning)}
            found |= {k: v for k, v in self.pruning.items() if k == "node_threshold"}
        if self.features_url and level == "features":
            url = f"{self.features_url.rstrip('/')}/{found['scan']}"
            found["feature_details"] = {"feature_json_base_url": url}
        return found


def scan_of(model: str) -> str:
    """What Neuronpedia calls a model, ``gemma-2-2b``: the last part of its name, in small letters, by nothing but that name."""
    return re.sub(r"[^a-z0-9._-]+", "-", model.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-._") or "model"


def slug_of(*parts: str) -> str:
    """A graph's name, which is also its file's: small letters, digits, ``-`` and ``_``."""
    return re.sub(r"[^a-z0-9_]+", "-", "-".join(parts).lower()).strip("-") or "graph"


def write(graph: Graph, path: Path) -> None:
    """Write its file.

    Raises:
        UserError: see :meth:`Graph.file`.
    """
    given = graph.file()
    try:
        text = json.dumps(given, allow_nan=False)
    except (TypeError, ValueError) as e:  # in what is ours to hand on only, such as settings
        raise UserError(f"graph {graph.slug!r}: cannot be written as JSON ({e})") from e
    write_atomic(path, text.encode())


def read(path: Path) -> Graph:
    """A graph from anybody's file.

    Raises:
        UserError: it cannot be read, or is no such graph; the message is the file and the reason.
    """
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: cannot be read ({e})") from e
    try:
        return parsed(given)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e


def parsed(given: Any) -> Graph:
    """A graph from the content of a file. Pins of nodes that are not there are left out, with a remark.

    Raises:
        UserError: it does not fit the schema, an id stands twice, a link's end is no node, a number is not finite.
    """
    if problem := next(shape(given), None):
        raise UserError(problem)
    nodes, links, remarks = told_apart([dict(one) for one in given["nodes"]], [dict(one) for one in given["links"]])
    if problem := next(whole(nodes, links), None):
        raise UserError(problem)
    known = {node["node_id"] for node in nodes}
    params = dict(given["qParams"])
    pinned, groups, clicked = (params.pop(name, None) for name in ("pinnedIds", "supernodes", "clickedId"))
    groups = [group for group in groups or [] if group]
    named = [*(pinned or []), *filter(None, [clicked]), *(one for group in groups for one in group[1:])]
    if lost := sorted({one for one in named if one not in known}):
        remarks.append(f"pinned, grouped or clicked, but no nodes, and left out: {' '.join(lost)}")
    return Graph(
        dict(given["metadata"]),
        nodes,
        links,
        [one for one in pinned or [] if one in known],
        [[group[0], *(one for one in group[1:] if one in known)] for group in groups],
        clicked if clicked in known else "",
        params,
        remarks,
    )


def is_graph(given: Any) -> bool:
    """Whether the content of a JSON file means to be such a graph."""
    return isinstance(given, Mapping) and "links" in given and "nodes" in given and "edges" not in given
