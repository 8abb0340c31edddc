"""The config as a task sees it: nothing outside an artifact's key can change the artifact."""

from __future__ import annotations

from typing import Any

from circuits.errors import UserError
from circuits.schema import BaseConfig
from circuits.store.kinds import Kind


class Scope:
    """The sections that a kind declares; reading another one is an error."""

    def __init__(self, cfg: BaseConfig, kind: Kind) -> None:
        self._cfg, self._kind = cfg, kind

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        declared = {section.split(".")[0] for section in self._kind.sections}
        if name not in declared:
            raise UserError(
                f"kind {self._kind.name} reads config section {name!r} without declaring it; declared: {' '.join(sorted(declared))}"
            )
        value = getattr(self._cfg, name)
        inner = [section.split(".", 1)[1] for section in self._kind.sections if section.startswith(f"{name}.")]
        if inner and name not in self._kind.sections:
            return _Part(value, inner, self._kind.name)
        return value


class _Part:
    """A section of which only some members were declared."""

    def __init__(self, value: Any, names: list[str], kind: str) -> None:
        self._value, self._names, self._kind = value, names, kind

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._names:
            raise UserError(f"kind {self._kind} reads {name!r} without declaring it; declared: {' '.join(self._names)}")
        return getattr(self._value, name)
