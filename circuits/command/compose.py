"""Composing the elements of a sweep: Hydra once per set of group choices, then each element's plain values on a copy. No torch.

Hydra takes 50-100 ms an element, which a sweep of a thousand would spend minutes on. All elements of a sweep override the same
keys, so those that also make the same group choices (``sae=relu``, ``experiment=…``, ``hydra.…``) differ in leaf values only:
the first is composed by Hydra, the others copy it and set what is written otherwise. A value is converted by OmegaConf itself,
on the composed and typed tree, so that it means what it means to Hydra. Whatever is not that plain (a mapping, an
interpolation, a key given twice, a value that does not fit) goes through Hydra like the first.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from circuits.run import config
from circuits.schema import BaseConfig
from circuits.store import places

_CONSTANT = re.compile(r"\$\{oc\.env:[^${}]*\}")  # an interpolation that no override can change


class Composer:
    """From the overrides of an element to its config; call it with one element of a sweep after the other."""

    def __init__(self, compose: Callable[[Sequence[str]], Any]) -> None:
        self._compose = compose
        self._bases: dict[Any, _Base | None] = {}

    def __call__(self, words: Sequence[str]) -> BaseConfig:
        """The config of an element, as Hydra composes it.

        Raises:
            UserError: a mandatory value is missing or a value has the wrong type.
        """
        key = tuple(word.partition("=")[0] if _is_value(word) else word for word in words)
        base = self._bases.get(key)
        found = base.with_values(words) if base is not None else None
        if found is not None:
            return found
        tree = self._compose(words)
        cfg = config.to_object(tree)
        if key not in self._bases:
            self._bases[key] = _Base(tree, cfg, words) if _plain(tree, words) else None
            return config.copied(cfg)
        return cfg


class _Base:
    """A composed element from which others with the same keys and the same group choices are made."""

    def __init__(self, tree: Any, cfg: BaseConfig, words: Sequence[str]) -> None:
        self._tree, self._cfg, self._words = tree, cfg, list(words)
        self._values: dict[str, Any] = {}

    def with_values(self, words: Sequence[str]) -> BaseConfig | None:
        """A copy with the values of `words`; None when one of them is not plain."""
        cfg = config.copied(self._cfg)
        for word, mine in zip(words, self._words, strict=True):
            if word == mine:
                continue
            try:
                value = self._converted(word)
                section, name = _place(cfg, word.partition("=")[0])
            except (_NotPlain, OmegaConfBaseException):  # Hydra answers, or says what is wrong with it
                return None
            setattr(section, name, config.copied(value))
        return cfg

    def _converted(self, word: str) -> Any:
        """The value of an override as the schema's type, by OmegaConf. The tree serves as scratch paper: a leaf's new value does
        not depend on its old one."""
        if word not in self._values:
            key = word.partition("=")[0]
            value = _value(word)
            if isinstance(value, dict) or isinstance(OmegaConf.select(self._tree, key), DictConfig):
                raise _NotPlain
            OmegaConf.update(self._tree, key, value, merge=True)
            found = OmegaConf.select(self._tree, key, throw_on_missing=True)
            if isinstance(found, ListConfig):
                found = OmegaConf.to_container(found, resolve=True, throw_on_missing=True, enum_to_str=True)
            self._values[word] = found
        return self._values[word]


class _NotPlain(Exception):
    """An override that needs Hydra."""


def _is_value(word: str) -> bool:
    """Whether an override sets a value of ours; otherwise it chooses from a group or is Hydra's."""
    key = word.partition("=")[0]
    head = key.split(".")[0]
    return (
        not word.startswith(("+", "~"))
        and not set(key) & set("/@")
        and head != "hydra"
        and key not in places.config_groups()
    )


def _plain(tree: Any, words: Sequence[str]) -> bool:
    """Whether other elements may be made from `tree`: no key twice or inside of another, no interpolation between values."""
    keys = sorted(word.partition("=")[0] for word in words if _is_value(word))
    if any(after == before or after.startswith(f"{before}.") for before, after in itertools.pairwise(keys)):
        return False
    return not _interpolates(OmegaConf.to_container(OmegaConf.masked_copy(tree, [k for k in tree if k != "hydra"])))


def _interpolates(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_interpolates, value.values()))
    if isinstance(value, list):
        return any(map(_interpolates, value))
    return isinstance(value, str) and "${" in _CONSTANT.sub("", value)


def _place(cfg: Any, key: str) -> tuple[Any, str]:
    """The dataclass and the field that `key` names."""
    *sections, name = key.split(".")
    for section in sections:
        cfg = getattr(cfg, section, None)
    if not dataclasses.is_dataclass(cfg) or not hasattr(cfg, name):
        raise _NotPlain
    return cfg, name


@lru_cache(maxsize=1 << 14)
def _value(word: str) -> Any:
    """What an override sets, by Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException

    try:
        value = OverridesParser.create().parse_override(word).value()
    except (HydraException, OverrideParseException) as e:
        raise _NotPlain from e
    if _interpolates(value) or "${" in word:
        raise _NotPlain
    return value
