"""Where the SAEs of a directory lie: one SAE, or one a layer. From the names of its files alone; no torch.

===============================================  ==============================================================
``cfg.json``, ``sae_weights.safetensors``        an SAE of SAELens, or ours
``cfg.json``, ``sae.safetensors``                one of sparsify
``config.json``, ``params.safetensors``          one of Gemma Scope 2
``config.yaml``, ``layer_0.safetensors`` …       circuit-tracer's transcoders: a file a layer
``layers.3/`` ``layer_3_width_16k/`` …           a set: below it a directory a layer, each one of the first three
===============================================  ==============================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from circuits.sae.unread import CONFIG, SPARSIFY_WEIGHTS, WEIGHTS

SCOPE_CONFIG, SCOPE_WEIGHTS = "config.json", "params.safetensors"
SET_CONFIG = "config.yaml"
SET_WEIGHTS = re.compile(r"layer_(\d+)\.safetensors")
LAYER = re.compile(r"(?:^|[._])(?:layers?|blocks|h)[._](\d+)(?:[._]|$)")
"""The layer in a directory's name: ``layers.3``, ``blocks.3.hook_resid_post``, ``layer_3_width_16k_l0_small_affine``."""
FILES = ("*.safetensors", CONFIG)
_SHOWN = 4


class Form(Enum):
    """Whose files they are."""

    saelens = "SAELens"
    sparsify = "sparsify"
    scope = "Gemma Scope 2"
    tracer = "circuit-tracer"


ALONE = (
    (Form.saelens, CONFIG, WEIGHTS),
    (Form.sparsify, CONFIG, SPARSIFY_WEIGHTS),
    (Form.scope, SCOPE_CONFIG, SCOPE_WEIGHTS),
)
"""Forms that have a directory for each SAE; where a directory is of two, the first counts."""


@dataclass(frozen=True)
class Place:
    """One SAE's files."""

    form: Form
    config: Path
    weights: Path
    layer: int | None = None
    """Of a set: which layer's it is."""

    @property
    def directory(self) -> Path:
        """Where they lie."""
        return self.weights.parent

    @property
    def files(self) -> tuple[str, ...]:
        """What of the directory decides what it computes, as patterns."""
        return FILES if self.form in (Form.saelens, Form.sparsify) else (self.config.name, self.weights.name)


def alone(directory: Path, layer: int | None = None) -> Place | None:
    """The one SAE that lies in a directory, if it is such a directory."""
    for form, config, weights in ALONE:
        if (directory / config).is_file() and (directory / weights).is_file():
            return Place(form, directory / config, directory / weights, layer)
    return None


def by_layer(directory: Path) -> dict[int, list[Place]]:
    """The SAEs of a set by layer, ascending; empty where it is none. More than one of a layer is nobody's choice."""
    found: dict[int, list[Place]] = {}
    config = directory / SET_CONFIG
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if config.is_file() and (name := SET_WEIGHTS.fullmatch(path.name)):
            found.setdefault(int(name[1]), []).append(Place(Form.tracer, config, path, int(name[1])))
    if found:
        return dict(sorted(found.items()))
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        name = LAYER.search(path.name)
        if name and path.is_dir() and (place := alone(path, int(name[1]))):
            found.setdefault(int(name[1]), []).append(place)
    return dict(sorted(found.items()))


def chosen(directory: Path, layers: Sequence[int]) -> list[Place]:
    """The SAE of each layer (of a directory with one: that one, whatever the layer); all of a set where no layer is named.

    Raises:
        ValueError: a layer is missing, or there are several of it.
    """
    if one := alone(directory):
        return [one]
    there = by_layer(directory)
    if not there:
        return []
    asked = list(layers) or list(there)
    if missing := [layer for layer in asked if layer not in there]:
        many = "s" * (len(missing) > 1)
        raise ValueError(
            f"no SAE of layer{many} {_numbers(missing)}; it has those of layer{'s' * (len(there) > 1)} {_numbers(there)}"
        )
    for layer in asked:
        if len(there[layer]) > 1:
            names = [place.directory.name for place in there[layer]]
            more = " …" * (len(names) > _SHOWN)
            raise ValueError(
                f"{len(names)} SAEs of layer {layer}: {' '.join(names[:_SHOWN])}{more}; name one of them, or put one of each "
                "layer into a directory of their own (links will do)"
            )
    return [there[layer][0] for layer in asked]


def _numbers(layers: Sequence[int] | Mapping[int, object]) -> str:
    """``0-3,7``."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
