"""Measure SAEs on held-out text, and publish one artifact per layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from circuits.files import write_json
from circuits.run import tracked
from circuits.tasks._sae.member import Member

if TYPE_CHECKING:
    from pathlib import Path

    from circuits.activations.stream import Stream
    from circuits.run.context import Context
    from circuits.sae.history import History
    from circuits.sae.modules import SAE


def publish(
    member: Member,
    saes: Mapping[int, SAE],
    controls: Mapping[int, Mapping[str, SAE]],
    stream: Stream,
    steps: Mapping[int, tuple[int, int]],
) -> None:
    """Measure on held-out text, all layers in one pass, and publish one artifact per layer.

    `steps`: after how many the weights of a layer were as they are, and after how many its training ended.
    """
    from circuits.sae import massive
    from circuits.sae.evaluate import measure

    context, histories = member.context, member.histories

    cfg = context.cfg
    keeper = context.keeper({layer: member.works[layer] for layer in saes}, "measured", "measuring", "sequence")
    measured = measure(
        stream,
        saes,
        controls,
        n_sequences=cfg.sae.heldout_sequences,
        seed=cfg.seed,
        keeper=keeper,
        massive=None if cfg.sae.from_ is None else cfg.sae.massive,
    )
    dropped = {
        "rows": sum(record["rows"] for record in stream.dropped.values()),
        "heldout_rows": stream.heldout_dropped,
    }
    for layer, work in ((layer, member.works[layer]) for layer in saes):
        metrics, sae = measured[layer][0], saes[layer]
        kept, trained = steps[layer]
        metrics |= {
            "architecture": sae.architecture if cfg.sae.from_ else cfg.sae.architecture.value,
            "site": cfg.sae.site.value,
            "target_site": cfg.sae.target_site.value if cfg.sae.target_site else None,
            "layer": layer,
            "steps": kept,
            **({"skip": True} if sae.cfg.skip else {}),
            **({"steps_trained": trained} if trained != kept else {}),
            "d_in": sae.cfg.d_in,
            "d_sae": sae.cfg.d_sae,
            "passes": stream.passes(trained),
        }

        def write(out: Path, layer: int = layer) -> None:
            _write(context, out, layer, saes, measured, stream, histories)

        artifact = work.commit(write, dropped=dropped, measured=["history.parquet"])  # its rates are the clock's
        tracked.publish(context.run, context.kind, work.key, artifact, layer, metrics)
        if left_out := massive.sentence(metrics):
            context.say(f"layer {layer}: {left_out}")
        context.say(
            f"layer {layer}: explained variance {metrics['explained_variance']:.3f}, L0 {metrics['l0']:.1f}: {artifact.id}"
        )


def _write(
    context: Context,
    out: Path,
    layer: int,
    saes: Mapping[int, SAE],
    measured: Mapping[int, Any],
    stream: Stream,
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
