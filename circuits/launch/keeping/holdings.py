"""What stands in a store, what is made from what, and what a sweep stands on. No torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.errors import CircuitsError
from circuits.files import read_json
from circuits.launch.planning import keys_of
from circuits.launch.sweep import Sweep, kind_of
from circuits.run import config, status
from circuits.store import registry
from circuits.store.contents import Contents
from circuits.store.keys import HASH_CHARACTERS, Key, key_of
from circuits.store.store import MANIFEST

Ref = tuple[str, str]
"""A kind and the beginning of a key's hash: the identity of an artifact, whatever its label."""


@dataclass(frozen=True)
class Holding:
    """A complete artifact in a store, by its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The name of its kind."""
        return self.path.parent.name

    @property
    def id(self) -> str:
        """``kind/label-hash``."""
        return f"{self.kind}/{self.path.name}"

    @property
    def ref(self) -> Ref:
        """What others name it by."""
        return ref_of(self.id)

    @property
    def bytes(self) -> int:
        """Of its files."""
        return sum(int(facts["bytes"]) for facts in self.manifest["files"].values())

    @property
    def inputs(self) -> list[Ref]:
        """What it was made from."""
        return [
            (facts["id"].partition("/")[0], facts["key"][:HASH_CHARACTERS])
            for facts in self.manifest.get("inputs", {}).values()
        ]


def ref_of(artifact: str) -> Ref:
    """The identity in an id such as ``sae/tiny-L0-topk-9c41d2a81f3e``."""
    kind, _, name = artifact.partition("/")
    return kind, name.rpartition("-")[2]


def every(store: Path) -> dict[Ref, Holding]:
    """All complete artifacts of a store; one whose manifest cannot be read is left out."""
    found = {}
    for manifest in sorted(store.glob(f"[!.]*/[!.]*/{MANIFEST}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            one = Holding(manifest.parent, read_json(manifest))
            if one.bytes >= 0 and len(one.inputs) >= 0 and one.manifest["key"]:
                found[one.ref] = one
    return found


def closure(refs: Iterable[Ref], known: Mapping[Ref, Holding]) -> set[Ref]:
    """These, and all that they were made from, as far as it is there."""
    found: set[Ref] = set()
    waiting = list(refs)
    while waiting:
        ref = waiting.pop()
        if ref not in found:
            found.add(ref)
            waiting += known[ref].inputs if ref in known else ()
    return found


def made_by(sweep: Sweep) -> set[Ref]:
    """What the elements of a sweep make or answered with."""
    found = {ref_of(name) for item in sweep.record["elements"] for name in item["artifacts"].values()}
    for item in sweep.record["elements"]:
        facts = status.read(sweep.directory(item), trust_running=True)
        found |= {ref_of(one["id"]) for one in facts.get("artifacts") or []}
    return found


def asked_by(sweep: Sweep, store: Path) -> set[Ref]:
    """What the elements of a sweep are made from and measured by, there or not yet: by their configs.

    Raises:
        CircuitsError: it cannot be told now (a model that cannot be reached, a file that is gone).
    """
    contents = Contents(store / ".hashes.json")
    found: set[Ref] = set()
    for item in sweep.record["elements"]:
        cfg, kind = config.load(sweep.directory(item) / "config.yaml"), kind_of(sweep, item)
        keys = [*keys_of(kind, cfg, tuple(item["layers"]), contents).values()]
        keys += [key_of(registry.kind(name), cfg, (), contents) for name in kind.gates(cfg)]
        for key in keys:
            found |= set(_inside(key))
    return found


def stands_on(sweep: Sweep, store: Path) -> set[Ref]:
    """What a sweep's elements make, are made from and are measured by, as far as that can be told now."""
    with contextlib.suppress(CircuitsError, OSError, ValueError):
        return asked_by(sweep, store)
    return set()


def gated(sweep: Sweep, store: Path) -> dict[Ref, list[str]]:
    """What a sweep's elements made, by the measurements whose gates they asked; as far as that can be told now."""
    contents = Contents(store / ".hashes.json")
    found: dict[Ref, list[str]] = {}
    for item in sweep.record["elements"]:
        with contextlib.suppress(CircuitsError, OSError, ValueError):
            cfg, kind = config.load(sweep.directory(item) / "config.yaml"), kind_of(sweep, item)
            for name in kind.gates(cfg):
                key = key_of(registry.kind(name), cfg, (), contents)
                found.setdefault((key.kind, key.hash[:HASH_CHARACTERS]), []).extend(item["artifacts"].values())
    return found


def _inside(key: Key) -> Iterator[Ref]:
    yield key.kind, key.hash[:HASH_CHARACTERS]
    for one in key.inputs.values():
        yield from _inside(one)


def files_below(directory: Path) -> tuple[dict[str, Path], int]:
    """The regular files below a directory by their names in it, and how many links and other things there are beside them."""
    found: dict[str, Path] = {}
    others = 0
    for folder, folders, names in os.walk(directory):
        others += sum((Path(folder) / name).is_symlink() for name in folders)
        for name in names:
            path = Path(folder) / name
            if path.is_symlink() or not path.is_file():
                others += 1
            else:
                found[path.relative_to(directory).as_posix()] = path
    return dict(sorted(found.items())), others


def bytes_below(directory: Path) -> int:
    """The size of the regular files below a directory; what goes away meanwhile counts nothing."""
    total = 0
    for path in files_below(directory)[0].values():
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
