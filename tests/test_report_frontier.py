"""The frontier of several architectures in a sweep's page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
from test_report import sweep

from circuits.report import build


def test_architectures_make_a_frontier_of_one_colour_each(tmp_path: Path) -> None:
    """Also when every SAE is a series of its own, by architecture and sparsity."""
    report = sweep(tmp_path, layers=1, ks=(8, 16, 32, 64))
    for element in report.elements:
        (ref,) = element.artifacts
        metrics = json.loads((ref.path / "metrics.json").read_text())
        metrics["architecture"] = "jumprelu" if metrics["l0"] < 20 else "topk"
        (ref.path / "metrics.json").write_text(json.dumps(metrics))
    page = build(report, tmp_path / "page").read_text()
    assert "One colour per architecture" in page
    svg = (tmp_path / "page" / "figures" / "sae-frontier.svg").read_text()
    assert all(name in svg for name in ("jumprelu", "topk")) and "sae.k=8" not in svg.split("<title")[0]
    data = pd.read_csv(tmp_path / "page" / "figures" / "sae-frontier.csv")
    assert set(data["architecture"]) == {"jumprelu", "topk"} and len(data) == 4


def test_frozen_baselines_stand_beside_and_what_gained_nothing_is_said(tmp_path: Path) -> None:
    report = sweep(tmp_path, layers=2, ks=(8,))
    for n, element in enumerate(report.elements):
        (ref,) = element.artifacts
        metrics = json.loads((ref.path / "metrics.json").read_text())
        reached = metrics["explained_variance"] + (0.01 if n == 0 else -0.3)
        metrics["baselines"] = {
            "frozen_decoder": {"explained_variance": reached},
            "frozen_encoder": {"explained_variance": 0.1},
        }
        (ref.path / "metrics.json").write_text(json.dumps(metrics))
    page = build(report, tmp_path / "page").read_text()
    assert "Frozen baselines: frozen decoder" in page and "frozen encoder 0.100" in page
    told = re.search(r"Training gained nothing[^<.]*\.", page)
    assert told and "in 1 of 2 SAEs (layer 0" in told[0], told
