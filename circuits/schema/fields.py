"""Roles of fields: how each takes part in an artifact's key. Standard library only."""

from __future__ import annotations

from dataclasses import field
from typing import Any

MISSING = "???"  # OmegaConf's mark of a mandatory value


def _role(role: str, default: Any) -> Any:
    return field(default=default, metadata={"role": role})


def free(default: Any) -> Any:
    """A field that changes no result."""
    return _role("free", default)


def added(default: Any) -> Any:
    """A later option: outside the key while it has its default."""
    return _role("added", default)


def file(default: Any) -> Any:
    """A field whose content (of the file, directory or hub revision it names) enters the key."""
    return _role("file", default)
