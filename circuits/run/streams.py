"""Standard output and errors on any terminal: what its encoding lacks is written in plain letters, never a traceback.

A Latin-1 or ASCII terminal, ``PYTHONIOENCODING``, a file name that is no UTF-8: Python would raise UnicodeEncodeError in the middle
of a line. Standard library only; called before anything is printed.
"""

from __future__ import annotations

import codecs
import os
import sys

ERRORS = "circuits.plain"

#: Our own signs, where an encoding has none for them.
PLAIN = {
    "·": "*", "…": "...", "→": "->", "±": "+/-", "–": "-", "—": "-", "−": "-", "×": "x", "≥": ">=", "≤": "<=", "≠": "!=", "≈": "~",
    "λ": "lambda", "⏎": "\\n", "␍": "\\r", "⇥": "\\t", "‘": "'", "’": "'", "“": '"', "”": '"', "²": "^2", "█": "#", "━": "=",
    "╸": "=", "╺": "-", "Δ": "delta ",
}  # fmt: skip


def prepare() -> None:
    """Let standard output and errors take any text, and keep a notebook's plotting backend out of ours."""
    codecs.register_error(ERRORS, _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ERRORS)
    os.environ["MPLBACKEND"] = "agg"  # figures are files; the caller's may name a module that is not installed here


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(character) or _escaped(character) for character in text), error.end


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name, as Python carries it
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("ascii", "backslashreplace").decode()


def unreadable(words: list[str]) -> str | None:
    """Why a word of a command line cannot be used: its bytes are no text; None where all are."""
    for word in words:
        if any(0xD800 <= ord(character) < 0xE000 for character in word):
            shown = "".join(_escaped(c) if 0xD800 <= ord(c) < 0xE000 else c for c in word)
            encoding = sys.getfilesystemencoding()
            mend = (
                "rename the file"
                if encoding == "utf-8"
                else "set a UTF-8 locale (export LC_ALL=C.UTF-8), or rename the file"
            )
            return f"{shown}: not {encoding.upper()}, so it can stand in no config; {mend}"
    return None
