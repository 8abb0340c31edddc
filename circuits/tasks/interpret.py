"""``task=interpret``: what an SAE's features stand for, one artifact per layer.

Top-activating examples and histograms on held-out text, promoted and suppressed tokens, and association with the factors of
the behaviour's prompts; one forward pass serves all layers of the run. Into the run's directory goes ``labels-L3.csv``, a file
for people to edit: with ``interpret.labels=FILE.csv`` reports show their labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError
from circuits.files import write_json
from circuits.schema import BaseConfig, DataSource, InterpretConfig
from circuits.schema.interpret import OF_ASSOCIATION, chosen
from circuits.store.contents import Contents
from circuits.store.kinds import Column, Input, Kind, Layers, ModelDims
from circuits.store.labels import behaviour_name, readable
from circuits.tasks._shared import layer_name, model_input, prompt_labels, text_input

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from circuits.activations.heldout import HeldoutPass
    from circuits.features.association import Factor
    from circuits.features.collect import Collected
    from circuits.features.saved import Interpretation
    from circuits.model_input import ModelInput
    from circuits.models.load import LM
    from circuits.run.context import Context, Work
    from circuits.sae.modules import SAE

BYTES_A_TOKEN = 8  # of an example in the compressed tables, about


def _out_of_range(feature: int, d_sae: int) -> str:
    return f"interpret.features: feature {feature} is out of range: the SAE has {d_sae} features (0-{d_sae - 1})"


class Interpret(Kind):
    """What the features of an SAE stand for."""

    name = "interpret"
    sections = (
        "model",
        "data",
        "interpret",
        "precision",
        "seed",
        "sae.site",
        "sae.target_site",
        "sae.skip_first",
        "sae.nonfinite",
    )
    work = ("interpret.n_sequences",)
    layers = "each"
    needs = ("tiny", "tokens", "sae", "prompts")
    memory_keys = ("interpret.batch_size", "interpret.max_features", "interpret.top_k", "interpret.window")
    columns = (
        Column("n_features", "features", ",.0f"),
        Column("single_token", "one token", ".1%"),
        Column("significant_features", "associated", ",.0f"),
        Column("significant_share", "tests q < FDR", ".1%"),
        Column("shuffled_share", "labels shuffled", ".2%"),
        Column("replicated", "same sign on test", ".1%"),
    )

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        """The SAE of the layer, the model and its text; the prompts where features are tested on them."""
        tested = [Input("prompts", (), cfg)] if cfg.interpret.associate else []
        return [*model_input(cfg), *text_input(cfg), Input("sae", layers, cfg), *tested]

    def extra(self, cfg: BaseConfig, contents: Contents) -> Mapping[str, Any]:
        """Which sequences may be examples, where they are not all that differ in their text."""
        return {"examples": "pictures with maps"} if cfg.data.source is DataSource.pictures else {}

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``tiny-L2-topk-grammar_agreement``."""
        name = "from" if cfg.sae.from_ else cfg.sae.architecture.value
        tested = f"-{behaviour_name(cfg)}" if cfg.interpret.associate else ""
        return f"{readable(cfg.model.id)}-{layer_name(layers)}-{name}{tested}"

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """Features that the SAE does not have, a labels file that cannot be read."""
        from circuits.features import labels

        errors = []
        width = dims.width_of(cfg.sae.site.value)
        d_sae = None if width is None or cfg.sae.from_ is not None else width * cfg.sae.expansion
        listed = chosen(cfg.interpret)
        if d_sae is not None and listed and listed[-1] >= d_sae:
            errors.append(_out_of_range(listed[-1], d_sae))
        if cfg.interpret.labels is not None:
            for layer in layers:
                try:
                    labels.read(Path(cfg.interpret.labels), layer, d_sae)
                except UserError as e:
                    errors += [f"interpret.labels: {message}" for message in e.messages]
        return list(dict.fromkeys(errors))

    def normal(self, cfg: BaseConfig) -> BaseConfig:
        """Equal results, equal keys: features in any order are one list, and what is not tested has no settings of the test.

        With features named, how many of the most active ones would be taken says nothing.
        """
        given = cfg.interpret
        if (listed := chosen(given)) is not None:
            given = replace(given, features=list(listed), max_features=InterpretConfig().max_features)
        if not given.associate:
            plain = InterpretConfig()
            given = replace(given, **{name: getattr(plain, name) for name in OF_ASSOCIATION})
        return replace(cfg, interpret=given)

    def question(self, cfg: BaseConfig) -> str:
        """What a run asks."""
        tested = (
            f", and which of them tell the factors of {behaviour_name(cfg)} apart" if cfg.interpret.associate else ""
        )
        return f"What do the features of {Path(cfg.model.id).name}'s {cfg.sae.site.value} stand for{tested},"

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """The examples outweigh the rest."""
        given = cfg.interpret
        n = len(chosen(given) or ()) or given.max_features
        return n * given.top_k * (2 * given.window + 1) * BYTES_A_TOKEN, 0

    def run(self, context: Context) -> None:
        """Describe what is missing of the run's layers, then write the labels files of all."""
        super().run(context)
        _write_labels(context)

    def make(self, context: Context, works: Mapping[Any, Work]) -> None:
        """Describe the features of these layers."""
        _make(context, works)

    def load(self, path: Path) -> Interpretation:
        """Features, examples, associations."""
        from circuits.features.saved import Interpretation

        return Interpretation(path)


KIND = Interpret()
run = KIND.run


@dataclass(frozen=True)
class Layer:
    """One layer's SAE, and which of its features are described."""

    sae: SAE
    features: Tensor
    alive: int


def _make(context: Context, works: Mapping[int, Work]) -> None:
    from circuits.features.logits import token_effects, why_none
    from circuits.features.tables import describe, wanted_tokens
    from circuits.features.texts import token_texts

    cfg = context.cfg
    paths = {layer: context.require("sae", layer).path for layer in works}  # before anything is loaded
    stream = _stream(context, sorted(works))
    lm = stream.lm
    with context.phase("loading the SAEs"):
        layers = {layer: _layer(context, path, lm) for layer, path in paths.items()}
    collected, tokens = _collect(context, stream, layers, works)
    read = _read_prompts(context, lm, layers, works)
    site = (cfg.sae.target_site or cfg.sae.site).value
    for layer, work in works.items():
        found, sae = collected[layer], layers[layer].sae
        with context.phase(f"testing the factors, layer {layer}"):
            table, facts = _associate(context, layers[layer], read, layer)
        with context.phase(f"describing the features of layer {layer}"):
            effects = token_effects(lm, sae, layers[layer].features, site, layer, cfg.interpret.n_tokens)
            texts = token_texts(lm.tokenizer, wanted_tokens(tokens, effects))
        meta = {
            "layer": layer,
            "site": cfg.sae.site.value,
            "decoded_site": site,
            "no_token_effects": why_none(lm, site),
            "pool": cfg.interpret.pool.value if cfg.interpret.associate else None,
            **{name: facts[name] for name in ("factors", "left_out")},
        }
        described = describe(found, tokens, texts, effects, table, meta)
        metrics = {
            "layer": layer,
            "site": cfg.sae.site.value,
            "d_sae": sae.cfg.d_sae,
            "n_alive": layers[layer].alive,
            "n_features": len(found.features),
            "n_rows": found.rows,
            "n_sequences": found.sequences,
            "n_repeated": found.repeated,
            "top_k": cfg.interpret.top_k,
            "single_token": described.single_token,
            **{name: value for name, value in facts.items() if name not in ("factors", "left_out")},
        }

        def write(out: Path, described: Any = described, metrics: dict[str, Any] = metrics) -> None:
            described.write(out)
            _thumbnails(context, described.examples, out)
            write_json(out / "metrics.json", metrics)

        artifact = work.commit(write)
        told = f", {metrics['significant_features']:,} of them associated" if cfg.interpret.associate else ""
        context.say(f"layer {layer}: {metrics['n_features']:,} features{told}: {artifact.id}")


def _thumbnails(context: Context, examples: pd.DataFrame, out: Path) -> None:
    """Of pictures: small PNGs of those that examples are from."""
    if context.run.cfg.data.source is not DataSource.pictures:
        return
    from circuits.data.pictures.saved import read, write_thumbnails

    pictures = read(context.require("pictures").path)
    write_thumbnails(pictures, sorted({int(sample) for sample in examples["sample"]}), out / "pictures")


def _stream(context: Context, layers: list[int]) -> HeldoutPass:
    """The model and its held-out text, as activations of `layers`."""
    from circuits.activations.heldout import HeldoutPass

    cfg, lm = context.cfg, context.open_model()
    source = context.token_source(lm)
    return HeldoutPass(
        lm,
        source,
        site=cfg.sae.site.value,
        layers=layers,
        forward_batch=cfg.interpret.batch_size,
        skip_first=cfg.sae.skip_first,
        nonfinite=cfg.sae.nonfinite.value,
    )


def _layer(context: Context, path: Path, lm: LM) -> Layer:
    """An SAE with the features asked for, or the most often active of those that were alive when it was measured."""
    import torch

    from circuits.sae import formats

    given = context.cfg.interpret
    sae, rate = formats.load(path).to(lm.device), formats.firing_rate(path)
    alive = rate > 0
    listed = chosen(given)
    if listed is not None:
        if listed[-1] >= sae.cfg.d_sae:
            raise UserError(_out_of_range(listed[-1], sae.cfg.d_sae))
        features = torch.tensor(listed, dtype=torch.long)
    else:
        order = rate.argsort(descending=True, stable=True)[: int(alive.sum())]
        features = order[: given.max_features].sort().values
    if not len(features):
        raise UserError(f"{path.name}: no feature of this SAE is alive; train it longer (sae.steps)")
    return Layer(sae, features, int(alive.sum()))


def _collect(
    context: Context, stream: HeldoutPass, layers: Mapping[int, Layer], works: Mapping[int, Work]
) -> tuple[dict[int, Collected], ModelInput]:
    """One pass over held-out text for all layers."""
    from circuits.features.collect import Collector, Fresh
    from circuits.model_input import joined

    given = context.cfg.interpret
    collectors = {
        layer: Collector(one.sae, one.features, top_k=given.top_k, window=given.window) for layer, one in layers.items()
    }
    keeper = context.keeper(works, "examples", "reading held-out text", "sequence")
    facts = {"batch": given.batch_size, "sequences": given.n_sequences}
    kept = keeper.begin({layer: {**facts, "features": one.features.tolist()} for layer, one in layers.items()})
    for layer, (tensors, counts) in kept.items():
        collectors[layer].load(tensors, counts)
    fresh, parts, done = Fresh(), [], keeper.start
    if done:  # what was read before: its tokens are shown with the examples, and tell what is new
        before = stream.source.heldout(given.n_sequences).take(slice(0, done))
        fresh(before.ids, before.mask, before.beside)
        parts.append(before)
    for chunk in stream.heldout(given.n_sequences, first=done):
        new = fresh(chunk.tokens.ids, chunk.tokens.mask, chunk.tokens.beside)
        for layer in keeper.behind(done):
            collectors[layer].add(chunk.sites[layer], chunk.keep, new, chunk.tokens.shown)
        parts.append(chunk.tokens.to(new.device))
        done += len(chunk.tokens)
        keeper.step(done, given.n_sequences, lambda layer: collectors[layer].state())
    keeper.end(done, lambda layer: collectors[layer].state())
    if not parts:
        raise UserError(f"{stream.source.name}: no held-out sequence; give more text (data.path)")
    return {layer: collector.result() for layer, collector in collectors.items()}, joined(parts)


@dataclass(frozen=True)
class Read:
    """What the layers' features are on the prompts, and what the prompts are labelled by; empty where nothing is tested."""

    values: dict[int, NDArray[np.float32]]  # by layer [prompts, features]
    factors: list[Factor]
    left_out: dict[str, str]
    train: NDArray[np.bool_]
    n_prompts: int


def _read_prompts(context: Context, lm: LM, layers: Mapping[int, Layer], works: Mapping[int, Work]) -> Read:
    """One pass over the prompts for all layers."""
    import numpy as np

    from circuits.data import prompts
    from circuits.features import association
    from circuits.features.pooling import pooled

    given = context.cfg.interpret
    if not given.associate:
        empty = {layer: np.zeros((0, len(one.features)), np.float32) for layer, one in layers.items()}
        return Read(empty, [], {}, np.zeros(0, dtype=bool), 0)
    found = prompts.read(context.require("prompts").path)
    values = pooled(
        lm,
        {layer: one.sae for layer, one in layers.items()},
        {layer: one.features for layer, one in layers.items()},
        found,
        site=context.cfg.sae.site.value,
        how=given.pool.value,
        skip_first=context.cfg.sae.skip_first,
        batch_size=given.batch_size,
        keeper=context.keeper(works, "prompts", "reading the prompts", "prompt"),
    )
    train = np.array([split == "train" for split in found.splits])
    factors, left_out = association.factors_of(prompt_labels(found.table(), found), train, given.min_prompts)
    for name, why in left_out.items():
        context.say(f"factor {name}: not tested ({why})")
    return Read(values, factors, left_out, train, len(found))


def _associate(context: Context, one: Layer, read: Read, layer: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A layer's table of associations and its summary; empty ones where none is asked for."""
    from circuits.data.seeds import derive_seed
    from circuits.features import association

    given = context.cfg.interpret
    table, summary = association.associate(
        read.values[layer],
        one.features.tolist(),
        read.factors,
        read.train,
        fdr=given.fdr,
        shuffles=given.shuffles,
        seed=derive_seed(context.cfg.seed, "interpret", "shuffle"),
    )
    named = {factor.name: list(factor.levels) for factor in read.factors}
    counts = {"n_prompts": read.n_prompts, "n_train": int(read.train.sum()), "n_factors": len(read.factors)}
    return table, {**summary, **counts, "factors": named, "left_out": read.left_out}


def _write_labels(context: Context) -> None:
    """For each layer a file to edit, with the labels that are given and suggestions beside them."""
    from circuits.features import labels
    from circuits.features.saved import Interpretation

    given = context.cfg.interpret.labels
    for layer in context.layers:
        artifact = context.run.store.find(context.key(layer))
        if artifact is None:
            continue  # conclude() has said so
        known = labels.read(Path(given), layer) if given else {}
        path = context.run.run_dir / f"labels-L{layer}.csv"
        labels.write_template(path, layer, Interpretation(artifact.path).suggestions, known)
        context.say(f"layer {layer}: labels to edit in {path}; shown with interpret.labels=FILE.csv")
