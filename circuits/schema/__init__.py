"""The typed shape of the whole configuration: one dataclass per group, closed, and the rules that cross fields.

One module a group; this one joins them. Standard library only. Hydra merges ``conf/`` into the node that :func:`root_schema`
builds, so an unknown key, a value of the wrong type or a choice that does not exist is refused before anything runs.

A field's *role* says how it takes part in an artifact's key: see :mod:`circuits.schema.fields`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from circuits.schema import activations as activations_rules
from circuits.schema import behaviour as behaviour_rules
from circuits.schema import cluster as cluster_rules
from circuits.schema import data as data_rules
from circuits.schema import interpret as interpret_rules
from circuits.schema import model as model_rules
from circuits.schema import reading, stored
from circuits.schema import sae as sae_rules
from circuits.schema.activations import ActivationsConfig, ActivationSource
from circuits.schema.behaviour import BehaviourConfig, Bos, MultiToken
from circuits.schema.cluster import (
    Backend,
    ClusterConfig,
    PersonalConfig,
    QueueConfig,
    TrackingConfig,
    TrackingMode,
    personal_schema,
)
from circuits.schema.data import DataConfig, DataSource
from circuits.schema.fields import MISSING, added, file, free, naming
from circuits.schema.interpret import InterpretConfig, Pool
from circuits.schema.model import Dtype, EmbeddedConfig, Matmul, ModelConfig, PrecisionConfig, Site
from circuits.schema.sae import Architecture, NonFinitePolicy, Normalize, SaeConfig, SaeSource
from circuits.schema.task import Profile, Resources, Reuse, TaskConfig, Where


@dataclass
class BaseConfig:
    """The root: groups and run-level keys. Tasks' own options are joined to it by :func:`root_schema`."""

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)
    data: DataConfig = field(default_factory=DataConfig)
    activations: ActivationsConfig = field(default_factory=ActivationsConfig)
    sae: SaeConfig = field(default_factory=SaeConfig)
    interpret: InterpretConfig = field(default_factory=InterpretConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    user: Any = None  # one PersonalConfig per cluster; typed by root_schema
    layer: Any = (
        "all"  # 15 · [10,12] · [0-8,14] · 10-24 · all: one run; 'layer=range(10,25)' or layer=0-8,9-16: a sweep
    )
    seed: int = 0  # every purpose and layer derives its own generator from it
    name: str | None = None  # part of the run directory's name
    note: str | None = None  # kept with the run, shown by status and report
    of: str | None = None  # the sweep or run that a service task is about
    reuse: Reuse = (
        Reuse.cached
    )  # what is in the store: cached (use it), force (make it anew), readonly (only what exists)
    pack: int = 1  # elements of a sweep that share one process, one after the other
    profile: Profile = Profile.none  # what a run measures of itself: none, torch (traces), memory (allocations)
    force: bool = False  # go on although a gate said no; what is made is marked as tainted
    confirm: bool = False  # delete what task=clean shows
    outputs: str = "outputs"  # where runs/ and artifacts/ (the store) are
    multirun: str = "multirun"  # where sweeps are


#: Root keys that every task reads.
RUN_KEYS = ("name", "note", "reuse", "force", "pack", "profile", "outputs", "multirun", "task", "cluster", "tracking",
            "user")  # fmt: skip


def root_schema(options: dict[str, type], clusters: Iterable[str] = ()) -> type:
    """`BaseConfig` with each task's own ``Options`` dataclass under the task's name (``status.watch``).

    `clusters` names the sections of ``user``.
    """
    personal = personal_schema(clusters)
    extra = [(name, cls, field(default_factory=cls)) for name, cls in {"user": personal, **options}.items()]
    return dataclasses.make_dataclass("Config", extra, bases=(BaseConfig,))


#: On what else it depends whether a field is read, by its dotted name. Tasks add theirs (``Kind.when``, ``READ_WHEN``).
READ_WHEN: dict[str, tuple[reading.When, ...]] = {
    **activations_rules.READ_WHEN,
    **behaviour_rules.READ_WHEN,
    **cluster_rules.READ_WHEN,
    **data_rules.READ_WHEN,
    **interpret_rules.READ_WHEN,
    **model_rules.READ_WHEN,
    **sae_rules.READ_WHEN,
}
_DEFAULT = BaseConfig()


def check(cfg: BaseConfig) -> list[str]:
    """Every cross-field rule that `cfg` breaks, one line each. Reads plain values only: no file, no model."""
    return [
        *reading.problems(READ_WHEN, cfg, _DEFAULT),
        *cluster_rules.check(cfg.cluster),
        *behaviour_rules.check(cfg.behaviour),
        *data_rules.check(cfg.data),
        *activations_rules.check(stored.section(cfg) if stored.read(cfg) else cfg.activations),
        *sae_rules.check(cfg.sae),
        *interpret_rules.check(cfg.interpret),
        *_check_root(cfg),
    ]


def _check_root(cfg: BaseConfig) -> list[str]:
    errors = []
    if cfg.sae.skip_first >= cfg.data.context:
        errors.append(f"sae.skip_first={cfg.sae.skip_first}: leaves nothing of data.context={cfg.data.context} tokens")
    if cfg.task.resources.cpus is not None and cfg.task.resources.cpus < 1:
        errors.append(f"task.resources.cpus={cfg.task.resources.cpus}: at least 1")
    if cfg.model.embedded is not None and min(cfg.model.embedded.steps, cfg.model.embedded.batch) < 1:
        errors.append("model.embedded: steps and batch are at least 1")
    if cfg.model.embedded is not None and cfg.model.revision is not None:
        errors.append(
            f"model.revision={cfg.model.revision}: model={cfg.model.id} is trained here; only hub names have revisions"
        )
    if cfg.pack < 1:
        errors.append(f"pack={cfg.pack}: at least 1 element a process")
    if not cfg.seed >= 0:
        errors.append(f"seed={cfg.seed}: 0 or more")
    return errors


__all__ = [
    "MISSING", "RUN_KEYS", "ActivationSource", "ActivationsConfig", "Architecture", "Backend", "BaseConfig",
    "BehaviourConfig", "Bos", "ClusterConfig", "DataConfig", "DataSource", "Dtype", "EmbeddedConfig", "InterpretConfig",
    "Matmul", "ModelConfig", "MultiToken", "NonFinitePolicy", "Normalize", "PersonalConfig", "Pool", "PrecisionConfig", "Profile",
    "QueueConfig", "Resources", "Reuse", "SaeConfig", "SaeSource", "Site", "TaskConfig", "TrackingConfig",
    "TrackingMode", "Where", "added", "check", "file", "free", "naming", "root_schema",
]  # fmt: skip
