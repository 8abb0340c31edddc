"""What ``task=`` selects, and what one element of it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from circuits.schema.fields import MISSING


class Where(Enum):
    """Where a task runs."""

    cluster = "cluster"  # where `cluster` says: worker processes here, or a scheduler
    here = "here"  # always in the calling process


class Profile(Enum):
    """What a run measures of itself, beside its result."""

    none = "none"  # nothing beyond one sample a second
    torch = "torch"  # traces of a few steps of each phase, and the operators that take the time
    memory = "memory"  # every allocation on the GPU; on a CPU: what the operators of each phase allocate


class Reuse(Enum):
    """What to do about an artifact that is already in the store."""

    cached = "cached"  # use it
    force = "force"  # make it anew and replace it
    readonly = "readonly"  # use it; a missing one is an error


@dataclass
class Resources:
    """What one element needs; the launcher joins it with the cluster's limits."""

    gpus: int = 0  # GPUs of one element
    cpus: int | None = None  # threads; results depend on them bit by bit; null: settled at the plan (cores.py)
    memory: str = "4G"  # of one element
    time: str = "12:00:00"  # of one element: minutes, HH:MM:SS or D-HH:MM:SS


@dataclass
class TaskConfig:
    """What `task=` selects."""

    name: str = MISSING
    _target_: str = MISSING  # the function that runs it; its module declares KIND
    where: Where = Where.cluster
    resources: Resources = field(default_factory=Resources)
