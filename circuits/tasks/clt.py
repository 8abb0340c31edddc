"""``task=clt``: a cross-layer transcoder over a set of layers.

Trained by the loop of ``task=sae`` with the options of the section ``sae``: of its sites, `site` is read and `target_site` is
written; `k` is of a row and layer. ``sae.from=`` measures one that there is: ours, or a set of circuit-tracer's. The artifact's
``set/`` is a directory as circuit-tracer reads it (:mod:`circuits.sae.cross_layer_files`); beside it lie ``features.parquet`` (a
row a feature: its layer, firing rate, decoder norm at every layer), ``metrics.json`` and ``history.parquet``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.files import known, write_json
from circuits.schema import BaseConfig, Dtype
from circuits.schema.reading import When
from circuits.schema.sae import Architecture
from circuits.store.kinds import Column, Input, Layers, Memory, ModelDims
from circuits.store.labels import readable
from circuits.tasks import _sae
from circuits.tasks._sae import joined
from circuits.tasks._sae.kind import Sae, size_problems
from circuits.tasks._sae.source import straight
from circuits.tasks._shared import context_problems, layers_name

if TYPE_CHECKING:
    import pandas as pd

    from circuits.activations.stream import Stream
    from circuits.run.context import Context, Work
    from circuits.sae.cross_layer import CrossLayerTranscoder
    from circuits.sae.spec import TrainSpec

SECTION = "clt"
NO_TARGET = "sae.target_site: what features write must be named; sae.site=mlp_in sae.target_site=mlp_out"


READ_WHEN = {f"{SECTION}.band": (When("sae.from_", (None,), strict=False),)}


@dataclass
class Options:
    """How far features reach."""

    band: int | None = None  # layers that a feature writes to at most, its own the first; null: all later ones


class Clt(Sae):
    """Transcoders of several layers that share their outputs."""

    name = "clt"
    version = 1
    sections = ("model", "data", "sae", SECTION, "precision", "seed")
    layers = "set"
    needs = ("tiny", "tokens", "prompts")
    columns = (
        Column("explained_variance", "explained variance", ".3f", "explained_variance_ci"),
        Column("l0", "L0, all layers", ".1f"),
        Column("dead_fraction", "dead", ".1%"),
        Column("across", "written to later layers", ".1%"),
    )

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``tiny-L0-3-clt``."""
        return f"{readable(cfg.model.id)}{layers_name(layers)}-clt"

    def normal(self, cfg: BaseConfig) -> BaseConfig:
        """One that is taken over is not trained: its band is its own."""
        cfg, own = super().normal(cfg), {SECTION: Options()}
        return cfg if cfg.sae.from_ is None else replace(cfg, **own)  # type: ignore[arg-type]

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """What a cross-layer transcoder cannot be."""
        if cfg.sae.from_ is not None:
            return self._taken(cfg, dims, layers) + context_problems(cfg, dims)
        sae, given, errors = cfg.sae, getattr(cfg, SECTION), []
        if len(layers) == 1:
            errors.append(f"layer={layers[0]}: a cross-layer transcoder is of several layers; layer=all")
        elif layers and list(layers) != list(range(layers[0], layers[-1] + 1)):
            errors.append("layer: layers between them are missing; features write to all later ones, layer=FIRST-LAST")
        if sae.target_site is None:
            errors.append(NO_TARGET)
        if sae.architecture is not Architecture.batchtopk:
            errors.append(f"sae={sae.architecture.value}: a cross-layer transcoder is sae=batchtopk")
        if given.band is not None and not 1 <= given.band <= max(1, len(layers)):
            errors.append(
                f"clt.band={given.band}: between 1 and the {len(layers)} layers; null writes to all later ones"
            )
        for name, wrong in (("skip", sae.skip), ("patience", sae.patience is not None)):
            if wrong:
                errors.append(f"sae.{name}: not of a cross-layer transcoder")
        errors += joined.problems(sae)
        if (width := dims.width_of(sae.site.value)) is not None:
            errors += size_problems(sae, width)
        return errors + context_problems(cfg, dims)

    def _taken(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """What is wrong with one that is taken over."""
        from circuits.sae import cross_layer_sets

        site, target = cfg.sae.site, cfg.sae.target_site
        if target is None:
            return [NO_TARGET]
        widths = (dims.width_of(site.value), dims.width_of(target.value))
        found = cross_layer_sets.problems(Path(str(cfg.sae.from_)), widths, layers)
        return [f"sae.from={cfg.sae.from_}: {problem}" for problem in found + joined.problems(cfg.sae)]

    def remarks(self, cfg: BaseConfig, layers: Layers) -> list[str]:
        """One from elsewhere that says it was made for other sites."""
        if cfg.sae.from_ is None or cfg.sae.target_site is None:
            return []
        from circuits.sae import cross_layer_sets

        told = cross_layer_sets.remarks(Path(cfg.sae.from_), cfg.sae.site.value, cfg.sae.target_site.value)
        return [f"sae.from={cfg.sae.from_}: {line}" for line in told]

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        """The model and its text."""
        return [one for one in super().inputs(cfg, layers) if one.kind != "activations"]

    def question(self, cfg: BaseConfig) -> str:
        """What a sweep of them asks."""
        return f"How well does a cross-layer transcoder stand in for the MLPs of {Path(cfg.model.id).name}"

    def parameters(self, cfg: BaseConfig, dims: ModelDims, layers: int) -> int:
        """Encoders, and decoders to every layer that is reached."""
        from circuits.sae.cross_layer import targets

        width = dims.width_of(cfg.sae.site.value) or 0
        out = dims.width_of((cfg.sae.target_site or cfg.sae.site).value) or 0
        reach = sum(targets(layer, layers, getattr(cfg, SECTION).band) for layer in range(layers))
        return cfg.sae.expansion * width * (layers * width + reach * out)

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """Float32 weights, and checkpoints with moments and baselines, as of all layers."""
        weights = 4 * self.parameters(cfg, dims, dims.depth or 1)
        return weights, (3 + 4 * cfg.sae.baselines) * weights * (cfg.sae.checkpoint_keep + 1)

    def memory(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> Memory | None:
        """The model, and the transcoder with its rows."""
        from circuits.models.identify import parameters as of_model
        from circuits.sae.memory import BASELINES, BASELINES_SAVED, SAVED, TRAINED, WORK

        sae, width = cfg.sae, dims.width_of(cfg.sae.site.value)
        if width is None or sae.from_ is not None:
            return None
        wide = 4 if cfg.precision.dtype is Dtype.fp32 else 2
        model = None if cfg.model.embedded is not None else of_model(cfg.model.id, cfg.model.revision)
        count = self.parameters(cfg, dims, len(layers))
        out = dims.width_of((sae.target_site or sae.site).value) or width
        rows = sae.block_rows * len(layers) * (width + out) * wide
        step = 4 * WORK["batchtopk"] * sae.batch_size * len(layers) * sae.expansion * width
        each = (TRAINED + BASELINES * sae.baselines) * count + rows + step
        beside = (SAVED + BASELINES_SAVED * sae.baselines) * count
        what = f"cross-layer transcoder of {count / 1e6:.1f} M parameters"
        return Memory(wide * (model or 0), each, 0, beside, 1, what)

    def together(self, cfg: BaseConfig) -> str | None:
        """Each by itself."""
        return None

    def make(self, context: Context, works: Mapping[Any, Work]) -> None:
        """Train, measure and publish it."""
        first, band = min(context.layers), getattr(context.cfg, SECTION).band

        def adjust(spec: TrainSpec, stream: Stream) -> TrainSpec:
            from circuits.sae.spec import rate

            given = context.cfg.sae.lr
            lr = rate(spec.architecture, stream.block_width) if given is None else given
            return replace(spec, architecture="cross_layer", d_sae=spec.d_sae * stream.blocks, band=band, lr=lr)

        member = _sae.Member(context, {first: works[None]}, open=_open, adjust=adjust, publish=_publish)
        if context.cfg.sae.from_ is None:
            _sae.make_joined(member)
        else:
            _take(member, first)

    def load(self, path: Path) -> CrossLayerTranscoder:  # type: ignore[override]
        """The transcoder, with its encoders and decoders."""
        from circuits.sae import cross_layer_files, cross_layer_sets

        return cross_layer_files.load(path / cross_layer_sets.SET)


KIND = Clt()
run = KIND.run


def _open(context: Context, _: list[int]) -> Stream:
    """What every layer's MLP reads and writes, side by side."""
    from circuits.activations.joined import JoinedStream

    return JoinedStream([straight(context, context.open_model(), context.layers)])


def _take(member: _sae.Member, first: int) -> None:
    """Measure one that is taken over, and publish it as ours are."""
    from circuits.sae import cross_layer_files
    from circuits.sae.history import History

    context, work = member.context, member.works[first]
    stream = _open(context, list(context.layers))
    member.histories = {first: History(work.partial, context.cfg.sae.batch_size)}
    with context.phase("loading the transcoder"):
        taken = cross_layer_files.load(Path(str(context.cfg.sae.from_))).to(stream.lm.device)
    _publish(member, {first: taken}, {first: {}}, stream, {first: (0, 0)})


def _publish(
    member: _sae.Member,
    saes: Mapping[int, Any],
    controls: Mapping[int, Mapping[str, Any]],
    stream: Stream,
    steps: Mapping[int, tuple[int, int]],
) -> None:
    """Measure on held-out text, and publish."""
    from circuits.models.sites import hook_name
    from circuits.sae import cross_layer_files, cross_layer_sets
    from circuits.sae.across import Measured

    context, (first, sae) = member.context, next(iter(saes.items()))
    cfg, work = context.cfg, member.works[first]
    measured = {"trained": Measured(sae), **{name: Measured(one) for name, one in controls[first].items()}}
    joined.measure(context, work, stream, measured, None if cfg.sae.from_ is None else cfg.sae.massive)
    with context.run.stop.cutting():
        table, metrics = _measures(context, sae, measured, steps[first][0])
    sites = [site.value for site in (cfg.sae.site, cfg.sae.target_site or cfg.sae.site)]
    hooks = [cross_layer_sets.HOOKS.get(site) or hook_name(site, 0).split(".", 2)[2] for site in sites]

    def write(out: Path) -> None:
        place = out / cross_layer_sets.SET
        place.mkdir()
        cross_layer_files.save(place, sae, (hooks[0], hooks[1]), cfg.model.id, list(context.layers))
        table.to_parquet(out / "features.parquet", index=False)
        write_json(out / "metrics.json", known(metrics))
        member.histories[first].write(out)

    artifact = work.commit(write, measured=["history.parquet"])
    joined.say_left_out(context, metrics)
    context.say(
        f"explained variance {metrics['explained_variance']:.3f} in the mean of {len(context.layers)} layers, "
        f"{metrics['across']:.1%} of what is written is written to later layers: {artifact.id}"
    )


def _measures(
    context: Context, sae: CrossLayerTranscoder, measured: Mapping[str, Any], steps: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A row a feature; the metrics."""
    import numpy as np
    import pandas as pd

    found = {name: one.metrics(context.cfg.seed) for name, one in measured.items()}
    rows, sequences, _ = measured["trained"].counts
    norms = sae.norms().numpy()
    n, m, _ = norms.shape
    fired = measured["trained"].fired.cpu().numpy()
    table = pd.DataFrame(
        {"layer": np.repeat(context.layers, m), "feature": np.tile(np.arange(m), n), "firing_rate": fired / rows}
    )
    for at, layer in enumerate(context.layers):
        table[f"norm_L{layer}"] = norms[:, :, at].reshape(-1)
    own = np.square(norms[np.arange(n), :, np.arange(n)]).reshape(-1)
    table["own_share"] = own / np.clip(np.square(norms).sum(2).reshape(-1), 1e-30, None)
    baselines = {name: facts for name, facts in found.items() if name not in ("trained", "untrained")}
    return table, {
        **found["trained"],
        "control": found.get("untrained"),
        **({"baselines": baselines} if baselines else {}),
        "across": float(np.average(1 - table["own_share"], weights=fired)) if fired.sum() else None,
        "layers": list(context.layers),
        "band": sae.cfg.band,
        "site": context.cfg.sae.site.value,
        "target_site": (context.cfg.sae.target_site or context.cfg.sae.site).value,
        "n_rows": rows,
        "n_sequences": sequences,
        "d_sae": sae.cfg.d_sae,
        "steps": steps,
    }
