"""``task=crosscoder``: one sparse dictionary for several layers, or for two models, and which of its features are shared.

It is an SAE on rows that stand side by side (:mod:`circuits.activations.joined`), trained by the loop of ``task=sae`` with the
options of the section ``sae``. The artifact's directory is a SAELens directory of that wide SAE; beside the weights it holds
``features.parquet`` (norm in every block, firing rate; of two models relative norm and latent scaling), ``metrics.json`` and
``history.parquet``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError
from circuits.files import known, write_json
from circuits.schema import BaseConfig, Dtype
from circuits.schema.fields import file
from circuits.store.kinds import Column, Input, Layers, Memory, ModelDims
from circuits.store.labels import readable
from circuits.tasks import _sae
from circuits.tasks._sae import joined
from circuits.tasks._sae.kind import Sae, size_problems
from circuits.tasks._sae.source import straight
from circuits.tasks._shared import context_problems, layers_name

if TYPE_CHECKING:
    from circuits.activations.stream import Stream
    from circuits.run.context import Context, Work
    from circuits.sae.crosscoder import Block
    from circuits.sae.modules import SAE

SECTION = "crosscoder"


@dataclass
class Options:
    """What a crosscoder joins."""

    beside: str | None = file(None, "model")  # a second model (directory or hub name) of equal width and tokenizer


class Crosscoder(Sae):
    """One dictionary over a set of layers, of one model or of two."""

    name = "crosscoder"
    version = 1
    sections = ("model", "data", "sae", SECTION, "precision", "seed")
    layers = "set"
    needs = ("tiny", "tokens", "prompts")
    columns = (
        Column("explained_variance", "explained variance", ".3f", "explained_variance_ci"),
        Column("l0", "L0", ".1f"),
        Column("dead_fraction", "dead", ".1%"),
        Column("shared_fraction", "shared", ".1%"),
        Column("exclusive", "exclusive", ",.0f"),
    )

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``tiny-L0-3-batchtopk``, ``tiny-and-tuned-L2-batchtopk``."""
        beside = getattr(cfg, SECTION).beside
        models = readable(cfg.model.id) + (f"-and-{readable(beside)}" if beside else "")
        return f"{models}{layers_name(layers)}-{cfg.sae.architecture.value}"

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """What cannot be joined."""
        sae, given, errors = cfg.sae, getattr(cfg, SECTION), []
        width = dims.width_of(sae.site.value)
        if len(layers) < 2 and given.beside is None:
            errors.append(
                f"layer={layers[0]}: a crosscoder joins several layers (layer=0-3), or two models (crosscoder.beside=…)"
            )
        for name, value, hint in (
            ("from", sae.from_, "task=sae measures SAEs that exist"),
            ("target_site", sae.target_site, "task=sae trains transcoders"),
        ):
            if value is not None:
                errors.append(f"sae.{name}: not of a crosscoder; {hint}")
        errors += joined.problems(sae)
        if width is not None:
            errors += size_problems(sae, width)
            errors += _beside_problems(given.beside, sae.site.value, width, layers)
        return errors + context_problems(cfg, dims)

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        """The model and its text."""
        return [one for one in super().inputs(cfg, layers) if one.kind != "activations"]

    def question(self, cfg: BaseConfig) -> str:
        """What a sweep of crosscoders asks."""
        beside = getattr(cfg, SECTION).beside
        whose = Path(cfg.model.id).name + (f" and {Path(beside).name}" if beside else "")
        return f"Which features of {cfg.sae.site.value} are shared, in {whose}"

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """As many times an SAE's as there are layers at most."""
        return tuple(_blocks(cfg, range(dims.depth or 1)) * size for size in super().bytes(cfg, dims))  # type: ignore[return-value]

    def memory(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> Memory | None:
        """The models, and one wide SAE with its rows."""
        from circuits.models.identify import parameters
        from circuits.sae.memory import training

        sae, width = cfg.sae, dims.width_of(cfg.sae.site.value)
        if width is None:
            return None
        wide = 4 if cfg.precision.dtype is Dtype.fp32 else 2
        model = None if cfg.model.embedded is not None else parameters(cfg.model.id, cfg.model.revision)
        blocks = _blocks(cfg, layers)
        need = training(
            blocks * width,
            sae.expansion * width,
            sae.batch_size,
            architecture=sae.architecture.value,
            best=sae.patience is not None,
            parts=sae.accumulate,
            baselines=sae.baselines,
            measured=sae.forward_batch * cfg.data.context,
            block_rows=sae.block_rows,
            row_bytes=wide,
        )
        models = 2 if getattr(cfg, SECTION).beside else 1
        what = f"crosscoder of {need.parameters / 1e6:.1f} M parameters"
        return Memory(need.fixed + models * wide * (model or 0), need.each, need.beside, need.beside_each, 1, what)

    def together(self, cfg: BaseConfig) -> str | None:
        """Each by itself."""
        return None

    def make(self, context: Context, works: Mapping[Any, Work]) -> None:
        """Train, measure and publish it."""
        first = min(context.layers)
        _sae.make_joined(_sae.Member(context, {first: works[None]}, open=_open, publish=_publish))


KIND = Crosscoder()
run = KIND.run


def _blocks(cfg: BaseConfig, layers: Sequence[int]) -> int:
    return len(layers) * (2 if getattr(cfg, SECTION).beside else 1)


def _beside_problems(beside: str | None, site: str, width: int, layers: Layers) -> list[str]:
    if beside is None:
        return []
    from circuits.models.identify import inspect_model
    from circuits.models.sites import site_width

    try:
        dims = inspect_model(beside, None).dims
    except UserError as e:
        return [f"crosscoder.beside={beside}: {message}" for message in e.messages]
    if (found := site_width(dims, site)) != width:
        return [f"crosscoder.beside={beside}: {found} wide at {site}, the model {width}; equal widths are joined"]
    if max(layers) >= dims.layers:
        return [f"crosscoder.beside={beside}: has {dims.layers} layers, layer={max(layers)} is asked"]
    return []


def _open(context: Context, _: list[int]) -> Stream:
    """The activations of all layers, of one model or of two, side by side."""
    from circuits.activations.joined import JoinedStream
    from circuits.models.load import asked_model
    from circuits.store.contents import NamedModel

    cfg, lms = context.cfg, [context.open_model()]
    if (beside := getattr(cfg, SECTION).beside) is not None:
        with context.phase("loading the second model"):
            precision = cfg.precision
            lms.append(
                asked_model(
                    beside,
                    context.run.contents.model(NamedModel(beside)).facts.revision,
                    precision=precision.dtype.value,
                    matmul=precision.matmul.value,
                    device=cfg.model.device,
                    allow_fallback=cfg.model.allow_fallback,
                    say=context.say,
                )
            )
    return JoinedStream([straight(context, lm, context.layers) for lm in lms])


def _publish(
    member: _sae.Member,
    saes: Mapping[int, SAE],
    controls: Mapping[int, Mapping[str, SAE]],
    stream: Stream,
    steps: Mapping[int, tuple[int, int]],
) -> None:
    """Measure on held-out text, and publish."""
    from circuits.sae import formats
    from circuits.sae.crosscoder import Measured

    context, (first, sae) = member.context, next(iter(saes.items()))
    cfg, work = context.cfg, member.works[first]
    blocks = _layout(context, sae)
    measured = {"trained": Measured(sae, blocks)}
    measured |= {name: Measured(one, blocks) for name, one in controls[first].items()}
    joined.measure(context, work, stream, measured)
    with context.run.stop.cutting():
        table, facts = _features(sae, blocks, measured["trained"])
        metrics = _metrics(context, sae, blocks, measured, steps[first]) | facts

    def write(out: Path) -> None:
        metadata = {
            "model_name": cfg.model.id,
            "layers": list(context.layers),
            "context_size": cfg.data.context,
            "blocks": [{"model": b.model, "layer": b.layer, "scale": b.scale} for b in blocks],
        }
        formats.save(out, sae, metadata, firing_rate=(measured["trained"].fired / metrics["n_rows"]).float().cpu())
        table.to_parquet(out / "features.parquet", index=False)
        write_json(out / "metrics.json", known(metrics))
        member.histories[first].write(out)

    artifact = work.commit(write, measured=["history.parquet"])
    joined.say_left_out(context, metrics)
    context.say(
        f"explained variance {metrics['explained_variance']:.3f}, L0 {metrics['l0']:.1f}, exclusive features "
        f"{metrics['exclusive']} of {metrics['seemingly_exclusive']} that seem so: {artifact.id}"
    )


def _layout(context: Context, sae: SAE) -> list[Block]:
    """The blocks of a row: all layers of the model, then those of the one beside it."""
    from circuits.sae.crosscoder import Block

    layers, scales = context.layers, sae.block_scales
    return [Block(n // len(layers), layers[n % len(layers)], scale) for n, scale in enumerate(scales)]


def _features(sae: SAE, blocks: list[Block], measured: Any) -> tuple[Any, dict[str, Any]]:
    """A row a feature, and how many are whose."""
    import numpy as np
    import pandas as pd

    from circuits.sae import crosscoder

    norms = crosscoder.norms(sae, blocks)
    rows, _, _ = measured.counts
    alive = measured.fired.cpu().numpy() > 0
    share = norms**2 / np.clip((norms**2).sum(0), 1e-30, None)
    names = [f"norm_{'AB'[b.model]}_L{b.layer}" if measured.two else f"norm_L{b.layer}" for b in blocks]
    table = pd.DataFrame({"feature": np.arange(sae.cfg.d_sae), "firing_rate": measured.fired.cpu().numpy() / rows})
    for name, column in zip(names, norms, strict=True):
        table[name] = column
    table["largest_share"] = share.max(0)
    if not measured.two:
        seems = share.max(0) > 0.9
        facts = {"shared_fraction": float((~seems[alive]).mean()), "seemingly_exclusive": int(seems[alive].sum())}
        return table, facts | {"exclusive": int(seems[alive].sum())}
    relative = crosscoder.relative_norm(norms, blocks)
    errors, reconstructions = measured.latent_scaling()
    seems, exclusive = crosscoder.exclusive(relative, errors, reconstructions)
    table["relative_norm"], table["nu_error"], table["nu_reconstruction"] = relative, errors, reconstructions
    table["seems_exclusive"], table["exclusive"] = seems, exclusive
    counted = exclusive & alive
    return table, {
        "shared_fraction": float((~seems[alive]).mean()),
        "seemingly_exclusive": int((seems & alive).sum()),
        "exclusive": int(counted.sum()),
        "exclusive_a": int((counted & (relative < 0.5)).sum()),
        "exclusive_b": int((counted & (relative > 0.5)).sum()),
    }


def _metrics(
    context: Context, sae: SAE, blocks: list[Block], measured: Mapping[str, Any], steps: tuple[int, int]
) -> dict[str, Any]:
    found = {}
    for name, one in measured.items():
        by_block, mean, interval = one.explained_variance(context.cfg.seed)
        rows, sequences, l0 = one.counts
        found[name] = {
            "explained_variance": mean,
            "explained_variance_ci": interval,
            "explained_variance_by_block": by_block.tolist(),
            "l0": l0,
            "dead_fraction": float((one.fired == 0).double().mean()),
            **one.left_out.metrics(rows, one.total_squares),
        }
    baselines = {name: facts for name, facts in found.items() if name not in ("trained", "untrained")}
    return {
        **found["trained"],
        "control": found["untrained"],
        **({"baselines": baselines} if baselines else {}),
        "blocks": [{"model": "AB"[b.model], "layer": b.layer, "scale": b.scale} for b in blocks],
        "architecture": context.cfg.sae.architecture.value,
        "site": context.cfg.sae.site.value,
        "n_rows": rows,
        "n_sequences": sequences,
        "d_in": sae.cfg.d_in,
        "d_sae": sae.cfg.d_sae,
        "steps": steps[0],
    }
