"""What the elements of a plan wait for: whoever makes the inputs that they miss. What nobody makes is said before the start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from circuits.errors import UserError
from circuits.launch.plan import After, Element, Shape, Standing
from circuits.schema import Reuse
from circuits.store import absent, inputs, registry
from circuits.store.contents import Contents
from circuits.store.keys import Key, key_of, units
from circuits.store.kinds import Input, Kind, Layers
from circuits.store.store import Store

Holder = Mapping[str, Any]


class Chain:
    """The dependencies of elements on one another, and on what others are making."""

    def __init__(
        self, store: Store, contents: Contents, job_of: Callable[[Holder], str | None], find: Callable[[Key], Any]
    ) -> None:
        """`job_of` names the job in the queue that can be waited for there (None: the run itself waits for the holder), `find` is
        the store's, asked once a key."""
        self.store, self.contents, self.job_of, self.find = store, contents, job_of, find
        self._gates: dict[Any, list[Key]] = {}
        self._holders: dict[str, Holder | None] = {}

    def after(self, to_run: Sequence[Element]) -> dict[int, After]:
        """For each element that has to wait: for whom.

        Raises:
            UserError: inputs that nobody makes, with the commands that do.
        """
        makers = {key.hash: element.index for element in to_run for key in element.keys.values()}
        found: dict[int, After] = {}
        lost: list[Element] = []
        for element in to_run:
            needed = list(
                self._needed(element)
            )  # what this plan makes is waited for, also where it is there and made anew
            mine = {makers[key.hash] for key in needed if key.hash in makers} - {element.index}
            missing = [key for key in needed if key.hash not in makers and self.find(key) is None]
            holders = {key.hash: self._holder(key) for key in missing}
            jobs = {job for holder in holders.values() if holder is not None and (job := self.job_of(holder))}
            if mine or jobs:
                found[element.index] = After(tuple(sorted(mine)), tuple(sorted(jobs)))
            if None in holders.values() and element.cfg.reuse is not Reuse.readonly:
                lost.append(element)
        if lost:
            raise UserError(list(self._absent(lost, makers)))
        return found

    def refused(
        self, found: Standing, shape: Shape, gate_of: Callable[[Element], str | None]
    ) -> list[tuple[Element, str]]:
        """Take out of what is to run all that stands on an answer of this plan to which a gate says no; each with the reason.

        By ``force`` an element goes on.
        """
        barred: dict[str, int] = {}
        for element in found.cached:
            if gate_of(element):
                barred |= dict.fromkeys((key.hash for key in element.keys.values()), element.index)
        result: list[tuple[Element, str]] = []
        more = bool(barred)
        while more:
            more = False
            for element in [one for one in found.to_run if not one.cfg.force]:
                made = next((barred[key.hash] for key in self._needed(element) if key.hash in barred), None)
                stage = min(shape.barriers.get(element.index, frozenset()) & set(barred.values()), default=None)
                if (before := made if made is not None else stage) is not None:
                    which = "which makes an input of it" if made is not None else "of a stage before it"
                    found.to_run.remove(element)
                    result.append((element, f"element {before}, {which}, is refused by a gate"))
                    barred |= dict.fromkeys((key.hash for key in element.keys.values()), element.index)
                    more = True
        return result

    def _holder(self, key: Key) -> Holder | None:
        if key.hash not in self._holders:
            self._holders[key.hash] = self.store.holder(key)
        return self._holders[key.hash]

    def _needed(self, element: Element) -> Iterator[Key]:
        """The inputs and measurements that some task has to have made before this element runs."""
        seen: set[str] = set()
        for key in element.keys.values():
            if element.cfg.reuse is Reuse.force or self.find(key) is None:
                yield from made_elsewhere(key, seen)
        if not element.cfg.force:  # by force a run goes on without
            yield from self._gates_of(element)

    def _gates_of(self, element: Element) -> list[Key]:
        kind = registry.kind(element.task)
        swept = tuple((name, value) for name, value in element.swept.items() if name != "layer")
        apart = (element.stage, element.task, swept)
        if apart not in self._gates:  # a measurement has no layers
            names = kind.gates(element.cfg)
            self._gates[apart] = [key_of(registry.kind(name), element.cfg, (), self.contents) for name in names]
        return self._gates[apart]

    def _absent(self, lost: Sequence[Element], makers: Mapping[str, int]) -> Iterator[str]:
        """A line for the elements that differ in nothing but their layers, and each kind of input that they miss."""
        groups: dict[tuple[str, ...], list[Element]] = {}
        for element in lost:
            apart = tuple(word for word in element.overrides if not word.startswith("layer="))
            groups.setdefault(apart, []).append(element)
        for apart, members in groups.items():
            first, single = members[0], len(members) == 1
            kind = registry.kind(first.task)
            missing: dict[str, dict[str, Input]] = {}
            for element in members:
                for one in _declared(kind, element):
                    key = key_of(registry.kind(one.kind), one.cfg, one.layers, self.contents)
                    if key.hash not in makers and self.find(key) is None and self._holder(key) is None:
                        missing.setdefault(one.kind, {})[key.hash] = one
            words, layers = (first.overrides, first.layers) if single else (apart, ())
            for found in missing.values():
                yield absent.told(
                    kind, list(found.values()), absent.Asked(first.cfg, layers, words, self.contents, self.store.root)
                )


def ordered(
    after: Mapping[int, After], found: Standing, shape: Shape, job_of: Callable[[Key], str | None]
) -> dict[int, After]:
    """`after` with what a pipeline's shape adds: whole stages, and one element of each stage before all others.

    `job_of` names the job in the queue that makes a key which somebody else is making.
    """
    result, running = dict(after), {element.index for element in found.to_run}
    adopted = {element.index: element for element in found.adopted}

    def wait(index: int, others: Iterable[int]) -> None:
        others = set(others) - {index}
        jobs = {job for other in others & set(adopted) for key in adopted[other].keys.values() if (job := job_of(key))}
        before = result.get(index, After())
        elements = tuple(sorted({*before.elements, *(others & (running | set(adopted)))}))
        result[index] = After(elements, tuple(sorted({*before.jobs, *jobs})))

    for index, barrier in shape.barriers.items():
        if index in running:
            wait(index, barrier)
    if shape.canary:
        first = _canaries(found.to_run, result)
        ends = first - {other for index in first for other in result.get(index, After()).elements}
        for index in running - first:
            wait(index, ends)
    return {index: one for index, one in result.items() if one != After()}


def _canaries(elements: Sequence[Element], after: Mapping[int, After]) -> set[int]:
    """The first element of each stage, with all that it waits for."""
    first: dict[str, int] = {}
    for element in elements:
        first.setdefault(element.stage, element.index)
    found: set[int] = set()
    waiting = list(first.values())
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += after.get(one, After()).elements
    return found


def made_elsewhere(key: Key, seen: set[str]) -> Iterator[Key]:
    """The inputs of `key` that are a task's own work, also those of what is made on its way."""
    for one in key.inputs.values():
        if one.hash in seen:
            continue
        seen.add(one.hash)
        if registry.kind(one.kind).inline:
            yield from made_elsewhere(one, seen)
        else:
            yield one


def _declared(kind: Kind, element: Element) -> Iterator[Input]:
    """The same as inputs, with the configs under which they are made; measurements whose gates are asked among them."""
    each: list[Layers] = [(layer,) for layer in element.layers] if kind.layers == "each" else [element.layers]
    variants = kind.variants(element.cfg).values() if len(units(kind, element.cfg, element.layers)) > 1 else ()
    for cfg in variants or [element.cfg]:
        for layers in each:
            yield from _leaves(kind, cfg, layers)
    if not element.cfg.force:
        yield from (Input(name, (), element.cfg) for name in kind.gates(element.cfg))


def _leaves(kind: Kind, cfg: Any, layers: Layers) -> Iterator[Input]:
    for one in inputs.of(kind, cfg, layers):
        child = registry.kind(one.kind)
        if child.inline:
            yield from _leaves(child, one.cfg, one.layers)
        else:
            yield one
