"""Numbers as a person reads them: few digits, units, true minus signs left to the figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from circuits.words import ABSENT, decimal, half_width, number, plus_minus, size, visible, whole
from circuits.words import duration as seconds

__all__ = [
    "ABSENT", "counts", "decimal", "half_width", "listed", "number", "percent", "plural", "plus_minus", "ranges", "seconds",
    "short", "size", "span", "visible", "whole",
]  # fmt: skip


def short(value: float | None) -> str:
    """Four significant digits, thousands separated: ``0.01234``, ``3.142``, ``12,300``, ``2.1e-07``."""
    if value is None:
        return ABSENT
    if not math.isfinite(value) or value == 0 or not 1e-4 <= abs(value) < 1e9:
        return f"{value:.4g}"
    places = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return ABSENT if value is None else f"{100 * value:.1f}%"


def span(values: Sequence[float], digits: int = 3) -> str:
    """``0.812–0.951``, or one number when they are all the same as shown."""
    low, high = decimal(min(values), digits), decimal(max(values), digits)
    return low if low == high else f"{low} to {high}" if min(values) < 0 else f"{low}–{high}"


def counts(values: Sequence[float]) -> str:
    """``16,384`` or ``12,000–16,384``."""
    low, high = whole(min(values)), whole(max(values))
    return low if low == high else f"{low}–{high}"


def plural(n: int, noun: str) -> str:
    """``1 SAE``, ``4 SAEs``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def ranges(numbers: Iterable[int]) -> str:
    """``0–3, 7, 9–10``."""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def listed(names: Sequence[str], at_most: int = 2, noun: str = "artifact") -> str:
    """Names joined, or how many there are when they are too many to read."""
    return ", ".join(names) if len(names) <= at_most else f"{len(names)} {noun}s, named in the table and in the CSV"
