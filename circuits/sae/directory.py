"""Whether a directory holds SAEs in a format that is read here, without torch: for checks before anything is loaded.

Names and shapes of the tensors stand in the head of a safetensors file, so that they are checked without reading the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from safetensors import SafetensorError, safe_open

from circuits.sae import layered, places, unread
from circuits.sae.declared import Found, declared
from circuits.sae.places import Form, Place
from circuits.sae.unread import CONFIG, SPARSIFY_WEIGHTS, WEIGHTS


def problems(
    directory: Path,
    width: int | None,
    width_out: int | None = None,
    *,
    transcodes: bool = False,
    layers: Sequence[int] = (),
) -> list[str]:
    """What is wrong with it, one line each: files, config, widths (of the sites, if known), names and shapes of the weights.

    Args:
        directory: of one SAE, or of a set with one a layer.
        width, width_out: of the sites that are read and, by a transcoder, written.
        transcodes: whether transcoders are asked for.
        layers: which of a set are asked for; none: all.
    """
    if not directory.is_dir():
        return [
            "a file; an SAE is named by the directory that holds it" if directory.is_file() else "no such directory"
        ]
    try:
        found = places.chosen(directory, layers)
    except ValueError as e:
        return [str(e)]
    if not found:
        return [_nothing(directory)]
    for place in found:
        if told := _wrong(place, width, width_out, transcodes=transcodes):
            return [told if len(found) == 1 else f"layer {place.layer}: {told}"]
    return []


def _nothing(directory: Path) -> str:
    """Why a directory holds no SAE that is read."""
    if what := unread.named(unread.listing(directory)):
        return what
    if (directory / places.SET_CONFIG).is_file() and not (directory / CONFIG).is_file():
        return f"{places.SET_CONFIG} without a layer's transcoder beside it (layer_0.safetensors …)"
    weights = SPARSIFY_WEIGHTS if (directory / SPARSIFY_WEIGHTS).is_file() else WEIGHTS
    missing = [name for name in (CONFIG, weights) if not (directory / name).is_file()]
    return f"no SAELens or sparsify directory: {' and '.join(missing)} missing"


def _wrong(place: Place, width: int | None, width_out: int | None, *, transcodes: bool) -> str | None:
    """What is wrong with one SAE."""
    weights = place.weights.name
    try:
        found = read(place)
    except (OSError, ValueError) as e:
        return f"{place.config.name}: {e}"
    if found.d_out is not None and not transcodes:
        return "a transcoder; name the site that it reconstructs with sae.target_site=…"
    if found.d_out is None and transcodes:
        return "no transcoder; leave out sae.target_site"
    if width is not None and found.d_in != width:
        return f"its d_in={found.d_in} is not the site's width {width}"
    if found.d_out is not None and width_out is not None and found.d_out != width_out:
        return f"its d_out={found.d_out} is not the target site's width {width_out}"
    try:
        told = differences(found, shapes(place.weights), place.config.name)
    except ValueError as e:
        return str(e)
    return f"{weights} {told[0]}" if told else None


def read(place: Place) -> Found:
    """What the config of an SAE says of its weights.

    Raises:
        ValueError: nothing that is understood here.
        OSError: there is no such file.
    """
    text = place.config.read_text(encoding="utf-8")
    if place.form is Form.tracer:
        try:
            config: Any = yaml.safe_load(text)
        except yaml.YAMLError as e:
            raise ValueError(f"cannot be read as YAML ({' '.join(str(e).split())})") from e
        return layered.declared(config, shapes(place.weights), place.form, place.layer)
    config = json.loads(text)
    if place.form is Form.scope:
        return layered.declared(config, shapes(place.weights), place.form, place.layer)
    return declared(config, sparsify=place.form is Form.sparsify)


def shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors, from its head.

    Raises:
        ValueError: it cannot be read as safetensors.
    """
    try:
        with safe_open(weights, framework="np") as f:
            return {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{weights.name} cannot be read ({e})") from e


def differences(found: Found, shapes: Mapping[str, tuple[int, ...]], config: str = CONFIG) -> list[str]:
    """What of the weights is not as the config says, to be read after the file's name."""
    missing = sorted(found.shapes.keys() - shapes.keys())
    extra = sorted(shapes.keys() - found.shapes.keys() - found.optional.keys())
    if missing or extra:
        parts = [f"lacks the tensor {' '.join(missing)}"] * bool(missing)
        parts += [f"has the unknown tensor {' '.join(extra)}"] * bool(extra)
        return [f"{' and '.join(parts)}; a {found.architecture} SAE has {' '.join(sorted(found.shapes))}"]
    asked = {**found.optional, **found.shapes}
    return [
        f"tensor {name} has shape {list(shape)}, {config} asks for {list(asked[name])}"
        for name, shape in shapes.items()
        if shape != asked[name]
    ][:1]
