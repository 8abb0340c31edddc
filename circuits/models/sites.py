"""Where the eight capture sites live in each model family, and how wide they are. No torch: plans read it too.

Words (pre-norm transformer block, after Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"):

===========  ================================================================================================
resid_pre    residual stream entering the block
head_z       input of the attention output projection, seen per head: ``[batch, pos, heads, head_dim]``
attn_out     what attention adds to the residual stream
resid_mid    residual stream after attention was added, before the MLP's norm
mlp_in       what the MLP receives (after its norm)
mlp_act      input of the MLP's output projection: width ``mlp_width``, for gated MLPs after the gate's product
mlp_out      what the MLP adds to the residual stream
resid_post   residual stream leaving the block (the last layer's is before the final norm)
===========  ================================================================================================

A new family is one entry in :data:`FAMILIES`. Families with a norm between a sublayer and the residual addition (Gemma 3)
name that norm as ``attn_out`` / ``mlp_out``, since its output is what is added. Where attention and MLP read the same stream
(parallel residual: Wang and Komatsuzaki 2021, GPT-J; Pythia) there is no ``resid_mid``, and it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from circuits.errors import UserError, suggest


class Site(StrEnum):
    """A capture point of a block, in the order in which a sequential block computes them (`resid_pre` first)."""

    resid_pre = "resid_pre"
    head_z = "head_z"
    attn_out = "attn_out"
    resid_mid = "resid_mid"
    mlp_in = "mlp_in"
    mlp_act = "mlp_act"
    mlp_out = "mlp_out"
    resid_post = "resid_post"


SITES: tuple[str, ...] = tuple(site.value for site in Site)

# TransformerLens names, which SAELens metadata uses too. TransformerLens takes ln2.hook_normalized before the norm's
# weight and bias: equal to mlp_in only where those are folded into the MLP, TransformerLens's default.
_HOOK_NAMES = {
    "resid_pre": "hook_resid_pre",
    "head_z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_in": "ln2.hook_normalized",
    "mlp_act": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}


@dataclass(frozen=True)
class Tap:
    """Where a site is read and written: the input or the output of one module of the block."""

    module: str
    """Dotted path below the block; empty for the block itself."""
    side: str
    """``in``: first positional argument; ``out``: the output, or its first element when the module returns a tuple."""
    heads: bool = False
    """The last dimension is heads x head_dim and is shown as two."""
    shared: bool = False
    """The same tensor is also added to later (the residual branch), so an edit must write into it, not replace it."""


@dataclass(frozen=True)
class Inner:
    """Modules of a block that only circuits look at: what each part reads, and what stands between it and the stream.

    Attributes:
        attn_norm: the norm before the attention.
        mlp_norm: the norm before the MLP.
        act: the MLP's nonlinearity.
        qkv: the projections of query, key and value; one module for all three where they are fused.
        fused: how a fused projection's output is cut: ``thirds`` (all queries, all keys, all values) or ``by_head`` (query, key and
            value of one head side by side); empty where there are three modules.
        up: the projection that the nonlinearity's output is multiplied by, in a gated MLP.
        attn_post: the norm between the attention and the stream, where there is one.
        mlp_post: the norm between the MLP and the stream, where there is one.
    """

    attn_norm: str
    mlp_norm: str
    act: str
    qkv: tuple[str, ...]
    fused: str = ""
    up: str = ""
    attn_post: str = ""
    mlp_post: str = ""


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture as Hugging Face transformers builds its causal language model."""

    blocks: str
    embed: str
    final_norm: str
    lm_head: str
    taps: Mapping[str, Tap]
    inner: Inner
    defaults: Mapping[str, int] = field(default_factory=dict)
    """Sizes that a config.json of this type may leave out, as transformers fills them in."""
    tower: str = ""
    """The key of config.json under which the language tower's sizes stand, where the model has other towers too."""
    parallel: str = ""
    """The key of config.json that says whether attention and MLP read the same stream (transformers' default: they do)."""
    overflows_fp16: bool = False
    """Activations exceed float16's 65504."""


def _taps(
    *, attn_out: str, attn_proj: str, mid_norm: str, mlp: str, mlp_proj: str, mlp_out: str = ""
) -> dict[str, Tap]:
    """The eight taps of a sequential block from the paths of its modules; `mlp_out` defaults to the MLP itself."""
    return {
        "resid_pre": Tap("", "in"),
        "head_z": Tap(attn_proj, "in", heads=True),
        "attn_out": Tap(attn_out, "out"),
        "resid_mid": Tap(mid_norm, "in", shared=True),
        "mlp_in": Tap(mlp, "in"),
        "mlp_act": Tap(mlp_proj, "in"),
        "mlp_out": Tap(mlp_out or mlp, "out"),
        "resid_post": Tap("", "out"),
    }


_LLAMA_TAPS = _taps(
    attn_out="self_attn",
    attn_proj="self_attn.o_proj",
    mid_norm="post_attention_layernorm",
    mlp="mlp",
    mlp_proj="mlp.down_proj",
)
_GEMMA_TAPS = _taps(
    attn_out="post_attention_layernorm",
    attn_proj="self_attn.o_proj",
    mid_norm="pre_feedforward_layernorm",
    mlp="mlp",
    mlp_proj="mlp.down_proj",
    mlp_out="post_feedforward_layernorm",
)
_SEPARATE = tuple(f"self_attn.{name}_proj" for name in "qkv")
_LLAMA_INNER = Inner("input_layernorm", "post_attention_layernorm", "mlp.act_fn", _SEPARATE, up="mlp.up_proj")
_GEMMA_INNER = Inner(
    "input_layernorm",
    "pre_feedforward_layernorm",
    "mlp.act_fn",
    _SEPARATE,
    up="mlp.up_proj",
    attn_post="post_attention_layernorm",
    mlp_post="post_feedforward_layernorm",
)
_GEMMA_SIZES = {
    "num_attention_heads": 8,  # google/gemma-3-4b-it leaves these five out
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
}


def _llama(**sizes: int) -> Family:
    """Llama's module names, which most families share."""
    return Family("model.layers", "model.embed_tokens", "model.norm", "lm_head", _LLAMA_TAPS, _LLAMA_INNER, sizes)


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        blocks="transformer.h",
        embed="transformer.wte",
        final_norm="transformer.ln_f",
        lm_head="lm_head",
        taps=_taps(attn_out="attn", attn_proj="attn.c_proj", mid_norm="ln_2", mlp="mlp", mlp_proj="mlp.c_proj"),
        inner=Inner("ln_1", "ln_2", "mlp.act", ("attn.c_attn",), fused="thirds"),
        defaults={"vocab_size": 50257, "n_positions": 1024},
    ),
    "llama": _llama(vocab_size=32000, max_position_embeddings=2048),
    "mistral": _llama(num_key_value_heads=8, vocab_size=32000, max_position_embeddings=131_072),
    "qwen2": _llama(num_key_value_heads=32, vocab_size=151_936, max_position_embeddings=32768),
    "qwen3": _llama(num_key_value_heads=32, head_dim=128, vocab_size=151_936, max_position_embeddings=32768),
    "gemma3_text": Family(
        blocks="model.layers",
        embed="model.embed_tokens",
        final_norm="model.norm",
        lm_head="lm_head",
        taps=_GEMMA_TAPS,
        inner=_GEMMA_INNER,
        defaults=_GEMMA_SIZES,
        overflows_fp16=True,
    ),
    "gemma3": Family(  # vision-language: the sites are those of the language tower
        blocks="model.language_model.layers",
        embed="model.language_model.embed_tokens",
        final_norm="model.language_model.norm",
        lm_head="lm_head",
        taps=_GEMMA_TAPS,
        inner=_GEMMA_INNER,
        defaults=_GEMMA_SIZES,
        tower="text_config",
        overflows_fp16=True,
    ),
    "gpt_neox": Family(
        blocks="gpt_neox.layers",
        embed="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        lm_head="lm_head",
        taps=_taps(
            attn_out="attention",
            attn_proj="attention.dense",
            mid_norm="post_attention_layernorm",
            mlp="mlp",
            mlp_proj="mlp.dense_4h_to_h",
        ),
        inner=Inner(
            "input_layernorm", "post_attention_layernorm", "mlp.act", ("attention.query_key_value",), fused="by_head"
        ),
        defaults={"vocab_size": 50432, "max_position_embeddings": 2048},
        parallel="use_parallel_residual",
    ),
}


def family_of(model_type: str, name: str = "this model") -> Family:
    """The family of a config's ``model_type``; an unknown one is refused by name."""
    if model_type not in FAMILIES:
        raise UserError(
            f"{name} is of model type {model_type!r}, which has no entry in circuits/models/sites.py"
            f"{suggest(model_type, FAMILIES, 'known types')} (docs/models.md shows how to add one)"
        )
    return FAMILIES[model_type]


def fp16_problem(model_type: str | None) -> str | None:
    """Why a family cannot be computed in float16, or None."""
    if model_type in FAMILIES and FAMILIES[model_type].overflows_fp16:
        return f"activations of {model_type} exceed float16's largest number (65504); use precision=bf16 or fp32"
    return None


@dataclass(frozen=True)
class Dims:
    """Sizes of a model. `context` is the longest sequence its positions allow, None where the config does not say.

    `parallel`: attention and MLP read the same stream, so there is no ``resid_mid``.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocab: int
    context: int | None = None
    parallel: bool = False


def _size(config: Mapping[str, Any], keys: tuple[str, ...], default: int | None = None) -> int:
    """The first of `keys` that the config sets; families spell the same size differently."""
    value = next((config[key] for key in keys if config.get(key) is not None), default)
    if value is None:
        raise UserError(f"config.json names no {' or '.join(keys)}: it is not the config of a causal language model")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"config.json: {keys[0]} = {value!r} must be a positive whole number")
    return value


def _tower(config: Mapping[str, Any], family: Family | None) -> Mapping[str, Any]:
    """The language model's part of a config, with what transformers takes for sizes that it leaves out."""
    if family is None:
        return config
    part = config.get(family.tower) if family.tower else config
    if not isinstance(part, Mapping):
        raise UserError(f"config.json has no {family.tower}: it is not the config of a {config['model_type']} model")
    return {**family.defaults, **{key: value for key, value in part.items() if value is not None}}


def dims_of(config: Mapping[str, Any]) -> Dims:
    """Read the sizes from a parsed ``config.json`` (of a model with several towers: the language tower's)."""
    family = FAMILIES.get(str(config.get("model_type")))
    config = _tower(config, family)
    context = ("max_position_embeddings", "n_positions")
    width = _size(config, ("hidden_size", "n_embd"))
    heads = _size(config, ("num_attention_heads", "n_head"))
    if width % heads and config.get("head_dim") is None:
        raise UserError(f"config.json: hidden_size {width} is not divisible by num_attention_heads {heads}")
    return Dims(
        layers=_size(config, ("num_hidden_layers", "n_layer")),
        width=width,
        heads=heads,
        kv_heads=_size(config, ("num_key_value_heads",), default=heads),
        head_dim=_size(config, ("head_dim",), default=width // heads),
        mlp_width=_size(config, ("intermediate_size", "n_inner"), default=4 * width),
        vocab=_size(config, ("vocab_size",)),
        context=_size(config, context) if any(config.get(key) is not None for key in context) else None,
        parallel=family is not None and bool(family.parallel) and bool(config.get(family.parallel, True)),
    )


def check_site(site: str, dims: Dims | None = None) -> str:
    """`site` if it is one (and the model of these sizes has it), else an error with the choices."""
    if site not in SITES:
        raise UserError(f"unknown site {site!r}{suggest(str(site), SITES, 'sites')}")
    if dims is not None and site not in sites_of(dims):
        raise UserError(
            f"{site}: this model has none: its attention and MLP read the same stream and are added together (parallel "
            f"residual); its sites: {' '.join(sites_of(dims))}"
        )
    return str(site)


def sites_of(dims: Dims) -> tuple[str, ...]:
    """The sites that a model of these sizes has: all, but for ``resid_mid`` where the residual is parallel."""
    return tuple(site for site in SITES if not (dims.parallel and site == Site.resid_mid))


def check_layer(layer: int, dims: Dims) -> int:
    """`layer` if the model has it, else an error naming the depth."""
    if not 0 <= layer < dims.layers:
        raise UserError(f"layer {layer} is out of range: the model has {dims.layers} layers (0-{dims.layers - 1})")
    return layer


def site_width(dims: Dims, site: str) -> int:
    """Width of a site's vectors; for ``head_z`` all heads together (heads x head_dim, not always the model's width)."""
    check_site(site, dims)
    return {"mlp_act": dims.mlp_width, "head_z": dims.heads * dims.head_dim}.get(site, dims.width)


def hook_name(site: str, layer: int) -> str:
    """The TransformerLens name of a site, e.g. ``blocks.3.hook_resid_post``."""
    return f"blocks.{layer}.{_HOOK_NAMES[check_site(site)]}"


_FOREIGN_HOOKS = {"mlp.hook_in": "mlp_in", "mlp.hook_out": "mlp_out"}
_MODULES = {
    "": "resid_post",
    "mlp": "mlp_out",
    "attn": "attn_out",
    "self_attn": "attn_out",
    "attention": "attn_out",
    "input": "resid_pre",
    "output": "resid_post",
    "self_attn.o_proj.input": "head_z",
    "pre_feedforward_layernorm.input": "resid_mid",
    "pre_feedforward_layernorm.output": "mlp_in",
    "mlp.input": "mlp_in",
    "mlp.down_proj.input": "mlp_act",
    "post_feedforward_layernorm.output": "mlp_out",
}
"""By a module's path below its block (its output), or by that and the side."""


def site_of_hook(name: str) -> tuple[str, int] | None:
    """The site and layer that a TransformerLens name or a module's path means, if any: ``model.layers.10.mlp`` (its output),
    ``model.layers.10.pre_feedforward_layernorm.output``; a vision-language model's under ``language_model``, too."""
    if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
        sites = {**_FOREIGN_HOOKS, **{hook: site for site, hook in _HOOK_NAMES.items()}}
        return (sites[found[2]], int(found[1])) if found[2] in sites else None
    if name in ("embed_tokens", "hook_embed"):
        return "resid_pre", 0
    found = re.fullmatch(r"(?:(.+)\.)?(?:layers|h)[._](\d+)(?:[._](.+))?", name)
    if found is None or "vision" in (found[1] or "") or (found[3] or "") not in _MODULES:
        return None
    return _MODULES[found[3] or ""], int(found[2])
