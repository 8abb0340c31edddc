"""Sparse autoencoders and their training."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import Enum

from circuits.schema.data import FILES
from circuits.schema.fields import added, free, taken_from
from circuits.schema.model import Site
from circuits.schema.reading import SET, When


class Architecture(Enum):
    """SAE architectures (one module each in circuits/sae/modules)."""

    topk = "topk"
    relu = "relu"
    batchtopk = "batchtopk"
    matryoshka = "matryoshka"
    jumprelu = "jumprelu"
    gated = "gated"


class Normalize(Enum):
    """Units that rows are trained in; folded into the saved weights."""

    standard = "standard"  # centred, scaled to mean ‖x‖² = d
    rms = "rms"  # scaled to mean ‖x‖² = d
    none = "none"


class NonFinitePolicy(Enum):
    """What to do about a NaN or an infinity in an activation."""

    fail = "fail"
    drop = "drop"


class SaeSource(Enum):
    """Where the rows of training come from."""

    stream = "stream"  # straight from the model
    store = "store"  # an `activations` artifact with activations.source=data, of the same model, data, site and layer


@dataclass
class SaeConfig:
    """A sparse autoencoder and how it is trained. A value of null is one that this architecture does not have."""

    architecture: Architecture = Architecture.topk  # what sae= chooses
    site: Site = Site.resid_post  # capture point whose activations are reconstructed
    expansion: int = 8  # d_sae = expansion × the site's width
    k: int | None = None  # features that are active on a row
    l1: float | None = None  # weight of the L1 penalty
    lr: float | None = None  # learning rate at its peak; null: 0.045 / √width, of sae=relu 0.11 / √width
    batch_size: int = 256  # rows (activation vectors) a step
    steps: int = 1000  # training steps of the whole schedule
    max_steps: int | None = added(None)  # stop there although the schedule goes on to `steps`
    warmup: int = 50  # steps of linear learning-rate warm-up
    decay: float = 0.2  # last share of the steps, in which the rate falls linearly to zero
    l1_warmup: int | None = None  # steps over which the L1 penalty rises; null: six tenths of all
    clip: float = 1.0  # gradient norm
    dead_after: int | None = None  # rows without firing that make a feature dead; null: a tenth of all, at most 1e7
    aux: float | None = None  # weight of the auxiliary loss on dead features
    resample_every: int | None = None  # steps between resamplings of dead features
    source: SaeSource = SaeSource.stream  # rows straight from the model, or from an activations artifact of data
    block_rows: int = 16384  # rows shuffled together
    forward_batch: int = 64  # sequences per model forward
    skip_first: int = 1  # leading positions left out: attention sinks would dominate the loss and explained variance
    heldout_sequences: int = 512  # sequences of the final measurement
    nonfinite: NonFinitePolicy = NonFinitePolicy.fail  # a NaN or infinity: fail, or drop the row (one layer a run)
    from_: str | None = taken_from("sae")  # an SAE to measure instead of training one: directory, artifact or hub name
    target_site: Site | None = added(None)  # another site to reconstruct: a transcoder  # noqa: RUF009
    skip: bool = added(False)  # a linear path beside the features of a transcoder (trained, no part of the features)
    k_anneal: int | None = added(None)  # steps over which k falls from four times its value; null: six tenths of all
    threshold_rate: float | None = added(None)  # weight of a batch in the inference threshold
    threshold_warmup: int | None = added(None)  # steps before that average begins
    groups: int | None = added(None)  # nested dictionaries, each twice the one before
    l0_coefficient: float | None = added(None)  # weight of the L0 penalty
    target_l0: float | None = added(
        None
    )  # active features a row: k of those that have one, a penalty steers itself to it
    l0_warmup: int | None = added(None)  # steps over which the L0 penalty rises; null: six tenths of all
    threshold: float | None = added(None)  # thresholds at the start
    bandwidth: float | None = added(None)  # of the kernel that thresholds are trained by
    sparsity_decay: float | None = added(None)  # last share of the steps, in which the penalty falls to zero
    sparsity: float = added(1.0)  # one measure for all architectures: k is divided, penalties are multiplied by it
    baselines: bool = added(
        True
    )  # train frozen baselines beside it (a quarter of the cost), to see what training gained
    massive: float | None = added(
        10.0
    )  # rows beyond so many times the median norm are left out where they hold most of the variance; null: never
    normalize: Normalize = added(Normalize.standard)  # units of rows: centred and scaled, scaled, or as is  # noqa: RUF009
    accumulate: int = added(1)  # parts that a batch is processed in, for less memory
    patience: int | None = added(None)  # stop after so many validations without improvement, take the best weights
    min_delta: float = added(1e-5)  # improvement that counts, as a share of the variance
    validate_every: int = added(250)  # steps between validations
    validation_sequences: int = added(64)  # held-out sequences beyond those of the final measurement
    ram: float = added(2.0)  # GB a layer in which rows are shuffled; another budget is another order
    compile: bool = added(False)  # fuse the optimiser's passes by torch.compile: pays on accelerators, needs a compiler
    allow_small: bool = free(False)  # train although there are fewer distinct rows than 100 × the site's width
    min_r2: float | None = free(None)  # gate: exit 3 when the held-out explained variance stays below it
    checkpoint_every: int | None = free(5000)  # steps between checkpoints; whichever of the two comes first
    checkpoint_minutes: float | None = free(10.0)  # minutes between checkpoints
    checkpoint_keep: int = free(2)  # checkpoints that are kept
    log_every: int = free(20)  # steps between points of the training curves


def check(sae: SaeConfig) -> list[str]:
    errors = []
    for name in ("steps", "max_steps", "batch_size", "expansion", "k", "block_rows", "forward_batch", "dead_after",
                 "heldout_sequences", "resample_every", "checkpoint_every", "checkpoint_keep", "log_every", "accumulate",
                 "patience", "validate_every", "validation_sequences"):  # fmt: skip
        value = getattr(sae, name)
        if value is not None and value < 1:
            errors.append(f"sae.{name}={value}: at least 1")
    for name in ("lr", "clip", "checkpoint_minutes", "bandwidth", "sparsity", "ram", "massive"):
        value = getattr(sae, name)
        if value is not None and not value > 0:
            errors.append(f"sae.{name}={value}: more than 0")
    for name in ("l1", "aux", "warmup", "l1_warmup", "skip_first", "l0_coefficient", "l0_warmup", "threshold", "threshold_warmup",
                 "k_anneal", "min_delta"):  # fmt: skip
        value = getattr(sae, name)
        if value is not None and not value >= 0:
            errors.append(f"sae.{name}={value}: 0 or more")
    if sae.target_l0 is not None and not sae.target_l0 >= 1:
        errors.append(f"sae.target_l0={sae.target_l0:g}: at least 1 active feature a row")
    if not 0 <= sae.decay <= 1:
        errors.append(f"sae.decay={sae.decay}: a share between 0 and 1")
    if sae.min_r2 is not None and not sae.min_r2 <= 1:
        errors.append(f"sae.min_r2={sae.min_r2}: explained variance is at most 1")
    if sae.source is SaeSource.stream and 2 * sae.batch_size > sae.block_rows:
        errors.append(f"sae.batch_size={sae.batch_size}: more than half of sae.block_rows={sae.block_rows}; raise that")
    return errors + _stopping(sae) + _options(sae)


def _stopping(sae: SaeConfig) -> list[str]:
    """Rules of accumulation and early stopping."""
    errors = []
    if sae.accumulate >= 1 and sae.batch_size % sae.accumulate:
        errors.append(f"sae.accumulate={sae.accumulate}: sae.batch_size={sae.batch_size} is not divisible by it")
    if sae.target_site is not None and sae.target_site is sae.site:
        errors.append(f"sae.target_site={sae.target_site.value}: the site itself; leave it out for an SAE")
    elif sae.target_site is not None:
        later = list(Site)[list(Site).index(sae.site) + 1 :]
        if sae.target_site not in later:
            choices = (
                f"; sites after it: {' '.join(site.value for site in later)}" if later else ", the last of a block"
            )
            errors.append(
                f"sae.target_site={sae.target_site.value}: a model computes it before sae.site={sae.site.value}{choices}"
            )
    if sae.skip and sae.target_site in (None, sae.site):
        errors.append(
            f"sae.skip=true: from {sae.site.value} to itself it would copy its input; name another site with sae.target_site=…"
        )
    if sae.target_site is not None and sae.architecture is Architecture.gated:
        errors.append(
            "sae.target_site: sae=gated cannot be a transcoder; choose topk, batchtopk, matryoshka, jumprelu or relu"
        )
    return errors


def settled(sae: SaeConfig) -> SaeConfig:
    """The same SAE with all worked out that follows from other options: `sparsity`, a target where there is a k, and the rows that
    `dead_after` stands for."""
    target = sae.target_l0 and max(1.0, sae.target_l0 / sae.sparsity)
    k = sae.k and max(1, round(sae.k / sae.sparsity))
    if sae.architecture in TOPK_FAMILY and target is not None:
        k, target = round(target), None
    l1, l0 = (value and value * sae.sparsity for value in (sae.l1, sae.l0_coefficient))
    if target is not None:
        l1 = l0 = None
    dead = dead_rows(sae.steps, sae.batch_size) if sae.dead_after is None else sae.dead_after
    return replace(sae, k=k, l1=l1, l0_coefficient=l0, target_l0=target, sparsity=1.0, dead_after=dead)


def dead_rows(steps: int, batch_size: int) -> int:
    """Rows without firing after which a feature is dead, where nobody says otherwise: a tenth of the training's, so that it does
    not depend on how they are cut into batches, and at most the 10 million of Gao et al. 2024 and sparsify."""
    return max(1, min(10_000_000, steps * batch_size // 10))


A = Architecture  # short, for the table
TOPK_FAMILY, PENALISED = (A.topk, A.batchtopk, A.matryoshka), (A.relu, A.gated, A.jumprelu)
READ_BY = {
    "k": TOPK_FAMILY, "aux": TOPK_FAMILY, "k_anneal": TOPK_FAMILY, "threshold_rate": (A.batchtopk, A.matryoshka),
    "threshold_warmup": (A.batchtopk, A.matryoshka), "groups": (A.matryoshka,), "l1": (A.relu, A.gated),
    "l1_warmup": (A.relu, A.gated), "l0_coefficient": (A.jumprelu,), "l0_warmup": (A.jumprelu,), "threshold": (A.jumprelu,),
    "bandwidth": (A.jumprelu,), "resample_every": PENALISED, "sparsity_decay": PENALISED,
}  # fmt: skip
NEEDED = {"k", "l1", "groups", "l0_coefficient"}
#: What a target takes the place of.
SPARSITY = ("k", "l1", "l0_coefficient")
FIXED = "sae.target_l0=null does"
#: What is read of an SAE that is taken over (sae.from) and only measured.
MEASURED = (
    "site",
    "target_site",
    "from_",
    "block_rows",
    "forward_batch",
    "skip_first",
    "massive",
    "heldout_sequences",
    "nonfinite",
    "min_r2",
)
#: Whose rows have an end: the embedded generator's have none.
_COUNTED = When("data.source", FILES, strict=False, other=When("sae.source", ("store",)))
READ_WHEN = {
    f"sae.{field.name}": (
        *([] if field.name in MEASURED else [When("sae.from_", (None,), strict=False)]),
        *([When("sae.architecture", tuple(a.value for a in READ_BY[field.name]))] if field.name in READ_BY else []),
        *([When("sae.target_l0", (None,), strict=False, hint=FIXED)] if field.name in SPARSITY else []),
        *([When("sae.source", ("stream",))] if field.name == "block_rows" else []),
        *([When("sae.source", ("store",))] if field.name == "ram" else []),
        *([_COUNTED] if field.name == "allow_small" else []),
        *(
            [When("sae.patience", (SET,))]
            if field.name in ("min_delta", "validate_every", "validation_sequences")
            else []
        ),
    )
    for field in fields(SaeConfig)
}


def _options(sae: SaeConfig) -> list[str]:
    """Options that the architecture needs, and their bounds."""
    errors = []
    for name, readers in READ_BY.items():
        targeted = sae.target_l0 is not None and name in SPARSITY
        if name in NEEDED and sae.architecture in readers and getattr(sae, name) is None and not targeted:
            or_target = " (or sae.target_l0)" if name in SPARSITY else ""
            errors.append(f"sae.{name}{or_target} is needed by sae={sae.architecture.value}")
    if sae.groups is not None and sae.groups < 2:
        errors.append(f"sae.groups={sae.groups}: at least 2 nested dictionaries, or choose sae=batchtopk")
    if sae.threshold_rate is not None and not 0 < sae.threshold_rate <= 1:
        errors.append(f"sae.threshold_rate={sae.threshold_rate}: the weight of one batch, above 0 and at most 1")
    if sae.sparsity_decay is not None and not 0 <= sae.sparsity_decay <= 1:
        errors.append(f"sae.sparsity_decay={sae.sparsity_decay}: a share between 0 and 1")
    return errors
