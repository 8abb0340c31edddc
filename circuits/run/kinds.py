"""Kinds of artifacts: what each reads, needs and is called. Declared beside its task, without torch.

Their keys are computed in :mod:`circuits.run.keys`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from circuits.data.opening import stem
from circuits.errors import UserError
from circuits.run.content import Contents
from circuits.schema import BaseConfig
from circuits.schema.reading import When
from circuits.words import number


@dataclass(frozen=True)
class ModelDims:
    """What is known of a model before it is loaded; None where nobody knows yet.

    `width_of` gives the width of an activation site by its name; `context` is the longest sequence; `revision` is the commit
    that a hub name's branch or tag stands for now.
    """

    depth: int | None
    width_of: Callable[[str], int | None]
    context: int | None = None
    model_type: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Column:
    """A column of a sweep's end table: a metric, its heading, its format, and the metric that holds its interval.

    Attributes:
        format: as Python writes it; ``size`` for a value in units of 10⁹ bytes.
        exact: nothing random is in it (a count, a size): two values differ or they do not.
        headings: where the measurement's ``metric`` says which of several things was measured: a heading for each.
    """

    metric: str
    heading: str
    format: str = ".3f"
    interval: str | None = None
    exact: bool = False
    headings: tuple[tuple[str, str], ...] = ()

    def title(self, measured: Iterable[Mapping[str, Any]]) -> str:
        """The heading over these measurements; that of each, where they differ."""
        known = dict(self.headings)
        return " / ".join(dict.fromkeys(known.get(m.get("metric", ""), self.heading) for m in measured)) or self.heading

    def text(self, metrics: Mapping[str, Any]) -> str:
        """The value as it is shown, with its interval where it has one."""
        return number(metrics.get(self.metric), self.format, metrics.get(self.interval) if self.interval else None)


@dataclass(frozen=True)
class Memory:
    """About what one element takes at its peak, in bytes, at least.

    `fixed` and `each` on the device that computes, `beside` and `beside_each` in the machine's own memory; `count` things of one
    size are made, called `what` in the message.
    """

    fixed: int
    each: int
    beside: int
    beside_each: int
    count: int
    what: str


@dataclass(frozen=True)
class Kind:
    """The type of an artifact: what it reads, what it needs, how it is named.

    Attributes:
        name: as in ``outputs/artifacts/<name>/``.
        version: raised when the same inputs give another result.
        sections: config sections that it reads (``sae``, ``model.embedded``); code sees no other.
        when: on what else it depends whether a section, or a field of one, is read, by its dotted name.
        gated: fields that only its `gate` reads, of whatever section; they are read where that gate is asked.
        label: a short readable name from the config and the layer; the directory's name begins with it.
        layers: ``none``; ``each`` = one artifact per layer, with inputs of the same layer; ``set`` = one over the chosen layers.
        inputs: the names of the kinds that it is made from under this config; ``kind:part`` where it needs a further one.
        part: the config of such a further input (``activations:target``).
        may_need: every kind that `inputs` and `gates` can name.
        through: for an input that can itself be made from several things: which of them it may need when it is made for this
            kind (``{"activations": ("tiny", "tokens")}``: of data, not of a behaviour's prompts).
        words: what the command that makes a missing input has to say beside what was typed for this run, by key.
        extra: further plain values that enter the key (a generator's version, a tokenizer's hash).
        variants: where one run makes several artifacts a layer (of several sites, say): the config of each, by a short name;
            empty where it makes one.
        share: which part of an artifact's work a run with this config does (``shard-1-of-4``), where several share it; each
            part has its own lease and claim.
        together: what elements of one pack must have equal to be made in one go by the module's ``run_together``; None: each is
            made by itself.
        inline: made by whoever needs it first; another kind that is missing is an error with the command that makes it.
        cpus: threads while it is made, for inline kinds; None takes the task's.
        load: ``module:function`` that opens the artifact's directory for a notebook.
        bytes: about how much room one artifact takes, and how much its unfinished work takes beside it (of variants: in the mean).
        memory: about what a run with these layers takes at its peak; None where nobody knows.
        check: what is wrong with this config for a model of these dimensions and these layers, one line each, before the start.
        remarks: what a person should know before they trust what comes out, one line each: told before the start and in the log.
        normal: the config with what has no effect under it set to one value, so that equal results have equal keys.
        gate: why a measurement (the artifact's ``metrics.json``) stays below a gate of this config, or None.
        gates: the measurements (kinds without layers) whose gates this config stands on: they are asked in every run; a name
            here stands in `may_need`, too.
        derived: numbers of the measurement that depend on what the config asks now and not on the key, for tables and reports.
        asks: the keys that `derived` reads.
        question: what the report of a run asks, as the beginning of a sentence that goes on "at layers 0-3".
        memory_keys: config keys to lower when memory runs out.
        columns: metrics of ``metrics.json`` that the end table shows.
    """

    name: str
    version: int
    sections: tuple[str, ...]
    label: Callable[[BaseConfig, tuple[int, ...]], str]
    when: Mapping[str, Sequence[When]] = field(default_factory=dict)
    gated: tuple[str, ...] = ()
    layers: Literal["none", "each", "set"] = "none"
    inputs: Callable[[BaseConfig], tuple[str, ...]] = lambda cfg: ()
    part: Callable[[BaseConfig, str], BaseConfig] = lambda cfg, part: cfg
    may_need: tuple[str, ...] = ()
    through: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    words: Callable[[BaseConfig, str], Mapping[str, str]] = lambda cfg, name: {}
    extra: Callable[[BaseConfig, Contents], Mapping[str, Any]] = lambda cfg, contents: {}
    variants: Callable[[BaseConfig], Mapping[str, BaseConfig]] = lambda cfg: {}
    share: Callable[[BaseConfig], str] = lambda cfg: ""
    together: Callable[[BaseConfig], str | None] = lambda cfg: None
    inline: bool = False
    cpus: int | None = None
    load: str | None = None
    bytes: Callable[[BaseConfig, ModelDims], tuple[int, int]] = lambda cfg, dims: (0, 0)
    memory: Callable[[BaseConfig, ModelDims, tuple[int, ...]], Memory | None] = lambda cfg, dims, layers: None
    check: Callable[[BaseConfig, ModelDims, tuple[int, ...]], list[str]] = lambda cfg, dims, layers: []
    remarks: Callable[[BaseConfig, tuple[int, ...]], list[str]] = lambda cfg, layers: []
    normal: Callable[[BaseConfig], BaseConfig] = lambda cfg: cfg
    gate: Callable[[BaseConfig, Mapping[str, Any]], str | None] = lambda cfg, metrics: None
    gates: Callable[[BaseConfig], tuple[str, ...]] = lambda cfg: ()
    derived: Callable[[BaseConfig, Mapping[str, Any]], Mapping[str, Any]] = lambda cfg, metrics: {}
    asks: tuple[str, ...] = ()
    question: Callable[[BaseConfig], str] | None = None
    memory_keys: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()


def readable(name: str) -> str:
    """The last part of a path or hub name, at most 40 characters: for labels."""
    return re.sub(r"[^\w.+-]+", "_", name.rstrip("/").rsplit("/", 1)[-1])[:40]


def behaviour_and_model(cfg: BaseConfig, layers: tuple[int, ...] = ()) -> str:
    """``ioi-gpt2``, a label; of prompts in a file the file's name."""
    return f"{behaviour_name(cfg)}-{readable(cfg.model.id)}"


def text_remarks(cfg: BaseConfig) -> list[str]:
    """What a person should know of how the corpus is read, if there is one."""
    if cfg.data.path is None:
        return []
    from circuits.data.corpora import remarks

    return list(remarks(cfg.data.source.value, cfg.data.path, cfg.data.field or "text", cfg.data.split))


def behaviour_name(cfg: BaseConfig) -> str:
    """The behaviour's name; of prompts in a file the file's, without its endings."""
    return readable(stem(cfg.behaviour.path) if cfg.behaviour.path else cfg.behaviour.name)


class Scope:
    """The config as a task sees it: only the sections that its kind declares.

    Reading another one is an error, so that nothing outside an artifact's key can change the artifact.
    """

    def __init__(self, cfg: BaseConfig, kind: Kind) -> None:
        self._cfg, self._kind = cfg, kind

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        declared = {section.split(".")[0] for section in self._kind.sections}
        if name not in declared:
            raise UserError(
                f"kind {self._kind.name} reads config section {name!r} without declaring it; declared: {' '.join(sorted(declared))}"
            )
        value = getattr(self._cfg, name)
        inner = [section.split(".", 1)[1] for section in self._kind.sections if section.startswith(f"{name}.")]
        if inner and name not in self._kind.sections:
            return _Part(value, inner, self._kind.name)
        return value


class _Part:
    """A section of which only some members were declared."""

    def __init__(self, value: Any, names: list[str], kind: str) -> None:
        self._value, self._names, self._kind = value, names, kind

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._names:
            raise UserError(f"kind {self._kind} reads {name!r} without declaring it; declared: {' '.join(self._names)}")
        return getattr(self._value, name)
