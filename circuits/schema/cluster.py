"""Who runs the elements, and where their metrics go. Data that launchers read; it never enters a key."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from circuits.schema.reading import SOME, When


class Backend(Enum):
    """Who runs the elements of a sweep."""

    local = "local"  # a bounded pool of worker processes on this machine
    slurm = "slurm"  # one array job


@dataclass
class QueueConfig:
    """Where jobs with (or without) a GPU go, and that queue's limits."""

    partition: str | None = None  # --partition
    account: str | None = None  # --account
    qos: str | None = None  # --qos
    max_time: str | None = None  # the longest job it takes
    max_time_of: dict[str, str] = field(default_factory=dict)  # and of accounts that get less, by pattern: "*-SL3-*"
    cpus_per_gpu: int | None = None  # cores that come with each GPU
    gpu_type: str | None = None  # --gres=gpu:<type>:n
    gpu_memory: str | None = None  # of one GPU, to see whether a model fits
    modules: list[str] = field(default_factory=list)  # module load …, for this queue's nodes


@dataclass
class ClusterConfig:
    """Who runs the elements."""

    name: str = "local"
    backend: Backend = Backend.local  # worker processes here, or one Slurm array
    workers: int | None = None  # worker processes; null: as many as cores and GPUs carry; 0: in this process, for pdb
    grace_s: int = 30  # seconds that a worker gets for its last checkpoint
    gpu: QueueConfig = field(default_factory=QueueConfig)  # the queue of jobs with a GPU
    cpu: QueueConfig = field(default_factory=QueueConfig)  # the queue of jobs without one
    parallelism: int | None = None  # elements of one array at a time
    allocation: bool = False  # the whole sweep or study inside one job, cluster.parallelism elements at a time
    wait: bool = False  # stay, and show the sweep until it ends
    dry_run: bool = False  # print the script, submit nothing
    snapshot: bool = False  # run from a copy of the code as it is now
    needs: list[str] = field(default_factory=list)  # personal values without which nothing is submitted
    modules: list[str] = field(default_factory=list)  # module load …, on every node
    setup: list[str] = field(default_factory=list)  # shell lines before the run
    environment: dict[str, str] = field(default_factory=dict)  # exported before the run
    secrets: list[str] = field(
        default_factory=list
    )  # variables whose values are never written, whatever their names look like
    offline: bool = False  # nodes reach no network: hub and W&B stay offline, whatever tracking.mode says
    mail: str | None = None  # --mail-user
    mail_type: str = "END,FAIL"  # --mail-type
    signal_s: int = 120  # seconds before the time limit at which a run saves and is queued again
    max_num_timeout: int = 3  # times that a run may reach its time limit and go on
    sbatch: list[str] = field(default_factory=list)  # further options: ["--constraint=x"]
    stage: str | None = None  # a directory on a node's own disk ($TMPDIR): stores are copied there before they are read
    stripe: int | None = None  # of new activations on Lustre: over so many storage targets; -1: all
    balance: str | None = None  # the command that tells what an account has left; named by task=plan
    python: str | None = None  # the nodes' interpreter; null: the one that submits


@dataclass
class PersonalConfig:
    """What is yours on one cluster: conf/user/local.yaml, or the environment (``CIRCUITS_CSD3_ACCOUNT``)."""

    account: str | None = None  # of jobs with a GPU, and of others when cpu_account is not set
    cpu_account: str | None = None
    partition: str | None = None
    cpu_partition: str | None = None
    qos: str | None = None
    gpu_type: str | None = None
    mail: str | None = None
    scratch: str | None = None  # large and fast: caches go there


def personal_schema(clusters: Iterable[str]) -> type:
    """The ``user`` section: one :class:`PersonalConfig` per cluster, and the person's defaults (``circuits.command.personal``)."""
    fields: list[tuple[str, Any, Any]] = [
        (name, PersonalConfig, field(default_factory=PersonalConfig)) for name in clusters
    ]
    fields.append(("default", dict[str, Any], field(default_factory=dict)))
    return dataclasses.make_dataclass("UserConfig", fields)


class TrackingMode(Enum):
    """What is sent to Weights & Biases. The local JSONL is always written."""

    offline = "offline"  # files beside the run, for `wandb sync`
    online = "online"
    disabled = "disabled"


@dataclass
class TrackingConfig:
    """Weights & Biases."""

    mode: TrackingMode = TrackingMode.offline  # what is sent to Weights & Biases; the local JSONL is always written
    project: str = "circuits"  # of the runs in W&B
    entity: str | None = None  # of the runs in W&B; null: the account's default


_SLURM = When("cluster.backend", ("slurm",), strict=False)
_HERE = When("cluster.backend", ("slurm",), hint="it runs here and waits")
READ_WHEN = {
    **{f"cluster.{name}": (_HERE,) for name in ("wait", "dry_run", "snapshot")},
    "cluster.allocation": (_HERE,),
    **{
        f"cluster.{name}": (_SLURM,)
        for name in ("needs", "modules", "setup", "environment", "offline", "mail", "mail_type", "signal_s", "max_num_timeout",
                     "sbatch", "python")
    },
    "cluster.parallelism": (When("cluster.backend", ("slurm",), False, "cluster.workers says how many at a time"),),
    "cluster.gpu": (_SLURM, When("task.resources.gpus", (SOME,), False, "cluster.cpu is where jobs without a GPU go")),
    "cluster.cpu": (_SLURM, When("task.resources.gpus", (0,), False, "cluster.gpu is where jobs with a GPU go")),
    **{
        f"cluster.cpu.{name}": (When("task.resources.gpus", (), False, f"cluster.gpu.{name} is of the queue with GPUs"),)
        for name in ("cpus_per_gpu", "gpu_type", "gpu_memory")
    },
    "cluster.stage": (When("sae.source", ("store",), strict=False),),
    "cluster.stripe": (When("task.name", ("activations", "pipeline"), strict=False),),
    "cluster.workers": (When("cluster.backend", ("local",), hint="cluster.parallelism bounds an array"),),
    "cluster.grace_s": (When("cluster.backend", ("local",), False, "cluster.signal_s is Slurm's"),),
    "task.resources.memory": (_SLURM,),
    "task.resources.time": (_SLURM,),
    **{f"tracking.{name}": (When("tracking.mode", ("offline", "online"), strict=False),) for name in ("project", "entity")},
}  # fmt: skip


def check(cluster: ClusterConfig) -> list[str]:
    """What is wrong with the values alone, one line each."""
    errors = []
    if cluster.workers is not None and cluster.workers < 0:
        errors.append(f"cluster.workers={cluster.workers}: 0 (in this process) or more")
    for name in ("grace_s", "max_num_timeout"):
        if getattr(cluster, name) < 0:
            unit = " seconds" if name == "grace_s" else ""
            errors.append(f"cluster.{name}={getattr(cluster, name)}: 0{unit} or more")
    if cluster.parallelism is not None and cluster.parallelism < 1:
        errors.append(f"cluster.parallelism={cluster.parallelism}: at least 1")
    if cluster.signal_s < 1:
        errors.append(f"cluster.signal_s={cluster.signal_s}: at least 1 second")
    if cluster.stripe is not None and (cluster.stripe < -1 or cluster.stripe == 0):
        errors.append(f"cluster.stripe={cluster.stripe}: 1 or more storage targets, or -1 for all")
    if cluster.stage is not None and not cluster.stage.startswith(("/", "~", "$")):
        errors.append(
            f"cluster.stage={cluster.stage}: a whole path on the node's own disk, or a variable such as $TMPDIR"
        )
    errors += [
        f"cluster.sbatch={option}: an option as sbatch takes it is expected: --name or --name=value"
        for option in cluster.sbatch
        if not option.startswith("-") or option.strip() != option
    ]
    return errors
