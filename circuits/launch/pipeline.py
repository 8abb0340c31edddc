"""A pipeline: several stages as one plan, submitted at once and left alone.

An element waits for exactly those that make what it reads (:mod:`circuits.launch.chain`), cached ones and other people's jobs
included. ``after:`` adds whole stages, ``pipeline.canary`` one element of each stage before all others. No torch.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from circuits.launch import launching, planning, stages
from circuits.launch.plan import Element, Shape
from circuits.launch.stages import Study
from circuits.run import config
from circuits.store import registry

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


def planned(compose: Compose, lists: Sequence[Sequence[str]], base: Path) -> tuple[Study, list[Element]]:
    """The study that was asked for, and the elements of its stages, checked.

    Raises:
        UserError: as :func:`launch`.
    """
    words = stages.typed(lists)
    given: Any = config.to_object(compose(lists[0]))
    name = next((word.partition("=")[2] for word in words if word.startswith("pipeline=")), None)
    study = stages.read(name or _preset(), given.pipeline)
    stages.expand(study, words, compose)
    owners = [stage.name for stage in study.stages for _ in stage.lists]
    elements = planning.plan(compose, [one for stage in study.stages for one in stage.lists], base, owners)
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
    return Shape(study.name, study.about, barriers, study.canary)
