"""What each task reads, key by key, from the schema: ``task=X --help`` and docs/options.md. No torch.

A field's meaning is the comment behind it in its dataclass, its default the one that ``conf/`` gives, and what it depends on the
condition in ``READ_WHEN``: each is written in one place. ``python -m circuits.command.options`` writes the page anew.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import tokenize
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

from circuits import schema
from circuits.command import reading
from circuits.run import config
from circuits.schema.reading import CHOICE_OF, SET, When, plain, wanted
from circuits.store import places, registry

PAGE = places.CODE / "docs" / "options.md"
RUN = "run-level"
_HIDDEN = ("user", "task.name", "task._target_", "task.where", "model.family", "model.layers", "model.width", "model.sets",
           "cluster.name", "cluster.needs")  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One key of the command line."""

    key: str
    default: str
    meaning: str
    choices: tuple[str, ...] = ()
    only: str = ""  # under which choice it is read

    @property
    def told(self) -> str:
        """Its meaning, its choices and its condition in one line."""
        listed = f"{' | '.join(self.choices)}" if self.choices else ""
        parts = [self.meaning, listed, self.only and f"only with {self.only}"]
        return "; ".join(part for part in parts if part)


@lru_cache
def meanings(section: type) -> dict[str, str]:
    """The comment behind each field of a dataclass, by the field's name; those of the dataclasses that it is made from first."""
    found: dict[str, str] = {}
    for one in reversed([cls for cls in section.__mro__ if dataclasses.is_dataclass(cls)]):
        found |= _meanings(one)
    return found


def _meanings(section: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(section))
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (tree,) = ast.parse(source).body
    found = {}
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            said = " ".join(comments[line] for line in lines if line in comments)
            found[node.target.id] = re.sub(r"\s*#?\s*noqa: [A-Z0-9, ]+(\((.*)\))?", r"\2", said).strip(" #")
    return found


@lru_cache
def _default() -> schema.BaseConfig:
    from circuits.command.asked import composed

    return composed(["task=sae"])


def options(task: str) -> dict[str, list[Option]]:
    """All keys that `task` may read, by section; run-level ones last."""
    cfg = dataclasses.replace(reading.under(_default(), task))
    root = config.root()
    found: dict[str, list[Option]] = {}
    members = {f.name: f for f in dataclasses.fields(root)}
    reads = {registry.section(task)} if registry.everything(task) else registry.reads(task)
    heads = [*members] if task == "*" else [name for name in members if name in reads]
    for head in heads:
        listed = [one for one in _of(head, members[head], cfg) if _may(one.key, task)]
        if listed and head not in schema.RUN_KEYS:
            found[head if dataclasses.is_dataclass(getattr(cfg, head)) else RUN] = [
                *(found.get(RUN, []) if not dataclasses.is_dataclass(getattr(cfg, head)) else []), *listed
            ]  # fmt: skip
    for head in (name for name in members if name in schema.RUN_KEYS and name in registry.run_keys(task)):
        nested = dataclasses.is_dataclass(getattr(cfg, head))
        listed = [one for one in _of(head, members[head], cfg) if _may(one.key, task)]
        if listed:
            found.setdefault(head if nested else RUN, []).extend(listed)
    if RUN in found:
        found[RUN] = found.pop(RUN)
    return found


def _may(key: str, task: str) -> bool:
    """Whether the task, or an input of it, reads this key under some config."""
    path = CHOICE_OF.get(key, key)
    return reading.may(path, task)


def _of(head: str, field: Any, cfg: schema.BaseConfig) -> Iterator[Option]:
    value = getattr(cfg, head)
    if head in _HIDDEN:
        return
    if not dataclasses.is_dataclass(value):
        yield _option(config.root(), schema.BaseConfig, head, head, value)
        return
    if (choices := places.choices(head)) and head != "task":
        chosen = {"sae": "topk", "data": "embedded", "model": "tiny", "cluster": "local"}
        if len(choices) > 1:
            yield Option(head, chosen.get(head, _chosen(head)), f"a preset of conf/{head}/", choices)
    yield from _fields(type(value), head, value)


def _chosen(group: str) -> str:
    """The choice that is made where nothing is said."""
    return registry.presets().get(group) or places.default_choice(group)


def _fields(section: type, path: str, value: Any) -> Iterator[Option]:
    for name, hint in typing.get_type_hints(section).items():
        key = f"{path}.{name}"
        inner = next((o for o in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(o)), None)
        if key in _HIDDEN or name.startswith("_"):
            continue
        if inner is not None:
            yield from _fields(typing.cast(type, inner), key, getattr(value, name))
        else:
            yield _option(section, section, name, key, getattr(value, name, None), hint)


def _option(section: type, documented: type, name: str, key: str, value: Any, hint: Any = None) -> Option:
    options = typing.get_args(hint) or (hint,)
    choices = tuple(
        str(member.value)
        for option in options
        if isinstance(option, type) and issubclass(option, Enum)
        for member in option
    )
    if hint is None and isinstance(value, Enum):
        choices = tuple(str(member.value) for member in type(value))
    return Option(key.removesuffix("_"), _text(value), meanings(documented).get(name, ""), choices, _only(key))


def _only(key: str) -> str:
    """The choice under which a key is read, where there is one."""
    parts = key.split(".")
    told = [
        " or ".join(map(_named, filter(None, (when, when.other))))
        for length in range(1, len(parts) + 1)
        for when in schema.READ_WHEN.get(".".join(parts[:length]), ())
        if None not in when.values
    ]
    return " and ".join(dict.fromkeys(text for text in told if text))


def _named(when: When) -> str:
    """The choice that a condition asks for: ``sae.source=store``; nothing where no choice fulfils it."""
    hinted = when.hint and (SET in when.values or when.but)
    return (when.hint if hinted else wanted(when.key, when.values) if when.values else "").rpartition(" ")[0]


def _text(value: Any) -> str:
    value = plain(value)
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


# -- pages -----------------------------------------------------------------------------------------------------------


def about(task: str) -> str:
    """The comment in the task's yaml."""
    lines = (places.CONF / "task" / f"{task}.yaml").read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


def page(task: str) -> str:
    """``task=X --help``."""
    lines = [f"task={task}: {about(task)}", ""]
    for section, listed in options(task).items():
        width = min(34, max(len(f"{one.key}={one.default}") for one in listed))
        lines += (
            [f"{section}:"] + [f"  {f'{one.key}={one.default}':<{width}}  {one.told}".rstrip() for one in listed] + [""]
        )
    lines.append(
        "Defaults are those of conf/ (presets set others: --cfg job shows what a command line gives). All tasks: docs/options.md"
    )
    return "\n".join(lines)


def document() -> str:
    """docs/options.md."""
    tasks = places.choices("task")
    lines = [
        "# Options", "",
        "Every key of the command line, from the schema: its default (with the presets that `conf/config.yaml` chooses), its "
        "meaning, its choices, and the choice under which it is read. Presets set other values: `--cfg job` shows what a command "
        "line gives, and where each value came from; `python launch.py task=sae --help` shows one task's keys. `make docs` writes "
        "this page.",
        "",
        "| task | what it does | reads |", "|---|---|---|",
    ]  # fmt: skip
    sections: dict[str, dict[str, Option]] = {}
    for task in tasks:
        found = options(task)
        lines.append(f"| `{task}` | {_cell(about(task))} | {' '.join(name for name in found if name != RUN)} |")
        for section, listed in found.items():
            sections.setdefault(section, {}).update({one.key: one for one in listed})
    sections[RUN] = sections.pop(RUN)
    for section, known in sections.items():
        lines += ["", f"## {section}", "", "| key | default | meaning |", "|---|---|---|"]
        lines += [f"| `{one.key}` | `{one.default}` | {_cell(one.told)} |" for one in known.values()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    """Write the page."""
    PAGE.write_text(document(), encoding="utf-8")
    print(PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE)


if __name__ == "__main__":
    main()
