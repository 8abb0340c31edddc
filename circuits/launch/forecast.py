"""What a plan will take: each stage's jobs, hours, memory and room, and how long the whole takes. No torch.

An element's time is the store's own estimate (:mod:`circuits.launch.estimate`), and where nothing of its kind was measured the time
that it asks a cluster for, an upper bound, and said to be one; here it is not known, and said so. The wall time of the whole
comes from a simulation: elements start in
order as soon as what they wait for has ended and a worker (here) or a place under ``cluster.parallelism`` (in an array) is free.
Time in a queue is not in it: nobody knows it.

GPU-hours are Σ hours × GPUs over what is to run; service units GPU-hours × ``plan.rate`` + CPU-hours × ``plan.cpu_rate``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from circuits.launch.chain import made_elsewhere
from circuits.launch.estimate import Estimate, Rates
from circuits.launch.plan import Element, Plan, Shape
from circuits.launch.slurm.preflight import size as bytes_of
from circuits.launch.slurm.request import minutes
from circuits.run import machine
from circuits.schema import Backend
from circuits.store import registry
from circuits.store.contents import Contents
from circuits.store.keys import key_of


@dataclass
class Stage:
    """One stage of a plan."""

    name: str
    task: str
    elements: int
    cached: int
    adopted: int
    to_run: int
    jobs: int
    hours: float  # of all that is to run, one after the other
    longest_s: float  # its longest element
    gpu_hours: float
    cpu_hours: float
    memory: int | None  # the most that an element was measured to take
    gpu_memory: int | None
    asked: str  # task.resources as they stand
    bytes: int  # of what is to be made
    measured: int  # elements whose time comes from a measurement
    same: int  # of these, of the very same config but for the layer
    by: str  # the artifact that was measured


@dataclass
class Forecast:
    """A plan's stages in order, the stages that each waits for, and the wall time of the whole without queues."""

    stages: list[Stage]
    after: dict[str, list[str]]
    wall_s: float

    def total(self, name: str) -> float:
        """The sum of a number over all stages."""
        return float(sum(getattr(stage, name) for stage in self.stages))


def forecast(plan: Plan, rates: Rates, shape: Shape | None) -> Forecast:
    """What `plan` will take."""
    elements = {
        stage: [e for e in plan.elements if e.stage == stage] for stage in dict.fromkeys(e.stage for e in plan.elements)
    }
    running = {element.index for element in plan.standing.to_run}
    estimates = {element.index: rates.of(element) for element in plan.standing.to_run}
    seconds = {e.index: _seconds(e, estimates[e.index]) for e in plan.standing.to_run}
    stages = [
        _stage(name or found[0].task, found, plan, running, estimates, seconds) for name, found in elements.items()
    ]
    return Forecast(
        stages, {} if shape is None else {k: list(v) for k, v in shape.after.items()}, simulate(plan, seconds)
    )


def _seconds(element: Element, found: Estimate | None) -> float:
    if found is not None:
        return found.wall_s
    here = element.cfg.cluster.backend is Backend.local  # where nothing is asked for, and nobody knows
    return 0.0 if here else minutes(element.cfg.task.resources.time) * 60.0


def _stage(
    name: str,
    found: Sequence[Element],
    plan: Plan,
    running: set[int],
    estimates: Mapping[int, Estimate | None],
    seconds: Mapping[int, float],
) -> Stage:
    mine = [element for element in found if element.index in running]
    known = [one for element in mine if (one := estimates[element.index]) is not None]
    need, hours = found[0].cfg.task.resources, [seconds[element.index] / 3600 for element in mine]
    here = found[0].cfg.cluster.backend is Backend.local
    gpus = need.gpus if not here or machine.gpus() else 0
    sizes = {key.hash: element.bytes[0] for element in mine for key in element.keys.values()}
    room = sum(one.bytes for one in known) if len(known) == len(mine) and mine else sum(sizes.values())
    adopted = {element.index for element in plan.standing.adopted}
    return Stage(
        name,
        found[0].task,
        len(found),
        sum(element in plan.standing.cached for element in found),
        sum(element.index in adopted for element in found),
        len(mine),
        sum(pack[0].index in {element.index for element in mine} for pack in plan.packs),
        sum(hours),
        max((seconds[element.index] for element in mine), default=0.0),
        sum(hours) * gpus,
        sum(hours) * (need.cpus or 1),
        max((one.memory for one in known), default=None),
        max((one.gpu_memory for one in known if one.gpu_memory), default=None),
        f"{need.gpus} GPU{'s' if need.gpus != 1 else ''}, {need.memory}, {need.time}" if not here else "",
        room,
        len(known),
        sum(not one.unlike for one in known),
        known[0].by if known else "",
    )


def edges(elements: Sequence[Element], shape: Shape | None, contents: Contents) -> dict[str, list[str]]:
    """For each stage the stages whose artifacts it reads, or that stand before it; without those that follow from others."""
    maker = {key.hash: element for element in elements for key in element.keys.values()}
    by_index = {element.index: element for element in elements}
    direct: dict[str, set[str]] = {element.stage: set() for element in elements}
    seen: set[tuple[str, str]] = set()
    for element in elements:
        for key in element.keys.values():
            for one in made_elsewhere(key, set()):
                if one.hash in maker and (pair := (element.stage, maker[one.hash].stage)) not in seen:
                    seen.add(pair)
                    direct[pair[0]].add(pair[1])
        for name in registry.kind(element.task).gates(element.cfg) if not element.cfg.force else ():
            gate = key_of(registry.kind(name), element.cfg, (), contents)
            if gate.hash in maker:
                direct[element.stage].add(maker[gate.hash].stage)
        for before in shape.barriers.get(element.index, ()) if shape else ():
            direct[element.stage].add(by_index[before].stage)
    for stage, found in direct.items():
        found.discard(stage)
    order = list(direct)
    reach: dict[str, set[str]] = {}

    def below(stage: str) -> set[str]:
        if stage not in reach:
            reach[stage] = set()  # a circle of stages (elements of two wait for each other) ends here
            reach[stage] = direct[stage].union(*(below(one) for one in direct[stage]))
        return reach[stage]

    for stage in order:
        below(stage)
    return {
        stage: [
            one for one in order if one in found and not any(one in reach[other] for other in found if other != one)
        ]
        for stage, found in direct.items()
    }


def simulate(plan: Plan, seconds: Mapping[int, float]) -> float:
    """The wall time of what is to run: packs start in order once what they wait for has ended and there is a place."""
    packs = [[element.index for element in pack] for pack in plan.packs]
    place = {index: number for number, pack in enumerate(packs) for index in pack}
    before = [
        {place[other] for index in pack for other in _after(plan, index) if other in place} - {number}
        for number, pack in enumerate(packs)
    ]
    take = [_pack_seconds(pack, seconds) for pack in plan.packs]
    room = _room(plan)
    ended: set[int] = set()
    waiting, now = list(range(len(packs))), 0.0
    running: list[tuple[float, int, str]] = []
    busy: dict[str, int] = {}
    while waiting or running:
        for number in list(waiting):
            where, most = room(plan.packs[number][0])
            if before[number] <= ended and busy.get(where, 0) < most:
                waiting.remove(number)
                busy[where] = busy.get(where, 0) + 1
                heapq.heappush(running, (now + take[number], number, where))
        if not running:
            break  # they wait for each other, or for others' work
        now, number, where = heapq.heappop(running)
        busy[where] -= 1
        ended.add(number)
    return now


def _pack_seconds(pack: Sequence[Element], seconds: Mapping[int, float]) -> float:
    """One after the other; those that are made in one go (SAEs on one stream) were measured so."""
    kind = registry.kind(pack[0].task)
    joint = len(pack) > 1 and kind.together(pack[0].cfg) is not None
    each = [seconds[element.index] for element in pack]
    return max(each) if joint else sum(each)


def _after(plan: Plan, index: int) -> tuple[int, ...]:
    found = plan.after.get(index)
    return found.elements if found is not None else ()


def _room(plan: Plan) -> Callable[[Element], tuple[str, int]]:
    """Where an element takes a place, and how many there are."""
    if plan.cfg.cluster.backend is Backend.local:
        from circuits.launch.local import pool_size

        workers = max(1, pool_size(plan.cfg, len(plan.standing.to_run)))
        return lambda element: ("here", workers)
    most = plan.cfg.cluster.parallelism or 1 << 30
    return lambda element: (element.stage, most)


def problems(plan: Plan, rates: Rates) -> list[str]:
    """What would end badly by what was measured: elements that took more memory, or longer, than they ask for."""
    if plan.cfg.cluster.backend is Backend.local:
        return []
    found = {}
    for element in plan.standing.to_run:
        one, need = rates.of(element), element.cfg.task.resources
        if one is None or one.other_model:
            continue
        where = f"{element.stage or element.task}: "
        if one.memory > bytes_of(need.memory):
            told = f"{where}task.resources.memory={need.memory}: {one.by} took {_round(one.memory)} of memory"
            found[told] = f"{told}; ask for {_round(int(one.memory * 1.25))}"
        if one.wall_s > minutes(need.time) * 60 * (1 + element.cfg.cluster.max_num_timeout):
            told = f"{where}task.resources.time={need.time}: about {one.wall_s / 3600:.1f} hours by {one.by}"
            found[told] = f"{told}, and it may run {1 + element.cfg.cluster.max_num_timeout} times; ask for more time"
    return list(found.values())


def _round(count: int) -> str:
    return f"{-(-count // (1 << 30))}G"
