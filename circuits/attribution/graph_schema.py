"""What a file of an attribution graph must be (Neuronpedia's schema, 1.0.0), and what is wrong with one that is not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

METADATA = {"slug": "text", "scan": "text", "prompt": "text", "prompt_tokens": "list of texts"}
NODE = {"node_id": "text", "feature": "whole number or null", "layer": "text or whole number", "ctx_idx": "whole number",
        "feature_type": "text", "jsNodeId": "text", "clerp": "text"}  # fmt: skip
OPTIONAL = {"influence": "finite number or null", "activation": "finite number or null"}
LINK = {"source": "text", "target": "text", "weight": "finite number"}
FITS: dict[str, Callable[[Any], bool]] = {
    "text": lambda v: isinstance(v, str),
    "null": lambda v: v is None,
    "finite number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v),
    "whole number": lambda v: FITS["finite number"](v) and v == int(v),
    "list of texts": lambda v: isinstance(v, list) and all(isinstance(one, str) for one in v),
    "list of lists of texts": lambda v: isinstance(v, list) and all(FITS["list of texts"](one) for one in v),
}


def shape(given: Any) -> Iterator[str]:
    """Where the content of a file does not fit the schema."""
    if not isinstance(given, Mapping):
        yield "no attribution graph: an object with metadata, qParams, nodes and links is expected"
        return
    for part, of in (("metadata", Mapping), ("qParams", Mapping), ("nodes", list), ("links", list)):
        if not isinstance(given.get(part), of):
            yield f"no attribution graph: {part} is missing, or no {'list' if of is list else 'object'}"
            return
    yield from _fields("metadata", given["metadata"], METADATA)
    marks = {
        "pinnedIds": "list of texts or null",
        "supernodes": "list of lists of texts or null",
        "clickedId": "text or null",
    }
    yield from _fields("qParams", given["qParams"], {}, marks)
    for i, node in enumerate(given["nodes"]):
        yield from _fields(f"node {i}", node, NODE, OPTIONAL, "node_id")
    for i, link in enumerate(given["links"]):
        yield from _fields(f"link {i}", link, LINK, {}, "source", "target")


def _fields(
    what: str, given: Any, required: Mapping[str, str], optional: Mapping[str, str] | None = None, *names: str
) -> Iterator[str]:
    if not isinstance(given, Mapping):
        yield f"{what}: an object is expected, not {given!r:.60}"
        return
    told = " → ".join(str(given[name]) for name in names if name in given)
    where = f"{what} ({told})" if told else what
    for name, wanted in {**required, **(optional or {})}.items():
        if name not in given:
            if name in required:
                yield f"{where}: {name} is missing"
        elif not any(FITS[one](given[name]) for one in wanted.split(" or ")):
            yield f"{where}: {name} is {given[name]!r:.60}, and must be a {wanted}"


def whole(nodes: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Ids that stand twice, and links that lead nowhere."""
    count = Counter(node["node_id"] for node in nodes)
    yield from (f"node {name!r} stands {n} times; each id may stand once" for name, n in count.items() if n > 1)
    for i, link in enumerate(links):
        for end in ("source", "target"):
            if link[end] not in count:
                yield f"link {i} ({link['source']} → {link['target']}): there is no node {link[end]!r}"
