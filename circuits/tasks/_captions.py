"""The picture side of ``task=interventions``: gender-biased features ablated, amplified or projected out of captions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError
from circuits.files import known, sha256_text, write_json
from circuits.interventions.settings import Across, Settings
from circuits.schema import BaseConfig
from circuits.schema.behaviour import of_pictures
from circuits.store.kinds import Input, Layers, one_a_layer
from circuits.tasks._shared import bias_input, model_input

if TYPE_CHECKING:
    from circuits.features.bias_saved import BiasStatistics
    from circuits.interventions.bias_choice import Condition
    from circuits.run.context import Context, Work

UNITS = "captions"


def inputs(cfg: BaseConfig, layers: Layers) -> list[Input]:
    """The pictures, the model, the SAE of each layer, and the statistics that features are chosen by."""
    return [Input("prompts", (), cfg), *model_input(cfg), *one_a_layer("sae", layers, cfg), bias_input(cfg)]


def problems(cfg: BaseConfig, s: Settings, layers: Layers) -> list[str]:
    """What is wrong with a study of captions."""
    found = []
    if not of_pictures(cfg.behaviour):
        found.append(
            f"units={UNITS}: captions of pictures; behaviour={cfg.behaviour.name} has prompts of text (behaviour=gender_bias)"
        )
    if unknown := [edit for edit in s.edits if edit not in ("scale", "project")]:
        found.append(f"edit={unknown[0]}: units={UNITS} has scale and project")
    if s.across is Across.adjacent and len(layers) == 1:
        found.append("across=adjacent: two layers at least; choose more with layer=")
    for factor in s.factor_list:
        if factor < 0 or factor == 1:
            found.append(f"factors={factor:g}: 0 ablates, more than 1 amplifies")
    return found


def _conditions(context: Context, s: Settings, statistics: BiasStatistics) -> list[Condition]:
    """What is done, beside which controls."""
    from circuits.features.bias import SIDES
    from circuits.interventions import bias_choice

    layers = tuple(context.layers)
    ways: dict[Across, list[tuple[int, ...]]] = {
        Across.each: [(layer,) for layer in layers],
        Across.all: [layers],
        Across.adjacent: list(pairwise(layers)),
    }
    edits = [("scale", factor) for factor in s.factor_list if "scale" in s.edits]
    edits += [("project", 0.0)] if "project" in s.edits else []
    of = {}
    for layer in layers:
        tops = {
            side: [statistics.top(layer, one, side, s.group_size) for one in statistics.languages] for side in SIDES
        }
        pooled = [statistics.pooled(layer, one) for one in statistics.languages]
        mine = statistics.table.query("layer == @layer and significant")
        of[layer] = bias_choice.candidates(tops, pooled, {int(f) for f in mine["feature"]}, s.group_size)
    try:
        return bias_choice.conditions(ways[s.across], of, edits, s.controls, context.cfg.seed)
    except ValueError as e:
        raise UserError(
            f"intervention.controls: {e}; train a larger SAE (sae.expansion), or intervention.controls=0"
        ) from e


def make(context: Context, work: Work, s: Settings) -> None:
    """Measure, and publish ``effects``, ``captions`` and ``summary``."""
    from circuits.activations.pictures import PictureRows
    from circuits.data.journal import Journal
    from circuits.data.pictures.saved import read
    from circuits.features.bias_saved import BiasStatistics
    from circuits.interventions import bias_effects, bias_study, captioning
    from circuits.sae import formats

    pictures = read(context.require("prompts").path)
    statistics = BiasStatistics(context.require("bias_stats").path)
    wanted = _conditions(context, s, statistics)
    measured = pictures.where(s.measured.value if s.measured.value != "all" else None)
    if s.samples is not None:
        measured = measured[: s.samples]
    lm = context.open_model()
    saes = {layer: formats.load(context.require("sae", layer).path).to(lm.device) for layer in context.layers}

    batches, studied = -(-len(measured) // int(s.batch_size)), sum(not one.control for one in wanted)
    beside = sum(0 < one.control <= s.caption_controls for one in wanted)
    passes = 3 + -(-len(wanted) // captioning.AT_ONCE) + 3 * studied + 2 * beside
    total = len(pictures.languages) * batches * passes
    keeper = context.keeper({"effects": work}, "captions", "writing captions under edits", "pass")
    chosen = sha256_text(repr([(one.name, one.control, sorted(one.features.items())) for one in wanted]))
    facts = {"device": str(lm.device), "batch_size": s.batch_size, "conditions": chosen}
    study = bias_study.Study(
        lm=lm,
        rows=PictureRows(pictures, lm),
        pictures=tuple(measured),
        saes=saes,
        site=s.site,
        skip_first=int(statistics.meta["skip_first"]),
        batch_size=int(s.batch_size),
        seed=context.cfg.seed,
        steps=s.generate,
        caption_controls=s.caption_controls,
        journal=Journal(keeper, facts, total),
    )
    effects, texts = bias_study.run(study, pictures.languages, wanted)
    with context.phase("intervals"):
        summary = bias_effects.summarise(
            effects, texts, pictures, alpha=s.alpha, resamples=s.resamples, seed=context.cfg.seed
        )
    metrics = {
        "metric": "preference",
        "what": UNITS,
        "edits": s.edits,
        "units": len(summary),
        "n": len(study.pictures),
        "controls": s.controls,
        "features": {
            f"L{layer}/{one.which}": list(one.features[layer])
            for one in wanted
            if not one.control
            for layer in one.layers
        },
        **bias_effects.strongest(summary),
    }

    def write(out: Any) -> None:
        effects.to_parquet(out / "effects.parquet", index=False)
        texts.to_parquet(out / "captions.parquet", index=False)
        summary.to_parquet(out / "summary.parquet", index=False)
        write_json(out / "cross_layer.json", known(bias_effects.cross_layer(summary)))
        write_json(out / "metrics.json", known(metrics))

    artifact = work.commit(write)
    context.say(
        f"{metrics['units']} edits beside {s.controls} controls each on {metrics['n']} pictures; strongest {metrics['strongest']}: "
        f"distance to parity {metrics['base_parity']:.3f} -> {metrics['parity']:.3f}: {artifact.id}"
    )


def normal(given: Any, s: Settings) -> Any:
    """What a study of captions does not read has one value."""
    return replace(given, factors=s.factor_list if "scale" in s.edits else None)
