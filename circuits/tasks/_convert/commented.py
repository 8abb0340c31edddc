"""JSON as people write it: with ``//`` and ``/* */`` comments and a comma after the last item. Standard library only.

Comments and such commas are replaced by as many spaces, so that a line and a column in an error are those of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circuits.errors import UserError

_PARTS = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/|/\*', re.DOTALL)
_LAST_COMMA = re.compile(r'"(?:\\.|[^"\\\n])*"|,(?=\s*[}\]])', re.DOTALL)


def load(path: Path) -> Any:
    """What a file holds.

    Raises:
        UserError: it is no JSON (with line and column), or a name stands twice in one object.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 ({e.reason})") from e
    plain = _LAST_COMMA.sub(lambda found: " " if found[0] == "," else found[0], _without_comments(text, path))
    try:
        return json.loads(plain, object_pairs_hook=lambda pairs: _object(pairs, path))
    except json.JSONDecodeError as e:
        raise UserError(f"{path}, line {e.lineno}, column {e.colno}: not JSON ({e.msg})") from e
    except (RecursionError, ValueError) as e:
        raise UserError(f"{path}: not JSON that can be read ({e})") from e


def _without_comments(text: str, path: Path) -> str:
    def blank(found: re.Match[str]) -> str:
        part = found[0]
        if part.startswith('"'):
            return part
        if part == "/*":
            line = text.count("\n", 0, found.start()) + 1
            column = found.start() - text.rfind("\n", 0, found.start())
            raise UserError(f"{path}, line {line}, column {column}: not JSON (a comment /* without its end)")
        return re.sub(r"[^\n]", " ", part)

    return _PARTS.sub(blank, text)


def _object(pairs: Sequence[tuple[str, Any]], path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise UserError(f"{path}: {name!r} stands twice in one object; which of the two is meant")
        found[name] = value
    return found
