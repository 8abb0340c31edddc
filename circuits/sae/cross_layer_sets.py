"""Directories of cross-layer transcoders, looked at without torch: what is wrong with one before anything is loaded.

The layout is circuit-tracer's: :mod:`circuits.sae.cross_layer_files` reads and writes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from circuits.files import read_json
from circuits.models.sites import site_of_hook
from circuits.sae.directory import shapes

KIND = "cross_layer_transcoder"
FACTS = "across.json"
SET = "set"
"""The directory of an artifact that circuit-tracer reads (its config.yaml has the name of the artifact's own)."""
HOOKS = {"mlp_in": "mlp.hook_in"}
"""Names that circuit-tracer has for sites, where TransformerLens has another one."""
_NAME = re.compile(r"W_(enc|dec)_(\d+)\.safetensors")
Shapes = Mapping[str, tuple[int, ...]]


def config(directory: Path) -> dict[str, Any]:
    """Its ``config.yaml``.

    Raises:
        ValueError: it is not one of a cross-layer transcoder.
    """
    try:
        found = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ValueError(f"config.yaml: cannot be read ({str(e).splitlines()[0]})") from e
    if not isinstance(found, dict) or found.get("model_kind") != KIND:
        raise ValueError(f"config.yaml: model_kind is not {KIND}")
    if (activation := found.get("activation", "relu")) not in ("relu", "jump_relu", "jumprelu"):
        raise ValueError(f"config.yaml: activation = {activation} is not read (relu, jump_relu)")
    return found


def facts(directory: Path) -> dict[str, Any]:
    """What ours say beside the layout: layers, band, scales, norms of massive rows. Nothing of somebody else's."""
    path = directory / FACTS
    return dict(read_json(path)) if path.exists() else {}


def depth(directory: Path) -> int:
    """How many layers there are.

    Raises:
        ValueError: some are missing, named.
    """
    found: dict[str, set[int]] = {"enc": set(), "dec": set()}
    for path in directory.iterdir():
        if match := _NAME.fullmatch(path.name):
            found[match[1]].add(int(match[2]))
    every = set(range(max(found["enc"] | found["dec"], default=-1) + 1))
    missing = [f"W_{side}_{i}.safetensors" for side in found for i in sorted(every - found[side])]
    if not every or missing:
        raise ValueError(f"a cross-layer transcoder lacks {', '.join(missing[:6]) or 'every layer'}")
    return len(every)


def sizes(encoders: Sequence[Shapes], decoders: Sequence[Shapes]) -> tuple[int, int, int]:
    """Features a layer, width that is read, width that is written; of the tensors' shapes, layer by layer.

    Raises:
        ValueError: they do not fit each other.
    """
    layers = len(encoders)
    try:
        (m, d), out = encoders[0]["W_enc_0"], encoders[0]["b_dec_0"][-1]
    except (KeyError, ValueError, IndexError) as e:
        raise ValueError("W_enc_0 [features, width] or b_dec_0 [width] is missing") from e
    for i in range(layers):
        wanted = {f"W_enc_{i}": (m, d), f"b_enc_{i}": (m,), f"b_dec_{i}": (out,)}
        wanted |= {f"threshold_{i}": (m,)} if f"threshold_{i}" in encoders[i] else {}
        if unknown := set(encoders[i]) - set(wanted):
            raise ValueError(f"W_enc_{i}.safetensors: {sorted(unknown)[0]} is not read")
        for name, shape in wanted.items():
            there = encoders[i].get(name)
            if there is None or tuple(n for n in there if n != 1) != tuple(n for n in shape if n != 1):
                raise ValueError(f"{name} is {'missing' if there is None else list(there)}; {list(shape)} is wanted")
        if (there := decoders[i].get(f"W_dec_{i}")) != (m, layers - i, out):
            told = "missing" if there is None else list(there)
            raise ValueError(f"W_dec_{i} is {told}; [{m}, {layers - i}, {out}] is wanted of {layers} layers")
    return m, d, out


def problems(directory: Path, widths: tuple[int | None, int | None], layers: Sequence[int]) -> list[str]:
    """What is wrong with a directory for these layers, whose sites have these widths (read, written); one line at most."""
    if not directory.is_dir():
        return [f"{'a file' if directory.exists() else 'no such directory'}; a cross-layer transcoder is a directory"]
    try:
        config(directory)
        n, said = depth(directory), facts(directory).get("layers")
        if said is not None and list(said) != list(layers):
            return [f"of layers {said[0]}-{said[-1]}; layer={said[0]}-{said[-1]}"]
        if said is None and n != len(layers):
            return [f"of {n} layers, and {len(layers)} are asked"]
        heads = [[shapes(directory / f"W_{side}_{i}.safetensors") for i in range(n)] for side in ("enc", "dec")]
        _, d, out = sizes(*heads)
    except (OSError, ValueError) as e:
        return [str(e)]
    for what, mine, its in (("read", d, widths[0]), ("written", out, widths[1])):
        if its is not None and mine != its:
            return [f"the width that is {what} is {mine}, not the site's {its}"]
    return []


def remarks(directory: Path, site: str, target: str) -> list[str]:
    """What it says of the sites that it was made for, where it is used at others."""
    try:
        found = config(directory)
    except ValueError:
        return []
    lines = []
    for key, mine in (("feature_input_hook", site), ("feature_output_hook", target)):
        hook = str(found.get(key) or "")
        said = site_of_hook(f"blocks.0.{hook}")
        if hook and (said is None or said[0] != mine):
            lines.append(f"its config.yaml says {key}: {hook}, and it is used at {mine}")
    return lines
