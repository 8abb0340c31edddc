"""Who runs the elements, and where their metrics go."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Backend(Enum):
    """Who runs the elements of a sweep."""

    local = "local"  # a bounded pool of worker processes on this machine


@dataclass
class ClusterConfig:
    """Who runs the elements. Data that the launcher reads; it never enters a key."""

    name: str = "local"
    backend: Backend = Backend.local
    workers: int | None = None  # worker processes; null: as many as cores and GPUs carry; 0: in this process, for pdb
    grace_s: int = 30  # seconds that a worker gets for its last checkpoint


class TrackingMode(Enum):
    """What is sent to Weights & Biases. The local JSONL is always written."""

    offline = "offline"  # files beside the run, for `wandb sync`
    online = "online"
    disabled = "disabled"


@dataclass
class TrackingConfig:
    """Weights & Biases."""

    mode: TrackingMode = TrackingMode.offline
    project: str = "circuits"
    entity: str | None = None
