"""A study by stage and layer: counts that add up in every mixture of states, and which layers are in which."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from circuits.launch import stagewise
from circuits.launch.sweep import Sweep
from circuits.state import State


def study(states: list[State]) -> tuple[Sweep, dict[int, dict[str, Any]]]:
    """A stage without layers, and one element a layer from layer 10 on."""
    items: list[dict[str, Any]] = [{"index": 0, "name": "prompts", "stage": "prompts", "layers": []}]
    items += [
        {"index": i + 1, "name": f"saes {i}", "stage": "saes", "layers": [10 + i]} for i in range(len(states) - 1)
    ]
    known = {i: {"state": str(state), "wall_s": 2.0} for i, state in enumerate(states)}
    return Sweep(Path("s"), {"elements": items}), known


def test_counts_add_up_to_all_elements_in_every_mixture_of_states() -> None:
    for states in itertools.product(State, repeat=3):
        rows = stagewise.rows(*study([State.done, *states]))
        assert [row[:2] for row in rows] == [("prompts", "1"), ("saes", "3")]
        assert sum(map(int, re.findall(r"(?:^|  )(\d+) ", rows[1][2]))) == 3, rows


def test_layers_are_named_where_they_fare_differently() -> None:
    rows = stagewise.rows(*study([State.done, *[State.done] * 3, State.failed, State.done, State.running]))
    said = dict(re.findall(r"\d+ (\w+) \(L([\d,-]+)\)", rows[1][2]))
    assert said == {"done": "10-12,14", "failed": "13", "running": "15"}, rows
    alike = stagewise.rows(*study([State.done, *[State.done] * 5]))
    assert alike[1][2] == "5 done", "where all are alike there is nothing to tell apart"
