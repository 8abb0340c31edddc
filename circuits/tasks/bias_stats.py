"""``task=bias_stats``: which SAE features tell male and female pictures apart, over the chosen layers and both languages.

One number for each picture and feature (max or mean over its tokens), then the tests of :mod:`circuits.features.bias`: twins first,
Benjamini-Hochberg over everything, discovery on training and confirmation on test pictures, shuffled labels as the control. An SAE
that reads these activations badly (by token type and language) is refused before anything is tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import GateError, UserError, suggest
from circuits.files import known, write_json
from circuits.schema import ActivationSource, BaseConfig
from circuits.schema.behaviour import languages, of_pictures
from circuits.schema.fields import free
from circuits.store.kinds import Column, Input, Kind, Layers, ModelDims
from circuits.store.labels import behaviour_name, readable
from circuits.tasks._shared import layers_name

if TYPE_CHECKING:
    from circuits.data import kept_tables
    from circuits.data.pictures.saved import PictureSet
    from circuits.features.bias import Labelled, Settings
    from circuits.features.bias_saved import BiasStatistics
    from circuits.features.pooled import Pooled
    from circuits.run.context import Context, Work
    from circuits.sae.modules import SAE

SECTION = "bias_stats"


class PoolTokens(Enum):
    """How a feature's activations over a picture's tokens become one number."""

    max = "max"
    mean = "mean"


@dataclass
class Options:
    """How male and female pictures are compared."""

    pool: PoolTokens = PoolTokens.max  # a feature's activations over a picture's tokens become one number
    where: str | None = None  # compare only pictures with this factor, such as seen:unseen; null: all that have a label
    n_top: int = 50  # features of each side that are reported for each layer and language
    fdr: float = 0.05  # q below which …
    min_d: float = 0.3  # … and |Cohen's d| above which a feature is called significant
    shuffles: int = 20  # of the labels: the control
    permutations: int = 1000  # of the labels, for the p of what is reported
    resamples: int = 1000  # bootstrap samples of whole groups, for its interval
    layers: Any = free(None)  # for tasks that read statistics: the layers that they are over; null: all  # noqa: RUF009
    min_explained_variance: float = free(0.5)  # an SAE that explains less, of any token type or language, is not used


class BiasStats(Kind):
    """Group statistics of pictures, over a set of layers."""

    name = "bias_stats"
    version = 2  # shuffled labels are those of the primary test
    sections = ("model", SECTION, "seed", "sae.site", "sae.skip_first")
    work = ("behaviour.n_samples",)
    layers = "set"
    needs = ("prompts", "sae", "activations")
    pictures = True
    columns = (
        Column("tested", "tested", ",.0f", exact=True),
        Column("significant", "significant", ",.0f", exact=True),
        Column("confirmed", "confirmed on test", ".0%"),
        Column("shuffled_hits", "labels shuffled", ",.1f"),
        Column("detectable_d", "smallest d", ".2f", exact=True),
        Column("explained_variance", "explained variance, least", ".3f"),
        Column("n_pictures", "pictures", ",.0f", exact=True),
    )

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``gender_bias-tiny_vlm-L0-3``."""
        where = getattr(cfg, SECTION).where
        return f"{behaviour_name(cfg)}-{readable(cfg.model.id)}{layers_name(layers)}" + (
            f"-{readable(where)}" if where else ""
        )

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        """The pictures; of each layer the SAE and both languages' activations."""
        found = [Input("prompts", (), cfg)]
        for layer in layers:
            found.append(Input("sae", (layer,), cfg, f"sae/L{layer}"))
            for language in languages(cfg.behaviour):
                own = replace(
                    cfg.activations, source=ActivationSource.behaviour, language=language, site=cfg.sae.site.value
                )
                found.append(
                    Input("activations", (layer,), replace(cfg, activations=own), f"activations/L{layer}/{language}")
                )
        return found

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """Pictures are needed, and what is asked must have a meaning."""
        given, errors = getattr(cfg, SECTION), []
        if not of_pictures(cfg.behaviour):
            errors.append(
                f"behaviour={cfg.behaviour.name}: prompts of text; task=bias_stats compares pictures: behaviour=gender_bias"
            )
        for name, least in (("n_top", 1), ("shuffles", 0), ("permutations", 1), ("resamples", 1)):
            if getattr(given, name) < least:
                errors.append(f"{SECTION}.{name}={getattr(given, name)}: {least} or more")
        if given.where is not None and not all(given.where.partition(":")):
            errors.append(f"{SECTION}.where={given.where}: FACTOR:VALUE, such as seen:unseen")
        if not 0 < given.fdr < 1:
            errors.append(f"{SECTION}.fdr={given.fdr}: between 0 and 1")
        return errors

    def question(self, cfg: BaseConfig) -> str:
        """What a run asks."""
        return f"Which features of {Path(cfg.model.id).name} tell male and female pictures apart"

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """Pooled features (one in eight is active, about) and the table, of a layer."""
        width = (dims.width_of(cfg.sae.site.value) or 0) * cfg.sae.expansion
        n = (cfg.behaviour.n_samples or 1000) + (cfg.behaviour.n_test or 0)
        return 2 * (n * width + 150 * width), n * width

    def make(self, context: Context, works: Mapping[Any, Work]) -> None:
        """Pool, test, publish."""
        _make(context, works[None])

    def load(self, path: Path) -> BiasStatistics:
        """The statistics, and the pooled features that they are of."""
        from circuits.features.bias_saved import BiasStatistics

        return BiasStatistics(path)


KIND = BiasStats()
run = KIND.run


def _settings(cfg: Any) -> Settings:
    from circuits.features.bias import Settings

    return Settings(**{f.name: getattr(getattr(cfg, SECTION), f.name) for f in fields(Settings)})


def _labelled(pictures: PictureSet, where: str | None) -> Labelled:
    """The pictures' labels, empty where ``bias_stats.where`` leaves them out.

    Raises:
        UserError: no picture has that factor.
    """
    import numpy as np

    from circuits.features.bias import Labelled

    kept = np.ones(len(pictures), bool)
    if where is not None:
        factor, _, value = where.partition(":")
        kept = np.array([p.factors.get(factor) == value for p in pictures])
        if not kept.any():
            known = sorted({f"{name}:{own}" for p in pictures for name, own in p.factors.items()})
            raise UserError(f"{SECTION}.where={where}: no picture has it" + suggest(where, known[:20], "factors"))

    def column(values: list[str]) -> Any:
        return np.where(kept, np.array(values, dtype=object), "")

    return Labelled(
        label=column([p.label for p in pictures]),
        split=np.array([p.split for p in pictures], dtype=object),
        group=np.array([p.group for p in pictures], dtype=object),
        seen=column([p.factors.get("seen", "") for p in pictures]),
    )


def _make(context: Context, work: Work) -> None:
    import numpy as np
    from scipy import sparse

    from circuits.data import kept_tables
    from circuits.data.pictures.saved import read
    from circuits.features import bias, bias_saved

    pictures = read(context.require("prompts").path)
    labelled, s, asked = (
        _labelled(pictures, context.cfg.bias_stats.where),
        _settings(context.cfg),
        list(pictures.languages),
    )
    tested, summaries, quality, pooled, absent = [], {}, {}, {}, {}
    total, done = len(context.layers) * len(asked), 0
    loaded = lru_cache(maxsize=1)(partial(_sae, context))  # for all languages of a layer

    def one(layer: int, language: str) -> kept_tables.Found:
        """A layer and language: its table, what is known of it, and the matrices of features and of shuffles."""
        found = _pooled(context, loaded(layer), layer, language, len(pictures))
        explained = {name: q.explained_variance for name, q in found.quality.items()}
        try:
            bias.check_groups(labelled, found.present)
        except ValueError as e:
            raise UserError(f"{context.run.cfg.behaviour.name}: {e}; raise behaviour.n_samples") from e
        with context.run.stop.cutting():
            made = bias.test(found.values, labelled, found.present, layer, language, s, context.cfg.seed)
        facts = {
            "l0_per_sample": found.l0,
            "dead_features": found.dead,
            "mean_activation": found.mean_activation,
            "explained_variance": explained,
            "absent": np.flatnonzero(~found.present).tolist(),  # pictures without a row: nothing is known of them
            **made.facts,
        }
        return (
            {"tested": made.table},
            known(facts),
            {"pooled": found.values, "shuffled": sparse.csc_matrix(made.shuffled)},
        )

    for layer in context.layers:
        for language in asked:
            context.progress("pooling and testing", done, total, "layer and language")
            tables, facts, matrices = kept_tables.once(
                work.partial / f"L{layer}-{language}", partial(one, layer, language)
            )
            absent[f"L{layer}/{language}"] = facts.pop("absent")
            _refuse_badly_read(context, layer, language, facts["explained_variance"])
            tested.append(bias.Tested(layer, language, tables["tested"], matrices["shuffled"].toarray(), facts))
            pooled[bias_saved.pooled_name(layer, language)] = matrices["pooled"]
            summaries[layer, language], quality[layer, language] = facts, facts["explained_variance"]
            done += 1
    with context.phase("correcting for all tests"):
        table, summary = bias.together(tested, s)
    least = min((v for one in quality.values() for v in one.values() if v is not None), default=None)
    metrics = {
        **summary,
        "n_pictures": len(pictures),
        "explained_variance": least,
        "by_layer": bias.by_layer(table, context.layers, asked),
        "quality": {f"L{layer}/{language}": value for (layer, language), value in quality.items()},
    }

    def write(out: Path) -> None:
        table.to_parquet(out / bias_saved.TABLE, index=False)
        for name, values in pooled.items():
            sparse.save_npz(out / name, values, compressed=False)
        pictures.table().to_parquet(out / bias_saved.PICTURES, index=False)
        bias_saved.write_examples(out, pictures, table, pooled)
        write_json(out / bias_saved.RESULTS, bias.results(table, summaries, context.cfg.model.id, asked[0]))
        write_json(
            out / bias_saved.META,
            {
                "layers": list(context.layers),
                "languages": asked,
                "pool": context.cfg.bias_stats.pool.value,
                "skip_first": context.cfg.sae.skip_first,
                "absent": absent,
            },
        )
        write_json(out / "metrics.json", known(metrics))

    artifact = work.commit(write)
    context.say(
        f"{summary['significant']:,} of {summary['tested']:,} features × layers × languages are significant "
        f"(labels shuffled: {summary['shuffled_hits'] or 0:.1f}): {artifact.id}"
    )


def _sae(context: Context, layer: int) -> SAE:
    from circuits.models.load import pick_device
    from circuits.sae import formats

    model = context.cfg.model
    return formats.load(context.require(f"sae/L{layer}").path).to(pick_device(model.device, model.allow_fallback))


def _pooled(context: Context, sae: SAE, layer: int, language: str, n: int) -> Pooled:
    from circuits.activations.store import ActivationStore
    from circuits.features.pooled import pool

    store = ActivationStore(context.require(f"activations/L{layer}/{language}").path)
    with context.run.stop.cutting():
        return pool(store, sae, n, context.cfg.bias_stats.pool.value, skip_first=context.cfg.sae.skip_first)


def _refuse_badly_read(context: Context, layer: int, language: str, found: Mapping[str, float | None]) -> None:
    """Say how well the SAE reads each kind of token, and stop where it does not.

    Raises:
        GateError: below the bound, without force=true.
    """
    shown = "  ".join(f"{name} {value:.3f}" for name, value in found.items() if value is not None)
    context.say(f"layer {layer}, {language}: explained variance {shown}")
    bound = context.cfg.bias_stats.min_explained_variance
    low = {name: value for name, value in found.items() if value is not None and value < bound}
    if low and not context.run.cfg.force:
        name, value = min(low.items(), key=lambda one: one[1])
        raise GateError(
            f"layer {layer}, {language}: the SAE explains {value:.3f} of the variance of {name} tokens, less than "
            f"bias_stats.min_explained_variance={bound:g}; train it on pictures (data=pictures), or go on with force=true"
        )
