"""From what Hydra composed, or what an element's directory holds, to plain dataclasses. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import typing
from collections.abc import Collection
from dataclasses import field
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf._utils import get_omega_conf_dumper, get_yaml_loader
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from circuits import schema
from circuits.errors import UserError
from circuits.run import private
from circuits.store import places, registry


def register() -> None:
    """Give Hydra the schema: one root node, so that no choice of a group is anything but a real one.

    Presets of a task's own options are chosen here, so that a new task touches no other file.
    """
    _store(root(), tuple(registry.presets().items()))


@lru_cache(maxsize=1)  # what is stored stays: typing it takes a tenth of a second
def _store(base: type, presets: tuple[tuple[str, str], ...]) -> None:
    chosen = ["_self_", *({group: choice} for group, choice in presets)]
    node = dataclasses.make_dataclass(
        "Schema", [("defaults", list, field(default_factory=lambda: chosen))], bases=(base,)
    )
    ConfigStore.instance().store(name="schema", node=node, provider="circuits")


def root() -> type:
    """The root dataclass, with every task's options and every cluster's personal section."""
    return _root(tuple(registry.options().items()), places.choices("cluster"))


@lru_cache
def _root(options: tuple[tuple[str, type], ...], clusters: tuple[str, ...]) -> type:
    return schema.root_schema(dict(options), clusters)


def to_object(tree: Any) -> schema.BaseConfig:
    """A composed config (with or without Hydra's own node) as dataclasses, interpolations resolved.

    Raises:
        UserError: a mandatory value is missing or a value has the wrong type.
    """
    try:
        ours = OmegaConf.masked_copy(
            tree, [key for key in tree if key != "hydra"]
        )  # Hydra's holds names of this machine
        found = cast(dict[str, Any], OmegaConf.to_container(ours, resolve=True, enum_to_str=True))
        sections, values = _parts(root())
        if not all(OmegaConf.get_type(ours, name) is kind for name, kind in sections.items()):
            return cast(schema.BaseConfig, _filled(root(), found))
        # Composed by Hydra on the schema: the sections are typed already, and typing them takes longest.
        given = {name: OmegaConf.to_object(ours[name]) for name in sections}
        plain = _filled(values, {name: value for name, value in found.items() if name not in sections})
        return cast(schema.BaseConfig, root()(**given, **vars(plain)))
    except MissingMandatoryValue as e:
        raise UserError(f"{e.full_key}: needs a value; write {e.full_key}=…") from e
    except OmegaConfBaseException as e:
        raise UserError(one_line(e)) from e


@lru_cache
def _parts(root: type) -> tuple[dict[str, type], type]:
    """The sections of the root dataclass by name, and a dataclass of the values beside them."""
    sections = {
        one.name: cast(type, one.default_factory)
        for one in dataclasses.fields(root)
        if dataclasses.is_dataclass(one.default_factory)
    }
    hints = typing.get_type_hints(root)
    values = [
        (one.name, hints[one.name], field(default=one.default))
        for one in dataclasses.fields(root)
        if one.name not in sections
    ]
    return sections, dataclasses.make_dataclass("Values", values)


def _filled(kind: type, found: dict[str, Any]) -> Any:
    """A dataclass of this kind with these values, converted to its types."""
    return OmegaConf.to_object(OmegaConf.merge(_node(kind), _literally(found)))


_node = lru_cache(OmegaConf.structured)  # merging copies it


def absolute(cfg: schema.BaseConfig, base: Path) -> schema.BaseConfig:
    """Make every path in `cfg` independent of the directory that the command was typed in."""
    cfg.outputs, cfg.multirun = (str(base / Path(place).expanduser()) for place in (cfg.outputs, cfg.multirun))
    for named in schema.naming(cfg):
        value = named.value
        if not value or (named.content == "model" and _is_name(cfg.model)):
            continue
        path = base / Path(value).expanduser()
        if path.exists():
            setattr(named.section, named.name, str(path.resolve()))
        elif named.content == "corpus" and set(value) & set(
            "*?["
        ):  # a pattern: its files are looked for where it was typed
            setattr(named.section, named.name, str(path))
    return cfg


def _is_name(model: schema.ModelConfig) -> bool:
    """Whether a model's id is a name, whatever folder of that name is here: the embedded model's, or a preset's on the hub."""
    return model.embedded is not None or (model.family is not None and not model.id.startswith(("/", ".", "~")))


def save(cfg: schema.BaseConfig, path: Path, sections: Collection[str] | None = None) -> None:
    """Write the resolved config, or some of its `sections`: what ``OmegaConf.to_yaml`` writes, 20 times as fast (a sweep has an
    element per file)."""
    given = {name: value for name, value in plain(cfg).items() if sections is None or name in sections}
    path.write_text("".join(_yaml(name, repr(value), value) for name, value in given.items()), encoding="utf-8")


def plain(value: Any) -> Any:
    """A config as plain values: dataclasses as mappings, Enums as their names."""
    if isinstance(value, Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(member) for key, member in value.items()}
    return [plain(member) for member in value] if isinstance(value, (list, tuple)) else value


_written: dict[tuple[str, str], str] = {}  # sections are alike in most elements of a sweep


def _yaml(name: str, text: str, value: Any) -> str:
    """One section as yaml; `text` tells it from others."""
    if (name, text) not in _written:
        if len(_written) > 1000:
            _written.clear()
        _written[name, text] = yaml.dump(
            private.hidden({name: value}),
            Dumper=dumper(),
            default_flow_style=False,
            allow_unicode=True,
            sort_keys=False,
        )
    return _written[name, text]


@lru_cache
def dumper() -> Any:
    """libyaml's writer where there is one, with OmegaConf's rule for texts that look like numbers or truth values."""
    dumper: Any = type("Dumper", (getattr(yaml, "CDumper", yaml.Dumper),), {"ignore_aliases": lambda self, data: True})
    dumper.add_representer(str, get_omega_conf_dumper().str_representer)
    return dumper


def load(path: Path) -> schema.BaseConfig:
    """Read a resolved config.

    Raises:
        UserError: the file is missing or does not fit the schema.
    """
    try:
        return _alike(read(path))
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file; an element's directory holds config.yaml and element.json") from e
    except OmegaConfBaseException as e:
        raise UserError(one_line(e)) from e


def read(path: Path) -> dict[str, Any]:
    """A resolved config as plain values, which are shared and not to be changed.

    Raises:
        UserError: it is no yaml, or no mapping.
    """
    try:
        found = _parsed(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: no yaml ({str(e).splitlines()[0]})") from e
    if not isinstance(found, dict):
        raise UserError(f"{path}: no config, which is a mapping")
    return found


def _parsed(text: str) -> Any:
    """Read section by section, as it was saved: most are alike in all elements of a sweep. Anything else is read whole."""
    before, *blocks = _BLOCK.split(text)
    if not before:
        with contextlib.suppress(yaml.YAMLError):
            return {name: value for block in blocks for name, value in _block(block).items()}
    return yaml.load(text, Loader=_loader())


_BLOCK = re.compile(r"^(?=\w+:)", re.MULTILINE)


@lru_cache(maxsize=1 << 10)
def _block(text: str) -> Any:
    return yaml.load(text, Loader=_loader())


@lru_cache
def _loader() -> Any:
    """OmegaConf's reader on libyaml, where there is one (ten times as fast)."""
    theirs, fast = get_yaml_loader(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return type("Loader", (fast,), {"yaml_implicit_resolvers": theirs.yaml_implicit_resolvers})


_sections: dict[tuple[type, str], Any] = {}  # most are alike in all elements of a sweep


def _alike(found: dict[str, Any]) -> schema.BaseConfig:
    """A config from plain values; a section that was met before is copied, since typing it takes long."""
    sections, values = _parts(root())
    plain = {name: value for name, value in found.items() if name not in sections}
    try:
        given = {name: _section(kind, found.get(name, {})) for name, kind in sections.items()}
        return cast(schema.BaseConfig, root()(**given, **vars(_section(values, plain))))
    except OmegaConfBaseException:
        return cast(schema.BaseConfig, _filled(root(), found))  # whose error names the key with its section


def _section(kind: type, value: Any) -> Any:
    known = (kind, repr(value))
    if known not in _sections:
        if len(_sections) > 1000:
            _sections.clear()
        text, default = _default(kind)
        _sections[known] = default if text == known[1] and schema.MISSING not in text else _filled(kind, value)
    return copied(_sections[known])


@lru_cache
def _default(kind: type) -> tuple[str, Any]:
    """A section as the schema has it, and how it is written: most are that, and typing what is typed already takes long."""
    made = kind()
    return repr(plain(made)), made


_SHARED = (str, int, float, bool, type(None))


def copied(value: Any) -> Any:
    """A deep copy of a config: fresh dataclasses, lists and mappings, shared immutable values."""
    if isinstance(value, dict):
        return {name: member if type(member) in _SHARED else copied(member) for name, member in value.items()}
    if isinstance(value, list):
        return [copied(member) for member in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    new = object.__new__(type(value))
    vars(new).update(copied(vars(value)))
    return new


def _literally(value: Any) -> Any:
    """`value` for OmegaConf, which is to resolve nothing in it: a resolved config may hold the text ``${`` (a directory's name)."""
    if isinstance(value, dict):
        return {key: _literally(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_literally(member) for member in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def one_line(error: Exception) -> str:
    """Hydra's and OmegaConf's messages without their context lines: the key, the value and what was expected."""
    if isinstance(error.__cause__, OmegaConfBaseException):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    message = lines[0] if lines else type(error).__name__
    if re.match(r"Key '.*' is not in struct", message):
        mapping, _, name = key.rpartition(".")
        place = f"conf/{key.split('.')[0]}/NAME.yaml"
        return f"{key}: {mapping} has no {name} yet, and a mapping takes new names only in yaml: write it into {place}"
    if (file := re.match(r"In '(.+)': \w+ raised while composing config", message)) and len(lines) > 1:
        message = f"{lines[1]} (conf/{file[1]}.yaml)"
    return f"{key}: {message}" if key and not message.startswith(key) else message
