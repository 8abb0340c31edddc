"""Composing the elements of a sweep: Hydra once per set of group choices, then each element's plain values on a copy. No torch.

Hydra takes 50-100 ms an element, which a sweep of a thousand would spend minutes on. All elements of a sweep override the same
keys, so those that also make the same group choices (``sae=relu``, ``experiment=…``, ``hydra.…``) differ in leaf values only:
the first is composed by Hydra, the others copy it and set what is written otherwise. A value is converted by OmegaConf itself,
on the composed and typed tree, so that it means what it means to Hydra. Whatever is not that plain (a mapping, an
interpolation, a key given twice, a value that does not fit) goes through Hydra like the first.

Elements that differ in a choice (``behaviour=ioi``, ``sae=relu``) differ in that group's section only, where its yaml is plain: no
defaults of its own, no other package, no study beside it. Once Hydra has composed that section under the same choice and the same
overridden keys, it is taken from there: nine stages over two behaviours are ten compositions, not eighteen.
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
        self._rests: dict[Any, _Base] = {}  # by all that does not belong to a plain choice
        self._sections: dict[Any, _Base] = {}  # by a plain choice and the keys that are overridden in its section

    def __call__(self, words: Sequence[str]) -> BaseConfig:
        """The config of an element, as Hydra composes it.

        Raises:
            UserError: a mandatory value is missing or a value has the wrong type.
        """
        key = tuple(word.partition("=")[0] if _is_value(word) else word for word in words)
        base = self._bases.get(key)
        found = base.with_values(words) if base is not None else None
        if found is None and key not in self._bases:
            found = self._assembled(words)
        if found is not None:
            return found
        tree = self._compose(words)
        cfg = config.to_object(tree)
        if key not in self._bases:
            self._bases[key] = base = _Base(tree, cfg, words) if _plain(tree, words) else None
            if base is not None and (parts := _parts(words)) is not None:
                self._rests.setdefault(parts[0], base)
                for section in parts[1]:
                    self._sections.setdefault(section, base)
            return config.copied(cfg)
        return cfg

    def _assembled(self, words: Sequence[str]) -> BaseConfig | None:
        """A config out of sections that were composed with others; None where one was not, or it is not that plain."""
        parts = _parts(words)
        if parts is None or parts[0] not in self._rests or not all(section in self._sections for section in parts[1]):
            return None
        rest = self._rests[parts[0]]
        owners = {section[0].partition("=")[0]: self._sections[section] for section in parts[1]}
        cfg = config.copied(rest.cfg)
        for group, owner in owners.items():
            setattr(cfg, group, config.copied(getattr(owner.cfg, group)))
        try:
            for word in filter(_is_value, words):
                owners.get(word.partition("=")[0].split(".")[0], rest).put(cfg, word)
        except (_NotPlain, OmegaConfBaseException):
            return None
        return cfg


class _Base:
    """A composed element from which others with the same keys and the same group choices are made."""

    def __init__(self, tree: Any, cfg: BaseConfig, words: Sequence[str]) -> None:
        self._tree, self.cfg, self._words = tree, cfg, list(words)
        self._values: dict[str, Any] = {}

    def with_values(self, words: Sequence[str]) -> BaseConfig | None:
        """A copy with the values of `words`; None when one of them is not plain."""
        cfg = config.copied(self.cfg)
        for word, mine in zip(words, self._words, strict=True):
            if word == mine:
                continue
            try:
                self.put(cfg, word)
            except (_NotPlain, OmegaConfBaseException):  # Hydra answers, or says what is wrong with it
                return None
        return cfg

    def put(self, cfg: BaseConfig, word: str) -> None:
        """Set in `cfg` what `word` says."""
        value = self._converted(word)
        section, name = _place(cfg, word.partition("=")[0])
        setattr(section, name, config.copied(value))

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


def _parts(words: Sequence[str]) -> tuple[Any, list[Any]] | None:
    """`words` as what belongs to no plain choice, and for each plain choice itself with the keys overridden in its section.

    None where a word is not that plain: a study, a key of Hydra's own, a key given twice or inside of another.
    """
    keys = sorted(word.partition("=")[0] for word in words)
    if len(set(keys)) < len(keys) or any(
        "hydra" in key or set(key) & set("/@+~") or key == "experiment" for key in keys
    ):
        return None
    values = [key for key in keys if key not in places.config_groups()]
    if any(after.startswith(f"{before}.") for before, after in itertools.pairwise(values)):
        return None
    chosen = {
        key: word for word in words if (key := word.partition("=")[0]) in places.config_groups() and _simple(word)
    }
    rest = [
        word if key in places.config_groups() else key
        for word in words
        if (key := word.partition("=")[0]) not in chosen and key.split(".")[0] not in chosen
    ]
    sections = [
        (word, tuple(sorted(key for key in keys if key.startswith(f"{group}."))))
        for group, word in sorted(chosen.items())
    ]
    return (tuple(sorted(chosen)), tuple(sorted(rest))), sections


@lru_cache
def _simple(word: str) -> bool:
    """Whether a choice sets its own section only."""
    group, _, choice = word.partition("=")
    if choice not in places.choices(group):
        return False
    text = (places.CONF / group / f"{choice}.yaml").read_text(encoding="utf-8")
    return re.search(r"^defaults:|@package|\$\{", text, re.MULTILINE) is None


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
