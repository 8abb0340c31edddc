"""Tables and lines on a terminal of any width, and in a file.

Nothing that is printed is read as markup: an id such as ``[/x]`` or a list such as ``[topk,relu]`` is shown as it is. Numbers,
layers and ids are never cut: columns of text give way to them, and where that is not enough a line is longer than the terminal.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from circuits.prose import fold
from circuits.words import visible

PIPED = 240  # columns of what is no terminal: a file, a pipe
GAP = 2  # between columns
INDENT = "  "  # of columns that stand below the others
NARROW = 12  # the least that a column of text is folded to
LONGEST = 60  # a text column is not wider than this in a file


class Terminal(Console):
    """A console without markup, emoji codes or highlighting."""

    def on_broken_pipe(self) -> None:
        """``launch.py … | head``: nobody reads any more; the sweep goes on in silence."""
        self.quiet = True

    @property
    def alive(self) -> bool:
        """Whether what was printed can be drawn over: a true terminal, and no dumb one (``TERM=dumb``, an editor's shell)."""
        return self.is_terminal and not self.is_dumb_terminal and self.file.isatty()

    def tell(self, text: str) -> None:
        """One line, or several; on a terminal folded between words, elsewhere as they are."""
        for line in text.split("\n"):
            for part in fold(visible(line), self.width if self.is_terminal else 0):
                self.print(Text(part), soft_wrap=True)

    def table(self, rows: Rows) -> None:
        """A table, as wide as this terminal."""
        for line in rows.lines(self.width):
            self.print(line, soft_wrap=True)


def console() -> Terminal:
    """Standard output; what is piped or logged is never cut to a terminal's width."""
    given = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}
    plain = Terminal(**given)  # type: ignore[arg-type]
    return plain if plain.is_terminal and plain.width > 1 else Terminal(**given, width=PIPED)  # type: ignore[arg-type]


def relative(path: Path) -> str:
    """`path` as it can be pasted here: relative when that is shorter."""
    try:
        inside = os.path.relpath(path)
    except (ValueError, OSError):  # another drive; a working directory that is gone
        return str(path)
    return inside if len(inside) < len(str(path)) else str(path)


@dataclass
class Rows:
    """A table in the making. Columns named in `texts` give way: they are folded, then (`spare`) left out, when room is short."""

    headings: Sequence[str]
    texts: Sequence[int] = ()
    """Numbers of the columns that are folded where they do not fit."""
    spare: Sequence[int] = ()
    """Numbers of the columns without which the table is still whole, the least needed first."""
    rows: list[list[Text]] = field(default_factory=list)

    def add(self, *cells: str | Text) -> None:
        """A row; line ends, tabs and other control characters are shown as signs."""
        self.rows.append([Text(visible(cell)) if isinstance(cell, str) else cell for cell in cells])

    def lines(self, width: int) -> list[Text]:
        """The table for a terminal of `width` columns, without spaces at the ends of lines."""
        kept = [i for i in range(len(self.headings)) if self._width(i)]
        for spare in self.spare:
            if self._needed(kept) > width and spare in kept:
                kept.remove(spare)
        widths = {i: self._width(i) for i in kept} | self._widths(kept, width)
        headings = [Text(heading) for heading in self.headings]
        rows = [headings, *self.rows] if any(self.headings) else self.rows
        bands = _bands(kept, widths, width)
        return [
            line
            for row in rows
            for band in bands
            if band[0] == kept[0] or any(row[i].plain for i in band)
            for line in _folded([(row[i], widths[i]) for i in band], band[0] != kept[0])
        ]

    def _width(self, i: int) -> int:
        return max([cell_len(self.headings[i]), *(row[i].cell_len for row in self.rows)])

    def _needed(self, columns: Iterable[int]) -> int:
        """The width without which something would be cut: text columns at their narrowest."""
        return sum((min(self._width(i), NARROW) if i in self.texts else self._width(i)) + GAP for i in columns) - GAP

    def _widths(self, columns: Sequence[int], width: int) -> dict[int, int]:
        """Widths of the columns of text: what they need where there is room, else an equal share of what there is."""
        wanted = {i: self._width(i) for i in columns if i in self.texts}
        room = width - sum(self._width(i) for i in columns if i not in self.texts) - GAP * (len(columns) - 1)
        found: dict[int, int] = {}
        for number, i in enumerate(sorted(wanted, key=lambda i: wanted[i])):
            share = max(NARROW, (room - sum(found.values())) // (len(wanted) - number))
            found[i] = min(wanted[i], share)
        return found


def _bands(columns: Sequence[int], widths: Mapping[int, int], width: int) -> list[list[int]]:
    """The columns in groups that fit: what does not go beside the others goes below them, whole."""
    bands: list[list[int]] = [[]]
    for i in columns:
        if (
            bands[-1]
            and (len(INDENT) if len(bands) > 1 else 0) + sum(widths[j] + GAP for j in bands[-1]) + widths[i] > width
        ):
            bands.append([])
        bands[-1].append(i)
    return bands


def _folded(cells: Sequence[tuple[Text, int]], below: bool) -> list[Text]:
    """A row as lines: every cell folded to its width, between words where that can be."""
    parts = [cell.wrap(_WRAPPER, width, overflow="fold") if cell.cell_len > width else [cell] for cell, width in cells]
    lines = []
    for number in range(max(map(len, parts))):
        line = Text(INDENT if below else "")
        for (_, width), part in zip(cells, parts, strict=True):
            mine = part[number] if number < len(part) else Text()
            line += mine + Text(" " * (width - mine.cell_len + GAP))
        line.rstrip()
        lines.append(line)
    return lines


_WRAPPER = Console(markup=False)  # rich asks for one and takes nothing of it
