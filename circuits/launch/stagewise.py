"""How a pipeline fares by stage: counts that add up to all elements, what each stage waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from circuits.launch.sweep import Sweep
from circuits.state import State, counts, state_of
from circuits.store.layers import ranges
from circuits.words import duration

FEW = 40  # elements of which each gets a line

Facts = Mapping[int, Mapping[str, Any]]


def members(sweep: Sweep) -> dict[str, list[int]]:
    """The elements' numbers by stage, in the pipeline's order; one nameless stage of any other sweep."""
    found: dict[str, list[int]] = {}
    for item in sweep.record["elements"]:
        found.setdefault(item.get("stage", ""), []).append(item["index"])
    return found


def rows(sweep: Sweep, known: Facts) -> list[tuple[str, str, str, str]]:
    """For each stage: its name, how many elements, how they fare (of a sweep over layers which), the time that those took which
    have ended."""
    found = []
    layers = {item["index"]: tuple(item.get("layers") or ()) for item in sweep.record["elements"]}
    for stage, indices in members(sweep).items():
        states = [state_of(known[index]) for index in indices]
        told = counts(states)
        over_layers = len(told) > 1 and len({layers[index] for index in indices}) > 1
        counted = "  ".join(
            f"{count} {state}" + (_where(state, indices, states, layers) if over_layers else "")
            for state, count in told.items()
        )
        wall = sum(known[index].get("wall_s") or 0.0 for index in indices if state_of(known[index]) is not State.cached)
        found.append((stage, str(len(indices)), counted, duration(wall) if wall else ""))
    return found


def _where(state: State, indices: Sequence[int], states: Sequence[State], layers: Mapping[int, tuple[int, ...]]) -> str:
    """``(L10-12,17)``."""
    mine = {layer for index, one in zip(indices, states, strict=True) if one is state for layer in layers[index]}
    return f" (L{ranges(sorted(mine))})" if mine else ""


def telling(sweep: Sweep, known: Facts) -> list[dict[str, Any]]:
    """The elements that are worth a line each: all of few; of many those that run or did not end well."""
    items: list[dict[str, Any]] = sweep.record["elements"]
    if len(items) <= FEW:
        return items
    loud = [item for item in items if _loud(state_of(known[item["index"]]))]
    return loud[:FEW]


def _loud(state: State) -> bool:
    return state in (State.running, State.starting, State.gate) or (state.badly and state is not State.cancelled)


def lines(sweep: Sweep, known: Facts) -> list[str]:
    """The same as text, one line a stage."""
    table = rows(sweep, known)
    width = max((len(row[0]) for row in table), default=0)
    return [
        f"{name:<{width}}  {count:>4}  {counted}{f'  {wall}' if wall else ''}" for name, count, counted, wall in table
    ]
