"""``task=attribution``: which parts of a model make a behaviour, and which of them read which.

Every edge between heads, MLPs, embedding and logits is scored on every prompt (``scores.safetensors``), the largest and random
ones are patched exactly (``exact.parquet``), and a circuit is chosen (``edges.parquet``, ``circuit.json``). Methods:
`circuits/attribution/methods`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.attribution.settings import Choice, Features, Level, Settings, check, integrates, methods
from circuits.schema import BaseConfig
from circuits.schema.fields import added, free, named_file
from circuits.schema.reading import When
from circuits.store.kinds import Column, Input, Kind, Layers, ModelDims, one_a_layer
from circuits.store.labels import behaviour_and_model, readable
from circuits.tasks._shared import alone, model_input, run_shared, share_of, share_problems

if TYPE_CHECKING:
    from circuits.attribution.saved import Circuit
    from circuits.data.keeper import Keeper
    from circuits.run.context import Context, Work

SECTION = "attribution"
BYTES_A_SCORE = 4


@dataclass
class Options(Settings):
    """Options of attribution, those with a role in keys."""

    batch_size: int = free(8)  # prompts of a pass; results agree to 1e-5
    features: Features = added(Features.sae)  # sae: one of each layer (or a transcoder); clt: one of all  # noqa: RUF009
    shard: int = free(0)  # which share of the prompts this run scores: attribution.shard=range(0,4) …
    world_size: int = free(1)  # … of so many
    labels: str | None = named_file(None)  # a CSV of feature labels, as task=interpret writes its template


_COMPONENTS = (When(f"{SECTION}.level", ("components",)),)
_FEATURES = (When(f"{SECTION}.level", ("features",)),)
_SAES = (*_FEATURES, When(f"{SECTION}.features", ("sae",)))
_CLT = (*_FEATURES, When(f"{SECTION}.features", ("clt",)))
_ONLY_FEATURES = ("features", "logits", "reference", "graphs", "max_features", "node_share", "edge_share", "top_k",
                  "min_weight", "last_n", "min_explained", "labels")  # fmt: skip
_ONLY_COMPONENTS = ("direction", "positions", "choose", "verify", "verify_random", "bootstraps")
READ_WHEN = {
    **{f"{SECTION}.{name}": _FEATURES for name in _ONLY_FEATURES},
    **{f"{SECTION}.{name}": _COMPONENTS for name in _ONLY_COMPONENTS},
    f"{SECTION}.steps": (When(f"{SECTION}.method", tuple(m for m in methods() if integrates(m))),),
    f"{SECTION}.threshold": (When(f"{SECTION}.choose", ("threshold",)),),
    f"{SECTION}.edges": (When(f"{SECTION}.choose", ("top_n", "greedy", "influence")),),
}


def _settings(cfg: BaseConfig) -> Settings:
    """The options as plain values."""
    given = getattr(cfg, SECTION)
    return Settings(**{f.name: getattr(given, f.name) for f in fields(Settings)})


class Attribution(Kind):
    """Scores of all edges, and a circuit."""

    name = "attribution"
    sections = ("model", SECTION, "precision", "seed", "sae.site", "sae.target_site")
    work = ("behaviour.n_samples", "attribution.steps")
    layers = "set"
    needs = ("tiny", "prompts", "baseline", "sae", "clt")
    when = {"sae": _SAES, "clt": _CLT}
    memory_keys = (f"{SECTION}.batch_size",)
    columns = (
        Column("pearson", "r exact", ".3f"),
        Column("pearson_without_largest", "… without largest", ".3f"),
        Column("circuit_edges", "circuit", ",.0f", exact=True),
        Column("kept_mass", "kept mass", ".1%"),
        Column("jaccard", "stable", ".2f"),
        Column("difference", "corrupt − clean", ".2f", "difference_ci"),
        Column("slope", "slope", ".2f"),
        Column("r2", "R²", ".2f"),
        Column("replacement", "replacement", ".2f"),
        Column("n", "prompts", ",.0f", exact=True),
    )

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``ioi-smollm2-135m-eap_ig_inputs``."""
        s = _settings(cfg)
        clt = ["clt"] if s.features is Features.clt else []
        parts = (
            behaviour_and_model(cfg),
            *([*clt, "features"] if s.level is Level.features else []),
            readable(s.method),
        )
        return "-".join(parts)

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        """The prompts and the model, and where features are the nodes the SAE of each layer, or their transcoder."""
        s, more = _settings(cfg), []
        if s.level is Level.features:
            more = [Input("clt", layers, cfg)] if s.features is Features.clt else one_a_layer("sae", layers, cfg)
        return [Input("prompts", (), cfg), *model_input(cfg), *more]

    def share(self, cfg: BaseConfig) -> str:
        """``shard-1-of-4``."""
        return share_of(getattr(cfg, SECTION))

    def gates(self, cfg: BaseConfig) -> tuple[str, ...]:
        """A behaviour is worth taking apart where the model shows it."""
        return ("baseline",)

    def normal(self, cfg: BaseConfig) -> BaseConfig:
        """What no method reads has one value."""
        given, s, plain = getattr(cfg, SECTION), _settings(cfg), Settings()
        if not integrates(s.method):
            given = replace(given, steps=plain.steps)
        unread: list[str] = ["edges" if s.choose is Choice.threshold else "threshold"]
        unread += (
            [name for name in _ONLY_COMPONENTS if hasattr(plain, name)] + ["edges", "threshold"]
            if s.level is Level.features
            else [name for name in _ONLY_FEATURES if hasattr(plain, name)]
        )
        if s.level is Level.components:
            cfg = replace(cfg, sae=replace(cfg.sae, site=type(cfg.sae)().site, target_site=None))
        return replace(cfg, **{SECTION: replace(given, **{name: getattr(plain, name) for name in unread})})

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """What is wrong with the study."""
        found, s = check(_settings(cfg)), _settings(cfg)
        if s.level is Level.components and dims.depth is not None and layers != tuple(range(dims.depth)):
            found.append(
                f"level=components: a circuit has all layers of the model, and layer={','.join(map(str, layers))} is asked; leave "
                "layer=all, or take attribution.level=features"
            )
        found += share_problems(cfg, SECTION)
        return [f"{SECTION}.{message}" for message in found]

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """The scores of all edges on all prompts, once kept and once published."""
        depth, heads = dims.depth or 32, dims.heads or 16
        edges = (depth * (heads + 1)) * (depth * (3 * heads + 1)) // 2
        prompts = _settings(cfg).samples or cfg.behaviour.n_samples or 100
        size = edges * prompts * BYTES_A_SCORE
        return size + 100 * edges, size

    def question(self, cfg: BaseConfig) -> str:
        """What a study asks."""
        behaviour = behaviour_and_model(cfg).split("-")[0]
        if _settings(cfg).level is Level.features:
            return f"Which features of {readable(cfg.model.id)} make {behaviour}, and which read which"
        return f"Which heads and MLPs of {readable(cfg.model.id)} make {behaviour}, and which read which"

    def run(self, context: Context) -> None:
        """Score the study; a shard may end before the others have."""
        run_shared(context, _make)

    def make(self, context: Context, works: Mapping[Any, Work]) -> None:
        """Score the whole study, and publish its tables."""
        _make(context, works[None])

    def load(self, path: Path) -> Circuit:
        """The tables of a study."""
        from circuits.attribution.saved import Circuit

        return Circuit(path)


def _make(context: Context, work: Work) -> str | None:
    """Score this run's share, and publish the tables when all shares are there; else why they are not yet."""
    from circuits.attribution import missed, study, tables
    from circuits.data import prompts as prompt_sets

    settings, given = _settings(context.cfg), getattr(context.cfg, SECTION)
    if settings.level is Level.features:
        return _features(context, work, settings)
    prompts = study.measured(prompt_sets.read(context.require("prompts").path), settings)
    ask = study.Ask(context.open_model(), prompts, settings, context.cfg.seed)
    context.say(f"{len(ask.nodes.edges):,} edges on {len(prompts)} prompts by {settings.method}")

    def keeper(name: str) -> Keeper[str]:
        worth = {"worth_s": 0.0} if given.world_size > 1 else {}
        doing, unit = ("scoring edges", "prompt") if name.startswith("scores") else ("patching edges exactly", "cell")
        if name.startswith("missed"):
            doing, unit = "patching what the circuit leaves out", "prompt"
        return context.keeper({"effects": work}, name, doing, unit, **worth)

    if given.world_size > 1:
        study.score(ask, keeper, shard=given.shard, world_size=given.world_size, whole=False)
    with alone(context, work) as needed:
        if not needed:
            return None
        if given.world_size > 1 and (left := study.unfinished(ask, work.partial, given.world_size)):
            return _waiting(context, given, f"{left} parts")
        found = study.score(ask, keeper, world_size=given.world_size)
        if found is not None:
            chosen, random = study.to_verify(ask, found.scores.mean(0, dtype="float64"))
            samples, exact = study.verify(ask, chosen, keeper("exact"))
            left_out = missed.missed(ask, found, keeper) if len(chosen) else {}
            with context.phase("drawing the prompts again"):
                made = tables.tables(ask, found, chosen, random, samples, exact, left_out)
            artifact = work.commit(made.write)
            m = made.metrics
            if told := m["missed"].get("told"):
                context.say(told)
            context.say(
                f"{m['circuit_edges']:,} of {m['edges']:,} edges hold {m['kept_mass']:.0%} of the scores; against exact "
                f"patching of {m['verified']['n']} edges r = {m['pearson'] or float('nan'):.3f}: {artifact.id}"
            )
    return None


def _waiting(context: Context, given: Options, left: str) -> str:
    note = f"shard {given.shard + 1}/{given.world_size} done, waiting for the rest ({left})"
    context.say(note)
    return note


def _features(context: Context, work: Work, settings: Settings) -> str | None:
    """The features of the layers' SAEs or transcoders: contributions on all prompts, graphs of some; or why not yet."""
    from circuits.attribution import study
    from circuits.attribution.features import study as features
    from circuits.attribution.features.dictionaries import CrossLayer, Dictionaries
    from circuits.data import prompts as prompt_sets
    from circuits.features import labels as named
    from circuits.sae import cross_layer_files, cross_layer_sets, formats

    cfg, given = context.cfg, getattr(context.cfg, SECTION)
    prompts = study.measured(prompt_sets.read(context.require("prompts").path), settings)
    lm = context.open_model()
    ask = study.Ask(lm, prompts, settings, cfg.seed)
    site = cfg.sae.site.value
    target = cfg.sae.target_site.value if cfg.sae.target_site is not None else site
    with context.phase("loading the SAEs"):
        if settings.features is Features.clt:
            clt = cross_layer_files.load(context.require("clt").path / cross_layer_sets.SET).to(lm.device)
            d: Dictionaries = CrossLayer({}, site, target, clt, tuple(context.layers))
        else:
            saes = {layer: formats.load(context.require("sae", layer).path).to(lm.device) for layer in context.layers}
            d = Dictionaries(saes, site, target)
    labels = {layer: named.read(Path(given.labels), layer) for layer in d.layers} if given.labels else {}
    where = f"{len(d.layers)} layers at {site}{'' if target == site else f' → {target}'}"
    context.say(f"features of {where} on {len(prompts)} prompts")

    def keeper(name: str) -> Keeper[str]:
        worth = {"worth_s": 0.0} if given.world_size > 1 else {}
        doing = "measuring contributions" if name.startswith(features.WHAT) else "taking features out"
        return context.keeper({"effects": work}, name, doing, "prompt", **worth)

    def tell(done: int, total: int) -> None:
        context.progress("tracing graphs", done, total, "graph")

    if given.world_size > 1:
        features.share(ask, d, keeper, work.partial, given.shard, given.world_size, labels, context.say, tell)
    with alone(context, work) as needed:
        if not needed:
            return None
        if given.world_size > 1 and (left := features.unfinished(ask, work.partial, given.world_size, labels)):
            return _waiting(context, given, f"{left} parts and graphs")
        found = features.run(ask, d, keeper, labels, context.say, tell, work.partial, given.world_size)
        artifact = work.commit(found.write)
    m = found.metrics
    best = m["strongest"][0] if m["strongest"] else {"layer": "-", "feature": "-", "effect_mean": float("nan")}
    context.say(
        f"{m['features']:,} features; strongest L{best['layer']}.F{best['feature']} {best['effect_mean']:+.3f}; taken out "
        f"for real: slope {m['slope'] if m['slope'] is not None else float('nan'):.2f}: {artifact.id}"
    )
    return None


KIND = Attribution()
run = KIND.run
