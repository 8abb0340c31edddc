"""``task=cross_lingual``: what the features of one dictionary do in two languages, layer by layer, every overlap beside chance.

Reads the pooled features and the statistics of ``task=bias_stats``; see :mod:`circuits.features.cross_lingual`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError
from circuits.files import known, write_json
from circuits.schema import BaseConfig
from circuits.schema.behaviour import languages, of_pictures
from circuits.store.kinds import Column, Input, Kind, Layers, ModelDims
from circuits.store.labels import behaviour_name, readable
from circuits.tasks._shared import bias_input, layers_name

if TYPE_CHECKING:
    from circuits.data import kept_tables
    from circuits.features.bias_saved import BiasStatistics
    from circuits.features.bias_saved import CrossLingual as Saved
    from circuits.features.cross_lingual import Settings
    from circuits.run.context import Context, Work

SECTION = "cross_lingual"


@dataclass
class Options:
    """How two languages are compared."""

    n_top: int = 50  # features of each side's list, by d, whose overlap is counted
    least: float = 0.5  # correlation over pictures from which a feature counts as shared
    fdr: float = 0.05  # q of that correlation
    draws: int = 100  # random permutations: what chance gives
    folds: int = 5  # of the probes; a group of pictures is never on both sides
    penalty: float = 10.0  # of the probes' weights


class CrossLingual(Kind):
    """Two languages compared, over a set of layers."""

    name = "cross_lingual"
    sections = (SECTION, "seed")
    layers = "set"
    needs = ("bias_stats", "prompts")
    pictures = True
    columns = (
        Column("shared_share", "shared", ".1%"),
        Column("shared_by_chance", "by chance", ".2%"),
        Column("jaccard", "Jaccard", ".2f"),
        Column("jaccard_random", "random", ".2f"),
        Column("transfer", "probe EN→AR", ".1%"),
        Column("majority", "larger class", ".1%"),
        Column("n_pictures", "pictures", ",.0f", exact=True),
    )

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``gender_bias-tiny_vlm-L0-3``."""
        return f"{behaviour_name(cfg)}-{readable(cfg.model.id)}{layers_name(layers)}"

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        """The statistics, and the pictures that they are of."""
        return [bias_input(cfg), Input("prompts", (), cfg)]

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """Two languages are needed."""
        given, errors = getattr(cfg, SECTION), []
        if not of_pictures(cfg.behaviour):
            errors.append(
                f"behaviour={cfg.behaviour.name}: prompts of text; task=cross_lingual compares pictures: gender_bias"
            )
        elif len(languages(cfg.behaviour)) < 2:
            errors.append("behaviour.languages: two languages are compared; [english,arabic]")
        for name, least in (("n_top", 1), ("draws", 10), ("folds", 2)):
            if getattr(given, name) < least:
                errors.append(f"{SECTION}.{name}={getattr(given, name)}: {least} or more")
        return errors

    def question(self, cfg: BaseConfig) -> str:
        """What a run asks."""
        return f"Which features of {Path(cfg.model.id).name} do the same in both languages"

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """A row a feature and layer."""
        return 1 << 20, 0

    def make(self, context: Context, works: Mapping[Any, Work]) -> None:
        """Compare layer by layer, and publish."""
        _make(context, works[None])

    def load(self, path: Path) -> Saved:
        """The comparison."""
        from circuits.features.bias_saved import CrossLingual as Saved

        return Saved(path)


KIND = CrossLingual()
run = KIND.run


def _make(context: Context, work: Work) -> None:
    import pandas as pd

    from circuits.data import kept_tables
    from circuits.data.pictures.saved import read
    from circuits.features import cross_lingual
    from circuits.features.bias_saved import BiasStatistics

    statistics = BiasStatistics(context.require("bias_stats").path)
    pictures = read(context.require("prompts").path)
    s = cross_lingual.Settings(
        **{f.name: getattr(context.cfg.cross_lingual, f.name) for f in fields(cross_lingual.Settings)}
    )
    if missing := [layer for layer in context.layers if layer not in statistics.layers]:
        raise UserError(
            f"layer={missing[0]}: not among the layers of the statistics ({statistics.layers}); bias_stats.layers says them"
        )
    tables, by_layer = [], []
    for done, layer in enumerate(context.layers):
        context.progress("comparing languages", done, len(context.layers), "layer")
        make = partial(_layer, context, statistics, pictures, layer, s)
        found, facts, _ = kept_tables.once(work.partial / f"L{layer}", make)
        tables.append(found["features"].assign(layer=layer))
        by_layer.append({"layer": layer, **facts})
    languages = statistics.languages[:2]
    metrics = {"n_pictures": len(pictures), "languages": languages, **cross_lingual.summary(by_layer, *languages)}

    def write(out: Path) -> None:
        pd.concat(tables, ignore_index=True).to_parquet(out / "features.parquet", index=False)
        write_json(out / "layers.json", known({"layers": by_layer}))
        write_json(out / "metrics.json", known(metrics))

    artifact = work.commit(write)
    context.say(
        f"shared features {metrics['shared_share']:.1%} (by chance {metrics['shared_by_chance']:.2%}): {artifact.id}"
    )


def _layer(context: Context, statistics: BiasStatistics, pictures: Any, layer: int, s: Settings) -> kept_tables.Found:
    import numpy as np

    from circuits.data.seeds import derive_seed
    from circuits.features import cross_lingual

    names = (statistics.languages[0], statistics.languages[1])
    pooled = {name: statistics.pooled(layer, name) for name in names}
    seed = derive_seed(context.cfg.seed, "cross_lingual", layer)
    there = ~np.isin(np.arange(len(pictures)), [i for name in names for i in statistics.absent(layer, name)])
    train = there & np.array([p.split == "train" for p in pictures])
    mine = statistics.table[statistics.table["layer"] == layer]
    a, b = (one[np.flatnonzero(train)] for one in pooled.values())
    with context.run.stop.cutting():
        table, facts = cross_lingual.compare(a.tocsc(), b.tocsc(), mine, names, s, seed)
        gender = np.array([p.factors.get("seen") or p.label for p in pictures])
        told = np.flatnonzero(there & np.isin(gender, ["male", "female"]))
        groups = [pictures[i].group for i in told]
        chosen = {name: one[told].tocsc() for name, one in pooled.items()}
        facts["probes"] = cross_lingual.probe(chosen, gender[told] == "male", groups, s, seed)
    return {"features": table}, known(facts), {}
