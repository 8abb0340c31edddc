"""What a report is made of. Plain records: the caller fills them from saved files, the report reads nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuits.state import State


@dataclass(frozen=True)
class ArtifactRef:
    """One artifact in the store: `path` is its directory, `label` its readable name there (``sae/tiny-L0-…``)."""

    kind: str
    key: str
    path: Path
    layer: int | None
    label: str


@dataclass(frozen=True)
class Element:
    """One run of the sweep; `swept` holds only the keys that vary over the sweep, as the values given."""

    index: int
    name: str
    overrides: list[str]
    swept: Mapping[str, str]
    state: State
    error: str | None = None
    log: str = ""
    wall_s: float | None = None
    artifacts: list[ArtifactRef] = field(default_factory=list)
    config: Mapping[str, Any] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """A gate that said no has still measured and kept its artifact."""
        return self.state.measured

    @property
    def series(self) -> str:
        """What sets this element apart besides its layer: ``"sae.k=32"``, empty when nothing does."""
        return ", ".join(f"{key}={value}" for key, value in self.swept.items() if key != "layer")


@dataclass(frozen=True)
class Cost:
    """What one element was given beside what it took; None where nobody knows. Shares are of what was asked for."""

    index: int
    name: str
    series: str
    seconds: float | None
    asked_seconds: float | None
    memory: int | None
    asked_memory: int | None
    cores: float | None
    asked_cores: int | None
    gpu_busy: float | None = None
    gpu_band: tuple[float, float] | None = None
    gpu_memory: int | None = None
    gpu_memory_of: int | None = None
    celsius: float | None = None
    hint: str | None = None
    phases: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    """Lines of its usage.jsonl."""
    profile: Mapping[str, Any] = field(default_factory=dict)
    """What profile= found: its profile.json."""
    place: str = ""
    """Where its profile is."""


@dataclass(frozen=True)
class Check:
    """One item of the reproducibility checklist: passed, failed, or (None) about something that this sweep has not."""

    title: str
    passed: bool | None
    reason: str


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline: how many elements, how they fared, the stages whose results they read or that came before."""

    name: str
    task: str
    elements: int
    fared: str
    took: str
    after: Sequence[str] = ()


@dataclass(frozen=True)
class ReportInput:
    """A sweep (or a pipeline) as one page: `question` in one sentence, `again` the command that remakes the page."""

    title: str
    question: str
    sweep_id: str
    command: str
    again: str
    elements: list[Element]
    created: str
    costs: Sequence[Cost] = ()
    next_time: str = ""
    """The overrides to ask for next time."""
    checks: Sequence[Check] = ()
    stages: Sequence[Stage] = ()
    """Of a pipeline, in order."""
