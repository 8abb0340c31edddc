"""``task=export``: a trained SAE, or a study of a circuit, in the format of another library, with a card.

The artifact is named by the config that made it, so that the command is that of the training or the study with another task:
``python launch.py task=export layer=2 sae.k=64 export.format=sparsify export.path=DIR``, or for the graph of a circuit ``python
launch.py task=export behaviour=ioi export.format=neuronpedia export.path=DIR``. The format says of which kind the artifact is. SAEs
of several layers go into a directory each, ``DIR/layers.2``, as sparsify names them.

``export.format=bundle of=SWEEP`` writes a whole sweep as a folder that opens anywhere: see :mod:`circuits.launch.keeping.bundle`.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError
from circuits.files import disk_errors, read_json, write_atomic
from circuits.schema import BaseConfig
from circuits.schema.fields import named_file
from circuits.schema.reading import When
from circuits.tasks import _source_layout

if TYPE_CHECKING:
    from circuits.launch.keeping.holdings import Holding
    from circuits.store.kinds import Kind, Layers
    from circuits.store.store import Artifact


class Format(Enum):
    """What is written, and of which kind of artifact."""

    saelens = "saelens"  # an SAE, for SAELens
    sparsify = "sparsify"  # an SAE, for sparsify
    neuronpedia = "neuronpedia"  # a circuit or graphs of features, for Neuronpedia and circuit-tracer
    mib = "mib"  # a circuit, as the MIB benchmark has it
    graphml = "graphml"  # a circuit or graphs of features, for networkx, Gephi, Cytoscape
    parquet = "parquet"  # the tables of a study
    bundle = "bundle"  # a sweep's page, figures, tables and chosen SAEs, to take home
    source_layout = "source_layout"  # a study of pictures, under the names of the documents that it comes from


SECTION = "export"
NAMES = {
    "sae": When("export.format", ("saelens", "sparsify")),
    "attribution": When("export.format", ("neuronpedia", "mib", "graphml", "parquet")),
}
READS = ("of",)
_BUNDLE = When("export.format", ("bundle",))
READ_WHEN = {
    "export.features_url": (When("export.format", ("neuronpedia",)),),
    "export.saes": (_BUNDLE,),
    "of": (When("export.format", ("bundle", "source_layout")),),
}


@dataclass
class Options:
    """Options of the export."""

    format: Format = (
        Format.saelens
    )  # an SAE as saelens or sparsify; a circuit as neuronpedia, mib, graphml or parquet; a sweep as bundle
    path: str | None = named_file(None)  # the directory to write; it must not exist, or be empty
    features_url: str | None = None  # the web address at which DIR/features will lie, for Neuronpedia to find features
    saes: list[str] = field(
        default_factory=list
    )  # SAEs that go into a bundle: layers, ids, or all; none where none is named


def run(cfg: BaseConfig) -> int:
    """Write the artifacts that the config names."""
    from circuits.store import registry

    if _options(cfg).format in (Format.bundle, Format.source_layout):
        return _bundle(cfg)
    kind = registry.start_of(SECTION, cfg)
    if kind is None:
        raise ValueError(f"NAMES lacks {_options(cfg).format}")
    found = _find(cfg, kind)
    places = _places(_options(cfg), list(found))
    for layers, place in places.items():
        artifact = found[layers]
        with _whole(place) as beside:
            if kind.name == "sae":
                _sae(artifact, beside, _options(cfg).format.value)
            else:
                _circuit(artifact, beside, cfg)
        print(f"{f'layer {layers[0]}: ' if kind.layers == 'each' else ''}{artifact.id} → {place}")
    return 0


def _options(cfg: BaseConfig) -> Any:
    return getattr(cfg, SECTION)


def _bundle(cfg: BaseConfig) -> int:
    """A sweep to take home.

    Raises:
        UserError: no such sweep, no such SAE, or something is there.
    """
    from circuits.launch import sweep
    from circuits.launch.keeping import bundle

    options = _options(cfg)
    if cfg.of is None:
        raise UserError(f"export.format={options.format.value}: of which sweep? of=SWEEP; task=status lists them")
    found = bundle.study(sweep.find(cfg.of, Path(cfg.outputs), Path(cfg.multirun)), Path(cfg.outputs) / "artifacts")
    saes = bundle.chosen(found, options.saes)
    (place,) = _places(options, [()]).values()
    if options.format is Format.source_layout:
        with _whole(place) as beside:
            count = _source_layout.write(found, beside)
        print(f"{found.sweep.id}, {count:,} files → {place}")
        return 0
    with _whole(place) as beside:
        count = bundle.write(found, saes, beside, lambda one, out: _sae(one, out, "saelens"))
    print(f"{found.sweep.id}, {count:,} files → {place}; README.md says what each is")
    return 0


def _find(cfg: BaseConfig, kind: Kind) -> dict[Layers, Artifact]:
    """The artifact of each chosen layer, or the one over them.

    Raises:
        UserError: one does not exist; the message is the command that makes it.
    """
    from circuits.launch.planning import model_dims
    from circuits.store import nearest
    from circuits.store.contents import Contents
    from circuits.store.keys import key_of
    from circuits.store.layers import parse_layers
    from circuits.store.store import Store

    place = Path(cfg.outputs) / "artifacts"
    store, contents = Store(place), Contents(place / ".hashes.json")
    layers = () if kind.layers == "none" else parse_layers(cfg.layer, model_dims(cfg).depth, cfg.model.sets)
    units = [(layer,) for layer in layers] if kind.layers == "each" else [layers]
    keys = {unit: key_of(kind, cfg, unit, contents) for unit in units}
    found = {unit: store.find(key) for unit, key in keys.items()}
    missing = [
        f"{keys[unit].id} does not exist in {cfg.outputs}{nearest.told(store.root, keys[unit])}; make it with the same words and "
        f"task={kind.name}, without export.…"
        for unit, artifact in found.items()
        if artifact is None
    ]
    if missing:
        raise UserError(missing)
    return {unit: artifact for unit, artifact in found.items() if artifact is not None}


def _places(options: Any, units: list[Layers]) -> dict[Layers, Path]:
    """Where each artifact's directory goes.

    Raises:
        UserError: no path, or something is there.
    """
    if options.path is None:
        raise UserError("export: where to? export.path=DIR")
    root = Path(options.path).expanduser()
    places = {unit: root / f"layers.{unit[0]}" if len(units) > 1 else root for unit in units}
    taken = [place for place in places.values() if place.exists() and (not place.is_dir() or any(place.iterdir()))]
    if taken:
        raise UserError([f"export.path={place}: not empty; choose another directory" for place in taken])
    return places


@contextlib.contextmanager
def _whole(place: Path) -> Iterator[Path]:
    """A directory beside `place`, which is renamed to it when all is written; what fails leaves nothing."""
    beside = place.with_name(f".{place.name}.writing")
    with disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)  # of an export that was killed
        try:
            yield beside
            if place.exists():
                place.rmdir()
            beside.rename(place)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def _sae(artifact: Artifact | Holding, out: Path, form: str) -> None:
    """One SAE and its card."""
    from circuits.sae import card, formats, sparsify

    sae, metrics = formats.load(artifact.path), read_json(artifact.path / "metrics.json")
    metadata = formats.read_config(artifact.path)["metadata"]
    if form == "sparsify":
        sparsify.save(out, sae, metadata.get("hook_name"))
    else:
        formats.copy(artifact.path, out)
    write_atomic(out / "README.md", card.text(sae, metrics, metadata, form, artifact.id).encode())


def _circuit(artifact: Artifact, out: Path, cfg: BaseConfig) -> None:
    """One study and its card."""
    from circuits.attribution import exports
    from circuits.attribution.neuronpedia import About
    from circuits.run import private

    options, given = _options(cfg), cfg.attribution  # type: ignore[attr-defined]
    words = [_placeless(private.word(word)) for word in sys.argv[1:] if word != "--multirun"]
    about = About(
        _placeless(cfg.model.id),
        artifact.path.name.rpartition("-")[0],
        artifact.id,
        shlex.join(["python", "launch.py", *words]),
        artifact.manifest.get("tainted", ()),
        {"node_threshold": given.node_share, "edge_threshold": given.edge_share},
        options.features_url,
    )
    try:
        exports.write(artifact.path, out, options.format.value, about)
    except UserError as e:
        raise UserError(f"export.format={options.format.value}: {artifact.id}: {e}") from e


def _placeless(word: str) -> str:
    """A path of this machine, alone or as a key's value, by its last part: an export is for others."""
    key, equals, value = word.rpartition("=")
    return f"{key}{equals}{Path(value).name}" if Path(value).expanduser().is_absolute() else word
