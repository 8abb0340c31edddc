"""Records and pages for others: without secrets, and without the places of this machine.

A path of this machine becomes its last part, or what is inside the checkout, the store or the home directory. In records every
text is looked through; in finished pages, whose marks look like paths, exactly those paths are replaced that the records held.
"""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from circuits.run import private
from circuits.store.places import CODE

_PATH = re.compile(r"(?<![\w./:<~-])/(?:[\w.+@=,%-]+/)+[\w.+@=,%-]*")
_SHORTEST = 2  # parts of a path below which it is a word with a slash


class Public:
    """What of a sweep's texts is replaced: `places` are directories that names may be taken from, `records` hold the paths."""

    def __init__(self, places: Iterable[Path], records: Iterable[Any]) -> None:
        known = {str(place) for one in (*places, CODE, Path.home(), Path(sys.prefix)) for place in (one, one.resolve())}
        self._places = sorted((place for place in known if len(Path(place).parts) > _SHORTEST), key=len, reverse=True)
        found = {path for record in records for text in _texts(record) for path in _paths(text)}
        self._found = sorted(found - set(self._places), key=len, reverse=True)

    def value(self, record: Any) -> Any:
        """A record without secrets and paths."""
        return self._plain(private.public(record))

    def _plain(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self._plain(member) for key, member in value.items()}
        return [self._plain(member) for member in value] if isinstance(value, (list, tuple)) else value

    def text(self, text: str) -> str:
        """A text that holds no marks of its own."""
        if text.startswith("/") and "\n" not in text and Path(text).is_absolute() and len(Path(text).parts) > _SHORTEST:
            return Path(text).name
        return _PATH.sub(lambda found: _last(found[0]), self.page(text))

    def page(self, text: str) -> str:
        """A finished page or table: known paths and secrets go, nothing else changes."""
        for path in self._found:
            text = _replaced(text, path, Path(path).name)
        for place in self._places:
            text = _replaced(text, f"{place}/", "")
            text = _replaced(text, place, Path(place).name)
        return private.hide(text)

    def file(self, path: Path) -> None:
        """Rewrite a file of text where something in it is not for others."""
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return
        if path.suffix == ".json":
            record = json.loads(text)
            kept = self.value(record)
            new = text if kept == record else json.dumps(kept, indent=2) + "\n"
        else:
            new = self.page(text)
        if new != text:
            path.write_text(new, encoding="utf-8")


def _replaced(text: str, path: str, new: str) -> str:
    """`text` with this path replaced, also where it stands escaped."""
    for form in dict.fromkeys((path, html.escape(path), quote(path), json.dumps(path)[1:-1])):
        if form in text:
            end = "" if path.endswith("/") else r"(?![\w.-])"
            text = re.sub(rf"(?<![\w.]){re.escape(form)}{end}", lambda found: new, text)
    return text


def _texts(record: Any) -> Iterable[str]:
    if isinstance(record, str):
        yield record
    elif isinstance(record, Mapping):
        for member in record.values():
            yield from _texts(member)
    elif isinstance(record, (list, tuple)):
        for member in record:
            yield from _texts(member)


def _paths(text: str) -> Iterable[str]:
    """The absolute paths in a text; a text that is one counts whole, with its spaces."""
    if text.startswith("/") and "\n" not in text and len(Path(text).parts) > _SHORTEST:
        yield text
    for found in _PATH.findall(text):
        if len(Path(found).parts) > _SHORTEST:
            yield found


def _last(path: str) -> str:
    return Path(path).name if len(Path(path).parts) > _SHORTEST else path
