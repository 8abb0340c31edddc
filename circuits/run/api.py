"""Artifacts for notebooks: from a few overrides to the opened artifact, by the same keys that runs use."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuits import schema
from circuits.errors import UserError
from circuits.run import config, foreign, nearest, overrides, places, reading, registry
from circuits.run.content import Contents
from circuits.run.keys import key_of
from circuits.run.kinds import Kind
from circuits.run.layers import parse_layers
from circuits.run.plan import model_dims
from circuits.run.store import Artifact, Store


def find_artifact(kind_name: str, given: Mapping[str, Any]) -> tuple[Kind, Artifact]:
    """The artifact of a kind under a config, verified.

    Raises:
        UserError: the config is wrong, names several layers, or the artifact does not exist.
    """
    kind = registry.kind(kind_name)
    words = [f"{name.replace('__', '.')}={_written(value)}" for name, value in given.items()]
    own = [f"task={kind.name}"] if kind.name in places.choices("task") else []  # the task that reads these keys
    cfg = config.absolute(compose([*own, *words]), Path.cwd())
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
            f"{key.id} does not exist in {cfg.outputs}{near}; make it with: python launch.py {maker} {' '.join(words)}"
        )
    return kind, artifact


def open_artifact(kind_name: str, given: Mapping[str, Any]) -> Any:
    """See :func:`circuits.open`."""
    kind, artifact = find_artifact(kind_name, given)
    if kind.load is None:
        return artifact
    module, function = kind.load.split(":")
    return getattr(importlib.import_module(module), function)(artifact.path)


def compose(words: list[str]) -> schema.BaseConfig:
    """The config of these overrides, as `launch.py` would compose it.

    Raises:
        UserError: anything that the command line would refuse.
    """
    arguments = overrides.normalise(words)
    overrides.check(arguments)
    cfg = composed(arguments.overrides)
    errors = reading.joined(schema.check(cfg), reading.unread([arguments.overrides], [cfg]))
    if errors:
        raise UserError(errors)
    return cfg


def composed(words: list[str]) -> schema.BaseConfig:
    """The config of these canonical overrides, not checked."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    config.register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(places.CONF)):
            return config.to_object(hydra_compose("config", overrides=words))
    except (HydraException, OmegaConfBaseException) as e:
        raise UserError(config.one_line(e)) from e


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
