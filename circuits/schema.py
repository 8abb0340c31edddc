"""The typed shape of the whole configuration: one dataclass per group, closed, and the rules that cross fields.

Standard library only. Hydra merges ``conf/`` into the node that :func:`root_schema` builds, so an unknown key, a value of the
wrong type or a choice that does not exist is refused before anything runs.

A field's *role* says how it takes part in an artifact's key (``circuits.run.kinds``):

========  ====================================================================================
keyed     the default: it changes the result, so it enters the key
free      it changes no result (logging, checkpoints, devices): never in a key
added     left out of the key while at its default, so that a new option re-keys nothing
file      names a file, a directory or a hub name: its *content* enters the key, not its spelling
========  ====================================================================================
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

MISSING = "???"  # OmegaConf's mark of a mandatory value


def _role(role: str, default: Any) -> Any:
    return field(default=default, metadata={"role": role})


def free(default: Any) -> Any:
    """A field that changes no result."""
    return _role("free", default)


def added(default: Any) -> Any:
    """A later option: outside the key while it has its default."""
    return _role("added", default)


def file(default: Any) -> Any:
    """A field whose content (of the file, directory or hub revision it names) enters the key."""
    return _role("file", default)


class Where(Enum):
    """Where a task runs."""

    cluster = "cluster"  # where `cluster` says: worker processes here, or a scheduler
    here = "here"  # always in the calling process


class Reuse(Enum):
    """What to do about an artifact that is already in the store."""

    cached = "cached"  # use it
    force = "force"  # make it anew and replace it
    readonly = "readonly"  # use it; a missing one is an error


class Backend(Enum):
    """Who runs the elements of a sweep."""

    local = "local"  # a bounded pool of worker processes on this machine


class DataSource(Enum):
    """Where the token stream comes from."""

    embedded = "embedded"  # the generator that the embedded model was trained on
    text = "text"  # .txt files; documents are separated by blank lines
    jsonl = "jsonl"  # one JSON object a line
    datasets = "datasets"  # a local `datasets` directory or a hub name


class Architecture(Enum):
    """SAE architectures (one module each in circuits/sae/modules)."""

    topk = "topk"
    relu = "relu"


class Site(Enum):
    """Capture points of a transformer block."""

    resid_pre = "resid_pre"
    resid_mid = "resid_mid"
    resid_post = "resid_post"
    mlp_in = "mlp_in"
    mlp_act = "mlp_act"
    mlp_out = "mlp_out"
    head_z = "head_z"
    attn_out = "attn_out"


class NonFinitePolicy(Enum):
    """What to do about a NaN or an infinity in an activation."""

    fail = "fail"
    drop = "drop"


class Dtype(Enum):
    """The number format that the model computes in."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Matmul(Enum):
    """How float32 matrix products are computed on an accelerator."""

    highest = "highest"  # true float32
    high = "high"  # TF32


class TrackingMode(Enum):
    """What is sent to Weights & Biases. The local JSONL is always written."""

    offline = "offline"  # files beside the run, for `wandb sync`
    online = "online"
    disabled = "disabled"


@dataclass
class Resources:
    """What one element needs; the launcher joins it with the cluster's limits."""

    gpus: int = 0
    cpus: int = 1  # threads of every element, whatever the pool's size: results depend on it bit by bit
    memory: str = "4G"
    time: str = "12:00:00"


@dataclass
class TaskConfig:
    """What `task=` selects."""

    name: str = MISSING
    _target_: str = MISSING  # the function that runs it; its module declares KIND
    where: Where = Where.cluster
    resources: Resources = field(default_factory=Resources)


@dataclass
class EmbeddedConfig:
    """How the embedded model is trained (circuits/models/tiny)."""

    layers: int = 4
    width: int = 128
    steps: int = 1500  # at most: training ends soon after every behaviour is learned
    batch: int = 64
    lr: float = 1e-3
    seed: int = 0


@dataclass
class ModelConfig:
    """A causal language model: the embedded one, a hub name or a directory."""

    id: str = file(MISSING)
    revision: str | None = free(None)  # hub branch, tag or commit; the commit it resolves to is in the key through `id`
    embedded: EmbeddedConfig | None = None
    layers: int | None = free(None)  # depth and width, known to a preset, so that bounds are checked without a network
    width: int | None = free(None)
    sets: dict[str, list[int]] = field(default_factory=dict, metadata={"role": "free"})  # named sets for `layer=`
    device: str = free("auto")  # auto (cuda > mps > cpu), cpu, cuda, cuda:1, mps
    allow_fallback: bool = free(False)  # use the next device when the named one is absent


@dataclass
class DataConfig:
    """The text stream that SAEs are trained on; never the behaviour's prompts."""

    source: DataSource = DataSource.embedded
    path: str | None = file(None)
    field: str | None = None  # the JSON key or the dataset column that holds the text
    split: str | None = None
    context: int = 64  # tokens a sequence
    heldout: float | None = None  # share of the documents kept for evaluation
    max_tokens: int | None = None


@dataclass
class SaeConfig:
    """A sparse autoencoder and how it is trained. A value of null is one that this architecture does not have."""

    architecture: Architecture = Architecture.topk
    site: Site = Site.resid_post
    expansion: int = 8  # d_sae = expansion × the site's width
    k: int | None = None
    l1: float | None = None
    lr: float = 1e-3
    batch_size: int = 256  # rows (activation vectors) a step
    steps: int = 1000
    max_steps: int | None = added(None)  # stop there although the schedule goes on to `steps`
    warmup: int = 50  # steps of linear learning-rate warm-up
    decay: float = 0.2  # last share of the steps, in which the rate falls linearly to zero
    l1_warmup: int | None = None
    clip: float = 1.0  # gradient norm
    dead_after: int = 25600  # rows without firing after which a feature counts as dead
    aux: float | None = None  # weight of the auxiliary loss on dead features (topk)
    resample_every: int | None = None  # steps between resamplings of dead features (relu)
    source: str = "stream"  # activations straight from the model
    block_rows: int = 16384  # rows shuffled together
    forward_batch: int = 64  # sequences per model forward
    skip_first: int = 1  # leading positions left out: attention sinks would dominate the loss and explained variance
    heldout_sequences: int = 512
    nonfinite: NonFinitePolicy = NonFinitePolicy.fail
    from_: str | None = file(None)  # a SAELens directory to take instead of training (written sae.from=DIR)
    min_r2: float | None = free(None)  # gate: exit 3 when the held-out explained variance stays below it
    checkpoint_every: int | None = free(5000)  # steps between checkpoints; whichever of the two comes first
    checkpoint_minutes: float | None = free(10.0)
    checkpoint_keep: int = free(2)
    log_every: int = free(20)  # steps


@dataclass
class ClusterConfig:
    """Who runs the elements. Data that the launcher reads; it never enters a key."""

    name: str = "local"
    backend: Backend = Backend.local
    workers: int | None = None  # worker processes; null: as many as cores and GPUs carry; 0: in this process, for pdb
    grace_s: int = 30  # seconds that a worker gets for its last checkpoint


@dataclass
class PrecisionConfig:
    """Number formats; they enter the key of whatever is computed under them."""

    dtype: Dtype = Dtype.fp32
    matmul: Matmul = Matmul.highest


@dataclass
class TrackingConfig:
    """Weights & Biases."""

    mode: TrackingMode = TrackingMode.offline
    project: str = "circuits"
    entity: str | None = None


@dataclass
class BaseConfig:
    """The root: groups and run-level keys. Tasks' own options are joined to it by :func:`root_schema`."""

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sae: SaeConfig = field(default_factory=SaeConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    layer: Any = "all"
    seed: int = 0
    name: str | None = None  # part of the run directory's name
    note: str | None = None  # kept with the run, shown by status and report
    of: str | None = None  # the sweep or run that a service task is about
    reuse: Reuse = Reuse.cached
    outputs: str = "outputs"
    multirun: str = "multirun"


#: Root keys that every task reads.
RUN_KEYS = ("name", "note", "reuse", "outputs", "multirun", "task", "cluster", "tracking")


def root_schema(options: dict[str, type]) -> type:
    """`BaseConfig` with each task's own ``Options`` dataclass under the task's name (``status.watch``)."""
    extra = [(name, cls, field(default_factory=cls)) for name, cls in options.items()]
    return dataclasses.make_dataclass("Config", extra, bases=(BaseConfig,))


def check(cfg: BaseConfig) -> list[str]:
    """Every cross-field rule that `cfg` breaks, one line each. Reads plain values only: no file, no model."""
    return [*_check_data(cfg.data), *_check_sae(cfg.sae), *_check_rest(cfg)]


def _check_data(data: DataConfig) -> list[str]:
    errors = []
    source = data.source.value
    if data.source is DataSource.embedded:
        for name in ("path", "field", "split", "heldout", "max_tokens"):
            if getattr(data, name) is not None:
                value = getattr(data, name)
                errors.append(
                    f"data.{name}={value}: data=embedded does not read it; choose data=text, jsonl or datasets"
                )
    elif data.path is None:
        errors.append(
            f"data={source} needs data.path=FILE or a directory" + (" or hub name" if source == "datasets" else "")
        )
    if data.source is DataSource.text and data.field is not None:
        errors.append(f"data.field={data.field}: data=text does not read it; for JSON lines choose data=jsonl")
    if data.source is not DataSource.datasets and data.split is not None and data.source is not DataSource.embedded:
        errors.append(f"data.split={data.split}: only data=datasets reads it")
    if data.context < 2:
        errors.append(f"data.context={data.context}: at least 2 tokens")
    if data.heldout is not None and not 0 < data.heldout < 1:
        errors.append(f"data.heldout={data.heldout}: a share between 0 and 1")
    if data.max_tokens is not None and data.max_tokens < data.context:
        errors.append(f"data.max_tokens={data.max_tokens}: at least one context ({data.context})")
    return errors


def _check_sae(sae: SaeConfig) -> list[str]:
    errors = []
    for name in ("steps", "max_steps", "batch_size", "expansion", "k", "block_rows", "forward_batch", "dead_after",
                 "heldout_sequences", "resample_every", "checkpoint_every", "checkpoint_keep", "log_every"):  # fmt: skip
        value = getattr(sae, name)
        if value is not None and value < 1:
            errors.append(f"sae.{name}={value}: at least 1")
    for name in ("lr", "clip", "checkpoint_minutes"):
        value = getattr(sae, name)
        if value is not None and not value > 0:
            errors.append(f"sae.{name}={value}: more than 0")
    for name in ("l1", "aux", "warmup", "l1_warmup", "skip_first"):
        value = getattr(sae, name)
        if value is not None and not value >= 0:
            errors.append(f"sae.{name}={value}: 0 or more")
    if not 0 <= sae.decay <= 1:
        errors.append(f"sae.decay={sae.decay}: a share between 0 and 1")
    if sae.min_r2 is not None and not sae.min_r2 <= 1:
        errors.append(f"sae.min_r2={sae.min_r2}: explained variance is at most 1")
    if sae.source != "stream":
        errors.append(f"sae.source={sae.source}: choices: stream")
    if 2 * sae.batch_size > sae.block_rows:
        errors.append(f"sae.batch_size={sae.batch_size}: more than half of sae.block_rows={sae.block_rows}; raise that")
    needs = {Architecture.topk: ("k", "aux"), Architecture.relu: ("l1", "l1_warmup", "resample_every")}
    for architecture, names in needs.items():
        for name in names:
            value = getattr(sae, name)
            if architecture is sae.architecture and value is None and name in ("k", "l1"):
                errors.append(f"sae.{name} is needed by sae={sae.architecture.value}")
            if architecture is not sae.architecture and value is not None:
                errors.append(
                    f"sae.{name}={value}: sae={sae.architecture.value} does not read it; sae={architecture.value} does"
                )
    return errors


def _check_rest(cfg: BaseConfig) -> list[str]:
    errors = []
    if cfg.cluster.workers is not None and cfg.cluster.workers < 0:
        errors.append(f"cluster.workers={cfg.cluster.workers}: 0 (in this process) or more")
    if cfg.cluster.grace_s < 0:
        errors.append(f"cluster.grace_s={cfg.cluster.grace_s}: 0 seconds or more")
    if cfg.sae.skip_first >= cfg.data.context:
        errors.append(f"sae.skip_first={cfg.sae.skip_first}: leaves nothing of data.context={cfg.data.context} tokens")
    if cfg.task.resources.cpus < 1:
        errors.append(f"task.resources.cpus={cfg.task.resources.cpus}: at least 1")
    if cfg.model.embedded is not None and min(cfg.model.embedded.steps, cfg.model.embedded.batch) < 1:
        errors.append("model.embedded: steps and batch are at least 1")
    if not cfg.seed >= 0:
        errors.append(f"seed={cfg.seed}: 0 or more")
    return errors
