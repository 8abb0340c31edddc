"""What one run is made of: its config, its store, its status, its log, its tracker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuits.run.signals import StopFlag
from circuits.run.status import Status
from circuits.run.tracking import Tracker
from circuits.schema import BaseConfig
from circuits.store.contents import Contents
from circuits.store.leases import owner
from circuits.store.store import Store


@dataclass
class Run:
    """The moving parts of one run, shared by the task and by the inputs that are made on its way."""

    cfg: BaseConfig
    layers: tuple[int, ...]
    run_dir: Path
    store: Store
    contents: Contents
    status: Status
    stop: StopFlag
    tracker: Tracker
    say: Callable[[str], None]
    name: str  # of the sweep and the element, for leases and for reuse=force
    overrides: Sequence[str] = ()
    swept: Mapping[str, str] = field(default_factory=dict)  # what sets this element apart in its sweep
    tainted: list[str] = field(default_factory=list)  # gates that said no, and were passed by force=true
    live: set[str] = field(default_factory=set)  # keys of what has a W&B run already, while it is made
    told: set[str] = field(default_factory=set)  # and of what W&B has been told to its end
    me: Mapping[str, Any] = field(default_factory=owner)  # this process, beside unfinished work
    usage: Callable[[], Mapping[str, Any]] = dict  # what the run has taken so far
    profiler: Any = None  # circuits.profiling.Profiler, where profile= asks for one
