"""``--cfg job``: the resolved config of one element as yaml, and behind each value where it came from. No torch.

From first to last: the schema, the group's yaml, ``conf/config.yaml``, an experiment, a person's defaults, the command line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]

from circuits import schema
from circuits.command import overrides, personal, reading
from circuits.command.reading import text_problem
from circuits.errors import UserError
from circuits.run import config, private
from circuits.store import places

COLUMN = 44  # where what is said of a value begins
TYPED, BUILT_IN = "command line", "built in"


def show(arguments: overrides.Arguments) -> int:
    """Print the config that these arguments give, then what a run would refuse of it; the exit code.

    Raises:
        UserError: it cannot be composed, or the words are a sweep.
    """
    tree = _composed(arguments.overrides)
    choices = dict(tree.hydra.runtime.choices)
    resolve = "--resolve" in arguments.flags
    from omegaconf import OmegaConf

    plain = cast(dict[str, Any], OmegaConf.to_container(tree, resolve=resolve, enum_to_str=True))
    params = plain.pop("hydra")["sweeper"].get("params") or {}
    if params:
        swept = " ".join(f"{key}={value}" for key, value in params.items())
        print(f"# experiment={choices.get('experiment')} is a sweep over {swept}; this is the element without it")
    origin = Origins(arguments.overrides, choices)
    for line in _lines(private.hidden(plain), origin):
        print(line)
    problems = _problems(tree, arguments.overrides)
    sys.stdout.flush()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0


def _composed(words: Sequence[str]) -> Any:
    """The composed config with Hydra's own node."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    parsed = [parser.parse_override(word) for word in words]
    if swept := [o for o in parsed if o.is_sweep_override()]:
        first = next((f"{o.key_or_group}={_first(o)}" for o in swept), "")
        raise UserError(
            f"--cfg shows one element, and {' '.join(o.input_line or '' for o in swept)} makes a sweep; write one value: {first}"
        )
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(places.CONF)):
        return compose("config", overrides=list(words), return_hydra_config=True)


def _first(override: Any) -> str:
    return str(next(iter(override.sweep_string_iterator()), "VALUE"))


def _problems(tree: Any, words: Sequence[str]) -> list[str]:
    """What a run would refuse, as far as it can be told without looking at the model."""
    try:
        cfg = config.to_object(tree)
    except UserError as e:
        return e.messages
    found = reading.joined(schema.check(cfg), reading.unread([list(words)], [cfg]))
    return found + [problem for problem in [text_problem(cfg)] if problem]


@dataclass(frozen=True)
class Origins:
    """Where the values of a composed config came from."""

    words: Sequence[str]
    choices: Mapping[str, str | None]

    def value(self, path: str) -> str:
        """Of a value, by its dotted name."""
        if told := self._typed(path):
            return told
        study = self.choices.get("experiment")
        group = path.split(".")[0]
        files = [
            (f"conf/experiment/{study}.yaml", path),
            ("conf/config.yaml", path),
            (f"conf/{group}/{self.choices.get(group)}.yaml", path.partition(".")[2]),
        ]
        return next((file for file, inner in files if inner and _has(file, inner)), BUILT_IN)

    def section(self, group: str) -> str:
        """Of a section: which choice from the group it is, and whose."""
        choice = self.choices.get(group)
        if choice is None:
            return ""
        study = f"conf/experiment/{self.choices.get('experiment')}.yaml"
        chosen = self._typed(group) or (study if _chooses(study, group) else "conf/config.yaml")
        return f"{group}={choice}: {chosen}"

    def _typed(self, path: str) -> str | None:
        """Whether the command line or a person's defaults say it."""
        own = set(overrides.canonical(personal.beside(())))
        for word in reversed(self.words):
            key = word.partition("=")[0]
            if path == key or (path.startswith(f"{key}.") and key not in places.config_groups()):
                return f"conf/user/{personal.file().name}" if word in own else TYPED
        return None


@lru_cache
def _tree(file: str) -> dict[str, Any]:
    path: Path = places.CONF.parent / file if file.startswith("conf/") else Path(file)
    if not path.is_file():
        return {}
    found = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found if isinstance(found, dict) else {}


def _has(file: str, path: str) -> bool:
    value: Any = _tree(file)
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def _chooses(file: str, group: str) -> bool:
    return any(f"override /{group}" in item for item in _tree(file).get("defaults", []) if isinstance(item, dict))


def _lines(tree: Mapping[str, Any], origin: Origins, path: str = "", depth: int = 0) -> Iterator[str]:
    """The yaml of `tree`, each value with its origin as a comment."""
    for name, value in tree.items():
        where = f"{path}{name}"
        if isinstance(value, dict) and value:
            told = origin.section(where) if depth == 0 else ""
            yield _told(f"{'  ' * depth}{name}:", told)
            yield from _lines(value, origin, f"{where}.", depth + 1)
            continue
        text = yaml.dump(
            {name: value}, Dumper=config.dumper(), default_flow_style=None if isinstance(value, list) else False,
            allow_unicode=True, width=1 << 30,
        ).rstrip("\n")  # fmt: skip
        indented = "\n".join("  " * depth + line for line in text.splitlines())
        yield _told(indented, origin.value(where))


def _told(line: str, told: str) -> str:
    return f"{line:<{COLUMN - 1}} # {told}" if told else line
