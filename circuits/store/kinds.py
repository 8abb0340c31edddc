"""Kinds of artifacts: what each reads, needs and is called, and how it is made. Declared beside its task, without torch.

A kind is one subclass of :class:`Kind`: its identity (name, version, sections, inputs), what is checked before the start, and the
work. Keys are computed in :mod:`circuits.store.keys`, inputs are walked in :mod:`circuits.store.inputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from circuits.errors import GateError
from circuits.schema import BaseConfig
from circuits.schema.reading import When, lookup, plain
from circuits.words import number

if TYPE_CHECKING:
    from circuits.store.contents import Contents

Layers = tuple[int, ...]
Keep = Literal["keep", "archive", "regenerable"]


@dataclass(frozen=True)
class ModelDims:
    """What is known of a model before it is loaded; None where nobody knows yet.

    `width_of` gives the width of an activation site by its name; `context` is the longest sequence; `revision` is the commit
    that a hub name's branch or tag stands for now; `heads` is how many attention heads a layer has.
    """

    depth: int | None
    width_of: Callable[[str], int | None]
    context: int | None = None
    model_type: str | None = None
    revision: str | None = None
    heads: int | None = None


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
class Input:
    """One artifact that another is made from.

    Attributes:
        kind: the name of its kind.
        layers: the layers that it is of; ignored where its kind has none.
        cfg: the config under which it is made: the run's own, or a copy with other values (another site, another model).
        name: what it is called among the inputs, in the key and the manifest; the kind's name, unless several are of one kind.
    """

    kind: str
    layers: Layers
    cfg: BaseConfig
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.kind)


@dataclass(frozen=True)
class Need:
    """A kind that is needed as it is made `of` these kinds (activations of text, and not of a behaviour's prompts)."""

    kind: str
    of: tuple[str, ...]


def one_a_layer(kind: str, layers: Layers, cfg: BaseConfig) -> list[Input]:
    """The inputs of an artifact over a set of layers: one of `kind` at each of them, named ``sae/L3``."""
    return [Input(kind, (layer,), cfg, f"{kind}/L{layer}") for layer in layers]


class Kind:
    """The type of an artifact. A subclass declares the attributes, and overrides what is not as it stands here.

    Attributes:
        name: as in ``outputs/artifacts/<name>/``.
        version: raised when the same inputs give another result.
        sections: config sections that it reads (``sae``, ``model.embedded``); its code sees no other.
        layers: ``none``; ``each`` = one artifact per layer; ``set`` = one over the chosen layers.
        needs: the names of all kinds that :meth:`inputs` and :meth:`gates` can name; a :class:`Need` where such a kind can be made
            from several things, and here only from some of them.
        several: the key that may hold a list, each value of which is an artifact of its own, made in one run.
        when: on what else it depends whether a section, or a field of one, is read, by its dotted name.
        gated: fields that only its :meth:`gate` reads, of whatever section; they are read where that gate is asked.
        asks: the keys that :meth:`derived` reads.
        inline: made by whoever needs it first; another kind that is missing is an error with the command that makes it.
        memory_keys: config keys to lower when memory runs out.
        work: keys to whose product the time of making one is proportional, for the plan; of inputs' configs, too.
        columns: metrics of ``metrics.json`` that the end table shows.
        keep: what task=clean may do with its artifacts: ``keep`` them; delete what stands in an ``archive``; delete what is
            ``regenerable`` by the command that made it.
        pictures: whether it can be made of a behaviour of pictures, where it reads prompts.
        striped: whether its files are large enough to lie on several storage targets (``cluster.stripe``).
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    sections: ClassVar[tuple[str, ...]]
    layers: ClassVar[Literal["none", "each", "set"]] = "none"
    needs: ClassVar[tuple[str | Need, ...]] = ()
    several: ClassVar[str | None] = None
    when: ClassVar[Mapping[str, Sequence[When]]] = {}
    gated: ClassVar[tuple[str, ...]] = ()
    asks: ClassVar[tuple[str, ...]] = ()
    inline: ClassVar[bool] = False
    memory_keys: ClassVar[tuple[str, ...]] = ()
    work: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[Column, ...]] = ()
    keep: ClassVar[Keep] = "keep"
    striped: ClassVar[bool] = False
    pictures: ClassVar[bool] = False

    @cached_property
    def needed(self) -> dict[str, tuple[str, ...] | None]:
        """The kinds of :attr:`needs`, each with what it is made of here (None: whatever it can be)."""
        return {n: None for n in self.needs if isinstance(n, str)} | {
            n.kind: n.of for n in self.needs if isinstance(n, Need)
        }

    # -- identity ------------------------------------------------------------------------------------------------

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """A short readable name; the artifact's directory begins with it."""
        raise NotImplementedError(f"{type(self).__name__}.label")

    def normal(self, cfg: BaseConfig) -> BaseConfig:
        """`cfg` with what has no effect under it set to one value, so that equal results have equal keys."""
        return cfg

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        """What its artifact at `layers` is made from under `cfg`, which is :meth:`normal`."""
        return []

    def extra(self, cfg: BaseConfig, contents: Contents) -> Mapping[str, Any]:
        """Further plain values that enter the key (a generator's version, a tokenizer's hash)."""
        return {}

    def variants(self, cfg: BaseConfig) -> Mapping[str, BaseConfig]:
        """The config of each artifact a layer, by a short name, where one run makes :attr:`several`; empty where it makes one."""
        given = lookup(cfg, self.several) if self.several else None
        values = list(dict.fromkeys(map(plain, given))) if isinstance(given, (list, tuple)) else []
        return {value: _with(cfg, self.several or "", value) for value in values} if len(values) > 1 else {}

    def share(self, cfg: BaseConfig) -> str:
        """Which part of an artifact's work a run does (``shard-1-of-4``), where several share it; each has its own lease."""
        return ""

    # -- before the start ----------------------------------------------------------------------------------------

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """What is wrong with this config for a model of these dimensions and these layers, one line each.

        Its inputs' own checks are asked beside it: see :func:`circuits.store.inputs.problems`.
        """
        return []

    def remarks(self, cfg: BaseConfig, layers: Layers) -> list[str]:
        """What a person should know before they trust what comes out, one line each: told before the start and in the log."""
        return []

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """About how much room one artifact takes, and its unfinished work beside it (of variants: in the mean)."""
        return 0, 0

    def memory(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> Memory | None:
        """About what a run with these layers takes at its peak; None where nobody knows."""
        return None

    # -- the work ------------------------------------------------------------------------------------------------

    def run(self, context: Any) -> None:
        """Make what is missing of a run's artifacts, then show all of them; the gates have the last word.

        Raises:
            GateError: a measurement stays below a gate of this config; it is kept.
        """
        while missing := context.missing():
            with context.making(missing) as works:
                if works:
                    self.make(context, works)
        if refusals := context.conclude():
            raise GateError("; ".join(refusals))

    def make(self, context: Any, works: Mapping[Any, Any]) -> None:
        """Make these artifacts, each by its ``work.commit``.

        Args:
            context: the :class:`circuits.run.context.Context` of the run.
            works: a :class:`circuits.run.context.Work` by layer; by (layer, variant); by None where there is one of all layers.
        """
        raise NotImplementedError(f"{type(self).__name__}.make")

    def together(self, cfg: BaseConfig) -> str | None:
        """What elements of one pack must have equal to be made in one go by :meth:`run_together`; None: each by itself."""
        return None

    def run_together(self, contexts: Sequence[Any]) -> dict[int, Exception]:
        """Make what several elements of a pack miss, in one go; what went wrong, by element. Each one's :meth:`run` follows."""
        return {}

    # -- the measurement -----------------------------------------------------------------------------------------

    def gates(self, cfg: BaseConfig) -> tuple[str, ...]:
        """The measurements (kinds without layers) whose gates this config stands on: they are asked in every run."""
        return ()

    def gate(self, cfg: BaseConfig, metrics: Mapping[str, Any]) -> str | None:
        """Why a measurement (the artifact's ``metrics.json``) stays below a gate of this config, or None."""
        return None

    def derived(self, cfg: BaseConfig, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        """Numbers of the measurement that depend on what the config asks now and not on the key, for tables and reports."""
        return {}

    # -- for people ----------------------------------------------------------------------------------------------

    def question(self, cfg: BaseConfig) -> str:
        """What the report of a run asks, as the beginning of a sentence that goes on "at layers 0-3"."""
        return f"What does task={self.name} measure in {Path(cfg.model.id).name}"

    def load(self, path: Path) -> Any:
        """The artifact in directory `path`, opened for a notebook."""
        return path


def _with(cfg: BaseConfig, key: str, value: Any) -> BaseConfig:
    """A copy of `cfg` in which ``section.name`` has another value."""
    section, name = key.split(".")
    return replace(cfg, **{section: replace(getattr(cfg, section), **{name: value})})
