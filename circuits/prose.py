"""Sentences on a terminal: folded between words, so that no word, number, id or path is cut at its edge. Standard library only.

A command that is to be copied stays on one line, whatever the width; what is no terminal (a file, a pipe) gets lines as they are.
"""

from __future__ import annotations

import re
import shutil
import sys
import unicodedata
from typing import TextIO

from circuits.words import visible

INDENT = "  "  # of what goes on from the line before
COMMAND = r"(?:python (?:launch\.py|-m)|scancel|scontrol|sbatch|wandb sync|iconv|make|hf|export) (?:'[^']*'|[^;'])*"
_UNITS = re.compile(rf"( *)(\b{COMMAND}(?=;|$)|[^ ]+)")


def put(text: str, stream: TextIO | None = None) -> None:
    """Print lines of prose (to standard error, unless another stream is named)."""
    stream = stream or sys.stderr
    width = shutil.get_terminal_size().columns if stream.isatty() else 0
    for line in text.split("\n"):
        print("\n".join(fold(visible(line), width)), file=stream)


def fold(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` columns (0: any), broken at spaces only. A word that fits on no line stays where
    it is; a command begins a line of its own."""
    if width <= 0 or cells(text) <= width:
        return [text]
    lines = [""]
    for gap, unit in _UNITS.findall(text):
        fits = cells(lines[-1]) + len(gap) + cells(unit) <= width
        long = cells(INDENT) + cells(unit) > width and " " not in unit
        if fits or long or not lines[-1].strip():
            lines[-1] += gap + unit
        else:
            lines.append(INDENT + unit)
    return lines


def cells(text: str) -> int:
    """Columns that a text takes: two for each wide letter."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )
