"""``task=geometry``: the geometric signature of attention heads, one artifact per layer.

Heads of a layer are zeroed, and the residual stream leaving a layer is compared with the run without: Gaussian entropies, the
entropy of the output, how far apart the fits are, how long and how bent the path over the tokens is. The control is random sets of
as many other heads of that layer. How each number is computed: :mod:`circuits.geometry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.files import write_json
from circuits.schema import BaseConfig
from circuits.store.kinds import Column, Input, Kind, Layers, ModelDims
from circuits.store.labels import behaviour_and_model, readable
from circuits.tasks._geometry import (
    METHODS,
    Options,
    Split,
    chosen_heads,
    chosen_methods,
    few_controls,
    few_prompts,
    head_problems,
    options,
    problems,
    remarks,
)
from circuits.tasks._shared import layer_name, model_input

if TYPE_CHECKING:
    from circuits.data.prompts import PromptSet
    from circuits.geometry.passes import Passes
    from circuits.geometry.saved import Signature
    from circuits.geometry.signature import Measured
    from circuits.run.context import Context, Work

RESAMPLES = 5000  # of the bootstrap over prompts


class Geometry(Kind):
    """What zeroing heads does to the geometry of the residual stream."""

    name = "geometry"
    sections = ("model", "geometry", "precision", "seed")
    work = ("geometry.samples", "geometry.random_samples")
    layers = "each"
    needs = ("prompts", "tiny")
    memory_keys = ("geometry.batch_size", "geometry.samples")
    columns = (
        Column("delta_full", "Δ full", ".1f", exact=True),
        Column("p_full", "p full", ".3f"),
        Column("delta_subspace", "Δ subspace", ".2f", exact=True),
        Column("p_subspace", "p subspace", ".3f"),
        Column("delta_output_entropy", "Δ output entropy", ".3f", "delta_output_entropy_ci"),
        Column("p_output_entropy", "p output entropy", ".3f"),
        Column("n_controls", "controls", ".0f", exact=True),
        Column("n", "prompts", ".0f", exact=True),
    )

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``facts-gpt2-medium-L0-H2_4_7``."""
        heads = "_".join(str(head) for head in chosen_heads(options(cfg))[:6])
        return f"{behaviour_and_model(cfg)}-{layer_name(layers)}-H{heads}"

    def normal(self, cfg: BaseConfig) -> BaseConfig:
        """Equal results, equal keys: heads and methods in any order are one set."""
        given, heads, methods = options(cfg), chosen_heads(options(cfg)), chosen_methods(options(cfg))
        if not head_problems(heads) and all(method in METHODS for method in methods):
            ordered = [method for method in METHODS if method in methods]
            given = replace(given, heads=sorted(heads), methods=ordered)
        return replace(cfg, geometry=given)  # type: ignore[call-arg]

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        """The prompts and the model."""
        return [Input("prompts", (), cfg), *model_input(cfg)]

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """Two small tables."""
        return 1 << 18, 0

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """Heads that the model does not have or that leave none to draw, methods that do not exist, numbers out of bounds."""
        return problems(cfg, dims, layers)

    def remarks(self, cfg: BaseConfig, layers: Layers) -> list[str]:
        """A control too small for a small p, and fewer prompts than dimensions."""
        return remarks(cfg)

    def question(self, cfg: BaseConfig) -> str:
        """What a run asks."""
        given = options(cfg)
        heads = chosen_heads(given)
        which = ("head " if len(heads) == 1 else "heads ") + ", ".join(map(str, heads))
        of = "" if given.head_layer is None else f" of layer {given.head_layer}"
        return f"What does zeroing {which}{of} do to the geometry of the residual stream in {readable(cfg.model.id)}"

    def make(self, context: Context, works: Mapping[int, Work]) -> None:
        """Measure these layers; those that share an ablated layer share the passes."""
        given: Options = context.cfg.geometry
        by_head_layer: dict[int, dict[int, Work]] = {}
        for layer, work in works.items():
            head_layer = layer if given.head_layer is None else given.head_layer
            by_head_layer.setdefault(head_layer, {})[layer] = work
        for head_layer, mine in by_head_layer.items():
            _measure(context, head_layer, mine)

    def load(self, path: Path) -> Signature:
        """The summary, and the tables of head sets and of prompts."""
        from circuits.geometry.saved import Signature

        return Signature(path)


KIND = Geometry()
run = KIND.run


def _measure(context: Context, head_layer: int, works: Mapping[int, Work]) -> None:
    """All head sets at all layers that they are looked at, one pass a set."""
    from circuits.data import prompts
    from circuits.data.seeds import derive_seed
    from circuits.geometry.controls import control_sets
    from circuits.geometry.passes import Passes
    from circuits.geometry.signature import measure

    given: Options = context.cfg.geometry
    heads = tuple(sorted(chosen_heads(given)))
    methods = [method for method in METHODS if method in chosen_methods(given)]
    taken = _taken(prompts.read(context.require("prompts").path), given)
    lm = context.open_model()
    seed = derive_seed(context.cfg.seed, "geometry", "heads", head_layer)
    controls, every = control_sets(heads, lm.dims.heads, given.random_samples, seed)
    told = f"all {len(controls)} that there are" if every else f"{len(controls)} drawn"
    context.say(f"heads {', '.join(map(str, heads))} of layer {head_layer}; control sets of as many others: {told}")
    few = few_prompts(len(taken), lm.dims.width) if len(taken) <= lm.dims.width else None
    before = KIND.remarks(context.run.cfg, context.layers)  # told already, where the model's sizes were known
    for remark in (few, few_controls(len(controls))):
        if remark and remark not in before:
            context.say(f"warning: {remark}")
    with context.phase("running the prompts up to the ablated layer"):
        passes = Passes(
            lm, taken, head_layer, sorted(works), batch_size=given.batch_size, positions="per_token" in methods
        )
    context.say(f"{len(taken)} prompts, {passes.distinct} different ones")
    keeper = context.keeper(works, "sets", "zeroing heads", "set")
    measured = measure(passes, [(), heads, *controls], methods, keeper)
    for layer, found in measured.items():
        facts = {
            "layer": layer,
            "head_layer": head_layer,
            "heads": list(heads),
            "split": given.split.value,
            "n": len(taken),
            "n_distinct": passes.distinct,
            "width": lm.dims.width,
            "positions": len(passes.positions) if "per_token" in methods else None,
            "few_prompts": len(taken) <= lm.dims.width,
        }
        _commit(context, works[layer], passes, taken, found, facts, controls, every)


def _taken(given: PromptSet, options: Options) -> PromptSet:
    """The first prompts of the split."""
    kept = given if options.split is Split.all else given.only(split=options.split.value)
    return replace(kept, prompts=kept.prompts[: options.samples])


def _commit(
    context: Context,
    work: Work,
    passes: Passes,
    taken: PromptSet,
    found: Measured,
    facts: dict[str, Any],
    controls: list[tuple[int, ...]],
    every: bool,
) -> None:
    """Publish one layer's signature: its tables, and the summary with what the end table shows."""
    import pandas as pd

    from circuits.data.seeds import derive_seed
    from circuits.geometry import summary
    from circuits.geometry.saved import PROMPTS, SETS

    metrics = facts | summary.summarise(found.names, found.values.numpy(), len(controls))
    numbers = {name: values.numpy() for name, values in found.prompts.items()}
    seed = derive_seed(context.cfg.seed, "geometry", "bootstrap")
    with context.phase("intervals"):
        ends = summary.prompt_intervals(numbers, [p.prompt for p in taken], seed=seed, resamples=RESAMPLES)
    by_metric = metrics.pop("random_control")
    metrics |= {
        "deterministic": True,  # nothing is random but which sets are drawn as the control
        "intervals": ends,
        "random_control": {
            "k": len(facts["heads"]),
            "samples": len(controls),
            "all": every,
            "sets": [list(heads) for heads in controls],
            "metrics": by_metric,
        },
        "n_controls": len(controls),
        **{f"delta_{name}": value for name, value in metrics["deltas"].items()},
        **{f"delta_{name}_ci": interval for name, interval in ends.items()},
        **{f"p_{name}": one["p_two_sided"] for name, one in by_metric.items()},
    }
    sets = pd.DataFrame(found.values.numpy(), columns=list(found.names))
    sets.insert(0, "role", ["baseline", "studied", *["control"] * len(controls)])
    sets.insert(1, "heads", [" ".join(map(str, heads)) for heads in ((), facts["heads"], *controls)])
    rows = taken.table()[["sample", "split", "group", "tokens"]]
    for name, values in numbers.items():
        rows[f"{name}_baseline"], rows[f"{name}_ablated"] = values

    def write(out: Path) -> None:
        sets.to_parquet(out / SETS, index=False)
        rows.to_parquet(out / PROMPTS, index=False)
        write_json(out / "metrics.json", metrics)

    artifact = work.commit(write)
    deltas, p = metrics["deltas"], metrics["p_output_entropy"]
    context.say(
        f"layer {facts['layer']}: output entropy {deltas['output_entropy']:+.3f} nats (p {p:.3g}): {artifact.id}"
    )
