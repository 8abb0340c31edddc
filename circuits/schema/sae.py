"""Sparse autoencoders and their training."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from circuits.schema.fields import added, file, free
from circuits.schema.model import Site


class Architecture(Enum):
    """SAE architectures (one module each in circuits/sae/modules)."""

    topk = "topk"
    relu = "relu"


class NonFinitePolicy(Enum):
    """What to do about a NaN or an infinity in an activation."""

    fail = "fail"
    drop = "drop"


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


def check(sae: SaeConfig) -> list[str]:
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
