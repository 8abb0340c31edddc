"""Which figures of SAEs are drawn, and how their series are told apart."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
from test_report import Page, sweep, write_sae

from circuits.drawing.style import Looks
from circuits.report import Element, build
from circuits.report.charts import Point, by_layer
from circuits.state import State


def test_one_run_over_a_set_of_layers_has_one_unnamed_series(tmp_path: Path) -> None:
    element = Element(
        0,
        "000",
        ["layer=all"],
        {},
        State.done,
        artifacts=[write_sae(tmp_path / "store", layer, 32) for layer in range(3)],
    )
    report = dataclasses.replace(sweep(tmp_path / "other", layers=1), elements=[element])
    page = Page(build(report, tmp_path))
    assert "trained SAE" in page.text and "untrained SAE (control)" in page.text
    assert "Nothing: every element finished." in page.text


@pytest.mark.parametrize("layers", [(0,), (8, 9), (3, 4, 5), tuple(range(48)), (0, 30)])
@pytest.mark.parametrize("labels", [("trained",), ("sae.k=8", "sae.k=16")])
def test_no_tick_of_layers_or_series_has_two_labels(layers: tuple[int, ...], labels: tuple[str, ...]) -> None:
    points = [Point(layer, label, 0.5, (0.4, 0.6), "") for layer in layers for label in labels]
    sheet, _ = by_layer("name", Looks(labels), points, "explained variance")
    sheet.axes.figure.canvas.draw()
    shown = [tick.get_text() for tick in sheet.axes.get_xticklabels() if tick.get_text()]
    places = [tick.get_position()[0] for tick in sheet.axes.get_xticklabels() if tick.get_text()]
    assert len(set(shown)) == len(shown) == len(set(places)), "no label twice, no two on one tick"
    assert set(shown) <= {*labels, *map(str, layers)} or set(shown) <= {"8", "16"}
    widths = [tick.get_window_extent() for tick in sheet.axes.get_xticklabels() if tick.get_text()]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(widths)), "and none over another"


def test_values_of_one_layer_stand_side_by_side(tmp_path: Path) -> None:
    report = sweep(tmp_path / "store", layers=1, ks=(8, 16, 32))
    svg = (build(report, tmp_path).parent / "figures" / "sae-explained-variance.svg").read_text()
    assert "swept value (layer 0)" in svg and all(f">sae.k={k}<" in svg for k in (8, 16, 32))


def test_values_below_the_axis_are_drawn_at_its_edge_and_said(tmp_path: Path) -> None:
    report = sweep(tmp_path / "store", layers=2, ks=(16,))
    metrics = report.elements[0].artifacts[0].path / "metrics.json"
    values = json.loads(metrics.read_text())
    values |= {
        "explained_variance": -3.2,
        "explained_variance_ci": [-3.5, -3.0],
        "control": {"explained_variance": -7.0},
    }
    metrics.write_text(json.dumps(values))
    page = Page(build(report, tmp_path))
    assert "2 values below -0.1: drawn at the lower edge" in page.text
    assert any("explained variance -3.200 [-3.500, -3.000]" in words for words in page.hover)


def test_what_cannot_vary_is_not_drawn(tmp_path: Path) -> None:
    one = build(sweep(tmp_path / "one", layers=1, ks=(16,)), tmp_path / "a")
    assert {f.stem for f in (one.parent / "figures").iterdir()} == {
        "sae-density",
        "sae-train-explained-variance",
        "sae-train-loss",
    }
    assert "Not drawn over training, because it does not vary: L0 (16.0)." in Page(one).text
    several = sweep(tmp_path / "several", layers=2, ks=(16,))
    for element in several.elements:
        path = element.artifacts[0].path / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dead_fraction": 0.0}))
    figures = {f.stem for f in (build(several, tmp_path / "b").parent / "figures").iterdir()}
    assert {"sae-explained-variance", "sae-ce-score"} <= figures
    assert not figures & {"sae-frontier", "sae-dead-fraction", "sae-train-l0"}


def test_a_single_logged_step_is_no_curve(tmp_path: Path) -> None:
    page = build(sweep(tmp_path / "store", layers=2, ks=(16,), history=1), tmp_path)
    assert not [f for f in (page.parent / "figures").iterdir() if "train" in f.name]
    assert "No training curve of 2 SAEs: one logged step (sae.log_every)." in Page(page).text


def test_many_series_are_named_where_there_is_room(tmp_path: Path) -> None:
    """Of one layer: values under the axis, a panel for each; of several: a legend behind a fold."""
    ks = tuple(range(8, 22))
    path = build(sweep(tmp_path / "one", layers=1, ks=ks, history=5), tmp_path / "a")
    svg = (path.parent / "figures" / "sae-explained-variance.svg").read_text()
    assert all(f">{k}<" in svg for k in ks) and "sae.k (layer 0)" in svg and "sae.k=8" not in svg
    text = Page(path).text
    assert "One panel for each value of sae.k." in text and text.count("Legend: 14 series") == 1  # of the frontier
    page = Page(build(sweep(tmp_path / "two", layers=2, ks=ks[:9], history=5), tmp_path / "b"))
    assert page.source.count('<svg class="mark"') == 9 * page.text.count("Legend: 9 series") > 9
    drawn = (tmp_path / "b" / "figures" / "sae-explained-variance.svg").read_text()
    assert "sae.k=8" not in drawn, "a drawing with nine series names none of them"
