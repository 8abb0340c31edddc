"""The behaviours: one module each with a ``BEHAVIOUR``. A new one is a new file here; nothing else lists them."""

from __future__ import annotations

import importlib
import pkgutil

from circuits.data.behaviours.base import Behaviour, Example, split

__all__ = ["BEHAVIOURS", "Behaviour", "Example", "embedded", "split"]


def _find() -> dict[str, Behaviour]:
    """Import every module of this package; name -> behaviour, by name."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    found = [m.BEHAVIOUR for m in modules if hasattr(m, "BEHAVIOUR")]
    return {b.name: b for b in sorted(found, key=lambda b: b.name)}


BEHAVIOURS: dict[str, Behaviour] = _find()


def embedded() -> dict[str, Behaviour]:
    """The behaviours that the embedded model learns: all but those that are asked of natural language only."""
    return {name: behaviour for name, behaviour in BEHAVIOURS.items() if not behaviour.natural_only}
