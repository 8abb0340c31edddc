"""Graphs and circuits as files of others: what is written is whole, what is read is anybody's, and it comes back as it went."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from conftest import QUICK, ROOT, Cli

from circuits.attribution import exports, formats, neuronpedia
from circuits.attribution.graph_schema import NODE
from circuits.attribution.neuronpedia import About, Graph, scan_of
from circuits.attribution.neuronpedia_components import component_graph
from circuits.attribution.neuronpedia_features import feature_graphs, number_of
from circuits.attribution.nodes import Nodes
from circuits.errors import Damaged, UserError

GROUPED = Nodes(3, 4, 2)  # two heads share a key and a value
ABOUT = About(
    "lab/Tiny-Model", "ioi-tiny", "attribution/ioi-tiny-0123", "python launch.py …", (), {"node_threshold": 0.8}
)
SAMPLES = {"p 1": {"tokens": ["<b>", " Mary", " \x00"], "text": "<b> Mary …"}}


def tables(**changes: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One prompt of three tokens: two features, an error, two tokens, two logits, and a feature that was pruned."""
    rows = [
        ("0_1_1", "feature", 0, 1, 1, 2.5, 0.4, True, "names"),
        ("1_3_2", "feature", 1, 2, 3, 0.5, 0.3, True, ""),
        ("1_8_2", "feature", 1, 2, 8, 0.1, 0.01, False, ""),
        ("err_1_1", "error", 1, 1, -1, 4.0, 0.2, True, ""),
        ("E_5_0", "embedding", -1, 0, 5, 1.0, 0.1, True, ""),
        ("E_6_1", "embedding", -1, 1, 6, 1.0, np.nan, True, ""),
        ("2_7_2", "logit", 2, 2, 7, 9.0, 0.75, True, ""),
        ("2_9_2", "logit", 2, 2, 9, 8.0, 0.25, True, ""),
    ]
    names = ["node", "kind", "layer", "position", "feature", "activation", "influence", "kept", "label"]
    nodes = pd.DataFrame(rows, columns=names).assign(sample="p 1", effect=0.0, token=[""] * 6 + [" Mary − John", ""])
    pairs = [("E_6_1", "0_1_1", 1.5), ("0_1_1", "1_3_2", -0.5), ("err_1_1", "2_7_2", 0.25), ("1_3_2", "2_7_2", 2.0),
             ("1_8_2", "2_7_2", 0.1), ("E_5_0", "2_9_2", 0.5)]  # fmt: skip
    links = pd.DataFrame(pairs, columns=["source", "target", "weight"]).assign(sample="p 1")
    for (table, row, column), value in changes.pop("at", {}).items():
        (nodes if table == "nodes" else links).loc[row, column] = value
    return nodes, links


def page() -> Graph:
    (graph,) = feature_graphs(*tables(), SAMPLES, ABOUT)
    return graph


def circuit(nodes: Nodes = GROUPED, share: float = 0.3) -> tuple[Any, Any]:
    """Scores of all edges, and some that are chosen."""
    rng = np.random.default_rng(0)
    return rng.normal(size=len(nodes.edges)), rng.random(len(nodes.edges)) < share


# -- what is written -----------------------------------------------------------------------------------------------------


def test_a_graph_of_features_is_what_pages_read() -> None:
    given = page().file()
    assert given["metadata"] | {"slug": "ioi-tiny-p-1", "scan": "tiny-model", "schema_version": 1} == given["metadata"]
    assert given["metadata"]["prompt_tokens"] == SAMPLES["p 1"]["tokens"] and given["metadata"]["node_threshold"] == 0.8
    assert set(given["qParams"]) == {"linkType", "pinnedIds", "clickedId", "supernodes", "sg_pos"}
    nodes = {node["node_id"]: node for node in given["nodes"]}
    assert set(nodes) == {"0_1_1", "1_3_2", "err_1_1", "E_5_0", "E_6_1", "2_7_2", "2_9_2"}, "the pruned one is left out"
    assert all(set(NODE) <= set(node) and isinstance(node["layer"], str) for node in nodes.values())
    assert {(link["source"], link["target"]) for link in given["links"]} == {
        ("E_6_1", "0_1_1"), ("0_1_1", "1_3_2"), ("err_1_1", "2_7_2"), ("1_3_2", "2_7_2"), ("E_5_0", "2_9_2"),
    }  # fmt: skip
    assert (
        nodes["1_3_2"]["feature"] == number_of(1, 3) == 13 and number_of(0, 6200) == 19229300
    )  # as circuit-tracer has it
    assert nodes["0_1_1"]["clerp"] == "names" and nodes["2_7_2"]["clerp"] == 'Output " Mary − John" (p=0.750)'
    assert [n["node_id"] for n in given["nodes"] if n.get("is_target_logit")] == ["2_7_2"]
    assert [nodes[n]["influence"] for n in ("0_1_1", "1_3_2", "err_1_1")] == pytest.approx(
        [0.8 * x / 9 for x in (4, 7, 9)]
    )
    assert all(nodes[n]["influence"] is None for n in ("E_5_0", "E_6_1", "2_7_2"))
    assert len({node["jsNodeId"] for node in nodes.values()}) == len(nodes)


def test_pins_supernodes_labels_and_the_view_come_back(tmp_path: Path) -> None:
    graph = page()
    graph.pinned, graph.clicked = ["0_1_1", "2_7_2"], "0_1_1"
    graph.supernodes, graph.view = (
        [["names", "0_1_1", "1_3_2"]],
        {"sg_pos": "1 2", "linkType": "input", "isHideLayer": True},
    )
    graph.nodes[1]["clerp"] = "a name was said “before”"
    neuronpedia.write(graph, tmp_path / "g.json")
    again = neuronpedia.read(tmp_path / "g.json")
    assert again == graph and again.labels["1_3_2"] == "a name was said “before”" and not again.remarks
    neuronpedia.write(again, tmp_path / "h.json")
    assert (tmp_path / "h.json").read_bytes() == (tmp_path / "g.json").read_bytes()


def test_what_is_not_whole_is_not_written(tmp_path: Path) -> None:
    for changes, said in (
        ({("links", 1, "weight"): np.inf}, "0_1_1 → 1_3_2: its weight is inf, and must be a finite number"),
        ({("links", 1, "source"): "0_4_1"}, "there is no node '0_4_1'"),
        ({("nodes", 1, "kind"): "neuron"}, "choices: feature error embedding logit"),
    ):
        with pytest.raises(UserError, match=said):
            feature_graphs(*tables(at=changes), SAMPLES, ABOUT)
    with pytest.raises(UserError, match="sample p 1: its tokens are not known"):
        feature_graphs(*tables(), {}, ABOUT)
    for change, said in (
        (lambda g: g.nodes.append(g.nodes[0]), "node '0_1_1' stands 2 times"),
        (lambda g: g.links.append({"source": "x", "target": "0_1_1", "weight": 1.0}), "there is no node 'x'"),
        (lambda g: g.links[0].update(weight=float("nan")), "weight is nan, and must be a finite number"),
        (lambda g: g.nodes[0].update(influence=float("inf")), "influence is inf, and must be a finite number or null"),
        (lambda g: g.nodes[0].update(token_prob=float("nan")), "cannot be written as JSON"),
        (lambda g: g.pinned.append("gone"), "there is no node 'gone', which is pinned"),
        (lambda g: g.supernodes.append(["a group", "gone"]), "there is no node 'gone', which is pinned, grouped"),
    ):
        graph = page()
        change(graph)  # type: ignore[no-untyped-call]
        with pytest.raises(UserError, match=said) as caught:
            neuronpedia.write(graph, tmp_path / "g.json")
        assert "\n" not in str(caught.value) and not (tmp_path / "g.json").exists()


def test_the_scan_is_the_same_in_every_process() -> None:
    code = "from circuits.attribution.neuronpedia import scan_of as s; print(s('lab/Tiny-Model'), s('/models/My model@3/'), s('…'))"
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            text=True,
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1] == "tiny-model my-model-3 model\n" and scan_of("lab/Tiny-Model") == "tiny-model"


# -- what is read --------------------------------------------------------------------------------------------------------


def foreign(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A graph as circuit-tracer once wrote it, where an error is called as a feature of layer 0 may be; and as it should be."""
    rng = np.random.default_rng(seed)
    features = [(la, f, p) for la in range(4) for p in range(3) for f in range(4) if rng.random() < 0.7]
    errors = [(la, p) for la in range(4) for p in range(3)]

    def node(name: str, layer: object, position: int, kind: str) -> dict[str, Any]:
        return {"node_id": name, "feature": 1, "layer": str(layer), "ctx_idx": position, "feature_type": kind, "jsNodeId": name,
                "clerp": ""}  # fmt: skip

    nodes = [node(f"{la}_{f}_{p}", la, p, "cross layer transcoder") for la, f, p in features]
    nodes += [node(f"err_{la}_{p}", la, p, "mlp reconstruction error") for la, p in errors]
    nodes += [node(f"E_{p}_{p}", "E", p, "embedding") for p in range(3)] + [node("5_7_2", 5, 2, "logit")]
    depth = {"E": -1.0, **{str(i): float(i) for i in range(6)}}
    links = [
        {"source": s["node_id"], "target": t["node_id"], "weight": float(i + j / 100)}
        for i, t in enumerate(nodes)
        for j, s in enumerate(nodes)
        if "error" not in t["feature_type"] and depth[s["layer"]] < depth[t["layer"]] and rng.random() < 0.8
    ]
    head = {"metadata": {"slug": "a", "scan": "b", "prompt": "c", "prompt_tokens": ["c"] * 3, "schema_version": 1},
            "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}}  # fmt: skip
    right = {**head, "nodes": nodes, "links": links}
    old = json.loads(json.dumps(right).replace('"err_', '"0_'))
    return old, right


def test_an_error_that_shares_its_id_with_a_feature_is_told_apart_with_its_links(tmp_path: Path) -> None:
    shared = links = doubtful = 0
    for seed in range(8):
        old, right = foreign(seed)
        (tmp_path / "g.json").write_text(json.dumps(old))
        graph = neuronpedia.read(tmp_path / "g.json")
        renamed = {n["node_id"] for n in graph.nodes if n["node_id"].startswith("err_")}
        shared += len(renamed)
        assert len({n["node_id"] for n in graph.nodes}) == len(graph.nodes)
        assert all(n["feature_type"] == "mlp reconstruction error" for n in graph.nodes if n["node_id"] in renamed)
        truth = {link["weight"]: link["source"] for link in right["links"]}
        wrong = 0
        for link in graph.links:
            true = truth[link["weight"]]
            wrong += link["source"] != (true if true in renamed or true[0] != "e" else true.replace("err_", "0_"))
            links += link["source"] in renamed
        told = [remark for remark in graph.remarks if "may be an error's" in remark]
        assert wrong <= (int(told[0].split()[0]) if told else 0), "whatever is not sure is said"
        doubtful += wrong
        assert neuronpedia.parsed(graph.file()).remarks == []
    assert shared > 20 and links > 200 and doubtful < 0.05 * links


def test_marks_of_nodes_that_are_not_there_are_left_out_with_a_remark() -> None:
    given = page().file()
    given["qParams"] = {"pinnedIds": ["0_1_1", "gone"], "supernodes": [["a", "gone", "1_3_2"]], "clickedId": None}
    graph = neuronpedia.parsed(given)
    assert graph.pinned == ["0_1_1"] and graph.supernodes == [["a", "1_3_2"]] and graph.clicked == ""
    assert graph.remarks == ["pinned, grouped or clicked, but no nodes, and left out: gone"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("[]", "no attribution graph: an object"),
        ("{", "cannot be read"),
        ('{"metadata": {}}', "qParams is missing, or no object"),
        ({"metadata": {"slug": "a"}}, "metadata: scan is missing"),
        ({"nodes": [3]}, "node 0: an object is expected, not 3"),
        ({"nodes": [{"node_id": "a", "feature": "b"}]}, "node 0 (a): feature is 'b', and must be a whole number or null"),
        ({"links": [{"source": "a", "target": "b"}]}, "link 0 (a → b): weight is missing"),
        ({"links": [{"source": "0_1_1", "target": "b", "weight": 1}]}, "link 0 (0_1_1 → b): there is no node 'b'"),
        ({"links": [{"source": "0_1_1", "target": "1_3_2", "weight": float("nan")}]}, "weight is nan, and must be a finite number"),
        ({"qParams": {"supernodes": ["a"]}}, "qParams: supernodes is ['a'], and must be a list of lists of texts or null"),
        (None, "node '0_1_1' stands 2 times"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused_in_one_line(change: Any, said: str, tmp_path: Path) -> None:
    given = page().file()
    if change is None:
        given["nodes"] = [*given["nodes"], given["nodes"][0]]
    (tmp_path / "g.json").write_text(change if isinstance(change, str) else json.dumps(given | (change or {})))
    with pytest.raises(UserError) as caught:
        neuronpedia.read(tmp_path / "g.json")
    assert str(caught.value).startswith(f"{tmp_path / 'g.json'}: ") and said in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


# -- circuits of heads and MLPs ------------------------------------------------------------------------------------------


def test_a_circuit_goes_to_neuronpedia_and_to_mib_and_back(tmp_path: Path) -> None:
    scores, kept = circuit()
    graph = component_graph(GROUPED, scores, kept, ABOUT, "a circuit")
    types = {node["feature_type"] for node in graph.nodes}
    assert types == {"embedding", "attention head", "mlp", "logit"} and graph.slug == "ioi-tiny"
    assert sum(link["weight"] for link in graph.links) == pytest.approx(scores[kept].sum())
    neuronpedia.write(graph, tmp_path / "graph.json")
    found, inside = formats.read(tmp_path / "graph.json", GROUPED)
    assert (inside == kept).all() and np.allclose(found, np.where(kept, scores, 0))
    (tmp_path / "mib.json").write_text(json.dumps(formats.mib(GROUPED, scores, kept, 8)))
    found, inside = formats.read(tmp_path / "mib.json", GROUPED)
    assert (inside == kept).all() and np.allclose(found, scores)
    mib = json.loads((tmp_path / "mib.json").read_text())["edges"]
    assert "input->a1.h3<k>" in mib and mib["input->a1.h2<v>"] == mib["input->a1.h3<v>"]


def test_a_file_that_is_no_circuit_of_this_model_is_refused(tmp_path: Path) -> None:
    scores, kept = circuit()
    ours = component_graph(GROUPED, scores, kept, ABOUT, "a circuit")
    bare = neuronpedia.parsed(json.loads(json.dumps(ours.file())))
    for link in bare.links:
        link.pop("parts", None)
    for name, graph, said in (
        (
            "features",
            page(),
            "a graph of cross layer transcoder nodes such as '0_1_1', and a circuit of heads and MLPs",
        ),
        ("bare", bare, "without 'parts'"),
        ("larger", component_graph(Nodes(9, 4, 4), *circuit(Nodes(9, 4, 4)), ABOUT, ""), "has no 'a3.h"),
    ):
        neuronpedia.write(graph, tmp_path / f"{name}.json")
        with pytest.raises(UserError, match=said):
            formats.read(tmp_path / f"{name}.json", GROUPED)
    for text, said in (("[1]", "no circuit: it has no 'edges'"), ("{", "cannot be read")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match=said):
            formats.read(tmp_path / "x.json", GROUPED)
    scores[np.flatnonzero(kept)[3]] = np.nan
    with pytest.raises(UserError, match="its score is nan, and must be a finite number"):
        component_graph(GROUPED, scores, kept, ABOUT, "")
    with pytest.raises(UserError, match="the circuit has no edges"):
        component_graph(GROUPED, scores, kept & False, ABOUT, "")


def test_graphml_is_read_by_networkx(tmp_path: Path) -> None:
    scores, kept = circuit()
    found = nx.parse_graphml(formats.graphml(GROUPED, scores, kept))
    reached = sum(len(GROUPED.feeds(v)) or 1 for v in GROUPED.edges[kept][:, 1].tolist())
    assert found.number_of_edges() == reached
    graph = page()
    graph.nodes[0]["clerp"] = "a\x00b & <c>"
    found = nx.parse_graphml(formats.graphml_of(graph))
    assert set(found) == set(graph.labels) and found.nodes["0_1_1"]["label"] == "a�b & <c>"
    assert {(u, v, d["weight"]) for u, v, d in found.edges(data=True)} == {
        (link["source"], link["target"], link["weight"]) for link in graph.links
    }


# -- directories ---------------------------------------------------------------------------------------------------------


def feature_study(folder: Path) -> Path:
    folder.mkdir()
    nodes, links = tables()
    nodes.to_parquet(folder / "nodes.parquet")
    links.to_parquet(folder / "links.parquet")
    (folder / "metrics.json").write_text(json.dumps({"level": "features", "n": 1, "samples": SAMPLES}))
    return folder


def test_graphs_of_features_are_written_with_the_files_of_their_features(tmp_path: Path) -> None:
    source = feature_study(tmp_path / "study")
    about = About(ABOUT.model, ABOUT.name, ABOUT.artifact, features_url="https://x.org/features/")
    known = {(0, 1): {"top_logits": [" Mary"]}}
    names = exports.write(source, tmp_path / "np", "neuronpedia", about, known)
    places = [f"features/tiny-model/{number_of(la, f)}.json" for la, f in ((0, 1), (1, 3))]
    assert set(names) == {"ioi-tiny-p-1.json", "graph-metadata.json", *places}
    graph = neuronpedia.read(tmp_path / "np" / "ioi-tiny-p-1.json")
    assert graph.metadata["feature_details"] == {"feature_json_base_url": "https://x.org/features/tiny-model"}
    assert json.loads((tmp_path / "np" / "graph-metadata.json").read_text()) == {"graphs": [graph.metadata]}
    first, second = (json.loads((tmp_path / "np" / place).read_text()) for place in places)
    assert first["top_logits"] == [" Mary"] and second["examples_quantiles"][0]["examples"] == []
    assert "attribution/ioi-tiny-0123" in (tmp_path / "np" / "README.md").read_text()
    assert exports.write(source, tmp_path / "gml", "graphml", about) == ["ioi-tiny-p-1.graphml"]
    assert exports.write(source, tmp_path / "pq", "parquet", about) == [
        "links.parquet",
        "metrics.json",
        "nodes.parquet",
    ]
    for form, said in (("mib", "a graph of features is no circuit"), ("neuronpdia", "did you mean neuronpedia\\?")):
        with pytest.raises(UserError, match=said):
            exports.write(source, tmp_path / form, form, about)
    (source / "links.parquet").unlink()
    with pytest.raises(Damaged, match="links\\.parquet"):
        exports.write(source, tmp_path / "again", "neuronpedia", about)


SMALL = [QUICK, "behaviour=ioi", "behaviour.n_samples=8", "behaviour.n_test=4"]
STUDY = ["attribution.method=eap", "attribution.verify=0", "attribution.verify_random=0", "attribution.bootstraps=0"]


def test_a_study_is_exported_by_the_command_that_made_it(warm: Cli) -> None:
    warm("task=baseline", *SMALL, "tracking=off")  # the quick model is no good at it, and its gate is passed by force
    done = warm("task=attribution", *SMALL, *STUDY, "force=true", "tracking=off")
    assert done.code == 0, done.out + done.err
    (artifact,) = warm.artifacts("attribution")
    for form in exports.FORMS:
        place = warm.folder / "out" / form  # an absolute path, which others have no use for
        done = warm("task=export", *SMALL, *STUDY, f"export.format={form}", f"export.path={place}")
        assert done.code == 0 and f"attribution/{artifact.name} → " in done.out, done.out + done.err
    out = warm.folder / "out"
    assert not [f for f in out.rglob("*") if f.is_file() and str(warm.folder).encode() in f.read_bytes()]
    assert (out / "mib/circuit.json").read_bytes() == (artifact / "circuit.json").read_bytes()
    card = (out / "neuronpedia/README.md").read_text()
    assert f"attribution/{artifact.name}" in card and "python launch.py task=export" in card
    assert "made by force, although" in card
    edges = pd.read_parquet(out / "parquet/edges.parquet")
    graph = neuronpedia.read(next(p for p in (out / "neuronpedia").glob("*.json") if p.stem != "graph-metadata"))
    assert graph.metadata["scan"] == "tiny" and sum(link["weight"] for link in graph.links) == pytest.approx(
        edges.loc[edges["in_circuit"], "score"].sum()
    )
    nodes = Nodes(
        **{k: v for k, v in json.loads((artifact / "metrics.json").read_text())["model"].items() if k != "width"}
    )
    chosen = set(edges.loc[edges["in_circuit"], "edge"])
    for path in ((out / "neuronpedia" / f"{graph.slug}.json"), out / "mib/circuit.json"):
        inside = formats.read(path, nodes)[1]
        assert {name for name, one in zip(nodes.edge_names, inside, strict=True) if one} == chosen
    assert nx.read_graphml(out / "graphml/circuit.graphml").number_of_edges() > 0
    for words, said in (
        (["export.path=out/mib", "export.format=mib", *STUDY], "not empty; choose another directory"),
        (["export.path=a", "export.format=graphm", *STUDY], "did you mean graphml?"),
        (["export.path=a", "export.format=mib", *STUDY[1:]], "does not exist in"),
        (["export.path=a", *STUDY], "export.format=neuronpedia, mib, graphml, parquet do"),
        (
            ["export.path=a", "export.format=mib", "export.features_url=https://x.org/y", *STUDY],
            "export.format=neuronpedia does",
        ),
    ):
        refused = warm("task=export", *SMALL, *words)
        assert refused.code == 2 and said in refused.err, refused.err
        assert said != "does not exist in" or len(refused.errors) == 1
    assert sorted(path.name for path in out.iterdir()) == sorted(exports.FORMS), "nothing half-written is left"
