"""An override that nothing reads under this config is an error that names what would read it. No torch.

What is read: the sections of the task's kind and, of each input that this config needs, the fields that decide its result (all
fields where the input is made on the way); what a gate asks where it is asked; what the task's module names in ``READS``. All of it
under the conditions that the schema (``READ_WHEN``), the kinds (``when``) and the task (``READ_WHEN``) name. What an input is made
with, whatever is given (``Kind.normal`` of who needs it), is not read either.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from circuits import schema
from circuits.command import overrides, personal
from circuits.run import config
from circuits.schema import Backend, BaseConfig, DataSource
from circuits.schema.model import scenes_of
from circuits.schema.reading import CHOICE_OF, Table, When, failing, lookup, plain, wanted
from circuits.schema.task import Where
from circuits.store import inputs, places, registry
from circuits.store.kinds import Kind

_NUMBERS = re.compile(r"layer=.*|(?!task\.)[\w.]+=[-+\d.eE_]+")


@dataclass(frozen=True)
class Reader:
    """A kind that reads this config: the task's own, one of its inputs, or one whose gate is asked."""

    kind: Kind
    cfg: BaseConfig
    made: bool
    """Whether it is made in this run: then it reads fields that change no result, too."""
    asked: bool
    """Whether its gate is asked."""


def unread(words: Sequence[Sequence[str]], cfgs: Sequence[BaseConfig]) -> list[str]:
    """One line for each override that is not read, with what would read it.

    What all elements of a sweep have in common must be read by one of them, what they differ in by each.

    Args:
        words: the overrides of each element.
        cfgs: their configs.
    """
    own = set(overrides.canonical(personal.beside(())))
    common = set.intersection(*map(set, words)) if words else set()
    answers: dict[str, list[str | None]] = {}
    for number in distinct(words):
        mine, cfg = words[number], cfgs[number]
        for word in mine:
            if word not in own:
                answers.setdefault(word, []).append(why(word, cfg, mine))
    lines = []
    for word, found in answers.items():
        if any(found) and (word not in common or all(found)):
            lines.append(next(f"{_typed(word)}: {reason}" for reason in found if reason))
    return list(dict.fromkeys(lines))


def distinct(words: Sequence[Sequence[str]]) -> Iterator[int]:
    """The numbers of the elements that differ in more than numbers: what is read hangs on nothing else."""
    seen = set()
    for number, mine in enumerate(words):
        kind = tuple(word.partition("=")[0] if _NUMBERS.fullmatch(word) else word for word in mine)
        if kind not in seen:
            seen.add(kind)
            yield number


def joined(rules: Sequence[str], found: Sequence[str]) -> list[str]:
    """The schema's findings and ours, each once: a value may be told as it was typed and as it was read (``1`` and ``1.0``)."""

    def same(line: str) -> tuple[str, str]:
        return line.partition("=")[0], line.partition(": ")[2]

    known = {same(line) for line in rules}
    return list(dict.fromkeys([*rules, *(line for line in found if same(line) not in known)]))


def why(word: str, cfg: BaseConfig, beside: Sequence[str] = ()) -> str | None:
    """Why the override `word` is not read under `cfg`, and what would read it; None where it is read."""
    key = word.partition("=")[0]
    head = key.split(".")[0].split("/")[0]
    if key == "experiment":
        return _study(word, cfg)
    if head == "hydra" or key == "task" or "@" in key:
        return None
    path = CHOICE_OF.get(key, key)
    if path.startswith(("cluster.gpu", "cluster.cpu")) and any("gpus_per_node" in other for other in beside):
        return None  # hydra.launcher has the last word on GPUs
    if path == "cluster.mail_type" and cfg.cluster.backend is Backend.slurm and not _writes_to(cfg):
        own, name = f"user.{cfg.cluster.name}.mail", personal.variable(cfg, "mail")
        return f"nobody is written to; cluster.mail=ADDRESS, {own} or {name} says who"
    reason = _reason(path, cfg)
    return None if reason is None else reason or _advice(path, cfg)


def _writes_to(cfg: BaseConfig) -> str | None:
    """The address that Slurm writes to."""
    return cfg.cluster.mail or personal.value(cfg, "mail")


def _study(word: str, cfg: BaseConfig) -> str | None:
    """Why a study says nothing to this run: none of the keys that it sets is read."""
    keys = [key for key in _keys(personal.experiment([word])) if key.split(".")[0] not in (*schema.RUN_KEYS, "layer")]
    if not keys or any(_reason(key, cfg) is None for key in keys):
        return None
    others = [name for name in _tasks() if any(_reason(key, under(cfg, name)) is None for key in keys)]
    told = f"; task={' or task='.join(others)} does" if others else ""
    return f"task={cfg.task.name} reads nothing of it ({' '.join(keys)}){told}"


def _keys(tree: Any, path: str = "") -> list[str]:
    """The dotted names of the values that a study's yaml sets."""
    if not isinstance(tree, dict):
        return [path]
    return [
        key
        for name, value in tree.items()
        if path or name not in ("defaults", "hydra")
        for key in _keys(value, f"{path}.{name}" if path else name)
    ]


def _reason(path: str, cfg: BaseConfig) -> str | None:
    """None where `path` is read; else why not, or nothing where no condition says so."""
    task = cfg.task.name
    module = registry.modules().get(task)
    tables = [schema.READ_WHEN, getattr(module, "READ_WHEN", {})]
    unmet = _unmet(tables, path, cfg)
    if unmet is not None:
        # An input may be made under another config than was written: an SAE's store is one of data, whatever `activations` says.
        others = (reader for reader in readers(task, cfg) if _unmet(tables, path, reader.cfg) is None)
        return None if any(_read_by(reader, path, cfg) is None for reader in others) else unmet.says(cfg)
    head = path.split(".")[0]
    if head == "user" and "." in path:
        cluster = path.split(".")[1]
        return (
            None
            if cluster == cfg.cluster.name
            else f"cluster={cfg.cluster.name} does not read it; cluster={cluster} does"
        )
    if path.startswith("task.resources") and cfg.task.where is Where.here:
        return f"task={task} runs here and does not read it"
    if head != "force" and (head in schema.RUN_KEYS or _within(path, registry.own(task))):
        return None
    answers = [_read_by(reader, path, cfg) for reader in readers(task, cfg)]
    return None if None in answers else next((answer for answer in answers if answer), "")


def _unmet(tables: Sequence[Table], path: str, cfg: BaseConfig) -> When | None:
    """The first condition on `path` that does not hold under `cfg`."""
    return next((found for table in tables if (found := failing(table, path, cfg))), None)


def readers(task: str, cfg: BaseConfig) -> list[Reader]:
    """Who reads `cfg` when `task` runs."""
    start = registry.start_of(task, cfg)
    if start is None:
        return []
    makes = hasattr(registry.modules()[task], "KIND")
    found: list[Reader] = []
    waiting = [(start, cfg, makes, makes)]
    while waiting:
        kind, mine, made, asked = waiting.pop()
        found.append(Reader(kind, mine, made, asked))
        for one in inputs.of(kind, mine):
            child = registry.kind(one.kind)
            waiting.append((child, one.cfg, child.inline, False))
        waiting += [(registry.kind(name), mine, False, True) for name in kind.gates(mine)]
    return found


def _read_by(reader: Reader, path: str, cfg: BaseConfig) -> str | None:
    """None where `reader` reads `path`; else why not, or nothing where it has no such section."""
    kind = reader.kind
    if path == "force":
        return None if kind.gates(reader.cfg) else ""
    if path in _asked_by_gates():
        return None if reader.asked and path in kind.gated else ""
    if path == "layer":
        return None if kind.layers != "none" else ""
    if not _within(path, kind.sections) or not (reader.made or decides(path)):
        return ""
    unmet = failing(kind.when, path, reader.cfg)
    if unmet is not None:
        return unmet.says(reader.cfg)
    taken, given = lookup(reader.cfg, path), lookup(cfg, path)
    if taken != given and taken == taken and not dataclasses.is_dataclass(taken):  # nan is unlike itself
        shown = plain(taken)
        return f"{path.removesuffix('_')}={str(shown).lower() if isinstance(shown, bool) else shown} is taken here; leave it out"
    return None


def _within(path: str, sections: Iterable[str]) -> bool:
    return any(path == s or path.startswith(f"{s}.") or s.startswith(f"{path}.") for s in sections)


@lru_cache
def _asked_by_gates() -> frozenset[str]:
    return frozenset(path for kind in registry.kinds().values() for path in kind.gated)


@lru_cache
def decides(path: str) -> bool:
    """Whether a field takes part in keys: it is neither ``free`` nor a ``path``, and in no section that is."""
    section: Any = config.root()
    for name in path.split("."):
        members = {f.name: f for f in dataclasses.fields(section)} if dataclasses.is_dataclass(section) else {}
        if name not in members:
            return True
        if members[name].metadata.get("role") in ("free", "path"):
            return False
        section = _inner(typing.get_type_hints(section)[name])
    return True


def _inner(hint: Any) -> Any:
    return next((o for o in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(o)), None)


def text_problem(cfg: BaseConfig) -> str | None:
    """Why a model cannot read the embedded model's sentences, where this config has it read any."""
    model = cfg.model
    drawn = scenes_of(model) is not None
    if cfg.data.source is not DataSource.embedded or (model.embedded is not None and not drawn):
        return None
    if why("data=embedded", cfg) is not None:
        return None
    if drawn:
        return f"data=embedded: sentences that model={model.id} has not learned; choose data=pictures behaviour=gender_bias"
    return (
        f"data=embedded: the toy sentences that model=tiny is trained on, no text for model={model.id}; choose data=text, jsonl or "
        "datasets with data.path=FILE, a directory or a hub name"
    )


# -- what would read it ----------------------------------------------------------------------------------------------


def _advice(path: str, cfg: BaseConfig) -> str:
    """What to change so that `path` is read: one choice of this config, or another task."""
    task = cfg.task.name
    turns: dict[str, list[Any]] = {}
    for key, value in _turns(registry.reads(task), cfg):
        if _reason(path, _with(cfg, key, value)) is None:
            turns.setdefault(key, []).append(value)
    if turns:
        own = [key for key in turns if key.startswith(f"{task}.")]  # what the task itself is told, before its inputs
        key = own[0] if own else next(iter(turns))
        values = turns[key]
        now = plain(lookup(cfg, key))
        shown = "null" if now is None else str(now).lower() if isinstance(now, bool) else now
        return f"{key.removesuffix('_')}={shown} does not read it; {wanted(key, values)}"
    others = [name for name in _tasks() if name != task and _reason(path, under(cfg, name)) is None]
    if path == "force":
        return f"task={task} asks no gate here"
    told = f"; task={' or task='.join(others)} does" if others else ""
    return f"task={task} does not read it{told}"


def _tasks() -> list[str]:
    """The tasks that read something themselves."""
    return [name for name in places.choices("task") if not registry.everything(name)]


def may(path: str, task: str) -> bool:
    """Whether `task`, or something it may need, reads the field `path` under some config."""
    head = path.split(".")[0]
    if head in schema.RUN_KEYS and (path != "force" or not hasattr(registry.modules()[task], "KIND")):
        return head in registry.run_keys(task) and not (
            path.startswith("task.") and not hasattr(registry.modules()[task], "KIND")
        )
    if _within(path, registry.own(task)):
        return True
    return any(
        path in kind.gated if path in _asked_by_gates() else
        kind in registry.starts(task) and type(kind).gates is not Kind.gates if path == "force" else
        kind.layers != "none" if path == "layer" else
        _within(path, kind.sections) and (made or decides(path))
        for kind, made in registry.chain(task)
    )  # fmt: skip


def under(cfg: BaseConfig, task: str) -> BaseConfig:
    """`cfg` under another task."""
    target = f"circuits.tasks.{task}.run"
    kind = getattr(registry.modules()[task], "KIND", None)
    where = Where.here if kind is None else Where.cluster
    return dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, name=task, _target_=target, where=where))


def _turns(sections: Iterable[str], cfg: BaseConfig) -> Iterator[tuple[str, Any]]:
    """Other values of the choices in these sections: of an Enum, of a truth value, of what can be null."""
    for head in sorted({section.split(".")[0] for section in sections}):
        section = getattr(cfg, head, None)
        if not dataclasses.is_dataclass(section) or head in ("task", "cluster", "tracking", "user", "model"):
            continue
        for name, hint in typing.get_type_hints(type(section)).items():
            value, key = getattr(section, name), f"{head}.{name}"
            options = typing.get_args(hint) or (hint,)
            enums = [o for o in options if isinstance(o, type) and issubclass(o, Enum)]
            values: Iterable[Any] = itertools.chain(*enums)
            if isinstance(value, bool):
                values = [not value]
            elif not enums and type(None) in options and value is not None:
                values = [None]
            yield from ((key, other) for other in values if other != value)


def _with(cfg: BaseConfig, key: str, value: Any) -> BaseConfig:
    """A copy with another value of ``section.name``."""
    head, name = key.split(".")
    other = copy.copy(cfg)
    setattr(other, head, dataclasses.replace(getattr(cfg, head), **{name: value}))
    return other


def _typed(word: str) -> str:
    """An override as a person types it."""
    return re.sub(r"^(\w+\.from)_=", r"\1=", word)
