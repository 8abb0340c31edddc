"""Configs for tests of `circuits.run`: composed in this process, from conf/ or from an edited copy of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from circuits.run import api, config, places, registry
from circuits.run.content import Contents
from circuits.run.kinds import Key, key_of
from circuits.schema import BaseConfig


def compose(*words: str, base: Path | None = None) -> BaseConfig:
    """The config that a command line composes, with absolute paths."""
    return config.absolute(api.compose(list(words)), base or Path.cwd())


def key(*words: str, kind: str = "sae", layers: tuple[int, ...] = (1,), base: Path | None = None) -> Key:
    """The key of `kind` under a command line."""
    return key_of(registry.kind(kind), compose(*words, base=base), layers, Contents())


def copy_conf(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work with a copy of conf/ in `folder` until the test ends; where it is."""
    place = folder / "conf"
    shutil.copytree(places.CONF, place)
    monkeypatch.setattr(places, "CONF", place)
    for cached in (places.choices, places.config_groups):
        cached.cache_clear()
    return place


def edit(file: Path, old: str, new: str) -> None:
    """Replace a text that must be there."""
    text = file.read_text()
    if old not in text:
        raise ValueError(f"{file}: no {old!r} in it")
    file.write_text(text.replace(old, new))
