"""``task=sae``: a sparse autoencoder per layer, trained on activations straight from the model, measured on held-out text.

One forward pass serves all layers of the run. With ``sae.source=store`` training reads an ``activations`` artifact instead, and
the model serves only the measurement, on the same held-out text. The artifact's directory is itself a SAELens directory; beside
the weights it holds ``metrics.json`` (held-out), ``history.parquet`` (training curves) and the resolved config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import Damaged, GateError, UserError
from circuits.files import write_json
from circuits.run import registry
from circuits.run.content import Contents
from circuits.run.context import Context, Work
from circuits.run.kinds import Column, Kind, ModelDims, readable
from circuits.schema import BaseConfig, DataSource, NonFinitePolicy, SaeConfig, stored
from circuits.schema.sae import READ_BY, at_sparsity

if TYPE_CHECKING:
    from circuits.data.stored import StoredStream
    from circuits.data.stream import ActivationStream
    from circuits.data.tokens import TokenSource
    from circuits.models.load import LM
    from circuits.sae.history import History
    from circuits.sae.modules import SAE
    from circuits.sae.spec import TrainSpec


def inputs(cfg: BaseConfig) -> tuple[str, ...]:
    """The embedded model where it is the model; the tokenised corpus where there is one; the stored activations."""
    names = ["tiny"] if cfg.model.embedded is not None else []
    names += ["tokens"] if cfg.data.source is not DataSource.embedded else []
    return (*names, "activations") if stored.read(cfg) else tuple(names)


def words(cfg: BaseConfig, name: str) -> Mapping[str, str]:
    """What makes the store that this SAE is trained from, whatever the section ``activations`` says."""
    store = stored.section(cfg)
    skip = {"activations.skip_first": str(store.skip_first)} if store.skip_first != 1 else {}
    return {"activations.source": store.source.value, "activations.site": str(store.site), **skip}


def extra(cfg: BaseConfig, contents: Contents) -> Mapping[str, Any]:
    """The embedded generator's identity, where it is the data."""
    if cfg.data.source is not DataSource.embedded:
        return {}
    from circuits.data import mixture

    return {"mixture": contents.once("mixture", mixture.fingerprint)}


def label(cfg: BaseConfig, layers: tuple[int, ...]) -> str:
    """``tiny-L0-topk``."""
    layer = f"L{layers[0]}" if layers else "L"
    name = "from" if cfg.sae.from_ else cfg.sae.architecture.value
    return f"{readable(cfg.model.id)}-{layer}-{name}" + ("" if cfg.sae.target_site is None else "-transcoder")


def normal(cfg: BaseConfig) -> BaseConfig:
    """Equal results, equal keys: a cap beyond the schedule is none, and an SAE that is taken over is not trained.

    An SAE from a store has that store as its input, whatever site and source the section ``activations`` names.
    """
    sae = at_sparsity(cfg.sae)
    if stored.read(cfg):
        cfg = replace(cfg, activations=stored.section(cfg))
    if sae.max_steps is not None and sae.max_steps >= sae.steps:
        sae = replace(sae, max_steps=None)
    if sae.from_ is not None:
        kept = (
            "site",
            "target_site",
            "from_",
            "block_rows",
            "forward_batch",
            "skip_first",
            "heldout_sequences",
            "nonfinite",
        )
        sae = replace(SaeConfig(), **{name: getattr(sae, name) for name in kept})
    return replace(cfg, sae=sae)


def check(cfg: BaseConfig, dims: ModelDims, layers: tuple[int, ...]) -> list[str]:
    """Sizes that do not fit the model, a corpus or an SAE that cannot be read."""
    errors = []
    width = dims.width_of(cfg.sae.site.value)
    if cfg.sae.from_ is not None:
        from circuits.sae.directory import problems

        target = cfg.sae.target_site
        widths = (width, None if target is None else dims.width_of(target.value))
        found = problems(Path(cfg.sae.from_), *widths, transcodes=target is not None)
        errors += [f"sae.from={cfg.sae.from_}: {problem}" for problem in found]
    elif width is not None:
        errors += _size_problems(cfg.sae, width)
    if dims.context is not None and cfg.data.context > dims.context:
        errors.append(f"data.context={cfg.data.context}: more than the model's {dims.context} positions")
    if cfg.sae.nonfinite is NonFinitePolicy.drop and len(layers) > 1:
        errors.append(
            "sae.nonfinite=drop: one layer a run (a row dropped for one would be missing in the others); sweep over layers"
        )
    if cfg.data.path is not None:
        from circuits.data.corpora import problems as corpus_problems

        errors += corpus_problems(cfg.data.source.value, cfg.data.path, cfg.data.field or "text", cfg.data.split)
    return errors + (_store_problems(cfg, dims, width, layers) if stored.read(cfg) else stored.unread(cfg))


def _store_problems(cfg: BaseConfig, dims: ModelDims, width: int | None, layers: tuple[int, ...]) -> list[str]:
    """A store that this SAE cannot be trained from. How many rows it really has is seen when it is there."""
    given = stored.section(cfg)
    found = registry.kind("activations").check(replace(cfg, activations=given), dims, layers)
    return found + stored.problems(cfg, given, width)


def _size_problems(sae: SaeConfig, width: int) -> list[str]:
    """Options that do not fit the dictionary's size."""
    sae = at_sparsity(sae)
    d_sae, errors = sae.expansion * width, []
    made = f"d_sae={d_sae} (sae.expansion={sae.expansion} × width {width})"
    if sae.k is not None and sae.k > d_sae:
        errors.append(f"sae.k={sae.k}: more than {made}")
    if sae.groups is not None and d_sae % 2 ** (sae.groups - 1):
        most = (d_sae & -d_sae).bit_length()
        errors.append(
            f"sae.groups={sae.groups}: {made} cannot be halved {sae.groups - 1} times; at most sae.groups={most}"
        )
    return errors


def gate(cfg: BaseConfig, metrics: Mapping[str, Any]) -> str | None:
    """``sae.min_r2``: held-out explained variance must exceed it."""
    bound, found = cfg.sae.min_r2, metrics["explained_variance"]
    if bound is None or found > bound:
        return None
    return (
        f"layer {metrics['layer']}: held-out explained variance {found:.3f} does not exceed sae.min_r2={bound}; "
        "raise sae.steps, sae.k or sae.expansion"
    )


def question(cfg: BaseConfig) -> str:
    """What a sweep of SAEs asks."""
    data = Path(cfg.data.path).name if cfg.data.path else f"{cfg.data.source.value} text"
    steps = min(cfg.sae.steps, cfg.sae.max_steps or cfg.sae.steps)
    trained = f"{cfg.sae.architecture.value} sparse autoencoders, trained for {steps:,} steps on {data},"
    what = (
        cfg.sae.site.value if cfg.sae.target_site is None else f"{cfg.sae.target_site.value} from {cfg.sae.site.value}"
    )
    return f"How well do {trained} reconstruct {what} of {Path(cfg.model.id).name}"


def needed_bytes(cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
    """Float32 weights; checkpoints with two Adam moments each (and the best weights), one more than are kept."""
    width = dims.width_of(cfg.sae.site.value) or 0
    out = width if cfg.sae.target_site is None else dims.width_of(cfg.sae.target_site.value) or 0
    weights = 4 * (width + out) * width * cfg.sae.expansion
    copies = 3 if cfg.sae.patience is None else 4
    return weights, copies * weights * (cfg.sae.checkpoint_keep + 1)


KIND = Kind(
    name="sae",
    version=2,
    sections=("model", "data", "sae", "precision", "seed"),
    label=label,
    layers="each",
    inputs=inputs,
    may_need=("tiny", "tokens", "activations"),
    through={"activations": ("tiny", "tokens")},
    words=words,
    extra=extra,
    load="circuits.sae.formats:load",
    bytes=needed_bytes,
    check=check,
    normal=normal,
    gate=gate,
    question=question,
    memory_keys=("sae.block_rows", "sae.forward_batch", "sae.batch_size", "sae.expansion"),
    columns=(
        Column("explained_variance", "explained variance", ".3f", "explained_variance_ci"),
        Column("l0", "L0", ".1f"),
        Column("dead_fraction", "dead", ".1%"),
        Column("ce_score", "CE score", ".3f"),
    ),
)


def run(context: Context) -> None:
    """Make what is missing of the run's layers, then show all of them."""
    while missing := context.missing():
        with context.making(missing) as works:
            if works:
                _make(context, works)
    refusals = context.conclude()
    if refusals:
        raise GateError("; ".join(refusals))


def _make(context: Context, works: dict[int, Work]) -> None:
    """Train (or take over) the SAEs of these layers, measure and publish them."""
    from circuits.sae.history import History

    cfg = context.cfg
    stream = _stream(context, sorted(works))
    histories = {layer: History(work.partial, cfg.sae.batch_size) for layer, work in works.items()}
    if cfg.sae.from_ is not None:
        from circuits.sae import formats

        taken = {layer: formats.load(Path(cfg.sae.from_)).to(stream.lm.device) for layer in works}
        _publish(context, works, taken, {}, stream, histories)
        return
    from circuits.sae.loop import train, validation_rows

    specs = {layer: _spec(context, stream, layer) for layer in works}
    saved = _saved(context, works, stream)
    for layer, work in works.items():
        try:
            histories[layer].resume(saved[layer][1]["step"] if layer in saved else 0)
        except Damaged as e:
            context.say(f"damaged training curve: {e}")
        name = f"{context.run.name}/L{layer}"
        context.run.tracker.start(
            layer, work.key.hash, name, {"layer": layer, "artifact": work.key.id, **specs[layer].as_dict()}
        )
    steps = min(cfg.sae.steps, cfg.sae.max_steps or cfg.sae.steps)
    validation = {}
    if cfg.sae.patience is not None:
        validation = validation_rows(stream, cfg.sae.heldout_sequences, cfg.sae.validation_sequences)
    trained = train(stream, specs, saved, _hooks(context, works, histories, stream, steps), steps, validation)
    if trained is None:
        context.stop_here()
        return
    for layer, trainer in trained.items():
        if trainer.finished and trainer.best is not None:
            best = trainer.best
            context.say(
                f"layer {layer}: stopped at step {trainer.step}; best at {best.step} (unexplained {best.loss:.5f})"
            )
    saes = {layer: trainer.export() for layer, trainer in trained.items()}
    untrained = {layer: trainer.untrained().export() for layer, trainer in trained.items()}
    _publish(context, works, saes, untrained, stream, histories)


def _stream(context: Context, layers: list[int]) -> ActivationStream:
    """The model and the data of this config, as activations of `layers`."""
    import torch

    from circuits.data.embedded import EmbeddedSource
    from circuits.data.stream import ActivationStream
    from circuits.data.textstore import TextStore
    from circuits.models.load import kept_model, pick_device

    cfg = context.cfg
    torch.backends.cuda.matmul.allow_tf32 = cfg.precision.matmul.value == "high"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[cfg.precision.dtype.value]
    device = pick_device(cfg.model.device, cfg.model.allow_fallback)
    if stored.read(cfg):  # a missing one is told before anything is loaded
        for layer in layers:
            context.require("activations", layer)
    context.progress("loading the model", 0, None)
    name, revision = context.model_files()
    lm = kept_model(name, revision=revision, dtype=dtype, device=device, say=context.say)
    if cfg.data.source is DataSource.embedded:
        source: TokenSource = EmbeddedSource(lm.tokenizer, cfg.seed, cfg.data.context)
    else:
        source = TextStore(context.require("tokens").path, seed=cfg.seed)
    given: dict[str, Any] = {
        "site": cfg.sae.site.value,
        "layers": layers,
        "batch_size": cfg.sae.batch_size,
        "forward_batch": cfg.sae.forward_batch,
        "seed": cfg.seed,
        "skip_first": cfg.sae.skip_first,
        "nonfinite": cfg.sae.nonfinite.value,
    }
    if stored.read(cfg):
        return _stored_stream(context, lm, source, given)
    target = None if cfg.sae.target_site is None else cfg.sae.target_site.value
    return ActivationStream(lm, source, block_rows=cfg.sae.block_rows, target=target, **given)


def _stored_stream(context: Context, lm: LM, source: TokenSource, given: dict[str, Any]) -> StoredStream:
    """The stores of these layers, to train from; the model is for the measurement."""
    from circuits.data.activations import ActivationStore
    from circuits.data.stored import StoredStream

    sae = context.cfg.sae
    artifacts = {layer: context.require("activations", layer) for layer in given["layers"]}
    stores = {layer: ActivationStore(artifact.path) for layer, artifact in artifacts.items()}
    contents = {layer: artifact.content for layer, artifact in artifacts.items()}
    stream = StoredStream(lm, source, stores, contents, ram_bytes=round(sae.ram * 1e9), **given)
    if problems := stored.few(stream.n_rows, stream.width, sae.allow_small):
        raise UserError(problems)
    gigabytes = sum(store.values.nbytes for store in stores.values()) / 1e9
    context.say(f"training from {len(stores)} stores of {stream.n_rows:,} rows, {gigabytes:.2f} GB")
    return stream


def _spec(context: Context, stream: ActivationStream, layer: int) -> TrainSpec:
    from circuits.sae.spec import TrainSpec

    sae = at_sparsity(context.cfg.sae)
    given = {name: getattr(sae, name) for name in (*READ_BY, "patience")}
    return TrainSpec(
        architecture=sae.architecture.value,
        d_in=stream.width,
        d_sae=stream.width * sae.expansion,
        lr=sae.lr,
        batch_size=sae.batch_size,
        steps=sae.steps,
        warmup=sae.warmup,
        decay=sae.decay,
        clip=sae.clip,
        dead_after=sae.dead_after,
        seed=context.cfg.seed,
        layer=layer,
        d_out=stream.target_width,
        normalize=sae.normalize.value,
        accumulate=sae.accumulate,
        min_delta=sae.min_delta,
        validate_every=sae.validate_every,
        **{name: value for name, value in given.items() if value is not None},
    )


def _saved(context: Context, works: Mapping[int, Work], stream: ActivationStream) -> dict[int, Any]:
    """The newest whole checkpoint of each layer; a damaged one is named and the one before it is taken."""
    from circuits.sae import checkpoint

    found = {}
    for layer, work in works.items():
        latest = checkpoint.latest(
            work.partial, lambda path, why: context.say(f"damaged checkpoint: {why}; the one before it is used")
        )
        if latest is None:
            continue
        if latest.meta["stream"] != stream.facts_of(layer):
            context.say(f"{latest.path}: made from other rows; layer {layer} starts anew")
            continue
        context.say(f"layer {layer}: resumed at step {latest.meta['step']}")
        found[layer] = (latest.tensors, latest.meta)
        stream.dropped.update({int(block): record for block, record in latest.meta["dropped"].items()})
    return found


def _hooks(
    context: Context, works: Mapping[int, Work], histories: Mapping[int, History], stream: ActivationStream, steps: int
) -> Any:
    from circuits.sae import checkpoint
    from circuits.sae.loop import Hooks

    sae = context.cfg.sae

    def log(layer: int, step: int, metrics: dict[str, float]) -> None:
        histories[layer].add(step, metrics)
        context.run.tracker.log(step, metrics, layer)
        context.progress("training", step, steps, "step", EV=metrics["explained_variance"], L0=metrics["l0"])

    def save(layer: int, step: int, tensors: dict[str, Any], meta: dict[str, Any]) -> None:
        directory = works[layer].partial
        histories[layer].save()
        dropped = {str(block): record for block, record in stream.dropped.items()}
        checkpoint.save(
            checkpoint.path_for(directory, step),
            tensors,
            {**meta, "stream": stream.facts_of(layer), "dropped": dropped},
        )
        checkpoint.prune(directory, sae.checkpoint_keep)

    return Hooks(
        log=log,
        save=save,
        stopping=lambda: context.stopping is not None,
        log_every=sae.log_every,
        save_every=sae.checkpoint_every,
        save_minutes=sae.checkpoint_minutes,
    )


def _publish(
    context: Context,
    works: Mapping[int, Work],
    saes: Mapping[int, SAE],
    untrained: Mapping[int, SAE],
    stream: ActivationStream,
    histories: Mapping[int, History],
) -> None:
    """Measure on held-out text, all layers in one pass, and publish one artifact per layer."""
    from circuits.sae.evaluate import measure

    def progress(done: int, total: int) -> None:
        context.progress("measuring", done, total, "sequence")

    cfg = context.cfg
    measured = measure(stream, saes, untrained, n_sequences=cfg.sae.heldout_sequences, seed=cfg.seed, progress=progress)
    dropped = {
        "rows": sum(record["rows"] for record in stream.dropped.values()),
        "heldout_rows": stream.heldout_dropped,
    }
    for layer, work in works.items():
        metrics, sae = measured[layer][0], saes[layer]
        steps = histories[layer].steps
        metrics |= {
            "architecture": sae.architecture if cfg.sae.from_ else cfg.sae.architecture.value,
            "site": cfg.sae.site.value,
            "target_site": cfg.sae.target_site.value if cfg.sae.target_site else None,
            "layer": layer,
            "steps": steps,
            "d_in": sae.cfg.d_in,
            "d_sae": sae.cfg.d_sae,
            "passes": stream.passes(steps),
        }

        def write(out: Path, layer: int = layer) -> None:
            _write(context, out, layer, saes, measured, stream, histories)

        artifact = work.commit(write, dropped=dropped)
        context.run.tracker.summary(metrics, layer)
        context.say(
            f"layer {layer}: explained variance {metrics['explained_variance']:.3f}, L0 {metrics['l0']:.1f}: {artifact.id}"
        )


def _write(
    context: Context,
    out: Path,
    layer: int,
    saes: Mapping[int, SAE],
    measured: Mapping[int, Any],
    stream: ActivationStream,
    histories: Mapping[int, History],
) -> None:
    """The files of one artifact: a SAELens directory, the metrics and the training curve."""
    from circuits.models.sites import hook_name
    from circuits.sae import formats

    cfg = context.cfg
    metrics, firing = measured[layer]
    metadata = {
        "model_name": cfg.model.id,
        "hook_name": hook_name(cfg.sae.site.value, layer),
        "context_size": cfg.data.context,
        "prepend_bos": stream.lm.tokenizer.bos_token_id is not None,
        "dataset_path": cfg.data.path or cfg.data.source.value,
        "l0": metrics["l0"],
        **({"hook_name_out": hook_name(cfg.sae.target_site.value, layer)} if cfg.sae.target_site else {}),
    }
    formats.save(out, saes[layer], metadata, firing_rate=firing)
    write_json(out / "metrics.json", metrics)
    histories[layer].write(out)
