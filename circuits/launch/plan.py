"""A plan: what a command line is going to do. It is computed once (:mod:`circuits.launch.planning`) and handed on. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError
from circuits.schema import BaseConfig, Reuse
from circuits.store.keys import Key, Unit
from circuits.store.kinds import Memory
from circuits.store.places import safe_name

if TYPE_CHECKING:
    from circuits.store.store import Store

NAME_LENGTH = 80  # letters of an element's directory: file systems stop at 255 bytes, terminals long before


@dataclass
class Element:
    """One element of a sweep, before it runs. `stage` is that of a pipeline, "" in any other sweep."""

    index: int
    overrides: list[str]
    cfg: BaseConfig
    swept: dict[str, str] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    keys: dict[Unit, Key] = field(default_factory=dict)
    bytes: tuple[int, int] = (0, 0)  # of one artifact; of its unfinished work
    memory: Memory | None = None
    remarks: list[str] = field(default_factory=list)
    stage: str = ""

    @property
    def task(self) -> str:
        """The name of its task."""
        return self.cfg.task.name

    @property
    def name(self) -> str:
        """``003-layer=14``, in a pipeline ``003-saes-layer=14``: number, then what was swept, made safe for file systems."""
        text = ",".join(f"{key}={value}" for key, value in self.swept.items())
        text = "-".join(filter(None, (self.stage, text)))
        safe = safe_name(text, NAME_LENGTH).strip("_")
        return safe_name(f"{self.index:03d}-{safe}", NAME_LENGTH).rstrip("-,_")


@dataclass
class Standing:
    """What of a planned sweep is there already."""

    cached: list[Element] = field(default_factory=list)
    adopted: list[Element] = field(default_factory=list)  # a live sweep or process is making it
    to_run: list[Element] = field(default_factory=list)
    refused: list[tuple[Element, str]] = field(default_factory=list)  # a gate of what they stand on has said no; which


@dataclass(frozen=True)
class After:
    """What must have ended well before an element starts: elements of its own plan, and others' jobs in the queue."""

    elements: tuple[int, ...] = ()
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """What a pipeline adds to the order that inputs give its elements.

    Attributes:
        barriers: by an element's number, elements that must have ended well before it, whether or not it reads what they make.
        canary: whether one element of each stage runs before all others.
        after: for each stage, those whose results it reads or that stand before it; for drawings.
    """

    name: str
    about: str = ""
    barriers: Mapping[int, frozenset[int]] = field(default_factory=dict)
    canary: bool = False
    after: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass
class Plan:
    """Elements, of one task or of several; what of them is there; what each of the rest waits for.

    Attributes:
        after: by an element's number; who waits for nothing is left out.
        packs: the elements that are to run, by the process that runs them (``pack=N``).
        requests: what each element that is to run asks of a scheduler, by its number; empty where there is none.
    """

    elements: list[Element]
    store: Store
    standing: Standing
    packs: list[list[Element]] = field(default_factory=list)
    after: Mapping[int, After] = field(default_factory=dict)
    requests: Mapping[int, Any] = field(default_factory=dict)

    @property
    def cfg(self) -> BaseConfig:
        """The config of the first element, for what a whole sweep has one value of."""
        return self.elements[0].cfg


def standing(
    elements: Iterable[Element], find: Callable[[Key], Any], holder: Callable[[Key], Mapping[str, Any] | None]
) -> Standing:
    """Sort elements into cached, in somebody else's hands, and to run.

    Raises:
        UserError: ``reuse=readonly`` and something does not exist.
    """
    result, absent = Standing(), []
    for element in elements:
        missing = [key for key in element.keys.values() if find(key) is None]
        if element.cfg.reuse is Reuse.force:
            result.to_run.append(element)
        elif not missing:
            result.cached.append(element)
        elif element.cfg.reuse is Reuse.readonly:
            absent += [
                f"reuse=readonly: {key.id} does not exist; leave reuse=readonly out to make it" for key in missing
            ]
        elif all(holder(key) is not None for key in missing):
            result.adopted.append(element)
        else:
            result.to_run.append(element)
    if absent:
        raise UserError(absent)
    return result
