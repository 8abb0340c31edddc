"""What was typed, made canonical and checked, before Hydra sees it.

One function, :func:`normalise`, serves the command line, pipeline stages and recovery: flags may stand in any place,
``model=X`` that is no preset becomes ``model=hf model.id=X``, ``behaviour=FILE.jsonl`` becomes ``behaviour=file
behaviour.path=FILE.jsonl``, a corpus of records (``.jsonl``, ``.csv`` …) is ``data=jsonl``, ``sae.from=`` names the field
``from_`` (``from`` is a Python keyword). :func:`check` then refuses, in one line each, keys and choices that do not exist, ways
around the closed schema (``+key``, ``~key``), and overrides of keys that the task would not read.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from circuits import schema
from circuits.command import personal
from circuits.data.opening import RECORDS, ending
from circuits.errors import UserError, suggest
from circuits.files import exists
from circuits.run import config
from circuits.store import places, registry

_WITH_VALUE = {"--cfg", "-c", "--package", "-p", "--config-dir", "-cd"}
_PLAIN = {"--multirun", "-m", "--run", "-r", "--help", "-h", "--resolve", "--version", "--hydra-help",
          "--shell-completion", "-sc", "--info", "-i"}  # fmt: skip
_NOT_A_RUN = {"--cfg", "-c", "--help", "-h", "--version", "--hydra-help", "--shell-completion", "-sc", "--info", "-i"}


#: What a preset's yaml knows of a model, so that bounds are checked without a network.
FACTS = ("model.family", "model.layers", "model.width")

#: Hydra's own way to Slurm; it blocks, recomposes on the node and pickles, but whoever asks for it gets it.
STOCK_LAUNCHERS = ("submitit_slurm", "submitit_local")
STOCK_FOLDER = "multirun/submitit"  # where its scripts and pickles go


@dataclass
class Arguments:
    """A command line: flags apart from overrides."""

    flags: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    own: set[str] = field(default_factory=set)  # keys that were not typed: a person's defaults

    @property
    def runs(self) -> bool:
        """Whether something is to be run (not only shown)."""
        return not any(flag.split("=")[0] in _NOT_A_RUN for flag in self.flags)

    @property
    def shows_job(self) -> bool:
        """Whether the resolved config is asked for, and no part of it by Hydra's own flags."""
        kind = [flag.partition("=")[2] for flag in self.flags if flag.startswith(("--cfg=", "-c="))]
        words = [flag for flag in self.flags if flag != "--resolve"]
        return (kind == ["job"] and len(words) == 1) or words in (["--cfg", "job"], ["-c", "job"])

    def argv(self) -> list[str]:
        """For Hydra's parser: flags first; a plain run is a sweep of one."""
        stock = (
            [f"hydra.sweep.dir={STOCK_FOLDER}"] if any(w.startswith("hydra/launcher=") for w in self.overrides) else []
        )
        return [*self.flags, *(["--multirun"] if self.runs else []), *self.overrides, *stock]


def normalise(argv: Sequence[str]) -> Arguments:
    """Separate flags from overrides and write each override in its canonical form.

    Raises:
        UserError: an unknown flag, or a word that is neither flag nor ``key=value``.
    """
    arguments, errors = Arguments(), []
    words = iter(argv)
    for word in words:
        name = word.split("=")[0]
        if not word.startswith("-"):
            arguments.overrides.append(word)
        elif name in ("-m", "--multirun", "-r", "--run"):
            continue  # implied
        elif name in _WITH_VALUE:
            arguments.flags.append(word)
            if "=" not in word:
                arguments.flags.append(next(words, ""))
        elif name in _PLAIN:
            arguments.flags.append(word)
        else:
            errors.append(
                f"{word}: no such flag" + suggest(name, [f for f in _PLAIN | _WITH_VALUE if f[:2] == "--"], "flags")
            )
    if errors:
        raise UserError(errors)
    if not any(flag in ("--shell-completion", "-sc") for flag in arguments.flags):
        own = personal.beside(arguments.overrides)
        arguments.own = {word.partition("=")[0] for word in canonical(own)}
        arguments.overrides = canonical([*own, *arguments.overrides])
    return arguments


@lru_cache
def texts() -> frozenset[str]:
    """The keys that name something, or somebody's words: what a shell gave is one text, whatever stands in it."""
    return frozenset(
        {"name", "of", "outputs", "multirun", *(one.key for one in schema.naming(config.root()()))} - {"model.id"}
    )


def canonical(overrides: Iterable[str]) -> list[str]:
    """Each override in the form that the schema knows."""
    result: list[str] = []
    for word in overrides:
        key, equals, value = word.partition("=")
        if key == "model" and equals:
            result += _model(value)
        elif key == "behaviour" and equals:
            result += _behaviour(value)
        elif key == "pipeline" and value.strip("'\"").endswith((".yaml", ".yml")):
            result += ["pipeline=file", f"pipeline.path={_quoted(value)}"]
        elif key.endswith(".from"):
            result.append(f"{key}_={_quoted(value)}")
        elif key == "note" and equals:
            result.append(f"note={_text(value)}")
        elif key in texts():
            result.append(f"{key}={_quoted(value)}")
        else:
            result.append(word)
    paths = [word.partition("=")[2].strip("'\"") for word in result if word.startswith("data.path=")]
    if any(ending(path) in RECORDS for path in paths):
        result = ["data=jsonl" if word == "data=text" else word for word in result]
    return result


def _model(value: str) -> list[str]:
    presets = places.choices("model")
    if not value:
        return ["model="]  # refused with the choices, never taken for this directory
    names = [value] if Path(value).is_dir() else _listed(value)
    unknown = [name for name in names if name not in presets]  # a preset's name is a preset, whatever folder is here
    if not unknown or value.startswith(("choice(", "glob(", "$")):
        return [f"model={value}"]
    if len(unknown) < len(names):
        raise UserError(
            f"model={value}: a sweep is over presets ({' '.join(presets)}) or over hub names and directories, not both at once"
        )
    return ["model=hf", "model.id=" + ",".join(_quoted(name) for name in names)]


def _behaviour(value: str) -> list[str]:
    """``behaviour=FILE.jsonl`` is short for ``behaviour=file behaviour.path=FILE.jsonl``."""
    generators = places.choices("behaviour")  # a generator's name is a generator, whatever file is here
    names = [value] if Path(value).is_file() else _listed(value)
    files = [name for name in names if name not in generators and (ending(name) in RECORDS or Path(name).is_file())]
    if not files or value.startswith(("choice(", "glob(", "$")):
        return [f"behaviour={value}"]
    if len(files) < len(names):
        raise UserError(
            f"behaviour={value}: a sweep is over behaviours ({' '.join(generators)}) or over files, not both at once"
        )
    return ["behaviour=file", "behaviour.path=" + ",".join(_quoted(name) for name in names)]


def _listed(value: str) -> list[str]:
    """The names of a comma-separated list, without the quotes and backslashes by which Hydra's grammar takes them whole."""
    if not set(value) & set("'\"\\"):
        return value.split(",")
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, QuotedString
    from hydra.errors import HydraException

    try:
        read = OverridesParser.create().parse_override(f"name={value}").value()
    except HydraException:
        return [value]
    several = read.list if isinstance(read, ChoiceSweep) else [read]
    return [name.text if isinstance(name, QuotedString) else str(name) for name in several]


def _quoted(value: str) -> str:
    """`value` so that Hydra's grammar reads it as one string; what is quoted or swept already stays."""
    if re.match(r"(choice|range|glob|sort|shuffle|interval)\(", value):
        return value
    if value == "null" or value[:1] in ("'", '"'):
        return value
    if "$" in value and not exists(Path(value)):  # an interpolation
        return value
    if re.fullmatch(r"[\w./:@-]+(,[\w./:@-]+)*", value, re.ASCII) and not ("," in value and exists(Path(value))):
        return value
    return _literal(value)


def _text(value: str) -> str:
    """A note, as the shell gave it: no grammar of Hydra's in it."""
    return (
        value
        if value in ("", "null") or (value[0] in "'\"" and value[-1:] == value[0] and len(value) > 1)
        else _literal(value)
    )


def _literal(value: str) -> str:
    """`value` for Hydra's grammar, quoted so that nothing in it is grammar, nor an interpolation (``${``) afterwards."""
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), escaped) + "'"


# ------------------------------------------------------------------------------------------------------------------


def check(arguments: Arguments) -> None:
    """Refuse what cannot be right before Hydra composes anything. All errors at once.

    Raises:
        UserError: with one message per finding.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException

    parser = OverridesParser.create()
    errors: list[str] = []
    parsed = []
    for word in arguments.overrides:
        if word.startswith(("+", "~")):
            errors.append(
                f"{word}: keys cannot be added or removed (the schema is closed); write {word.lstrip('+~').split('=')[0]}=VALUE"
            )
            continue
        if "=" not in word:
            errors.append(
                f"{word}: not an override; {_meant(word) or f'write key=value (keys: {chr(32).join(_root_keys())})'}"
            )
            continue
        try:
            parsed.append(parser.parse_override(word))
        except (OverrideParseException, HydraException) as e:
            errors.append(_grammar_error(word, str(e)))
    known = _root_keys()
    for override in parsed:
        error = _check_key(override, known)
        if error:
            errors.append(error)
    if errors:
        raise UserError(errors)
    typed = [o.key_or_group for o in parsed if o.key_or_group not in arguments.own]
    errors += _unread(typed, _tasks(parsed))
    errors += _embedded(parsed)
    if errors:
        raise UserError(errors)


def _meant(word: str) -> str:
    """The choice that a bare word is: ``sae`` is ``task=sae``, ``gpt2`` is ``model=gpt2``."""
    groups = ["task", *(group for group in places.config_groups() if group != "task")]
    found = [f"{group}={word}" for group in groups if word in places.choices(group)]
    return f"did you mean {' or '.join(found)}?" if found else ""


def _embedded(parsed: Sequence[Any]) -> list[str]:
    """Settings of the embedded model beside a model that is none: Hydra would make it one, or fail on it."""
    keys = [o.key_or_group for o in parsed if o.key_or_group.startswith("model.embedded.")]
    chosen = [str(name) for o in parsed if o.key_or_group == "model" for name in _plain(o)]
    others = [name for name in chosen if "embedded" not in places.keys_of("model", name)]
    return [f"{key}: model={','.join(others)} does not read it; model=tiny does" for key in keys if others]


def _grammar_error(word: str, message: str) -> str:
    key, _, value = word.partition("=")
    if key == "layer" and not value.isascii():
        from circuits.store.layers import parse_layers

        try:
            parse_layers(value, None)
        except UserError as e:
            return e.messages[0]
    reason = message.splitlines()[0] if message else "syntax"
    return f"{word}: not in Hydra's override grammar ({reason}); quote the value twice, once for the shell: {for_shell(key, value)}"


def for_shell(key: str, value: str) -> str:
    """``"data.field='a (b)'"``: an override as a shell has to get it so that `value` is one text."""
    inside = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    if "'" not in inside and not set(inside) & set('$`"\\!'):
        return f"\"{key}='{inside}'\""
    return shlex.quote(f"{key}={_literal(inside)}")


def _root_keys() -> dict[str, Any]:
    """Root keys of the schema; a dataclass type for a section, None for a value."""
    root = config.root()
    hints = {f.name: f.default_factory for f in dataclasses.fields(root)}
    return {
        name: cls if isinstance(cls, type) and dataclasses.is_dataclass(cls) else None for name, cls in hints.items()
    }


def _check_key(override: Any, known: dict[str, Any]) -> str | None:
    key: str = override.key_or_group
    if key == "hydra/launcher" and override.value() in STOCK_LAUNCHERS:
        return None
    if key in ("hydra/launcher", "hydra/sweeper"):
        return f"{key}: there is one; cluster= chooses who runs the elements (choices: {' '.join(places.choices('cluster'))})"
    if key.startswith("hydra.launcher."):
        return _check_launcher(key)
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return f"{key}: not read here; outputs= and multirun= say where runs go, cluster= who runs them"
    head, *rest = key.split(".")
    if head == "experiment" and not rest:
        return _check_choice(override, "experiment")
    if head not in known:
        return f"{key}: no such key" + (_elsewhere(key, known) or suggest(head, [*known, "experiment"], "keys"))
    section = known[head]
    if not rest:
        if section is None:
            return _check_value(override, typing.get_type_hints(schema.BaseConfig)[head])
        if head in places.config_groups():
            return _check_choice(override, head)
        return f"{key}: a section; set one of its keys: " + " ".join(f"{head}.{n}" for n in _names(section))
    path = head
    for name in rest:
        if section is None:
            return f"{key}: {path} is a value, it has no keys"
        names = _names(section)
        written = "from_" if name == "from" else name
        if written not in names:
            return f"{key}: no such key in {path}" + suggest(name, [n.rstrip("_") for n in names], "keys").replace(
                "did you mean ", f"did you mean {path}."
            )
        hint = typing.get_type_hints(section)[written]
        section = _section(hint)
        path = f"{path}.{name}"
        if section is dict:
            return None
    if head == "task" and rest[0] != "resources":
        return f"{key}: fixed by the task's yaml; task.resources.* can be set"
    if key in FACTS:
        return f"{key}: a fact of the model, not a choice: its config.json (or conf/model/NAME.yaml) says it" + (
            f"; the embedded model's is model.embedded.{rest[0]}" if rest[0] in ("layers", "width") else ""
        )
    return _check_value(override, hint) if section is None else f"{key}: a section; set one of its keys"


def _elsewhere(key: str, known: Mapping[str, Any]) -> str:
    """The sections that have a key of this name: ``k`` is ``sae.k``."""
    name = "from_" if key == "from" else key
    found = [f"{head}.{key}" for head, section in known.items() if section is not None and name in _names(section)]
    inner = [f"model.embedded.{key}"] if key in _names(schema.EmbeddedConfig) else []
    inner += [f"task.resources.{key}"] if key in _names(schema.Resources) else []
    return f"; did you mean {' or '.join([*found, *inner])}?" if found or inner else ""


def _check_launcher(key: str) -> str | None:
    """hydra-submitit-launcher's own names: those that mean something here."""
    from circuits.command.launcher_keys import LAUNCHER_KEYS, launcher_names

    name = key.split(".")[2]
    if name in LAUNCHER_KEYS or name.startswith("_"):
        return None
    if name in launcher_names():
        return f'{key}: not read here; further sbatch options: cluster.sbatch=["--{name.replace("_", "-")}=…"]'
    return f"{key}: no such key" + suggest(name, LAUNCHER_KEYS, "keys of hydra.launcher")


def _names(section: type) -> list[str]:
    return [f.name for f in dataclasses.fields(section)]


def _section(hint: Any) -> Any:
    """The dataclass in a type hint, `dict` for a free mapping, None for a plain value."""
    for option in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(option):
            return option
    return dict if typing.get_origin(hint) is dict else None


def _plain(override: Any) -> list[Any]:
    """The values of an override that can be known without Hydra: one, or those of a comma or choice sweep."""
    value = override.value()
    found = [value] if not hasattr(value, "list") else list(value.list or [])
    plain = [getattr(v, "text", v) for v in found]
    return [v for v in plain if v is None or (isinstance(v, (str, int, float, bool)) and not str(v).startswith("$"))]


def _check_value(override: Any, hint: Any) -> str | None:
    """Why a value is not of the field's type; choices for an Enum."""
    options = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) is list and (plain := _plain(override)):
        written = ",".join(map(str, plain))
        return f"{override.key_or_group}={written}: a list is expected; write {override.key_or_group}=[{written}]"
    for value in _plain(override):
        if Any in options or (value is None and type(None) in options):
            continue
        key, shown = override.key_or_group.removesuffix("_"), str(value)
        where = f"{key}={'null' if value is None else shown.lower() if isinstance(value, bool) else shown}"
        if value == "":
            return f"{where}: empty" + (
                f"; write {key}=null for none" if type(None) in options else "; it needs a value"
            )
        for enum in [o for o in options if isinstance(o, type) and issubclass(o, Enum)]:
            if value not in enum.__members__:
                return f"{where}: no such choice" + suggest(str(value), enum.__members__)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if int in options and (not number or isinstance(value, float)):
            whole = f"; write {value:.0f}" if isinstance(value, float) and value.is_integer() else ""
            return f"{where}: a whole number is expected{whole}"
        if float in options and int not in options and not number:
            return f"{where}: a number is expected"
        if bool in options and not isinstance(value, bool):
            return f"{where}: true or false is expected"
    return None


def _check_choice(override: Any, group: str) -> str | None:
    available = places.choices(group)
    for name in map(str, _plain(override)):
        if name not in available and not (name == "None" and group == "experiment"):
            return f"{group}={name}: no such {group}" + suggest(name, available)
    return None


def _tasks(parsed: Sequence[Any]) -> list[str]:
    """The tasks that the command line selects."""
    chosen = ["sae"]  # conf/config.yaml's default
    for override in parsed:
        if override.key_or_group == "task":
            value = override.value()
            chosen = (
                [value] if isinstance(value, str) else [str(getattr(v, "text", v)) for v in getattr(value, "list", [])]
            )
    return [task for task in chosen if task in places.choices("task")]


def _unread(keys: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """One line per overridden key that no selected task reads, naming the tasks that do."""
    errors = []
    for key in keys:
        head = key.split(".")[0].split("/")[0]
        if head in ("hydra", "experiment"):
            continue
        readers = [
            task for task in places.choices("task") if head in registry.reads(task) or head in registry.run_keys(task)
        ]
        if set(readers) & set(tasks):
            continue
        named = [task for task in readers if not registry.everything(task)]
        others = f"; task={' or task='.join(named)} does" if named else ""
        errors.append(f"{key}: task={','.join(tasks)} does not read it{others}")
    return errors
