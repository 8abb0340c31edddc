"""Sections register themselves by artifact kind; a new kind's section is one new module in ``sections/``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from circuits.drawing.style import Looks
from circuits.errors import UserError
from circuits.report.content import Part
from circuits.report.types import ArtifactRef, Element


@dataclass(frozen=True)
class Entry:
    """One artifact, the element that asked for it first, and those that asked after it."""

    element: Element
    ref: ArtifactRef
    others: tuple[Element, ...] = ()

    @property
    def elements(self) -> tuple[Element, ...]:
        """All that asked for it: what they ask of it may differ (a gate's thresholds)."""
        return (self.element, *self.others)


@dataclass(frozen=True)
class View:
    """All artifacts of one kind, each once, and the page's colours."""

    entries: tuple[Entry, ...]
    looks: Looks

    @property
    def swept(self) -> tuple[str, ...]:
        """The swept keys besides the layer, in the order of the command line."""
        keys = dict.fromkeys(key for entry in self.entries for key in entry.element.swept)
        return tuple(key for key in keys if key != "layer")

    def split(self, mine: Callable[[Entry], bool]) -> tuple[View, View]:
        """The view of those that are `mine`, and of the others."""
        chosen = tuple(entry for entry in self.entries if mine(entry))
        return replace(self, entries=chosen), replace(self, entries=tuple(e for e in self.entries if e not in chosen))


Render = Callable[[View], Part]


def either(view: View, mine: Callable[[Entry], bool], theirs: Render, others: Render) -> Part:
    """One section of two sorts of artifacts: those that are `mine` shown by `theirs`, the rest by `others`."""
    chosen, rest = view.split(mine)
    if not chosen.entries:
        return others(view)
    return others(rest).beside(theirs(chosen)) if rest.entries else theirs(chosen)


@dataclass(frozen=True)
class Section:
    """How artifacts of one kind are shown; `order` follows the data's way through a study."""

    kind: str
    order: int
    render: Render


_SECTIONS: dict[str, Section] = {}


def section(kind: str, order: int) -> Callable[[Render], Render]:
    """Register the decorated function as the section of artifacts of `kind`.

    Raises:
        UserError: another module has registered one.
    """

    def register(render: Render) -> Render:
        before = _SECTIONS.get(kind)
        if before is not None and before.render.__module__ != render.__module__:
            raise UserError(f"two sections of {kind}: in {before.render.__module__} and {render.__module__}")
        _SECTIONS[kind] = Section(kind, order, render)
        return render

    return register


def sections(kinds: Iterable[str] | None = None) -> dict[str, Section]:
    """The registered sections by kind; the first call imports the modules that register them.

    Where only `kinds` are wanted and each has a module of its name, the others are left alone: together they take half a second.
    """
    from circuits.report import sections as package

    there = [module.name for module in pkgutil.iter_modules(package.__path__)]
    wanted = there if kinds is None or set(kinds) - set(there) else kinds
    for name in wanted:
        importlib.import_module(f"{package.__name__}.{name}")
    return dict(_SECTIONS)
