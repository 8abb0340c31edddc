"""A study's artifact in formats of others: files and a card, written into a directory. No torch.

============  =========================================================================================================
neuronpedia   a graph a prompt (features) or one of the circuit (components), ``graph-metadata.json`` that lists them, and of
              features ``features/{scan}/{number}.json``: what ``circuit_tracer``'s server and Neuronpedia's validator take
mib           ``circuit.json``: every edge's score, and which are in the circuit
graphml       the same graphs for networkx, Gephi, Cytoscape
parquet       the tables as they are, and ``metrics.json``
============  =========================================================================================================
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from circuits import tables
from circuits.attribution import formats, neuronpedia
from circuits.attribution.neuronpedia import About, Graph
from circuits.attribution.neuronpedia_components import component_graph
from circuits.attribution.neuronpedia_features import feature_file, feature_graphs, number_of
from circuits.attribution.nodes import Nodes
from circuits.errors import Damaged, UserError, suggest
from circuits.files import read_json, write_atomic, write_json

FORMS = ("neuronpedia", "mib", "graphml", "parquet")
READERS = {
    "neuronpedia": "https://www.neuronpedia.org/graph/validator checks and shows a graph; `circuit_tracer.frontend.local_server."
    "serve('DIR', features_dir='DIR/features')` shows all of them on this machine.",
    "mib": "The circuit format of the MIB benchmark and of EAP-IG: `{\"edges\": {\"a0.h1->m3\": {\"score\", \"in_graph\"}}}`.",
    "graphml": "`networkx.read_graphml`, Gephi and Cytoscape read it.",
    "parquet": "`pandas.read_parquet` reads the tables; metrics.json has the numbers about all of them.",
}  # fmt: skip
Examples = Mapping[tuple[int, int], Mapping[str, Any]]


def write(source: Path, out: Path, form: str, about: About, examples: Examples | None = None) -> list[str]:
    """Write an artifact's directory `source` as `form` into the directory `out`, with a card.

    Args:
        source: of the artifact.
        out: is made.
        form: one of `FORMS`.
        about: what is said beside it.
        examples: what is known of features, by layer and index, for the pages.

    Returns:
        The names of the files; at most ten of a directory.

    Raises:
        UserError: no such format, or one that cannot hold this study.
    """
    if form not in FORMS:
        raise UserError(f"format {form!r}: there is none{suggest(form, FORMS)}")
    metrics = read_json(source / "metrics.json")
    out.mkdir(parents=True)
    if form == "neuronpedia":
        _pages(graphs(source, about), out, examples or {})
    elif form == "mib":
        if not (source / "circuit.json").exists():
            raise UserError("a graph of features is no circuit of heads and MLPs; choices: neuronpedia graphml parquet")
        shutil.copyfile(source / "circuit.json", out / "circuit.json")
    elif form == "graphml":
        for name, text in _graphml(source, about, metrics):
            write_atomic(out / f"{name}.graphml", text.encode())
    else:
        for table in sorted(source.glob("*.parquet")):
            shutil.copyfile(table, out / table.name)
        shutil.copyfile(source / "metrics.json", out / "metrics.json")
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    write_atomic(out / "README.md", card(metrics, form, about, names).encode())
    return names


def graphs(source: Path, about: About) -> list[Graph]:
    """The graphs of an artifact's directory: one a prompt of features, one of a circuit.

    Raises:
        UserError: the tables are no whole graph; the message says what is wrong.
    """
    metrics = read_json(source / "metrics.json")
    if metrics["level"] == "features":
        nodes, links = _table(source, "nodes"), _table(source, "links")
        return feature_graphs(nodes, links, metrics["samples"], about)
    found, scores, kept = _circuit(source, metrics)
    return [component_graph(found, scores, kept, about, told(metrics, about))]


def told(metrics: Mapping[str, Any], about: About) -> str:
    """What a study is, in a sentence."""
    if metrics["level"] == "features":
        return f"Graphs of features of {about.name}, {len(metrics['samples'])} prompts."
    return (
        f"A circuit of {about.name}: {metrics['circuit_edges']:,} of {metrics['edges']:,} edges by {metrics['method']}, "
        f"mean of {metrics['n']:,} prompts."
    )


def card(metrics: Mapping[str, Any], form: str, about: About, names: list[str]) -> str:
    """The README of an export."""
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    shown = [*(name for name in names if "/" not in name), *(f"{folder}/" for folder in folders)]
    lines = [
        f"# {about.name}",
        "",
        told(metrics, about),
        "",
        "| | |",
        "|---|---|",
        f"| model | `{about.model}` |",
        f"| artifact | `{about.artifact}` |",
        *([f"| made by force, although | {'; '.join(about.tainted)} |"] if about.tainted else []),
        *([f"| written by | `{about.command}` |"] if about.command else []),
        f"| format | {form} |",
        f"| files | {' '.join(f'`{name}`' for name in shown)} |",
        "",
        READERS[form],
        "",
    ]
    return "\n".join(lines)


def _pages(found: list[Graph], out: Path, examples: Examples) -> None:
    """Graphs, their list, and the files of features that they name."""
    for graph in found:
        neuronpedia.write(graph, out / f"{graph.slug}.json")
        features = [node for node in graph.nodes if node["feature_type"] == "cross layer transcoder"]
        place = out / "features" / graph.metadata["scan"]
        for layer, feature in sorted({tuple(map(int, node["node_id"].split("_")[:2])) for node in features}):
            path = place / f"{number_of(layer, feature)}.json"
            if not path.exists():
                given = feature_file(layer, feature, examples.get((layer, feature)))
                write_json(path, given, durable=False, make=True)
    write_json(out / "graph-metadata.json", {"graphs": [graph.metadata for graph in found]})


def _graphml(source: Path, about: About, metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    if metrics["level"] == "features":
        return [(graph.slug, formats.graphml_of(graph)) for graph in graphs(source, about)]
    return [("circuit", formats.graphml(*_circuit(source, metrics)))]


def _circuit(source: Path, metrics: Mapping[str, Any]) -> tuple[Nodes, NDArray[np.float64], NDArray[np.bool_]]:
    """The model's parts, and score and membership of each edge, in their order."""
    nodes = Nodes(**{name: size for name, size in metrics["model"].items() if name != "width"})
    edges = _table(source, "edges").set_index("edge").reindex(nodes.edge_names)
    if edges["in_circuit"].isna().any():
        raise Damaged(f"{source / 'edges.parquet'}: not all {len(nodes.edges):,} edges of the model are in it")
    return nodes, edges["score"].to_numpy(float), edges["in_circuit"].to_numpy(bool)


def _table(source: Path, name: str) -> pd.DataFrame:
    path = source / f"{name}.parquet"
    if not path.exists():
        raise Damaged(f"{path}: is not there, so the study has no graph")
    return tables.read(path)
