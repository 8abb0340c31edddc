"""Numbers as a person reads them: few digits, units, true minus signs left to the figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

ABSENT = "–"


def decimal(value: float | None, digits: int = 3) -> str:
    """A fixed number of decimals; ``–`` when there is no value."""
    if value is None:
        return ABSENT
    return f"{value:.{digits}f}" if math.isfinite(value) else str(value)


def short(value: float | None) -> str:
    """Four significant digits, thousands separated: ``0.01234``, ``3.142``, ``12,300``, ``2.1e-07``."""
    if value is None:
        return ABSENT
    if not math.isfinite(value) or value == 0 or not 1e-4 <= abs(value) < 1e9:
        return f"{value:.4g}"
    places = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def whole(value: float | None) -> str:
    """A count with separated thousands."""
    return ABSENT if value is None else f"{round(value):,}"


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return ABSENT if value is None else f"{100 * value:.1f}%"


def half_width(value: float, interval: tuple[float, float]) -> float:
    """The larger arm of an interval, which is what ``±`` states."""
    return max(interval[1] - value, value - interval[0], 0.0)


def plus_minus(value: float | None, interval: tuple[float, float] | None, digits: int = 3) -> str:
    """``0.942 ± 0.001``; one more decimal where the arm would be rounded to nothing."""
    if value is None or interval is None:
        return decimal(value, digits)
    arm = half_width(value, interval)
    while 0 < arm < 0.5 * 10**-digits and digits < 5:
        digits += 1
    return f"{value:.{digits}f} ± {arm:.{digits}f}"


def span(values: Sequence[float], digits: int = 3) -> str:
    """``0.812–0.951``, or one number when they are all the same as shown."""
    low, high = decimal(min(values), digits), decimal(max(values), digits)
    return low if low == high else f"{low} to {high}" if min(values) < 0 else f"{low}–{high}"


def counts(values: Sequence[float]) -> str:
    """``16,384`` or ``12,000–16,384``."""
    low, high = whole(min(values)), whole(max(values))
    return low if low == high else f"{low}–{high}"


def seconds(value: float | None) -> str:
    """``41 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if value is None:
        return ABSENT
    if value < 10:
        return f"{value:.1f} s"
    total = round(value)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


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


def listed(names: Sequence[str], at_most: int = 2) -> str:
    """Names joined, or how many there are when they are too many to read."""
    return ", ".join(names) if len(names) <= at_most else f"{len(names)} artifacts, named in the table and in the CSV"
