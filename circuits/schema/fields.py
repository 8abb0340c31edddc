"""Roles of fields: how each takes part in an artifact's key, and what a person writes into it. Standard library only.

========  ====================================================================================================================
keyed     the default: it changes the result, so it enters the key
free      it changes no result (logging, checkpoints, devices): never in a key
added     left out of the key while at its default, so that a new option re-keys nothing
file      names a file, a directory or a hub name: its *content* enters the key, not its spelling
from      names what takes the place of something that would be made: a directory, an artifact, a hub name; by content, too
path      names a file that changes no result: never in a key
========  ====================================================================================================================

What names something (``file``, ``from``, ``path``) may be written with spaces and signs on the command line, is taken from the
directory that the command was typed in, and, where its content counts, says by which rule that is read.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from circuits.errors import UserError, suggest

MISSING = "???"  # OmegaConf's mark of a mandatory value
NAMING = ("file", "from", "path")
ROLES = ("free", "added", *NAMING)
Content = Literal["model", "corpus", "records", "splits", "sae", "bytes"]
"""By which rule the content of what is named is read: see ``Contents``."""


def _role(role: str, default: Any, **facts: Any) -> Any:
    return field(default=default, metadata={"role": role, **facts})


def free(default: Any) -> Any:
    """A field that changes no result."""
    return _role("free", default)


def added(default: Any) -> Any:
    """A later option: outside the key while it has its default."""
    return _role("added", default)


def file(default: Any, content: Content, added: bool = False) -> Any:
    """A field whose content (of the file, directory or hub revision it names) enters the key; `added`: a later option, too."""
    return _role("file", default, content=content, added=added)


def taken_from(content: Content) -> Any:
    """The field ``from_`` of a group (``sae.from=…``): what is taken instead of being made. Null where it is made."""
    return _role("from", None, content=content)


def named_file(default: Any) -> Any:
    """A field that names a file which changes no result."""
    return _role("path", default)


@dataclass(frozen=True)
class Named:
    """A field that names something: its dotted name, the section that holds it, its role."""

    key: str
    section: Any
    name: str
    role: str
    content: Content | None

    @property
    def value(self) -> Any:
        """What is written in it."""
        return getattr(self.section, self.name)


def naming(cfg: Any, *roles: str) -> Iterator[Named]:
    """All fields of `cfg` and its sections that have one of these roles (default: those that name something)."""
    for path, role, content in _named(type(cfg)):  # type: ignore[arg-type]
        section = cfg
        for name in path[:-1]:
            section = getattr(section, name)
        if section is not None and role in (roles or NAMING):
            yield Named(".".join(path), section, path[-1], role, content)


@lru_cache
def _named(cls: type) -> tuple[tuple[tuple[str, ...], str, Content | None], ...]:
    """Path, role and content rule of all fields of a dataclass, and of those inside, that have a role.

    Raises:
        UserError: there is no such role.
    """
    found: list[tuple[tuple[str, ...], str, Content | None]] = []
    hints = typing.get_type_hints(cls)
    for one in dataclasses.fields(cls):
        if role := one.metadata.get("role"):
            if role not in ROLES:
                raise UserError(f"{cls.__name__}.{one.name}: no role {role!r}" + suggest(role, ROLES, "roles"))
            found.append(((one.name,), role, one.metadata.get("content")))
        elif dataclasses.is_dataclass(hints[one.name]):
            found += [((one.name, *path), role, content) for path, role, content in _named(hints[one.name])]
    return tuple(found)
