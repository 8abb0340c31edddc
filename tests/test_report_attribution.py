"""The section of attribution: what is drawn and said of circuits, from artifacts made by hand."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_report import HOSTILE, Page

from circuits.attribution.nodes import Nodes
from circuits.report import ArtifactRef, Element, ReportInput, build
from circuits.report.sections.attribution_graph import Layout
from circuits.report.sections.attribution_records import signed, with_error
from circuits.state import State

VERIFIED = {
    "n": 12, "pearson": 0.9412, "pearson_without_largest": 0.8803, "spearman_sizes": 0.7, "sign": 0.75, "signs": 8, "slope": 1.25,
    "error": 0.05, "hidden": {"sample": 4, "rest": 90, "largest": 0.031, "share_larger": 0.75, "mean": 0.01, "total_at_most": 1.5},
}  # fmt: skip


def circuit(
    root: Path, method: str = "eap", *, layers: int = 2, heads: int = 4, kv_heads: int = 2, kept: int = 9, pieces: bool = False,
    edges: dict[int, dict[str, Any]] | None = None, seed: int = 0, **metrics: Any,
) -> Element:  # fmt: skip
    """An element whose artifact has scores of every edge of a model of these sizes; `edges` replaces values of some rows."""
    nodes, rng = Nodes(layers, heads, kv_heads), np.random.default_rng(seed)
    n = len(nodes.edges)
    score = np.sort(rng.standard_t(2, n) * 0.5)
    score = score[np.argsort(-np.abs(score))]
    names = [nodes.edge_names[e] for e in rng.permutation(n)]
    verified = np.where(np.arange(n) < 8, "largest", np.where(np.arange(n) < 12, "random", ""))
    rows = [
        {
            "edge": names[i], "writer": names[i].partition("->")[0], "reader": names[i].partition("->")[2], "score": score[i],
            "standard_error": abs(score[i]) / 10, "rank": i + 1, "inclusion": 1 - i / n, "in_circuit": i < kept,
            "connected": i != 1, "exact": 1.2 * score[i] if verified[i] else math.nan, "verified": verified[i],
        } | (edges or {}).get(i, {})
        for i in range(n)
    ]  # fmt: skip
    layer = [-1, *(i for i in range(layers) for _ in range(heads + 1))]
    head = [-1, *(h if h < heads else -1 for _ in range(layers) for h in range(heads + 1))]
    table = pd.DataFrame({"node": nodes.writers, "layer": layer, "head": head})
    table = table.assign(score=np.linspace(-2, 1, len(table)), size=2.0, edges_in_circuit=3, inclusion=0.5)
    key = f"{abs(hash((method, layers, seed, len(metrics)))):012x}"[:12]
    label = f"attribution/ioi-tiny-{method}-{key}"
    path = root / label
    path.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(path / "edges.parquet")
    table.to_parquet(path / "nodes.parquet")
    exact = [
        {
            "edge": r["edge"],
            "sample": f"ioi-{k}",
            "random": r["verified"] == "random",
            "exact": r["exact"] + k,
            "score": r["score"],
        }
        for r in rows
        if r["verified"]
        for k in range(3)
    ]
    pd.DataFrame(exact).to_parquet(path / "exact.parquet")
    if pieces:
        split = [
            {"edge": r["edge"], "piece": p, "score": r["score"] / 2, "all": r["score"]}
            for r in rows[:30]
            for p in ("subject", "rest")
        ]
        pd.DataFrame(split).to_parquet(path / "pieces.parquet")
    given = {
        "n": 80, "method": method, "direction": "noising", "metric": "first_token", "edges": n, "circuit_edges": kept,
        "circuit_share": kept / n, "circuit_nodes": 5, "base": 9.38, "other": -9.5, "difference": -18.9, "kept_mass": 0.894,
        "jaccard": 0.978, "jaccard_low": 0.889,
        "wordings": [{"factor": "order", "values": ["a", "b"], "jaccard": 0.79, "random": 0.89}], "verified": VERIFIED,
        "pearson": VERIFIED["pearson"], "pearson_without_largest": VERIFIED["pearson_without_largest"],
        "model": {"layers": layers, "heads": heads, "kv_heads": kv_heads, "parallel": False, "width": 32},
    }  # fmt: skip
    (path / "metrics.json").write_text(json.dumps(given | metrics))
    (path / "manifest.json").write_text(json.dumps({"key": key, "kind": "attribution", "version": 1}))
    ref = ArtifactRef("attribution", key, path, None, label)
    return Element(0, "000", [], {"attribution.method": method}, State.done, artifacts=[ref], config={})


def page(out: Path, *elements: Element) -> Page:
    """The page of these elements."""
    numbered = [dataclasses.replace(e, index=i, name=f"{i:03d}") for i, e in enumerate(elements)]
    report = ReportInput("study", "Which parts?", "study-1", "launch.py", "launch.py", numbered, "2026-11-20")
    return Page(build(report, out))


def live(found: Page) -> list[dict[str, Any]]:
    """What the page's script draws graphs from."""
    parts = found.source.split('<script type="application/json">')[1:]
    return [json.loads(part.partition("</script>")[0]) for part in parts]


def agreeing(without: float) -> dict[str, Any]:
    """Metrics of a method that agrees so well without the largest edge."""
    return {
        "pearson_without_largest": without,
        "pearson": 0.99,
        "verified": {**VERIFIED, "pearson_without_largest": without},
    }


def test_the_first_screen_says_what_was_found(tmp_path: Path) -> None:
    found = page(tmp_path, circuit(tmp_path / "store"))
    assert "ioi-tiny-eap: 9 of 82 edges (11.0%) from 5 writers carry 89.4% of all |score|" in found.text
    assert (
        "all edges together take the answer from +9.38 (clean) to -9.50 logits (corrupt) (n = 80 prompts)" in found.text
    )
    assert "r = 0.941, 0.880 without the largest edge (12 edges patched)" in found.text
    assert "Of the 90 edges that were not patched, at most 75.0% have a larger effect than 0.031 logits" in found.text
    assert "together they hide at most 1.50 logits (95% confidence)" in found.text
    assert "Jaccard 0.98 (5th percentile 0.89)" in found.text
    assert "order 0.79 (random parts of equal size 0.89)" in found.text
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    drawn = {f"attribution-0-{name}" for name in ("circuit", "nodes", "exact")}
    assert figures == {f"{name}.{ending}" for name in drawn for ending in ("svg", "png", "csv")}


def test_the_graph_is_drawn_and_lives(tmp_path: Path) -> None:
    found = page(tmp_path, circuit(tmp_path / "store", kept=60))
    (data,) = live(found)
    assert len(data["edges"]) == data["total"] == 60 and data["drawn"] == 40 and data["unit"] == "logits"
    table = pd.read_csv(tmp_path / "figures" / "attribution-0-circuit.csv")
    first = data["edges"][0]
    name = f"{data['nodes'][first[0]][0]}->{data['readers'][first[1]][0]}"
    assert name == table["edge"][0] and first[2] == pytest.approx(table["score"][0], rel=1e-3)
    assert [e[-1] for e in data["edges"][:3]] == [1, 0, 1], "the second leads nowhere"
    assert data["edges"][20][4] is None, "it was not patched"
    # Without scripts the drawing stands for it: the 40 largest, each with its values.
    assert sum("of resamplings" in told and "->" in told for told in found.hover) == 40
    assert any(told.startswith(f"{name}: ") and "exact" in told for told in found.hover)
    assert found.tags.count("script") == 2 and len(found.ids) == len(set(found.ids))
    script = re.findall(r"<script>(.*?)</script>", found.source, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in found.source and "http" not in script.replace("http://www.w3.org/2000/svg", "")
    width, height = data["size"][:2]
    assert all(0 < x < width and 0 < y < height for _, _, x, y, *_ in data["nodes"])


def test_layers_go_up_and_shared_keys_fork() -> None:
    layout = Layout(3, 9, 3)
    heights = [layout.place(name)[1] for name in ("input", "a0.h8", "m0", "a1.h0", "m2", "logits")]
    assert heights == sorted(heights, reverse=True)
    columns = [layout.place(name)[0] for name in (*(f"a0.h{h}" for h in range(9)), "m0")]
    assert len(set(columns)) == 10 and columns[-1] == layout.place("logits")[0]
    assert layout.feeds("a1.g2<k>") == (["a1.h6", "a1.h7", "a1.h8"], "k") and layout.feeds("a1.h4<q>") == (
        ["a1.h4"],
        "q",
    )
    assert layout.feeds("m1") == (["m1"], "") and Layout(1, 8, 1).middle == 8
    row = {"writer": "a2.h8", "reader": "a2.g2<v>"}
    assert (
        layout.has(row) and not layout.has(row | {"writer": "a3.h0"}) and not layout.has(row | {"reader": "a2.g3<v>"})
    )


def test_methods_are_ranked_by_their_agreement(tmp_path: Path) -> None:
    given = {"eap": 0.5, "relp": 0.9}
    every = [circuit(tmp_path / "store", method, seed=i, **agreeing(r)) for i, (method, r) in enumerate(given.items())]
    every += [circuit(tmp_path / "store", "gim", seed=2, verified={"n": 0}, pearson=None, pearson_without_largest=None)]
    found = page(tmp_path, *every)
    assert (
        "Of 3 measurements, ioi-tiny-relp agrees best with exact patching (r 0.900 without the largest edge"
        in found.text
    )
    table = found.text.partition("Methods by agreement")[2]
    assert table.index("relp 0.941 0.900 0.700 75.0% 1.25") < table.index("eap 0.941 0.500") < table.index("gim – –")
    assert "Scores were not held against exact patching." in found.text
    assert len(live(found)) == 3 and found.text.index("The circuit: ioi-tiny-relp") < found.text.index(
        "The circuit: ioi-tiny-gim"
    )


def test_the_largest_edges_and_pieces(tmp_path: Path) -> None:
    element = circuit(
        tmp_path / "store", pieces=True, edges={0: {"score": -13.205, "standard_error": 0.672, "exact": -12.556}}
    )
    found = page(tmp_path, element)
    table = found.text.partition("Largest edges: ")[2]
    assert "-13.21 ± 0.67 -12.56 100.0% yes yes" in table and "of the prompts" in table
    pieces = pd.read_csv(tmp_path / "figures" / "attribution-0-pieces.csv")
    assert set(pieces["piece"]) == {"subject", "rest"} and "The 25 largest of 30" in found.text
    assert any(", subject: " in told and told.endswith("logits") for told in found.hover)
    scatter = pd.read_csv(tmp_path / "figures" / "attribution-0-exact.csv")
    assert scatter["kind"].value_counts().to_dict() == {"largest edges": 8, "random others": 4}
    assert (scatter["n"] == 3).all() and "hatched: no such part" in (
        tmp_path / "figures" / "attribution-0-nodes.svg"
    ).read_text()


def test_whole_answers_are_compared_in_nats(tmp_path: Path) -> None:
    found = page(tmp_path, circuit(tmp_path / "store", metric="full_target", direction="denoising"))
    assert (
        "-9.50 nats (clean)" in found.text
        and "in the corrupt run when one edge carries the clean run's value" in found.text
    )
    assert "log-probability difference" in (tmp_path / "figures" / "attribution-0-exact.svg").read_text()


def test_a_study_without_bootstraps_circuit_or_checks(tmp_path: Path) -> None:
    bare = {
        "wordings": [],
        "jaccard": None,
        "jaccard_low": None,
        "kept_mass": None,
        "verified": {"n": 0},
        "pearson": None,
    }
    element = circuit(tmp_path / "store", kept=0, **bare)
    (element.artifacts[0].path / "exact.parquet").unlink()
    found = page(tmp_path, element)
    assert "0 of 82 edges (0.0%) from 5 writers are the circuit" in found.text and not live(found)
    assert "Jaccard" not in found.text and "What failed Nothing" in found.text
    assert found.tags.count("script") == 1, "no graph, no script of graphs"
    lone = circuit(
        tmp_path / "one", edges={i: {"standard_error": math.nan, "inclusion": math.nan} for i in range(82)}, n=1
    )
    told = page(tmp_path / "b", lone)
    assert "nan" not in " ".join(told.hover) and "NaN" not in json.dumps(live(told))


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    element = circuit(tmp_path / "store", edges={0: {"writer": "a7.h0", "edge": "a7.h0->m0"}})
    path = element.artifacts[0].path
    (path / "exact.parquet").write_text("no parquet")
    (path / "nodes.parquet").unlink()
    text = page(tmp_path / "a", element).text
    assert "exact.parquet is damaged" in text and "nodes.parquet is missing" in text
    assert "1 edge of the circuit not drawn: the model has no such parts" in text
    (path / "edges.parquet").unlink()
    text = page(tmp_path / "b", element).text
    assert "edges.parquet is missing" in text and "No circuit could be read." in text


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    end = "</script><script>alert('y')</script>"
    element = circuit(tmp_path / "store", "eap", pieces=True, edges={0: {"edge": f"{HOSTILE}\x00"}})
    element = dataclasses.replace(element, swept={"attribution.metric": end})
    found = page(tmp_path, element)
    assert HOSTILE not in found.source and "alert('y')</script>" not in found.source and found.tags.count("script") == 2
    assert end in live(found)[0]["title"] and end in found.text


def test_a_large_model_stays_small(tmp_path: Path) -> None:
    element = circuit(tmp_path / "store", layers=30, heads=9, kv_heads=3, kept=3500)
    found = page(tmp_path, element)
    (data,) = live(found)
    assert len(data["edges"]) == 2000 and data["total"] == 3500 and "up to the 2,000 largest can be" in found.text
    assert len(found.source) < 1.5e6


def test_numbers_keep_two_digits() -> None:
    assert [signed(v) for v in (-13.2, 0.1, -0.0042, 0.0, None)] == ["-13.20", "+0.10", "-0.0042", "+0.00", "–"]
    assert with_error(-2.0, 0.065) == "-2.00 ± 0.065" and with_error(1.0, None) == "+1.00"
