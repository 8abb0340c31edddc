"""Keys: the identity of an artifact, computed without torch and before anything exists.

Key = SHA-256 over the kind, its version, the sections it reads (canonical, by role: see ``circuits.schema``), the layer, the
content of files it names, and the keys of its inputs (a Merkle chain). Resources, tracking, paths and workers never enter.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any

from circuits.errors import UserError
from circuits.files import sha256_text
from circuits.schema import BaseConfig
from circuits.schema.reading import lookup
from circuits.store import inputs, registry
from circuits.store.contents import Contents
from circuits.store.kinds import Kind
from circuits.store.places import safe_name

HASH_CHARACTERS = 12  # of the key, in a directory's name


@dataclass(frozen=True)
class Key:
    """The identity of one artifact. What is in its place's name is made safe here, whatever its kind says."""

    kind: str
    label: str
    layers: tuple[int, ...]
    payload: str  # canonical JSON of everything that entered
    inputs: Mapping[str, Key]
    share: str = ""  # the part of its work that is meant, for leases and claims (Kind.share); no part of its identity

    def __post_init__(self) -> None:
        for name, longest in (("kind", 60), ("label", 120), ("share", 24)):
            if (given := getattr(self, name)) or name != "share":
                object.__setattr__(self, name, safe_name(given, longest))

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the payload, in hex."""
        return sha256_text(self.payload)

    @property
    def dirname(self) -> str:
        """``tiny-L0-topk-9c41d2a81f3e``."""
        return f"{self.label}-{self.hash[:HASH_CHARACTERS]}"

    @property
    def id(self) -> str:
        """``sae/tiny-L0-topk-9c41d2a81f3e``: how people and other configs name the artifact."""
        return f"{self.kind}/{self.dirname}"


def key_of(kind: Kind, cfg: BaseConfig, layers: tuple[int, ...], contents: Contents) -> Key:
    """The key of `kind` at `layers` (one layer for ``each``; none for ``none``; for ``set`` in any order) under `cfg`.

    Raises:
        UserError: a file that the config names cannot be read.
    """
    layers = () if kind.layers == "none" else tuple(sorted(layers))
    cfg = kind.normal(cfg)
    made_from = {
        one.name: key_of(registry.kind(one.kind), one.cfg, one.layers, contents) for one in inputs.of(kind, cfg, layers)
    }
    payload = {
        "kind": kind.name,
        "version": kind.version,
        "layers": list(layers),
        "config": {section: canonical(section, lookup(cfg, section), contents, layers) for section in kind.sections},
        "extra": dict(kind.extra(cfg, contents)),
        "inputs": {name: key.hash for name, key in made_from.items()},
    }
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return Key(kind.name, kind.label(cfg, layers), layers, text, made_from, kind.share(cfg))


Unit = int | tuple[int, str] | None
"""One artifact of an element: its layer; its layer and the variant's name; None where it is one, of no layers or of all."""


def unit(name: Unit) -> str:
    """How an element's record names one of its artifacts: ``3``, ``3/mlp_out``; ``all`` where it is one."""
    return "all" if name is None else "/".join(map(str, name)) if isinstance(name, tuple) else str(name)


def units(kind: Kind, cfg: BaseConfig, layers: Sequence[int]) -> tuple[Unit, ...]:
    """The artifacts that one run over `layers` makes."""
    if kind.layers != "each":
        return (None,)
    variants = kind.variants(cfg)
    return tuple((layer, name) for layer in layers for name in variants) if variants else tuple(layers)


def key_of_unit(kind: Kind, cfg: BaseConfig, one: Unit, layers: Sequence[int], contents: Contents) -> Key:
    """The key of one of the artifacts of a run over `layers`."""
    if isinstance(one, tuple):
        return key_of(kind, kind.variants(cfg)[one[1]], (one[0],), contents)
    return key_of(kind, cfg, tuple(layers) if one is None else (one,), contents)


@lru_cache
def _entering(kind: type) -> tuple[tuple[str, str | None, bool, Any], ...]:
    """The fields of a dataclass that enter a key: name, rule by which its content is read, whether its default stays out, it."""
    found = []
    for one in dataclasses.fields(kind):
        role = one.metadata.get("role", "keyed")
        content = one.metadata["content"] if role in ("file", "from") else None
        if role not in ("free", "path"):
            found.append((one.name, content, role == "added" or one.metadata.get("added", False), one.default))
    return tuple(found)


def canonical(path: str, value: Any, contents: Contents, layers: tuple[int, ...] = ()) -> Any:
    """`value` as plain JSON with each field taken by its role; of what a field names, what belongs to these layers."""
    if value is None or isinstance(value, (str, bool, int)):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        result = {}
        for name, content, added, default in _entering(type(value)):
            member = getattr(value, name)
            if added and member == default:
                continue
            where = f"{path}.{name}"
            if content:
                result[name] = contents.of(where, content, value, layers)
            else:
                result[name] = canonical(where, member, contents, layers)
        return result
    if isinstance(value, (list, tuple)):
        return [canonical(path, member, contents, layers) for member in value]
    if isinstance(value, Mapping):
        return {str(k): canonical(f"{path}.{k}", v, contents, layers) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}={value}: a finite number is expected")
    return value
