"""SAE architectures, one file each; the registry is filled from the files, so a new one is found by being there."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from circuits.errors import UserError, suggest
from circuits.sae.modules.base import SAE, Architecture, Objective, Outcome, SAEConfig
from circuits.sae.modules.gradients import Weights

__all__ = ["SAE", "Architecture", "Objective", "Outcome", "SAEConfig", "Weights", "architecture", "architectures"]


@cache
def architectures() -> dict[str, Architecture]:
    """Every architecture by name: the ``ARCHITECTURE`` of each module of this package that has one."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    found = [m.ARCHITECTURE for m in modules if hasattr(m, "ARCHITECTURE")]
    return {a.name: a for a in sorted(found, key=lambda a: a.name)}


def architecture(name: str) -> Architecture:
    """The architecture called `name`."""
    if name == "cross_layer":  # no choice of sae=: it needs several layers' rows (task=clt)
        from circuits.sae.cross_layer import ARCHITECTURE

        return ARCHITECTURE
    if name not in architectures():
        raise UserError(f"unknown SAE architecture {name}{suggest(name, architectures(), 'architectures')}")
    return architectures()[name]
