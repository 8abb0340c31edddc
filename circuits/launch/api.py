"""Artifacts for notebooks: from a few overrides to the opened artifact, by the same keys that runs use."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits import schema
from circuits.command import asked, foreign
from circuits.errors import UserError
from circuits.files import read_json
from circuits.launch.planning import model_dims
from circuits.run import config
from circuits.store import nearest, places, registry
from circuits.store.contents import Contents
from circuits.store.keys import key_of
from circuits.store.kinds import Kind
from circuits.store.layers import parse_layers
from circuits.store.store import Artifact, Store, verify

if TYPE_CHECKING:
    from circuits.models.load import LM


def find_artifact(kind_name: str, given: Mapping[str, Any]) -> tuple[Kind, Artifact]:
    """The artifact of a kind under a config, verified.

    Raises:
        UserError: the config is wrong, names several layers, or the artifact does not exist.
    """
    kind = registry.kind(kind_name)
    words = _words(given)
    own = [f"task={kind.name}"] if kind.name in places.choices("task") else []  # the task that reads these keys
    cfg = config.absolute(asked.compose([*own, *words]), Path.cwd())
    foreign.locate(cfg)
    if variants := kind.variants(cfg):
        raise UserError(f"{kind.name}: one of its variants, please: {' '.join(variants)}")
    contents = Contents(Path(cfg.outputs) / "artifacts" / ".hashes.json")
    key = key_of(kind, cfg, _layer(kind, cfg), contents)
    artifact = Store(Path(cfg.outputs) / "artifacts").find(key)
    if artifact is None:
        maker = f"task={kind.name}" if kind.name in places.choices("task") else "task=sae"
        near = nearest.told(Path(cfg.outputs) / "artifacts", key)
        raise UserError(
            f"{key.id} does not exist in {cfg.outputs}{near}; make it with: python launch.py {maker} {shlex.join(words)}"
        )
    return kind, artifact


def by_id(what: str, given: Mapping[str, Any]) -> tuple[Kind, Path]:
    """The artifact that an id (``sae/tiny-L3-topk-9c41d2a81f3e``) or a directory names, verified.

    Raises:
        UserError: there is none; the message names those of its kind whose names are nearest.
    """
    if beside := sorted(set(given) - {"outputs"}):
        raise UserError(f"{what}: an id names one artifact; leave {' '.join(beside)} out, or give the kind and options")
    store = Path(given.get("outputs", "outputs")).expanduser() / "artifacts"
    place = next((p for p in (store / what, Path(what).expanduser()) if (p / "manifest.json").is_file()), None)
    if place is None:
        kind, _, name = what.partition("/")
        there = [f"{kind}/{p.parent.name}" for p in sorted((store / kind).glob("[!.]*/manifest.json"))]
        near = difflib.get_close_matches(what, there, n=4, cutoff=0.0) if there else []
        told = f"; nearest: {' '.join(near)}" if near else f"; there is nothing of kind {kind}" if name else ""
        raise UserError(f"{what}: no such artifact in {store}{told}")
    verify(place)
    return registry.kind(read_json(place / "manifest.json")["kind"]), place


def open_artifact(what: str | Path, given: Mapping[str, Any]) -> Any:
    """See :func:`circuits.open`."""
    if isinstance(what, Path):
        what = str(what.absolute())
    if "/" in what or "\\" in what:
        kind, path = by_id(what, given)
    else:
        kind, artifact = find_artifact(what, given)
        path = artifact.path
    return kind.load(path)


def open_model(given: Mapping[str, Any]) -> LM:
    """See :func:`circuits.open_model`."""
    from circuits.models.load import asked_model

    cfg = config.absolute(asked.compose(_words(given)), Path.cwd())
    if cfg.model.embedded is not None:
        own = {name: value for name, value in given.items() if re.match(r"outputs|model(__embedded__|$)", name)}
        files: tuple[str, str | None] = str(find_artifact("tiny", own)[1].path), None
    else:
        contents = Contents(Path(cfg.outputs) / "artifacts" / ".hashes.json")
        files = cfg.model.id, contents.model(cfg.model).facts.revision
    return asked_model(
        *files,
        precision=cfg.precision.dtype.value,
        matmul=cfg.precision.matmul.value,
        device=cfg.model.device,
        allow_fallback=cfg.model.allow_fallback,
    )


def _words(given: Mapping[str, Any]) -> list[str]:
    """Python's keywords as the command line has them."""
    return [f"{name.replace('__', '.')}={_written(value)}" for name, value in given.items()]


def _layer(kind: Kind, cfg: schema.BaseConfig) -> tuple[int, ...]:
    if kind.layers == "none":
        return ()
    layers = parse_layers(cfg.layer, model_dims(cfg).depth, cfg.model.sets)
    if kind.layers == "each" and len(layers) != 1:
        raise UserError(f"layer={cfg.layer}: one layer, please; an artifact of kind {kind.name} is of one layer")
    return layers


def _written(value: Any) -> str:
    """A Python value as the command line writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not re.fullmatch(r"[\w./:@,\[\]-]*", value):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return "null" if value is None else str(value)
