"""``task=probing``: sparse probing of an SAE on a behaviour's factors, one artifact per layer.

Ours or somebody else's (``sae.from=…``); see :mod:`circuits.features.probing`. ``probes.parquet`` has a row for each factor, level,
probe and number of features, ``absorption.parquet`` one for each level (:mod:`circuits.features.absorption`), ``metrics.json``
their means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits import tables
from circuits.errors import UserError
from circuits.files import known, write_json
from circuits.schema import BaseConfig
from circuits.schema.behaviour import of_pictures
from circuits.schema.fields import free
from circuits.schema.interpret import Pool
from circuits.store.kinds import Column, Input, Kind, Layers, ModelDims
from circuits.store.labels import behaviour_name, readable
from circuits.tasks._shared import layer_name, model_input, prompt_labels

if TYPE_CHECKING:
    import pandas as pd

    from circuits.features.probing import Keep
    from circuits.run.context import Context, Work

SECTION = "probing"


@dataclass
class Options:
    """How factors are probed."""

    sizes: list[int] = field(default_factory=lambda: [1, 2, 5])  # numbers of features
    pool: Pool = Pool.last  # how activations over the tokens of a prompt become one number
    min_prompts: int = 5  # training prompts that a level needs
    shuffles: int = 5  # of the training labels: what chance gives
    penalty: float = 1.0  # of the regressions on k features
    batch_size: int = free(32)  # prompts a forward pass; results agree to rounding


class Probing(Kind):
    """What a few features say."""

    name = "probing"
    sections = ("model", SECTION, "precision", "seed", "sae.site", "sae.skip_first")
    layers = "each"
    needs = ("tiny", "sae", "prompts")
    memory_keys = ("probing.batch_size",)
    columns = (
        Column("sae_fewest", "fewest features", ".1%"),
        Column("sae_most", "most", ".1%"),
        Column("random_most", "of a random dictionary", ".1%"),
        Column("shuffled_most", "labels shuffled", ".1%"),
        Column("all", "all features", ".1%"),
        Column("raw", "activations", ".1%"),
        Column("absorption", "absorbed", ".1%"),
        Column("n_levels", "levels", ",.0f", exact=True),
    )

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        """The SAE of the layer, the model, and the prompts."""
        return [*model_input(cfg), Input("sae", layers, cfg), Input("prompts", (), cfg)]

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``tiny-L2-topk-grammar_agreement``."""
        name = "from" if cfg.sae.from_ else cfg.sae.architecture.value
        return f"{readable(cfg.model.id)}-{layer_name(layers)}-{name}-{behaviour_name(cfg)}"

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """Numbers that mean nothing."""
        given, errors = getattr(cfg, SECTION), []
        if not given.sizes or min(given.sizes) < 1 or len(set(given.sizes)) < len(given.sizes):
            errors.append(f"probing.sizes={list(given.sizes)}: different numbers of features, each at least 1; [1,2,5]")
        for name, least in (("min_prompts", 2), ("shuffles", 1), ("batch_size", 1)):
            if getattr(given, name) < least:
                errors.append(f"probing.{name}={getattr(given, name)}: at least {least}")
        if not given.penalty > 0:
            errors.append(f"probing.penalty={given.penalty}: more than 0")
        width = dims.width_of(cfg.sae.site.value)
        if width is not None and cfg.sae.from_ is None and given.sizes and max(given.sizes) > width * cfg.sae.expansion:
            errors.append(f"probing.sizes={max(given.sizes)}: more than the SAE's {width * cfg.sae.expansion} features")
        if of_pictures(cfg.behaviour):
            errors.append(f"behaviour={cfg.behaviour.name}: pictures; task=cross_lingual probes them")
        return errors

    def question(self, cfg: BaseConfig) -> str:
        """What a run asks."""
        return f"How much do a few features of {Path(cfg.model.id).name} say about {behaviour_name(cfg)}"

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """A small table."""
        return 1 << 20, 0

    def make(self, context: Context, works: Mapping[Any, Work]) -> None:
        """Read the prompts once for all layers and dictionaries, and probe."""
        _make(context, works)

    def load(self, path: Path) -> pd.DataFrame:
        """The table of probes."""
        return tables.read(path / "probes.parquet")


KIND = Probing()
run = KIND.run


def _make(context: Context, works: Mapping[int, Work]) -> None:
    import numpy as np

    from circuits.data import prompts
    from circuits.data.seeds import derive_seed
    from circuits.features import absorption, association, probing
    from circuits.sae import formats

    cfg, given = context.cfg, getattr(context.cfg, SECTION)
    paths = {layer: context.require("sae", layer).path for layer in works}  # before anything is loaded
    found = prompts.read(context.require("prompts").path)
    train = np.array([split == "train" for split in found.splits])
    factors, left_out = association.factors_of(prompt_labels(found.table(), found), train, given.min_prompts)
    if not factors:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "the prompts have no factors"
        raise UserError(
            f"behaviour={behaviour_name(cfg)}: no factor can be probed ({reasons}); raise behaviour.n_samples"
        )
    lm = context.open_model()
    seed = derive_seed(cfg.seed, "probing")
    with context.phase("loading the SAEs"):
        saes = {layer: formats.load(path).to(lm.device) for layer, path in paths.items()}
        l0 = {layer: float(formats.firing_rate(path).sum()) for layer, path in paths.items()}
    dictionaries = {
        "sae": saes,
        "random": {layer: probing.random_dictionary(sae, l0[layer], seed) for layer, sae in saes.items()},
        "raw": {layer: probing.identity(sae.cfg.d_in).to(lm.device) for layer, sae in saes.items()},
    }
    pooled = {name: _pooled(context, lm, some, found, works, name) for name, some in dictionaries.items()}
    s = probing.Settings(tuple(sorted(given.sizes)), given.shuffles, given.penalty)
    groups = [str(group) for group in found.table()["group"]]
    for layer, work in works.items():
        keep = _keeping(work)
        with context.phase(f"probing layer {layer}"), context.run.stop.cutting():
            values = {name: some[layer] for name, some in pooled.items()}
            values["raw"] = probing.raw_of(values["raw"])
            table, lost = probing.probe(values, factors, train, groups, s, seed, keep)
            swallowed = _absorption(
                saes[layer], dictionaries["random"][layer], values, factors, train, groups, seed, given, keep
            )
        means = probing.summary(table, s.k)
        metrics = {
            "layer": layer,
            "site": cfg.sae.site.value,
            "d_sae": saes[layer].cfg.d_sae,
            "l0": l0[layer],
            "k": list(s.k),
            "pool": given.pool.value,
            "n_prompts": len(found),
            "n_test": int((~train).sum()),
            "factors": {factor.name: list(factor.levels) for factor in factors},
            "left_out": left_out | lost,
            **means,
            **({} if swallowed is None else absorption.summary(swallowed)),
            "sae_fewest": means[f"sae_{s.k[0]}"],
            **{f"{name}_most": means[f"{name}_{s.k[-1]}"] for name in ("sae", "random", "shuffled")},
        }

        def write(
            out: Path,
            table: pd.DataFrame = table,
            metrics: dict[str, Any] = metrics,
            swallowed: pd.DataFrame | None = swallowed,
        ) -> None:
            table.to_parquet(out / "probes.parquet", index=False)
            if swallowed is not None:
                swallowed.to_parquet(out / "absorption.parquet", index=False)
            write_json(out / "metrics.json", known(metrics))

        artifact = work.commit(write)
        context.say(f"layer {layer}: {metrics['n_levels']} levels of {len(factors)} factors: {artifact.id}")


def _keeping(work: Work) -> Keep:
    """The rows of each level are kept as they are found: a layer that is cut goes on at the next one."""
    from circuits.data import kept_tables

    def keep(name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        return kept_tables.once(work.partial / name, lambda: ({"rows": make()}, {}, {}))[0]["rows"]

    return keep


def _absorption(
    sae: Any, random: Any, values: Mapping[str, Any], factors: Any, train: Any, groups: list[str], seed: int, given: Any,
    keep: Keep,
) -> pd.DataFrame | None:  # fmt: skip
    """Absorption of the levels; None where contributions do not add up: a transcoder's, the maximum over tokens."""
    from circuits.features import absorption

    if sae.cfg.d_out is not None or given.pool not in (Pool.last, Pool.mean):
        return None
    both = {
        name: (one.W_dec.double().cpu().numpy(), one.b_dec.double().cpu().numpy())
        for name, one in (("sae", sae), ("random", random))
    }
    return absorption.table(values, both, factors, train, groups, seed, keep)


def _pooled(
    context: Context, lm: Any, saes: Mapping[int, Any], found: Any, works: Mapping[int, Work], name: str
) -> Any:
    import torch

    from circuits.features.pooling import pooled

    given = getattr(context.cfg, SECTION)
    return pooled(
        lm,
        saes,
        {layer: torch.arange(sae.cfg.d_sae) for layer, sae in saes.items()},
        found,
        site=context.cfg.sae.site.value,
        how=given.pool.value,
        skip_first=context.cfg.sae.skip_first,
        batch_size=given.batch_size,
        keeper=context.keeper(works, f"prompts-{name}", f"reading the prompts ({name})", "prompt"),
    )
