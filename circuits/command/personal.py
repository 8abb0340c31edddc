"""A person's own values on a cluster, and their defaults. No torch.

Defaults are ``default:`` in conf/user/local.yaml, as if each were typed in front of every command line.

What one has belongs there (a model, a text, a behaviour, a cluster), not what an experiment is (``sae``, ``layer``, ``seed``): that
belongs to ``experiment=``. What is typed wins: a default for a key that is typed, or for a key of a group that is chosen anew, is
left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from circuits.errors import UserError
from circuits.schema import BaseConfig, PersonalConfig
from circuits.store import places

HEADS = ("model", "data", "behaviour", "cluster", "precision", "tracking", "outputs", "multirun")
SECTION = "default"


def file() -> Path:
    """Whose values are read: conf/user/local.yaml, or that of ``CIRCUITS_USER``."""
    return places.CONF / "user" / f"{os.environ.get('CIRCUITS_USER') or 'local'}.yaml"


@lru_cache
def _read(path: Path) -> dict[str, str]:
    import yaml  # type: ignore[import-untyped]

    if not path.is_file():
        return {}
    shown = f"conf/user/{path.name}"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise UserError(f"{shown}: not readable as yaml ({' '.join(str(e).split())[:150]})") from e
    given = tree.get(SECTION) if isinstance(tree, dict) else None
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise UserError(f"{shown}: {SECTION} holds lines key: value, such as model: gpt2")
    errors = [
        f"{shown}: {SECTION}: {key}" + (": one value is expected" if str(key).split(".")[0] in HEADS else
        f" cannot have a default; keys of {' '.join(HEADS)} can (experiment=NAME holds a study's values)")
        for key, value in given.items()
        if str(key).split(".")[0] not in HEADS or isinstance(value, (dict, list))
    ]  # fmt: skip
    if errors:
        raise UserError(errors)
    return {str(key): _written(value) for key, value in given.items()}


def _written(value: Any) -> str:
    """A value of yaml as an override has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def beside(typed: Iterable[str]) -> list[str]:
    """The defaults that hold beside the overrides `typed`, as overrides.

    Raises:
        UserError: the file is no yaml, or gives a default to what cannot have one.
    """
    keys = {word.partition("=")[0].lstrip("+~") for word in typed}
    given, typed = _read(file()), list(typed)
    study = experiment(typed) if given else {}
    choices = {key.split(".")[0] for key in keys if "." not in key}
    return [
        f"{key}={value}"
        for key, value in given.items()
        if key not in keys and key.split(".")[0] not in choices and not _sets(study, key)
    ]


def experiment(typed: Iterable[str]) -> dict[str, Any]:
    """The yaml of the study that is chosen."""
    import yaml

    names = [word.partition("=")[2] for word in typed if word.startswith("experiment=")]
    path = places.CONF / "experiment" / f"{names[-1] if names else None}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.is_file() else {}


def value(cfg: BaseConfig, name: str) -> str | None:
    """A person's own value for this cluster: from ``user``, else from the environment."""
    own: PersonalConfig | None = getattr(cfg.user, cfg.cluster.name, None)
    found = getattr(own, name, None) if own is not None else None
    return found or os.environ.get(variable(cfg, name)) or None


def variable(cfg: BaseConfig, name: str) -> str:
    """``CIRCUITS_CSD3_MAIL``: what gives a person's own value where the config does not."""
    return f"CIRCUITS_{cfg.cluster.name.upper()}_{name.upper()}"


def _sets(study: Mapping[str, Any], key: str) -> bool:
    """Whether a study makes this choice, or sets this key."""
    chosen = [name for item in study.get("defaults", []) if isinstance(item, dict) for name in item]
    value: Any = study
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return f"override /{key}" in chosen or ("." in key and value is not None)
