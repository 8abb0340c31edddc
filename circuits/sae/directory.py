"""Whether a directory holds an SAE in SAELens's or sparsify's format, without torch: for checks before anything is loaded.

Names and shapes of the tensors stand in the head of a safetensors file, so that they are checked without reading the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from circuits.errors import suggest

CONFIG, WEIGHTS, SPARSIFY_WEIGHTS = "cfg.json", "sae_weights.safetensors", "sae.safetensors"
BIASES = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "transcoder": ("b_enc",),
    "topk_transcoder": ("b_enc",),
    "jumprelu_transcoder": ("b_enc", "threshold"),
}
"""By architecture in a SAELens config: its tensors of one number a feature, beside W_enc, W_dec and b_dec."""
OPTIONS = {"normalize_activations": ("none",), "reshape_activations": ("none", "hook_z")}
SPARSIFY_OPTIONS: dict[str, tuple[Any, ...]] = {"activation": ("topk",), "skip_connection": (False,)}


@dataclass(frozen=True)
class Found:
    """What a config promises of the weights beside it."""

    architecture: str
    d_in: int
    d_sae: int
    d_out: int | None  # of a transcoder
    k: int | None
    shapes: Mapping[str, tuple[int, ...]]  # by tensor


def is_sparsify(directory: Path) -> bool:
    """Whether it has sparsify's weights and not SAELens's."""
    return (directory / SPARSIFY_WEIGHTS).is_file() and not (directory / WEIGHTS).is_file()


def problems(
    directory: Path, width: int | None, width_out: int | None = None, *, transcodes: bool = False
) -> list[str]:
    """What is wrong with it, one line each: files, config, widths (of the sites, if known), names and shapes of the weights."""
    if not directory.is_dir():
        return ["no such directory"]
    weights = SPARSIFY_WEIGHTS if is_sparsify(directory) else WEIGHTS
    missing = [name for name in (CONFIG, weights) if not (directory / name).is_file()]
    if missing:
        return [f"no SAELens or sparsify directory: {' and '.join(missing)} missing"]
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        found = promised(config, sparsify=weights == SPARSIFY_WEIGHTS)
    except (ValueError, TypeError, AttributeError) as e:
        return [f"{CONFIG}: {e}"]
    if found.d_out is not None and not transcodes:
        return ["a transcoder; name the site that it reconstructs with sae.target_site=…"]
    if found.d_out is None and transcodes:
        return ["no transcoder; leave out sae.target_site"]
    if width is not None and found.d_in != width:
        return [f"its d_in={found.d_in} is not the site's width {width}"]
    if found.d_out is not None and width_out is not None and found.d_out != width_out:
        return [f"its d_out={found.d_out} is not the target site's width {width_out}"]
    try:
        with safe_open(directory / weights, framework="np") as f:
            shapes = {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as e:
        return [f"{weights} cannot be read ({e})"]
    return [f"{weights} {problem}" for problem in differences(found, shapes)]


def promised(config: Any, *, sparsify: bool) -> Found:
    """What a config says of the weights.

    Raises:
        ValueError: nothing that is understood here.
    """
    return _sparsify(config) if sparsify else _saelens(config)


def differences(found: Found, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What of the weights is not as the config says, to be read after the file's name."""
    missing, extra = sorted(found.shapes.keys() - shapes.keys()), sorted(shapes.keys() - found.shapes.keys())
    if missing or extra:
        parts = [f"lacks the tensor {' '.join(missing)}"] * bool(missing)
        parts += [f"has the unknown tensor {' '.join(extra)}"] * bool(extra)
        return [f"{' and '.join(parts)}; a {found.architecture} SAE has {' '.join(sorted(found.shapes))}"]
    wrong = [name for name, shape in found.shapes.items() if shapes[name] != shape][:1]
    return [
        f"tensor {name} has shape {list(shapes[name])}, {CONFIG} asks for {list(found.shapes[name])}" for name in wrong
    ]


def _saelens(config: dict[str, Any]) -> Found:
    name = str(config.get("architecture"))
    d_in, d_sae = _whole(config, "d_in"), _whole(config, "d_sae")
    if name not in BIASES:
        raise ValueError(f"architecture {name} is not supported{suggest(name, BIASES, 'supported')}")
    _supported(config, OPTIONS)
    k = _whole(config, "k") if name.startswith("topk") else None
    if k is not None and k > d_sae:
        raise ValueError(f"k = {k} is more than d_sae = {d_sae}")
    d_out = _whole(config, "d_out") if name.endswith("transcoder") else None
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out or d_in), "b_dec": (d_out or d_in,)}
    return Found(name, d_in, d_sae, d_out, k, shapes | dict.fromkeys(BIASES[name], (d_sae,)))


def _sparsify(config: dict[str, Any]) -> Found:
    _supported(config, SPARSIFY_OPTIONS)
    d_in, k = _whole(config, "d_in"), _whole(config, "k")
    d_sae = _whole(config, "num_latents") if config.get("num_latents") else d_in * _whole(config, "expansion_factor")
    if k > d_sae:
        raise ValueError(f"k = {k} is more than num_latents = {d_sae}")
    shapes = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    return Found("topk", d_in, d_sae, d_in if config.get("transcode") else None, k, shapes)


def _supported(config: dict[str, Any], options: Mapping[str, tuple[Any, ...]]) -> None:
    for option, supported in options.items():
        value = config.get(option, supported[0])
        if value not in supported:
            raise ValueError(f"{option} = {value} is not supported (only {' or '.join(map(str, supported))})")


def _whole(config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number above 0, it is {value}")
    return value
