"""Whether a directory holds an SAE in SAELens's or sparsify's format, without torch: for checks before anything is loaded.

Names and shapes of the tensors stand in the head of a safetensors file, so that they are checked without reading the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from circuits.sae import unread
from circuits.sae.declared import Found, declared
from circuits.sae.unread import CONFIG, SPARSIFY_WEIGHTS, WEIGHTS


def is_sparsify(directory: Path) -> bool:
    """Whether it has sparsify's weights and not SAELens's."""
    return (directory / SPARSIFY_WEIGHTS).is_file() and not (directory / WEIGHTS).is_file()


def problems(
    directory: Path, width: int | None, width_out: int | None = None, *, transcodes: bool = False
) -> list[str]:
    """What is wrong with it, one line each: files, config, widths (of the sites, if known), names and shapes of the weights."""
    if not directory.is_dir():
        return [
            "a file; an SAE is named by the directory that holds it" if directory.is_file() else "no such directory"
        ]
    weights = SPARSIFY_WEIGHTS if is_sparsify(directory) else WEIGHTS
    missing = [name for name in (CONFIG, weights) if not (directory / name).is_file()]
    if missing:
        what = unread.named(unread.listing(directory))
        return [what or f"no SAELens or sparsify directory: {' and '.join(missing)} missing"]
    try:
        found = read(directory)
    except (OSError, ValueError) as e:
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


def read(directory: Path) -> Found:
    """What the config of an SAE's directory says of its weights.

    Raises:
        ValueError: nothing that is understood here.
        OSError: there is no such file.
    """
    config: Any = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    return declared(config, sparsify=is_sparsify(directory))


def differences(found: Found, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What of the weights is not as the config says, to be read after the file's name."""
    missing = sorted(found.shapes.keys() - shapes.keys())
    extra = sorted(shapes.keys() - found.shapes.keys() - found.optional.keys())
    if missing or extra:
        parts = [f"lacks the tensor {' '.join(missing)}"] * bool(missing)
        parts += [f"has the unknown tensor {' '.join(extra)}"] * bool(extra)
        return [f"{' and '.join(parts)}; a {found.architecture} SAE has {' '.join(sorted(found.shapes))}"]
    asked = {**found.optional, **found.shapes}
    return [
        f"tensor {name} has shape {list(shape)}, {CONFIG} asks for {list(asked[name])}"
        for name, shape in shapes.items()
        if shape != asked[name]
    ][:1]
