"""One look for every figure: colours safe for colour blindness, and the same colour for the same thing everywhere.

Palette: Okabe & Ito, "Color Universal Design" (2008), without its yellow, which is too faint for lines on white. A
series is told apart by marker and dash as well, never by colour alone. Every colour used has a CSS name, so that a
figure inside the page follows the page's light or dark scheme while the figure as a file keeps its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

INK, MUTED, GRID, PAPER = "#1f2430", "#626b7a", "#dfe3ea", "#ffffff"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#0a0a0a")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (5, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

CSS_NAMES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    color: f"--s{i}" for i, color in enumerate(SERIES)
}

RC: Any = {  # matplotlib types its keys one by one
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 8,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "figure.facecolor": PAPER,
    "lines.linewidth": 1.3,
    "lines.solid_capstyle": "round",
    "path.simplify": False,
}


@dataclass(frozen=True)
class Look:
    """How one series is drawn."""

    color: str
    dash: Any
    marker: str


class Looks:
    """The look of every series of a report, given out once in natural order (k=8 before k=16)."""

    def __init__(self, series: Iterable[str]) -> None:
        self.series = tuple(sorted(set(series), key=natural))
        self._index = {label: i for i, label in enumerate(self.series)}

    def __getitem__(self, label: str) -> Look:
        i = self._index[label]
        n = len(SERIES)
        # After one round of colours the dash changes, and the marker moves on by one: 28 looks before one repeats.
        return Look(SERIES[i % n], DASHES[i // n % len(DASHES)], MARKERS[(i + i // n) % len(MARKERS)])

    def rank(self, label: str) -> int:
        """Where the series stands in legends and tables."""
        return self._index[label]

    @property
    def repeats(self) -> bool:
        """Whether two series share a look, which a caption then has to say."""
        return len(self.series) > len(SERIES) * len(DASHES)


def natural(text: str) -> tuple[tuple[int, float, str], ...]:
    """A sort key under which numbers inside a text count as numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return tuple((0, float(part), "") if i % 2 else (1, 0.0, part) for i, part in enumerate(parts) if part)
