"""Configs for tests of `circuits.run`: composed in this process, from conf/ or from an edited copy of it."""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from circuits.command import asked, overrides
from circuits.launch import pipeline
from circuits.launch import planning as planner
from circuits.launch.plan import Element
from circuits.launch.stages import Study
from circuits.run import config
from circuits.schema import BaseConfig
from circuits.store import places, registry
from circuits.store.contents import Contents
from circuits.store.keys import Key, key_of

T = TypeVar("T")


def compose(*words: str, base: Path | None = None) -> BaseConfig:
    """The config that a command line composes, with absolute paths."""
    cfg = asked.compose(list(words)) if words else copy.deepcopy(_default(places.CONF))
    return config.absolute(cfg, base or Path.cwd())


@functools.cache
def _default(conf: Path) -> BaseConfig:
    return asked.compose([])


def key(*words: str, kind: str = "sae", layers: tuple[int, ...] = (1,), base: Path | None = None) -> Key:
    """The key of `kind` under a command line, also under one that a run would refuse since it does not read all of it."""
    arguments = overrides.normalise(words)
    overrides.check(arguments)
    cfg = config.absolute(asked.composed(arguments.overrides), base or Path.cwd()) if words else compose(base=base)
    return key_of(registry.kind(kind), cfg, layers, Contents())


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


def plan(*words: str, base: Path | None = None) -> list[Element]:
    """The planned elements of a command line, with their layers and keys."""
    return _launched(words, lambda given, lists: planner.plan(given, lists, base or Path.cwd()))


def study(*words: str, base: Path) -> tuple[Study, list[Element]]:
    """The study that a command line asks for, and the planned elements of its stages."""
    return _launched(words, lambda given, lists: pipeline.planned(given, lists, base))


def _launched(words: Sequence[str], work: Callable[[Any, list[list[str]]], T]) -> T:
    """What `work` makes of a way to compose, and of the overrides of each element."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    arguments = overrides.normalise(words)
    overrides.check(arguments)
    config.register()
    parsed = OverridesParser.create().parse_overrides(arguments.overrides)
    (lists,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(places.CONF)):
        return work(lambda given: hydra_compose("config", overrides=list(given)), lists)
