"""What one element asks of Slurm: its task's resources joined with the cluster's queue and the person's own values.

Precedence, for each value: ``cluster.gpu.account=…`` on the command line or in the cluster's yaml, then
``user.<cluster>.account`` (conf/user/local.yaml), then ``CIRCUITS_<CLUSTER>_ACCOUNT``. hydra-submitit-launcher's own names
(``hydra.launcher.timeout_min=90``) come last and win.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from circuits.command import personal
from circuits.command.launcher_keys import LAUNCHER_KEYS
from circuits.errors import UserError
from circuits.run import private
from circuits.run.private import HIDDEN
from circuits.schema import BaseConfig, QueueConfig


@dataclass(frozen=True)
class Request:
    """One resource request; elements with equal ones share an array."""

    name: str
    partition: str | None
    account: str | None
    qos: str | None
    minutes: int
    cpus: int
    memory: str
    gpus: int = 0
    gres: str | None = None
    parallelism: int | None = None
    signal_s: int = 120
    max_num_timeout: int = 3
    mail: str | None = None
    mail_type: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    setup: tuple[str, ...] = ()
    more: tuple[tuple[str, str | bool], ...] = ()  # further sbatch options by name; true: one without a value
    sbatch: tuple[str, ...] = ()  # further options as written

    @property
    def time(self) -> str:
        """``12:00:00``."""
        return clock(self.minutes)

    @property
    def shown(self) -> str:
        """``ampere, 1 GPU, 12:00:00, at most 8 at a time``."""
        count, unit = (self.gpus, "GPU") if self.gpus else (self.cpus, "CPU")
        parts = [self.partition or "default partition", f"{count} {unit}{'s' if count > 1 else ''}", self.time]
        if self.parallelism:
            parts.append(f"at most {self.parallelism} at a time")
        return ", ".join(parts)


def request_of(cfg: BaseConfig, launcher: Mapping[str, Any]) -> Request:
    """What `cfg`'s element asks for; `launcher` holds the ``hydra.launcher.*`` values that were given."""
    cluster, need = cfg.cluster, cfg.task.resources
    gpus = int(launcher.get("gpus_per_node", need.gpus))
    queue: QueueConfig = cluster.gpu if gpus else cluster.cpu
    gpu_type = queue.gpu_type or personal.value(cfg, "gpu_type")
    suffix = "" if gpus else "cpu_"

    def own(name: str) -> str | None:
        return getattr(queue, name) or personal.value(cfg, f"{suffix}{name}") or personal.value(cfg, name)

    plain = Request(
        name=f"circuits-{cfg.task.name}",
        partition=own("partition"),
        account=own("account"),
        qos=queue.qos or personal.value(cfg, "qos"),
        minutes=minutes(need.time),
        cpus=max(need.cpus or 1, gpus * (queue.cpus_per_gpu or 0)),
        memory=need.memory,
        gpus=gpus,
        gres=f"gpu:{gpu_type}:{gpus}" if gpus and gpu_type else f"gpu:{gpus}" if gpus else None,
        parallelism=cluster.parallelism,
        signal_s=cluster.signal_s,
        max_num_timeout=cluster.max_num_timeout,
        mail=cluster.mail or personal.value(cfg, "mail"),
        mail_type=cluster.mail_type if cluster.mail or personal.value(cfg, "mail") else None,
        sbatch=tuple(cluster.sbatch),
    )
    return with_launcher(plain, launcher)


def with_launcher(request: Request, launcher: Mapping[str, Any]) -> Request:
    """`request` with the ``hydra.launcher.*`` values that were given."""
    convert: dict[str, Callable[[Any], Any]] = {
        "memory": lambda gigabytes: f"{gigabytes}G",
        "more": lambda options: tuple(
            (name, value if value is True else str(value)) for name, value in options.items()
        ),
        "setup": tuple,
    }
    changes = {
        LAUNCHER_KEYS[key]: convert.get(LAUNCHER_KEYS[key], lambda value: value)(value)
        for key, value in launcher.items()
        if value is not None and key in LAUNCHER_KEYS
    }
    return replace(request, **changes)


def missing_personal(cfg: BaseConfig, launcher: Mapping[str, Any]) -> list[str]:
    """One line per personal value that this cluster needs and nobody gave."""
    asked = request_of(cfg, launcher)
    name = cfg.cluster.name
    left = {
        what: value
        for what in ("account", "partition", "qos", "mail")
        if (value := getattr(asked, what)) and placeholder(value)
    }
    if (scratch := personal.value(cfg, "scratch")) and placeholder(scratch):
        left["scratch"] = scratch
    return [
        f"{name}: the {what} {value} is an example's; set yours, user.{name}.{what} in conf/user/local.yaml"
        for what, value in left.items()
    ] + [
        f"{name} needs {'an' if value[0] in 'aeiou' else 'a'} {value}: set user.{name}.{value} in conf/user/local.yaml (see "
        f"local.yaml.example) or CIRCUITS_{name.upper()}_{value.upper()}"
        for value in cfg.cluster.needs
        if getattr(asked, value, None) is None and personal.value(cfg, value) is None
    ]


_EXAMPLE = re.compile(
    r"(?i:^(MY|YOUR)[_-]?PROJECT|<.*>|CHANGE_?ME|@example\.(org|com)$)|^(me|CRSID)@|^/(rds/user|home)/(me|USER|CRSID)(/|$)"
)


def placeholder(value: str) -> bool:
    """Whether a value is one to be filled in, as in local.yaml.example: ``MYPROJECT-SL3-GPU``, ``<account>``."""
    return bool(_EXAMPLE.search(value))


def cluster_environment(cfg: BaseConfig) -> dict[str, str]:
    """What is exported on the node: caches on scratch, no network when there is none, then ``cluster.environment``."""
    found: dict[str, str] = {}
    scratch = personal.value(cfg, "scratch")
    if scratch:
        found["HF_HOME"] = f"{scratch.rstrip('/')}/huggingface"
    elif os.environ.get("HF_HOME"):
        found["HF_HOME"] = os.environ["HF_HOME"]
    if cfg.cluster.offline:
        found.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="offline")
    return {**found, **{name: value for name, value in cfg.cluster.environment.items() if not private.is_secret(name)}}


def secret_environment(cfg: BaseConfig) -> dict[str, str]:
    """The secrets among ``cluster.environment``: sbatch gets them as its own environment, which the job inherits; no file has them.

    Raises:
        UserError: one is not known any more: the config on disk does not hold it.
    """
    given = {name: value for name, value in cfg.cluster.environment.items() if private.is_secret(name)}
    found = {name: os.environ.get(name, HIDDEN) if value == HIDDEN else value for name, value in given.items()}
    if gone := [name for name, value in found.items() if value == HIDDEN]:
        raise UserError(
            f"cluster.environment.{gone[0]}: a secret, which is not kept; run: export {gone[0]}=…, then the same command"
        )
    return found


def minutes(text: str) -> int:
    """Minutes of a Slurm time (``90``, ``12:00:00``, ``1-12:00:00``), rounded up.

    Raises:
        ValueError: it is none.
    """
    if re.fullmatch(r"\d+", text):
        return int(text)
    days, _, rest = text.rpartition("-")
    parts = rest.split(":")
    if not re.fullmatch(r"(\d+-)?\d+(:\d{1,2}){0,2}", text):
        raise ValueError(text)
    numbers = [int(part) for part in parts]
    if days:  # D-HH[:MM[:SS]]
        hours, mins, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, mins, seconds = numbers
    else:  # MM:SS
        hours, mins, seconds = 0, numbers[0], numbers[1]
    return int(days or 0) * 1440 + hours * 60 + mins + (seconds > 0)


def clock(count: int) -> str:
    """Minutes as ``HH:MM:SS``, as people read a job's limit."""
    return f"{count // 60:02d}:{count % 60:02d}:00"
