"""What an artifact's W&B run says of it: the config that made it, what was swept, tags to find it by, its per-prompt table.

One run per element and layer. A fresh artifact and one from the store are told by the same functions, so that a sweep looks
the same however much of it was cached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from circuits.run import registry, status
from circuits.run.kinds import Kind
from circuits.schema import BaseConfig

if TYPE_CHECKING:
    from circuits.run.context import Context
    from circuits.run.store import Artifact
    from circuits.run.tracking import Tracker

TABLE = "per_prompt.parquet"
ROWS = 1000  # of a table; the artifact has all
TAG = 64  # characters that W&B takes


def config(kind: Kind, cfg: BaseConfig, swept: Mapping[str, str], **facts: Any) -> dict[str, Any]:
    """The resolved sections that `kind` and its inputs read, what was swept, and `facts` of the artifact."""
    from omegaconf import OmegaConf

    read = {section.split(".")[0] for section in registry.reads(kind.name)} - {"layer"}
    tree = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(cfg), enum_to_str=True))
    return {"task": kind.name, **{k: v for k, v in tree.items() if k in read}, "swept": dict(swept), **facts}


def tags(kind: Kind, cfg: BaseConfig, layer: int | None) -> list[str]:
    """Task, model, behaviour (where its prompts are what is measured) and layer."""
    found = [kind.name, cfg.model.id.rsplit("/", 1)[-1]]
    if kind.name == "prompts" or "prompts" in kind.inputs(cfg):
        found.append(Path(cfg.behaviour.path).stem if cfg.behaviour.path else cfg.behaviour.name)
    return [tag[:TAG] for tag in [*found, *([] if layer is None else [f"L{layer}"])]]


def publish(context: Context, artifact: Artifact, key: str, layer: int | None, metrics: Mapping[str, Any]) -> None:
    """The whole W&B run of an artifact that this run has made, in one go."""
    run, kind = context.run, context.kind
    shown = {**metrics, **kind.derived(run.cfg, metrics)}
    given = config(kind, run.cfg, run.swept, artifact=artifact.id)
    tell(run.tracker, run.name, key, layer, shown, given, tags(kind, run.cfg, layer), artifact.path)


def tell(
    tracker: Tracker,
    name: str,
    key: str,
    layer: int | None,
    metrics: Mapping[str, Any],
    given: Mapping[str, Any],
    own_tags: Sequence[str],
    artifact: Path,
) -> None:
    """A run from its beginning to its end: config, a row with the numbers, the per-prompt table where there is one, the summary."""
    place = {} if layer is None else {"layer": layer}
    site = {"site": metrics["site"]} if "site" in metrics else {}
    full = "/".join([name, *([] if layer is None else [f"L{layer}"]), *site.values()])
    tracker.start(layer, key, full, {**given, **place, **site}, own_tags)
    row = {k: v for k, v in status.numbers(metrics).items() if k != "layer"}
    tracker.log(int(metrics.get("steps") or 0), {**site, **row}, layer)
    if (artifact / TABLE).exists():
        tracker.table("per_prompt", artifact / TABLE, layer, ROWS)
    tracker.summary(metrics, layer)
