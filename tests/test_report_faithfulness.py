"""The section of faithfulness: what is drawn and said of judged circuits, from artifacts made by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_report import HOSTILE, Page

from circuits.report import ArtifactRef, Element, ReportInput, build
from circuits.report.sections.faithfulness_records import plain, share
from circuits.state import State

SHARES = [0.001, 0.01, 0.1, 0.5, 1.0]
TESTS = {
    "equivalence": {
        "share_better": 0.3125, "p_sign": 0.21, "difference": -0.99, "bound": 1.01, "p_equivalence": 0.47, "detectable": 0.86,
    },
    "independence": {"hsic": 0.0089, "p": 0.607},
    "minimality": {"needed": 2, "tested": 4, "smallest_p": 1 / 21, "circuit_edges": 50},
}  # fmt: skip


def judged(
    root: Path, method: str = "eap", ablation: str = "zero", *, cmd: float | None = 0.016, shares: list[float] = SHARES,
    random: int = 2, prompts: int = 8, config: dict[str, Any] | None = None, swept: dict[str, str] | None = None, **metrics: Any,
) -> Element:  # fmt: skip
    """An element whose artifact judges a circuit of a thousand edges."""
    rng = np.random.default_rng(0)
    f = [1 - (1 - math.sqrt(k)) * (cmd or 0.1) * 20 for k in shares]
    rows: list[dict[str, Any]] = []

    def add(circuit: str, k: float, number: int, value: float) -> None:
        size = {"chosen": 50, "complement": 950}.get(circuit, max(1, round(1000 * k)))
        rows.append({"circuit": circuit, "number": number, "share": k, "edges": size, "metric": 10 * value - 5, "f": value,
                     "low": value - 0.05, "high": value + 0.05})  # fmt: skip

    for k, value in zip(shares, f, strict=True):
        add("circuit", k, 0, value)
        for i in range(random if k < 1 else 0):
            add("random", k, i, 0.1 * k + 0.01 * i)
            add("random by reader", k, i, 0.3 * k + 0.01 * i)
    add("chosen", 0.05, 0, 0.902)
    add("complement", 0.0, 0, -0.0003)
    add("without", 0.0, 7, 0.5)
    curve = pd.DataFrame(rows)
    samples = [f"ioi-{i}" for i in range(prompts)]
    kept = curve[curve["circuit"] != "without"]
    alone = [
        {"circuit": row["circuit"], "share": row["share"], "number": row["number"], "sample": sample, "metric": row["metric"] + x}
        for row in kept.to_dict("records")
        for sample, x in zip(samples, rng.normal(0, 1, prompts), strict=True)
    ]  # fmt: skip
    edges = pd.DataFrame(
        {
            "edge": ["a0.h1->m0", "m0->logits", "input->a0.g1<k>", "m1->logits", "a0.h0->m1", "input->m1"],
            "in_circuit": [True, True, True, True, False, False],
            "change": [-7.8, 1.5, -0.002, 0.0, 0.01, -0.3], "p": [0.05, 0.05, 0.9, 1.0, np.nan, np.nan],
            "q": [0.04, 0.04, 0.95, 1.0, np.nan, np.nan],
        }
    )  # fmt: skip
    key = f"{abs(hash((method, ablation, cmd, len(shares), len(metrics)))):012x}"[:12]
    label = f"faithfulness/ioi-tiny-{method}-{ablation}-{key}"
    path = root / label
    path.mkdir(parents=True)
    curve.to_parquet(path / "curve.parquet")
    pd.DataFrame(alone).to_parquet(path / "alone.parquet")
    edges.to_parquet(path / "minimality.parquet")
    given = {
        "n": prompts, "ablation": ablation, "rank": "top_n", "edges": 1000, "model": 4.69, "empty": -5.38, "shares": shares, "f": f,
        "chosen_edges": 50, "chosen_share": 0.05, "faithfulness": 0.902, "faithfulness_ci": [0.852, 0.955], "completeness": 1.0003,
        "share_85": 0.01, "constant_share": 0.0, **TESTS,
    }  # fmt: skip
    if cmd is not None:
        given |= {
            "cmd": cmd,
            "cmd_ci": [cmd - 0.004, cmd + 0.011],
            "cpr": 0.986,
            "random_cmd": 0.68,
            "random_by_reader_cmd": 0.468,
        }
    (path / "metrics.json").write_text(json.dumps(given | metrics))
    (path / "manifest.json").write_text(json.dumps({"key": key, "kind": "faithfulness", "version": 1}))
    ref = ArtifactRef("faithfulness", key, path, None, label)
    return Element(
        0, "000", [], swept or {}, State.done, artifacts=[ref], config=config or {"attribution": {"method": method}}
    )


def page(out: Path, *elements: Element) -> Page:
    """The page of these elements."""
    numbered = [dataclasses.replace(e, index=i, name=f"{i:03d}") for i, e in enumerate(elements)]
    return Page(build(ReportInput("study", "Alone?", "study-1", "launch.py", "launch.py", numbered, "2026-11-20"), out))


def test_the_first_screen_says_what_was_found(tmp_path: Path) -> None:
    found = page(tmp_path, judged(tmp_path / "store"))
    assert (
        "ioi-tiny-eap-zero: the circuit of 50 of 1,000 edges (5%) alone keeps f = 0.902 (95% interval 0.852 to 0.955) of what the "
        "model does over no edge at all (+4.69 against -5.38 logits; n = 8 prompts that it was not chosen on)."
    ) in found.text
    assert (
        "CMD 0.016 (0.012 to 0.027), random circuits 0.680, random ones with each reader's number of edges 0.468"
        in found.text
    )
    assert "; CPR 0.986. f first reaches .85 at 1% of the edges." in found.text
    assert (
        "Completeness 1.000: all edges but the circuit's keep f = 0.000; 2 of the 4 edges tested (of 50 in the circuit)"
        in found.text
    )
    assert "Measurements by CMD" not in found.text, "of one measurement there is nothing to rank"
    drawn = {
        f"faithfulness-0-{name}.{ending}" for name in ("curve", "prompts", "edges") for ending in ("svg", "png", "csv")
    }
    assert {path.name for path in (tmp_path / "figures").iterdir()} == drawn


def test_the_curve_stands_between_random_circuits(tmp_path: Path) -> None:
    found = page(tmp_path, judged(tmp_path / "store"))
    table = pd.read_csv(tmp_path / "figures" / "faithfulness-0-curve.csv")
    assert set(table["circuit"]) == {"circuit", "random", "random by reader", "chosen", "complement"}
    assert any(told.startswith("the chosen circuit: 5%, 50 edges: f 0.902") for told in found.hover)
    assert "random circuits, 10% (100 edges): mean f 0.015, 0.010 to 0.020 of 2" in found.hover
    svg = (tmp_path / "figures" / "faithfulness-0-curve.svg").read_text()
    assert "0.1%" in svg and "100%" in svg and "random, each reader with as many edges" in svg
    assert "2 random circuits of each size" in found.text and "carries nothing (zero ablation)" in found.text


def test_what_each_p_means_is_said(tmp_path: Path) -> None:
    table = page(tmp_path, judged(tmp_path / "store")).text.partition("Tests of the circuit")[2]
    assert "better on 31.2% 0.210 no sign of a difference" in table
    assert "-0.99 logits 0.470 not shown to lie within ±1.01 logits" in table
    assert "HSIC 0.0089 0.607 no sign that what is left knows the model's answers" in table
    sure = {
        "equivalence": {**TESTS["equivalence"], "share_better": 0.0, "p_sign": 1e-6, "p_equivalence": 0.01},
        "independence": {"hsic": 0.2, "p": 0.0005},
        "minimality": {"needed": 0, "tested": 4, "smallest_p": 0.09, "circuit_edges": 4},
    }  # fmt: skip
    text = page(tmp_path / "b", judged(tmp_path / "other", **sure)).text
    assert "it is worse than the model on most prompts" in text and "shown to be as good as the model, within" in text
    assert "what is left still says something" in text and "no p falls below 0.090 with so few" in text


def test_measurements_are_ranked_by_their_cmd(tmp_path: Path) -> None:
    given = {"eap": 0.03, "relp": 0.01, "gim": None}
    every = [judged(tmp_path / "store", m, cmd=c, swept={"attribution.method": m}) for m, c in given.items()]
    found = page(tmp_path, *every)
    assert "Of 3 measurements, ioi-tiny-relp-zero has the smallest CMD (0.010; the largest is 0.030)." in found.text
    table = found.text.partition("Measurements by CMD")[2]
    assert table.index(
        "relp zero top_n 0.010 ± 0.011 0.680 0.986 0.902 ± 0.053 50 of 1,000 1.00 1% 0.468 8"
    ) < table.index("eap zero")
    assert table.index("eap zero") < table.index("gim zero top_n – – – 0.902")
    data = pd.read_csv(tmp_path / "figures" / "faithfulness-all.csv")
    assert set(data["measurement"]) == {f"ioi-tiny-{m}-zero" for m in given} and len(data) == 3 * len(SHARES)
    assert len(found.ids) == len(set(found.ids))


def test_prompts_and_edges(tmp_path: Path) -> None:
    found = page(tmp_path, judged(tmp_path / "store"))
    prompts = pd.read_csv(tmp_path / "figures" / "faithfulness-0-prompts.csv")
    assert list(prompts.columns) == ["sample", "model", "chosen", "complement"] and len(prompts) == 8
    assert any(told.startswith("ioi-0: model ") and "the circuit alone " in told for told in found.hover)
    assert "a0.h1->m0 taken out: -7.80 logits, p 0.050, q 0.040" in found.hover
    assert "input->m1 added: -0.30 logits" in found.hover
    table = found.text.partition("Least needed edges")[2]
    rows = (
        "m1->logits +0.00 1.000 1.000 not shown",
        "input->a0.g1<k> -0.002 0.900 0.950 not shown",
        "a0.h1->m0 -7.80 0.050 0.040 yes",
    )
    assert [table.index(row) for row in rows] == sorted(table.index(row) for row in rows)


def test_one_size_without_random_circuits_or_single_edges(tmp_path: Path) -> None:
    element = judged(tmp_path / "store", cmd=None, shares=[0.05], random=0, minimality=None, share_85=None)
    (element.artifacts[0].path / "minimality.parquet").unlink()
    found = page(tmp_path, element)
    assert "f does not reach .85 at any share that was tried (up to 5%)." in found.text and "CMD" not in found.text
    assert "No random circuit was run beside it." in found.text and "no circuit of all edges was run" in found.text
    assert "What failed Nothing" in found.text and "nan" not in " ".join(found.hover)


def test_a_circuit_of_somebody_else_in_nats(tmp_path: Path) -> None:
    config = {"attribution": {"method": "eap", "metric": "full_target"}, "faithfulness": {"circuit": "/there/mib.json"}}
    found = page(tmp_path, judged(tmp_path / "store", "mib", config=config), judged(tmp_path / "store", config=config))
    assert "nats; n = 8 prompts)." in found.text and "not chosen on" not in found.text
    assert "log-probability difference" in (tmp_path / "figures" / "faithfulness-0-prompts.svg").read_text()
    assert "mib zero top_n" in found.text


def test_far_values_are_said(tmp_path: Path) -> None:
    element = judged(tmp_path / "store")
    path = element.artifacts[0].path / "curve.parquet"
    curve = pd.read_parquet(path)
    curve.loc[0, ["f", "low", "high"]] = [-40.0, -60.0, math.nan]
    curve.to_parquet(path)
    found = page(tmp_path, element)
    assert "1 value beyond the axis, in the CSV." in found.text and "nan" not in " ".join(found.hover)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    element = judged(tmp_path / "store")
    path = element.artifacts[0].path
    (path / "alone.parquet").unlink()
    (path / "minimality.parquet").write_text("no parquet")
    text = page(tmp_path / "a", element).text
    assert (
        "alone.parquet is missing" in text
        and "minimality.parquet is damaged" in text
        and "Faithfulness over shares" in text
    )
    (path / "curve.parquet").unlink()
    text = page(tmp_path / "b", element).text
    assert "curve.parquet is missing" in text and "No judgement of a circuit could be read." in text


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    element = judged(tmp_path / "store", swept={"faithfulness.circuit": HOSTILE}, ablation="zero")
    path = element.artifacts[0].path / "minimality.parquet"
    edges = pd.read_parquet(path)
    edges.loc[0, "edge"] = f"{HOSTILE}\x00"
    edges.to_parquet(path)
    found = page(tmp_path, element)
    assert HOSTILE not in found.source and HOSTILE in found.text and found.tags.count("script") == 1


def test_shares_and_zeros() -> None:
    assert [share(x) for x in (0.001, 0.05, 0.04956, 1.0, None)] == ["0.1%", "5%", "4.96%", "100%", "–"]
    assert [plain(x) for x in (-0.0003, 0.9021, None)] == ["0.000", "0.902", "–"]
