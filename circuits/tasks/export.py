"""``task=export``: a trained SAE in the format of another library, with a model card.

The SAE is named by the config that trained it, so that the command is that of the training with another task:
``python launch.py task=export layer=2 sae.k=64 export.format=sparsify export.path=DIR``. Several layers go into a directory each,
``DIR/layers.2``, as sparsify names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError, suggest
from circuits.files import disk_errors, read_json, write_atomic
from circuits.schema import BaseConfig
from circuits.schema.fields import named_file

if TYPE_CHECKING:
    from circuits.store.store import Artifact

NAMES = "sae"  # the kind whose artifacts the config names
FORMATS = ("saelens", "sparsify")


@dataclass
class Options:
    """Options of the export."""

    format: str = "saelens"  # saelens or sparsify
    path: str | None = named_file(None)  # the directory to write; it must not exist, or be empty


def run(cfg: BaseConfig) -> int:
    """Write the SAEs of the chosen layers."""
    options: Any = getattr(cfg, "export")  # noqa: B009 (joined to the schema at run time)
    found = _find(cfg)
    places = _places(options, sorted(found))
    for layer, place in places.items():
        _write(found[layer], place, options.format)
        print(f"layer {layer}: {found[layer].id} → {place}")
    return 0


def _find(cfg: BaseConfig) -> dict[int, Artifact]:
    """The trained SAE of each chosen layer.

    Raises:
        UserError: one does not exist; the message is the command that trains it.
    """
    from circuits.launch.planning import model_dims
    from circuits.store import nearest, registry
    from circuits.store.contents import Contents
    from circuits.store.keys import key_of
    from circuits.store.layers import parse_layers
    from circuits.store.store import Store

    kind, place = registry.kind("sae"), Path(cfg.outputs) / "artifacts"
    store, contents = Store(place), Contents(place / ".hashes.json")
    layers = parse_layers(cfg.layer, model_dims(cfg).depth, cfg.model.sets)
    keys = {layer: key_of(kind, cfg, (layer,), contents) for layer in layers}
    found = {layer: store.find(key) for layer, key in keys.items()}
    missing = [
        f"{keys[layer].id} does not exist in {cfg.outputs}{nearest.told(store.root, keys[layer])}; train it with the same words "
        "and task=sae, without export.…"
        for layer, artifact in found.items()
        if artifact is None
    ]
    if missing:
        raise UserError(missing)
    return {layer: artifact for layer, artifact in found.items() if artifact is not None}


def _places(options: Any, layers: list[int]) -> dict[int, Path]:
    """Where each layer's directory goes.

    Raises:
        UserError: no such format, no path, or something is there.
    """
    if options.format not in FORMATS:
        raise UserError(f"export.format={options.format}{suggest(options.format, FORMATS)}")
    if options.path is None:
        raise UserError("export: where to? export.path=DIR")
    root = Path(options.path).expanduser()
    places = {layer: root / f"layers.{layer}" if len(layers) > 1 else root for layer in layers}
    taken = [place for place in places.values() if place.exists() and (not place.is_dir() or any(place.iterdir()))]
    if taken:
        raise UserError([f"export.path={place}: not empty; choose another directory" for place in taken])
    return places


def _write(artifact: Artifact, place: Path, form: str) -> None:
    """One SAE, whole or not at all: written beside its place, then renamed."""
    from circuits.sae import card, formats, sparsify

    sae, metrics = formats.load(artifact.path), read_json(artifact.path / "metrics.json")
    metadata = formats.read_config(artifact.path)["metadata"]
    beside = place.with_name(f".{place.name}.writing")
    with disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        if form == "sparsify":
            sparsify.save(beside, sae, metadata.get("hook_name"))
        else:
            formats.copy(artifact.path, beside)
        text = card.text(sae, metrics, metadata, form, artifact.id)
        write_atomic(beside / "README.md", text.encode())
        if place.exists():
            place.rmdir()
        beside.rename(place)
