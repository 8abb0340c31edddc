"""A pipeline: several stages as one plan, submitted at once and left alone.

An element waits for exactly those that make what it reads (:mod:`circuits.launch.chain`), cached ones and other people's jobs
included. ``after:`` adds whole stages, ``pipeline.canary`` one element of each stage before all others. No torch.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuits import slurm_commands as commands
from circuits.command.compose import Composer
from circuits.errors import UserError
from circuits.launch import cores, launching, planning, stages
from circuits.launch.estimate import Rates
from circuits.launch.forecast import Forecast, edges, forecast, problems
from circuits.launch.plan import Element, Plan, Shape
from circuits.launch.stages import Study
from circuits.run import config
from circuits.schema import Backend
from circuits.space import Space, space
from circuits.store import registry
from circuits.store.contents import Contents
from circuits.store.store import Store

Compose = Callable[[Sequence[str]], Any]


def launch(compose: Compose, lists: Sequence[Sequence[str]], base: Path, launcher: Mapping[str, Any]) -> int:
    """Plan and start the study that was asked for; the exit code.

    Raises:
        UserError: anything that preflight finds, of all stages; nothing was started.
    """
    study, elements = planned(compose, lists, base)
    gc.freeze()
    gc.enable()
    return launching.start(elements, base, launcher, shape_of(study, elements))


@dataclass(frozen=True)
class Planned:
    """A plan that is only looked at."""

    study: Study
    plan: Plan
    forecast: Forecast
    problems: list[str]
    free: Space
    rate: float
    cpu_rate: float
    out: str | None
    asked: bool
    """Whether the cluster itself was asked what it takes."""


def plan(compose: Compose, lists: Sequence[Sequence[str]], base: Path, launcher: Mapping[str, Any]) -> Planned:
    """What the study, or ``plan.task``, that was asked for would take.

    Raises:
        UserError: as :func:`launch`.
    """
    study, elements = planned(compose, lists, base)
    options: Any = getattr(config.to_object(compose(lists[0])), "plan")  # noqa: B009 (joined to the schema at run time)
    first, asked = elements[0].cfg, True
    if first.cluster.backend is Backend.slurm and not commands.present():
        asked = False  # a laptop: what the preset says is checked, what only the cluster knows is not
        for element in elements:
            element.cfg.cluster.dry_run = True
    store = Store(Path(first.outputs) / "artifacts")
    cores.settle(elements, store)
    backend, shape = launching.backend_of(elements, launcher), shape_of(study, elements)
    backend.refuse(elements)
    made = launching.plan(elements, store, backend, shape)
    rates = Rates(store)
    free = space(Path(first.outputs))
    found = forecast(made, rates, shape)
    wrong = problems(made, rates)
    out = None if options.out is None else str(base / Path(options.out).expanduser())
    return Planned(study, made, found, wrong, free, options.rate, options.cpu_rate, out, asked)


def planned(compose: Compose, lists: Sequence[Sequence[str]], base: Path) -> tuple[Study, list[Element]]:
    """The study that was asked for, and the elements of its stages, checked.

    Raises:
        UserError: as :func:`launch`.
    """
    composer = Composer(compose)
    words = stages.typed(lists)
    given: Any = config.to_object(compose(lists[0]))
    name = next((word.partition("=")[2] for word in words if word.startswith("pipeline=")), None)
    alone = given.plan.task
    if alone is not None and name is not None:
        raise UserError(f"plan.task={alone}: beside pipeline={name} it says nothing; give one of them")
    section = given.pipeline
    if section.path is not None:
        path = base / Path(section.path).expanduser()
        name, section = path.stem, stages.from_file(path, section)
    elif name == "file":
        raise UserError("pipeline=file needs pipeline.path=FILE.yaml; pipeline=FILE.yaml is short for both")
    study = stages.single(alone) if alone is not None else stages.read(name or _preset(), section)
    stages.expand(study, words, composer)
    owners = [stage.name for stage in study.stages for _ in stage.lists]
    elements = planning.plan(composer, [one for stage in study.stages for one in stage.lists], base, owners)
    for element in elements:
        if study.parallelism is not None:
            element.cfg.cluster.parallelism = study.parallelism
    return study, elements


def _preset() -> str:
    return registry.presets()["pipeline"]


def shape_of(study: Study, elements: Sequence[Element]) -> Shape:
    """Whom each element waits for beside those that make its inputs."""
    members: dict[str, set[int]] = {stage.name: set() for stage in study.stages}
    for element in elements:
        members[element.stage].add(element.index)
    before = {stage.name: frozenset().union(*(members[name] for name in stage.after)) for stage in study.stages}
    barriers = {element.index: before[element.stage] for element in elements if before[element.stage]}
    plain = Shape(study.name, study.about, barriers, study.canary)
    contents = Contents(Path(elements[0].cfg.outputs) / "artifacts" / ".hashes.json")
    return replace(plain, after=edges(elements, plain, contents))
