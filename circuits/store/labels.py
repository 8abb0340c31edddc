"""Short readable names of what is studied, for labels, tags and titles."""

from __future__ import annotations

import re

from circuits.data.opening import stem
from circuits.schema import BaseConfig


def readable(name: str) -> str:
    """The last part of a path or hub name, at most 40 characters."""
    return re.sub(r"[^\w.+-]+", "_", name.rstrip("/").rsplit("/", 1)[-1])[:40]


def behaviour_name(cfg: BaseConfig) -> str:
    """The behaviour's name; of prompts in a file the file's, without its endings."""
    return readable(stem(cfg.behaviour.path) if cfg.behaviour.path else cfg.behaviour.name)


def behaviour_and_model(cfg: BaseConfig) -> str:
    """``ioi-gpt2``."""
    return f"{behaviour_name(cfg)}-{readable(cfg.model.id)}"
