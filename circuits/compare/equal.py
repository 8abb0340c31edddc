"""Whether two artifacts were measured on equal terms: as sparse, on as many rows, on the same prompts. Where not, the difference
of another metric says little of what was changed, and whatever shows it has to say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.files import read_json


@dataclass(frozen=True)
class Term:
    """A number that has to be alike before others are compared: within `share` of the larger one."""

    metric: str
    heading: str
    phrase: str
    format: str = ",.0f"
    share: float = 0.0


TERMS = (
    Term("l0", "L0", "at another L0", ".1f", 0.05),
    Term("n_rows", "held-out rows", "on other rows"),
    Term("n_sequences", "held-out sequences", "on other rows"),
    Term("samples", "samples", "on other rows"),
    Term("n", "prompts", "on other prompts"),
    Term("n_prompts", "prompts", "on other prompts"),
)


@dataclass(frozen=True)
class Unequal:
    """One term that differs between two artifacts; the values are None where there is no number to it."""

    heading: str
    phrase: str
    a: str | None = None
    b: str | None = None


def unequal(a: Mapping[str, Any], b: Mapping[str, Any], first: Path, second: Path) -> tuple[Unequal, ...]:
    """The terms that differ between artifacts with these metrics, in these directories."""
    found = []
    for term in TERMS:
        x, y = _number(a.get(term.metric)), _number(b.get(term.metric))
        if x is not None and y is not None and abs(x - y) > term.share * max(abs(x), abs(y)):
            found.append(Unequal(term.heading, term.phrase, format(x, term.format), format(y, term.format)))
    mine, its = (manifest(place).get("inputs", {}).get("prompts", {}).get("key") for place in (first, second))
    if mine and its and mine != its:
        found.append(Unequal("prompts", "on other prompts"))
    return tuple(found)


def manifest(artifact: Path) -> dict[str, Any]:
    """An artifact's manifest; empty where it is gone."""
    path = artifact / "manifest.json"
    return read_json(path) if path.exists() else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
