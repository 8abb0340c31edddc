"""Gates: a measurement that says whether what builds on it makes sense. Asked at run time, never part of a key.

A kind declares by :attr:`Kind.gates` which measurements its artifacts of a config stand on. Each run asks them anew, also where
the artifact is in the store, since thresholds are no part of any key. ``force=true`` goes on, and marks what is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from circuits.files import read_json
from circuits.schema import BaseConfig
from circuits.store import registry
from circuits.store.contents import Contents
from circuits.store.keys import Key, key_of

FORCE = "force=true goes on all the same and marks the result as tainted"


@dataclass(frozen=True)
class Verdict:
    """What a gate says: nothing where it is passed."""

    key: Key
    measured: bool
    refusal: str | None


def verdict(name: str, cfg: BaseConfig, find: Callable[[Key], Any], contents: Contents) -> Verdict:
    """What the measurement of kind `name` says under `cfg`."""
    kind = registry.kind(name)
    key = key_of(kind, cfg, (), contents)
    artifact = find(key)
    if artifact is None:
        return Verdict(key, False, f"{key.id} does not exist")
    return Verdict(key, True, kind.gate(cfg, read_json(artifact.path / "metrics.json")))


def refusals(names: tuple[str, ...], cfg: BaseConfig, find: Callable[[Key], Any], contents: Contents) -> list[str]:
    """Why the gates `names` let nothing pass; empty under ``force=true``."""
    if cfg.force:
        return []
    found = [verdict(name, cfg, find, contents).refusal for name in names]
    return [f"{refusal}; {FORCE}" for refusal in found if refusal]
