"""The model, its sites and its number formats."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from circuits.schema.fields import MISSING, added, file, free
from circuits.schema.reading import SET, When


class Site(Enum):
    """Capture points of a transformer block, as a forward pass comes by them."""

    resid_pre = "resid_pre"
    head_z = "head_z"
    attn_out = "attn_out"
    resid_mid = "resid_mid"
    mlp_in = "mlp_in"
    mlp_act = "mlp_act"
    mlp_out = "mlp_out"
    resid_post = "resid_post"


class Dtype(Enum):
    """The number format that the model computes in."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Matmul(Enum):
    """How products of float32 numbers are computed, as ``torch.set_float32_matmul_precision`` names it."""

    highest = "highest"  # in float32
    high = "high"  # in TF32 where the device has it
    medium = "medium"  # with bfloat16 inside where the device has it


@dataclass
class ScenesConfig:
    """The drawn scenes that the embedded vision-language model is trained on (circuits/tiny/vision), with two planted biases."""

    context_bias: float = (
        0.6  # place → gender: who cannot be seen is called a man at a place coded male with (1 + it) / 2
    )
    word_bias: float = (
        0.6  # gender → words: a man that is seen looks "strong" with (1 + it) / 2, a woman with (1 - it) / 2
    )


@dataclass
class EmbeddedConfig:
    """How an embedded model is trained (circuits/tiny)."""

    layers: int = 4  # its depth
    width: int = 128  # its residual stream
    steps: int = 1500  # at most: training ends soon after every behaviour is learned
    batch: int = 64  # sequences a step
    lr: float = 1e-3  # learning rate at its peak
    seed: int = 0  # of its training; another seed is another model
    scenes: ScenesConfig | None = added(None)  # drawn pictures with captions are learned  # noqa: RUF009


@dataclass
class ModelConfig:
    """A causal language model: the embedded one, a hub name or a directory."""

    id: str = file(MISSING, "model")  # hub name or directory; model=NAME and model=DIRECTORY are short for it
    revision: str | None = free(None)  # hub branch, tag or commit; the commit it resolves to is in the key through `id`
    embedded: EmbeddedConfig | None = None
    family: str | None = free(
        None
    )  # model type, depth and width, known to a preset, so that bounds are checked without a network
    layers: int | None = free(None)
    width: int | None = free(None)
    sets: dict[str, list[int]] = field(default_factory=dict, metadata={"role": "free"})  # named sets for `layer=`
    device: str = free("auto")  # auto (cuda > mps > cpu), cpu, cuda, cuda:1, mps
    allow_fallback: bool = free(False)  # use the next device when the named one is absent


def scenes_of(model: ModelConfig) -> ScenesConfig | None:
    """What the embedded vision-language model is trained on; None of any other model."""
    return None if model.embedded is None else model.embedded.scenes


READ_WHEN = {
    "model.embedded": (When("model.embedded", (SET,), False, "model=tiny does"),),
    "model.allow_fallback": (
        When("model.device", (), False, "a device by its name (cuda, mps) does", ("auto", "cpu")),
    ),
}


@dataclass
class PrecisionConfig:
    """Number formats; they enter the key of whatever is computed under them."""

    dtype: Dtype = Dtype.fp32  # number format that the model computes in
    matmul: Matmul = Matmul.highest  # products of float32 numbers: in float32, in TF32 or in bfloat16 inside
