"""The parts a report is made of: looks, paging, labels, numbers as text, what is shared and what differs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from circuits.drawing.style import Looks, natural
from circuits.report import saved
from circuits.report.charts import PANELS, pages
from circuits.report.provenance import flatten, shared_and_differing
from circuits.report.sections.sae_figures import _apart
from circuits.report.types import ArtifactRef
from circuits.report.words import plus_minus, ranges, seconds, short, span


def test_legend_order_is_natural_and_looks_differ() -> None:
    looks = Looks([f"sae.k={k}" for k in (8, 128, 16, 1024, 9)])
    assert looks.series == ("sae.k=8", "sae.k=9", "sae.k=16", "sae.k=128", "sae.k=1024")
    many = Looks([f"x={i}" for i in range(28)])
    assert len({(str(look.dash), look.color) for look in map(many.__getitem__, many.series)}) == 28
    assert not many.repeats and Looks([f"x={i}" for i in range(29)]).repeats
    assert sorted(["1e-3", "0.01", "relu", "1e-4"], key=natural) == ["1e-4", "1e-3", "0.01", "relu"]


def test_layers_are_split_evenly() -> None:
    assert [len(part) for part in pages(range(34))] == [17, 17]
    assert [len(part) for part in pages(range(PANELS))] == [PANELS]
    assert [layer for part in pages([5, 3, 3, 40]) for layer in part] == [5, 3, 40]


def test_labels_move_apart_as_little_as_possible() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 20):
        values, gap = np.sort(rng.normal(0, 10, n)), 7.5
        lowered = values - gap * np.arange(n)
        # The textbook formula of isotonic regression: max over starts of min over ends of the mean between them.
        slow = [
            max(min(lowered[j : k + 1].mean() for k in range(i, n)) for j in range(i + 1)) for i in range(n)
        ] + gap * np.arange(n)
        assert _apart(values, gap) == pytest.approx(slow)
        assert (np.diff(_apart(values, gap)) >= gap - 1e-9).all()


def test_numbers_are_written_for_people() -> None:
    assert plus_minus(0.942, (0.941, 0.9432)) == "0.942 ± 0.001"
    assert plus_minus(0.942, (0.94195, 0.94205)) == "0.9420 ± 0.0001"
    assert plus_minus(0.942, None) == "0.942" and plus_minus(None, None) == "–"
    assert ranges([0, 1, 2, 3, 7, 9, 10]) == "0–3, 7, 9–10"
    assert span([0.1, 0.25]) == "0.100–0.250" and span([-0.1, 0.2]) == "-0.100 to 0.200" and span([0.5]) == "0.500"
    assert [seconds(x) for x in (0.42, 41.3, 200, 7500)] == ["0.4 s", "41 s", "3 min 20 s", "2 h 05 min"]
    assert [short(x) for x in (0, 0.012345, 3.14159, 12300, 2.1e-7)] == ["0", "0.01235", "3.142", "12,300", "2.1e-07"]


def test_what_is_shared_is_separated_from_what_differs() -> None:
    records = [flatten({"a": {"b": 1, "c": {}}, "x": i, "t": "é" * 400}) for i in range(2)]
    shared, differing = shared_and_differing([*records[:1], {k: v for k, v in records[1].items() if k != "a.c"}])
    assert shared == {"a.b": "1", "t": "é" * 300 + "… (100 more characters)"}
    assert differing == ["a.c", "x"]


def test_report_room_is_light() -> None:
    heavy = ("torch", "hydra", "omegaconf", "matplotlib.pyplot")
    code = f"import sys, circuits.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_table_that_cannot_be_read_is_a_line_without_a_path_of_this_machine(tmp_path: Path) -> None:
    ref = ArtifactRef("sae", "0123456789ab", tmp_path, 1, "sae/tiny-L1-topk-0123456789ab")
    (tmp_path / "damaged.parquet").write_bytes(b"no table")
    problems: list[str] = []
    assert [saved.whole_table(ref, f"{name}.parquet", problems) for name in ("missing", "damaged")] == [None, None]
    assert problems[0] == f"{ref.label}: missing.parquet is missing"
    assert problems[1].startswith(f"{ref.label}: damaged.parquet is damaged (") and not any(
        str(tmp_path) in p for p in problems
    )
