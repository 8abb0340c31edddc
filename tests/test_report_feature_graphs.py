"""Feature graphs in the section of attribution, from artifacts made by hand."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_report import HOSTILE, Page
from test_report_attribution import circuit, live

from circuits.report import ArtifactRef, Element, ReportInput, build
from circuits.report.registry import Entry
from circuits.report.sections.attribution_features_layout import NODES, scene
from circuits.report.sections.attribution_features_records import FeatureRecord
from circuits.state import State

TOKENS = ["<s>", "When", " Mary", " and", " John", " went", " gave", " to"]
CHECKS = [
    {"layer": i % 3, "feature": 10 + i, "sample": "ioi-0", "predicted": 0.2 * i - 0.5, "measured": 0.18 * i - 0.45}
    for i in range(6)
]


def tables(sample: str, layers: int, each: int, tokens: list[str], seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One prompt's nodes and links: `each` features a layer, an error a layer, every token, two answers."""
    rng, last = np.random.default_rng(seed), len(tokens) - 1
    nodes = [(f"E_{100 + p}_{p}", "embedding", -1, p, 100 + p, tokens[p], "") for p in range(len(tokens))]
    for layer in range(layers):
        at = [int(p) for p in rng.integers(1, len(tokens), each)]
        nodes += [
            (f"{layer}_{10 + i}_{p}", "feature", layer, p, 10 + i, tokens[p], "names" if i == 0 else "")
            for i, p in enumerate(at)
        ]
        nodes.append((f"err_{layer}_{last}", "error", layer, last, -1, tokens[last], ""))
    nodes += [
        (f"{layers}_{200 + i}_{last}", "logit", layers, last, 200 + i, text, "")
        for i, text in enumerate([" Mary", " John"])
    ]
    table = pd.DataFrame(nodes, columns=["node", "kind", "layer", "position", "feature", "token", "label"])
    table = table.drop_duplicates("node").assign(sample=sample, kept=True)
    table["effect"] = rng.normal(0, 1, len(table))
    table["influence"] = rng.random(len(table))
    table["activation"] = rng.random(len(table)) * 5
    rows = table.sample(frac=1, random_state=seed).to_dict("records")
    links = [
        (sample, a["node"], b["node"], float(rng.standard_t(2)))
        for a in rows for b in rows
        if a["layer"] < b["layer"] and b["kind"] != "error" and a["position"] <= b["position"] and rng.random() < 0.4
    ]  # fmt: skip
    return table, pd.DataFrame(links, columns=["sample", "source", "target", "weight"])


def study(
    root: Path,
    *,
    prompts: int = 3,
    layers: int = 3,
    each: int = 6,
    tokens: list[str] = TOKENS,
    change: Any = None,
    **metrics: Any,
) -> Element:
    """An element whose artifact has feature graphs of `prompts` prompts."""
    made = [tables(f"ioi-{i}", layers, each, tokens, i) for i in range(prompts)]
    nodes, links = (pd.concat([pair[side] for pair in made], ignore_index=True) for side in (0, 1))
    if change:
        change(nodes, links)
    features = pd.DataFrame(
        {
            "layer": [0, 1, 2], "feature": [10, 11, 12], "prompts": [3, 2, 3], "frequency": [1.0, 0.667, 1.0],
            "effect_mean": [0.4, -1.25, 0.02], "effect_se": [0.1, 0.2, np.nan], "activation_mean": [2.0, 3.0, 0.5],
            "label": ["names", "", ""],
        }
    )  # fmt: skip
    key = f"{abs(hash((prompts, layers, each, len(metrics)))):012x}"[:12]
    label = f"attribution/ioi-tiny-features-{key}"
    path = root / label
    path.mkdir(parents=True)
    nodes.to_parquet(path / "nodes.parquet")
    links.to_parquet(path / "links.parquet")
    features.to_parquet(path / "features.parquet")
    given = {
        "level": "features", "n": prompts, "site": "mlp_out", "layers": list(range(layers)), "reference": "corrupt",
        "replacement": 0.812, "completeness": 0.9, "kept_mass": 0.8, "slope": 0.93, "r2": 0.88, "attention_share": 0.23,
        "error_share": 0.12, "samples": {f"ioi-{i}": {"tokens": tokens, "text": "".join(tokens)} for i in range(prompts)},
        "strongest": [{"layer": 1, "feature": 11, "effect_mean": -1.25, "label": ""},
                      {"layer": 0, "feature": 10, "effect_mean": 0.4, "label": "names"}],
        "checks": CHECKS,
    }  # fmt: skip
    (path / "metrics.json").write_text(json.dumps(given | metrics))
    (path / "manifest.json").write_text(json.dumps({"key": key, "kind": "attribution", "version": 1}))
    ref = ArtifactRef("attribution", key, path, None, label)
    return Element(0, "000", [], {}, State.done, artifacts=[ref], config={})


def page(out: Path, *elements: Element) -> Page:
    """The page of these elements."""
    numbered = [dataclasses.replace(e, index=i, name=f"{i:03d}") for i, e in enumerate(elements)]
    return Page(build(ReportInput("study", "Which?", "study-1", "launch.py", "launch.py", numbered, "2026-11-20"), out))


def record(table: pd.DataFrame, links: pd.DataFrame, **metrics: Any) -> FeatureRecord:
    """A record of these tables."""
    entry = Entry(
        Element(0, "000", [], {}, State.done), ArtifactRef("attribution", "ab", Path("there"), None, "attribution/a-ab")
    )
    return FeatureRecord(entry, "a", {"n": 1, **metrics}, table, links, pd.DataFrame())


def test_the_first_screen_says_what_was_found(tmp_path: Path) -> None:
    found = page(tmp_path, study(tmp_path / "store"))
    assert (
        "ioi-tiny-features: graphs of features at mlp_out of layers 0–2 (effects: n = 3 prompts; 3 graphs): replacement 81.2%, "
        "completeness 90.0%. Taking out one feature changes the metric as predicted with slope 0.93, R² 0.88 (6 edits). 12.0% of "
        "effects go through errors of reconstruction and 23.0% through attention patterns, which the graphs do not explain."
    ) in found.text
    assert "Strongest over prompts: L1/11 -1.25 logits, L0/10 “names” +0.40 logits." in found.text
    table = found.text.partition("Strongest features over prompts: ")[2]
    assert table.index("L1/11 -1.25 ± 0.20 66.7% 2 3.00") < table.index("L0/10 names +0.40 ± 0.10 100.0% 3 2.00")
    trust = found.text.partition("How far the graphs can be trusted")[2]
    assert "reference corrupt" in trust and "kept mass 80.0%" in trust and "slope 0.930" in trust
    drawn = {f"features-0-{name}.{ending}" for name in ("graph", "checks") for ending in ("svg", "png", "csv")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == drawn
    assert "measured" in pd.read_csv(tmp_path / "figures" / "features-0-checks.csv")
    assert any(told.startswith("L1/11, ioi-0\npredicted -0.30, measured -0.27 logits") for told in found.hover)


def test_every_prompt_lives_and_the_first_is_drawn(tmp_path: Path) -> None:
    found = page(tmp_path, study(tmp_path / "store"))
    (data,) = live(found)
    assert [graph["sample"] for graph in data["graphs"]] == ["ioi-0", "ioi-1", "ioi-2"]
    for graph in data["graphs"]:
        width, height = graph["size"]
        assert all(0 < node[2] < width and 0 < node[3] < height for node in graph["nodes"])
        assert all(0 <= end < len(graph["nodes"]) for source, target, _ in graph["links"] for end in (source, target))
        sizes = [abs(link[2]) for link in graph["links"]]
        assert sizes == sorted(sizes, reverse=True) and [text for text, _ in graph["columns"]][2] == "·Mary"
    assert {node[7] for node in data["graphs"][0]["nodes"]} == {"o", "s", "D", "box"}
    assert any(told.startswith("L0/10 ") and "names\neffect on the metric (logits) " in told for told in found.hover)
    assert sum("direct effect" in told and " → " in told for told in found.hover) == min(
        80, len(data["graphs"][0]["links"])
    )
    assert len(found.ids) == len(set(found.ids))


def test_layers_go_up_and_positions_across() -> None:
    nodes, links = tables("s", 3, 9, TOKENS)
    found = scene(record(nodes, links, samples={"s": {"tokens": TOKENS}}), "s")
    assert found.text == "".join(TOKENS) and found.left_out == 0
    at = {str(node.row["node"]): node for node in found.nodes}
    heights = [at[name].y for name in ("E_107_7", "err_0_7", "err_1_7", "err_2_7", "3_200_7")]
    assert all(low - high > 5 for low, high in itertools.pairwise(heights))
    columns = [at[f"E_{100 + p}_{p}"].x for p in range(8)]
    assert columns == sorted(columns) and [x for _, x in found.columns] == columns
    for i, a in enumerate(found.nodes):
        for b in found.nodes[:i]:
            assert math.hypot(a.x - b.x, a.y - b.y) > 12, "no two nodes cover each other"
    strongest = max(found.nodes, key=lambda node: abs(float(str(node.row["effect"]))))
    assert strongest.radius == max(node.radius for node in found.nodes)


def test_the_most_influential_nodes_are_drawn(tmp_path: Path) -> None:
    tokens = [f" t{i}" for i in range(40)]
    found = page(tmp_path, study(tmp_path / "store", prompts=1, layers=12, each=40, tokens=tokens))
    graph = live(found)[0]["graphs"][0]
    assert len(graph["nodes"]) == NODES and graph["left"] > 200 and len(graph["links"]) <= 1200
    assert f"At first ioi-0: 300 nodes drawn; {graph['left']} kept nodes of less influence not." in found.text
    assert sum(node[7] == "box" for node in graph["nodes"]) == 2, "the answers are always there"
    assert len(found.source) < 1.5e6


def test_many_prompts_are_said(tmp_path: Path) -> None:
    found = page(tmp_path, study(tmp_path / "store", prompts=30, each=2))
    assert len(live(found)[0]["graphs"]) == 24 and "24 of 30 prompts can be picked" in found.text


def test_edges_and_features_share_a_page(tmp_path: Path) -> None:
    found = page(tmp_path, circuit(tmp_path / "store"), study(tmp_path / "store"))
    assert "9 of 82 edges" in found.text and "graphs of features at mlp_out" in found.text
    assert [("graphs" in data) for data in live(found)] == [False, True] and found.tags.count("script") == 3


def test_without_checks_links_or_labels(tmp_path: Path) -> None:
    bare = {
        "checks": [], "slope": None, "r2": None, "error_share": None, "attention_share": None, "strongest": [], "samples": {},
        "replacement": math.nan, "reference": 0.5,
    }  # fmt: skip
    element = study(tmp_path / "store", **bare)
    path = element.artifacts[0].path
    (path / "links.parquet").unlink()
    (path / "features.parquet").unlink()
    found = page(tmp_path, element)
    assert "links.parquet is missing" in found.text and "features.parquet is missing" in found.text
    assert (
        "Effects were not held against taking features out." in found.text
        and not (tmp_path / "figures" / "features-0-checks.svg").exists()
    )
    (data,) = live(found)
    assert (
        not data["graphs"][0]["links"] and "nan" not in " ".join(found.hover).lower() and "NaN" not in json.dumps(data)
    )
    assert data["graphs"][0]["columns"][2][0] == "·Mary", "what the nodes say, where the prompt's tokens are lacking"
    (path / "nodes.parquet").unlink()
    assert "No feature graph could be read." in page(tmp_path / "b", element).text


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_texts_are_escaped(tmp_path: Path) -> None:
    def change(nodes: pd.DataFrame, links: pd.DataFrame) -> None:
        nodes.loc[:, "label"] = f"{HOSTILE}\x00"
        nodes.loc[3, "token"] = HOSTILE
        nodes.loc[4, ["effect", "influence"]] = math.nan
        links.loc[0, "weight"] = math.nan

    element = study(tmp_path / "store", change=change, tokens=[*TOKENS[:-1], "</script><b>x"])
    found = page(tmp_path, element)
    assert HOSTILE not in found.source and "</script><b>" not in found.source and found.tags.count("script") == 2
    assert live(found)[0]["graphs"][0]["text"].endswith("</script><b>x") and "NaN" not in json.dumps(live(found))
