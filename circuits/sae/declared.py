"""What a ``cfg.json`` says an SAE is: SAELens's from version 1 to 6, sparsify's, ours. No torch.

SAELens's reader takes what it knows of a config and leaves the rest, and so does sparsify's: an option that they dropped since is
silently another function. Here every key that changes what an SAE computes is read, or refused by its value; and so is a key that
is not known, for it might be one. A null is absence, as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from circuits.errors import suggest
from circuits.sae.config_keys import SAELENS, SPARSIFY

BIASES = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "transcoder": ("b_enc",),
    "skip_transcoder": ("b_enc",),
    "topk_transcoder": ("b_enc",),
    "topk_skip_transcoder": ("b_enc",),
    "jumprelu_transcoder": ("b_enc", "threshold"),
    "jumprelu_skip_transcoder": ("b_enc", "threshold"),
}
"""By architecture in a SAELens config: its tensors of one number a feature, beside W_enc, W_dec and b_dec."""
SCALING = ("scaling_factor", "finetuning_scaling_factor")
"""Names under which SAELens before version 6 saved one factor a feature, by which a finetuned SAE multiplies before it decodes."""
NORMALIZE = {
    "none": "",
    "layer_norm": "",
    "constant_norm_rescale": "",
    "expected_average_only_in": "the factor that activations are multiplied by is not in the file; fold it in once with "
    "SAELens: sae.fold_activation_norm_scaling_factor(FACTOR), then sae.save_model(DIR)",
    "covariance_whitening": "the whitening is not in the file; SAELens folds it in when its training ends",
}
"""SAELens's normalize_activations, and why one is not read."""
UNREAD = {
    "abstopk": "its features are negative, too, and features here are not",
    "batchtopk": "a checkpoint of SAELens's training; its save_inference_model makes the SAE",
    "matryoshka_batchtopk": "a checkpoint of SAELens's training; its save_inference_model makes the SAE",
    "temporal": "its features depend on the tokens before, here they are of one token",
    "matching_pursuit": "its encoder is a loop over features",
}


@dataclass(frozen=True)
class Found:
    """What a config promises of the weights beside it, and how they are to be used."""

    architecture: str
    """SAELens's name for it."""
    d_in: int
    d_sae: int
    d_out: int | None  # of a transcoder
    k: int | None
    shapes: Mapping[str, tuple[int, ...]]  # by tensor
    optional: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # tensors that may be there
    centred: bool = True
    """Whether b_dec is taken from the encoder's input (``apply_b_dec_to_input``); never in a transcoder."""
    rescaled: bool = False
    """Whether features are chosen and scaled by their decoder rows' norms (``rescale_acts_by_decoder_norm``)."""
    scaled: bool = False
    """Whether a factor a feature is applied before decoding (``finetuning_scaling_factor``)."""
    normalize: str = "none"
    """What is done to each row (``normalize_activations``)."""
    skip: bool = False
    """A transcoder with a linear path beside the features."""
    model: str | None = None
    """Of which model it says it is."""
    hook: str | None = None
    """At which site, in the library's own words (``blocks.8.hook_resid_pre``)."""
    hook_out: str | None = None
    """Of a transcoder: which site it reconstructs."""
    processing: Mapping[str, Any] = field(default_factory=dict)
    """How the model was changed when it was loaded, where that is said."""


def declared(config: Any, *, sparsify: bool) -> Found:
    """What a config says of the weights.

    Raises:
        ValueError: nothing that is understood here.
    """
    if not isinstance(config, dict):
        raise ValueError("holds no JSON object")
    said = {name: value for name, value in config.items() if value is not None}
    return _sparsify(said) if sparsify else _saelens(said)


def _saelens(config: dict[str, Any]) -> Found:
    metadata = config.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata must be an object, it is {metadata}")
    if not _is_v6(config, metadata):
        config, metadata = _before_v6(config)
    name = str(config.get("architecture"))
    if name not in BIASES:
        raise ValueError(
            f"architecture {name} is not supported: {UNREAD[name]}"
            if name in UNREAD
            else f"architecture {name} is not supported{suggest(name, BIASES, 'supported')}"
        )
    known(config, SAELENS)
    d_in, d_sae = _whole(config, "d_in"), _whole(config, "d_sae")
    k = _k(config, "d_sae", d_sae) if name.startswith("topk") else None
    transcodes, skip = name.endswith("transcoder"), name.endswith("skip_transcoder")
    d_out = _whole(config, "d_out") if transcodes else None
    width = d_out or d_in
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, width), "b_dec": (width,)}
    shapes |= {"W_skip": (width, d_in)} if skip else {}
    if config.get("hook_head_index", metadata.get("hook_head_index")) is not None:
        raise ValueError(
            "hook_head_index: an SAE of one head alone is not supported; sites here are all heads side by side"
        )
    return Found(
        name, d_in, d_sae, d_out, k, shapes | dict.fromkeys(BIASES[name], (d_sae,)),
        optional=dict.fromkeys(SCALING, (d_sae,)),
        centred=_flag(config, "apply_b_dec_to_input", default=True) and not transcodes,
        rescaled=name.startswith("topk") and _flag(config, "rescale_acts_by_decoder_norm"),
        scaled=_flag(config, "finetuning_scaling_factor"),
        normalize=_normalize(config),
        skip=skip,
        model=text(metadata, "model_name"),
        hook=text(metadata, "hook_name"),
        hook_out=text(metadata, "hook_name_out") if transcodes else None,
        processing=metadata.get("model_from_pretrained_kwargs") or {},
    )  # fmt: skip


def _is_v6(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    version = str(config.get("sae_lens_version") or metadata.get("sae_lens_version") or "0")
    return version.partition(".")[0].isdigit() and int(version.partition(".")[0]) >= 6


def _before_v6(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A config of SAELens 1 to 5 (or of no stated version) in version 6's words, as its own converter does it; and its metadata."""
    renamed = {
        "hook_point": "hook_name",
        "hook_point_head_index": "hook_head_index",
        "activation_fn_str": "activation_fn",
    }
    config = {renamed.get(name, name): value for name, value in config.items()}
    metadata = {**config, **(config.get("metadata") or {})}
    options, activation = config.pop("activation_fn_kwargs", {}), config.pop("activation_fn", "relu")
    architecture = config.setdefault("architecture", "standard")
    if activation == "topk" and architecture in ("standard", "topk"):
        config["architecture"] = "topk"
    elif activation != "relu":
        raise ValueError(
            f"activation_fn = {activation} with architecture {architecture} is not supported (relu, or topk of a standard SAE)"
        )
    if config["architecture"] == "topk" and isinstance(options, dict):
        if options.get("signed"):
            raise ValueError(f"activation_fn_kwargs: signed is not supported: {UNREAD['abstopk']}")
        config |= {"k": options["k"]} if options.get("k") is not None else {}
        options = {name: value for name, value in options.items() if name not in ("k", "signed")}
    if options:
        raise ValueError(f"activation_fn_kwargs = {options} is not supported")
    if isinstance(config.get("normalize_activations"), bool):
        config["normalize_activations"] = "expected_average_only_in" if config["normalize_activations"] else "none"
    return config, metadata


def _normalize(config: Mapping[str, Any]) -> str:
    value = config.get("normalize_activations", "none")
    if NORMALIZE.get(value) != "":
        read = [name for name, why in NORMALIZE.items() if not why]
        why = f": {NORMALIZE[value]}" if value in NORMALIZE else f" ({' '.join(read)} are)"
        raise ValueError(f"normalize_activations = {value} is not supported{why}")
    if config.get("reshape_activations", "none") not in ("none", "hook_z"):
        raise ValueError(
            f"reshape_activations = {config['reshape_activations']} is not supported (only none or hook_z)"
        )
    return str(value)


def _sparsify(config: dict[str, Any]) -> Found:
    known(config, SPARSIFY)
    if config.get("activation", "topk") != "topk":
        raise ValueError(f"activation = {config['activation']} is not supported (only topk)")
    if _flag(config, "signed"):
        raise ValueError(f"signed = True is not supported: {UNREAD['abstopk']}")
    transcodes, skip = _flag(config, "transcode"), _flag(config, "skip_connection")
    if skip and not transcodes:
        raise ValueError("skip_connection = True is not supported without transcode: it would copy its input")
    d_in = _whole(config, "d_in")
    d_sae = _whole(config, "num_latents") if config.get("num_latents") else d_in * _whole(config, "expansion_factor")
    shapes = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    shapes |= {"W_skip": (d_in, d_in)} if skip else {}
    name = f"topk_{'skip_' if skip else ''}transcoder" if transcodes else "topk"
    return Found(
        name, d_in, d_sae, d_in if transcodes else None, _k(config, "num_latents", d_sae), shapes,
        centred=not transcodes, skip=skip, hook=text(config, "hookpoint"),
    )  # fmt: skip


def known(config: Mapping[str, Any], names: frozenset[str]) -> None:
    """Refuse keys that nobody here knows.

    Raises:
        ValueError: there are some.
    """
    if unknown := sorted(map(str, config.keys() - names)):
        raise ValueError(
            f"unknown key {' '.join(unknown)}, which may change what the SAE computes; if it does not, take it out of a copy "
            "of the file"
        )


def _k(config: Mapping[str, Any], what: str, d_sae: int) -> int:
    k = _whole(config, "k")
    if k > d_sae:
        raise ValueError(f"k = {k} is more than {what} = {d_sae}")
    return k


def _flag(config: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, it is {value}")
    return value


def text(config: Mapping[str, Any], name: str) -> str | None:
    """What a key says, where it says something."""
    value = config.get(name)
    return value if isinstance(value, str) and value else None


def _whole(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number above 0, it is {value}")
    return value
