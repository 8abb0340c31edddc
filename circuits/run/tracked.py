"""What an artifact's W&B run says of it: the config that made it, what was swept, tags to find it by, its per-prompt table.

One run per element and artifact, its job type the task. Whatever a task makes or finds is told when the task concludes
(:meth:`circuits.run.context.Context.conclude`), fresh artifacts and those from the store by the same functions, so that a sweep
looks the same however much of it was cached. A task that trains opens its runs earlier, by :func:`begin`, and logs into them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.run import config, private, provenance, status
from circuits.schema import BaseConfig
from circuits.store import inputs, places
from circuits.store.keys import Key
from circuits.store.kinds import Kind
from circuits.store.labels import behaviour_name

if TYPE_CHECKING:
    from circuits.run.parts import Run
    from circuits.run.tracking import Tracker
    from circuits.store.store import Artifact

TABLE = "per_prompt.parquet"
ROWS = 1000  # of a table; the artifact has all
TAG = 64  # characters that W&B takes
PRIVATE = ("user", "cluster.environment", "cluster.setup", "cluster.mail")  # nobody compares by them


def settings(
    kind: Kind, cfg: BaseConfig, sweep: str, overrides: Iterable[str], swept: Iterable[str], **facts: Any
) -> dict[str, Any]:
    """The W&B config of one artifact, nested as on the command line: ``sae.k=64`` is found as ``sae.k``.

    It holds every section that `kind` and its inputs read under `cfg`, whatever else was typed, what was `swept` and its values,
    and `facts`. A choice from a group (``sae=relu``) stands under ``choices``: the group's name is that of its section.
    """
    tree = {**private.hidden(config.plain(cfg)), "choices": _choices(overrides)}
    typed, varied = ([_path(word.partition("=")[0]) for word in words] for words in (overrides, swept))
    shown = [path for path in typed if not any(path == p or path.startswith(f"{p}.") for p in PRIVATE)]
    read = sorted(inputs.sections(kind, cfg))
    found = _picked(tree, ["task.name", *read, *shown])
    return {**found, "sweep": sweep, "swept": _picked(tree, varied), "code": provenance.code(), **facts}


def _choices(overrides: Iterable[str]) -> dict[str, str]:
    """What was chosen from config groups, by group."""
    words = (word.partition("=") for word in overrides)
    return {key: value for key, _, value in words if key in places.config_groups()}


def _path(key: str) -> str:
    """Where what was typed as `key` stands."""
    return f"choices.{key}" if key in places.config_groups() else key


def _picked(tree: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """The part of `tree` at these dotted paths; one that leads nowhere is left out (an option of Hydra's own)."""
    found: dict[str, Any] = {}
    for path in sorted(set(paths)):
        value: Any = tree
        for name in path.split("."):
            value = value.get(name, ...) if isinstance(value, Mapping) else ...
        if value is ...:
            continue
        *parents, last = path.split(".")
        into: Any = found
        for name in parents:
            into = into.setdefault(_name(name), {})
        into.setdefault(_name(last), _named(value))  # a section comes before its members, and has them
    return found


def _named(value: Any) -> Any:
    """Keys as they are typed."""
    return {_name(key): _named(member) for key, member in value.items()} if isinstance(value, Mapping) else value


def _name(field: str) -> str:
    """``from`` is a Python keyword, so that its field is ``from_``."""
    return field.rstrip("_")


def tags(kind: Kind, cfg: BaseConfig, layer: int | None) -> list[str]:
    """Task, model, behaviour (where its prompts are what is measured) and layer."""
    found = [kind.name, cfg.model.id.rsplit("/", 1)[-1]]
    if kind.name == "prompts" or any(one.kind == "prompts" for one in inputs.of(kind, cfg)):
        found.append(behaviour_name(cfg))
    return [tag[:TAG] for tag in [*found, *([] if layer is None else [f"L{layer}"])]]


def begin(run: Run, kind: Kind, key: Key, layer: int, site: str) -> None:
    """Open the W&B run of an artifact that is being made: what the task logs for `layer` goes there."""
    given = {**_of(run, kind, key.id), "layer": layer, "site": site}
    run.tracker.start(layer, key.hash, _title(run.name, layer, site), given, tags(kind, run.cfg, layer))
    run.live.add(key.hash)


def publish(run: Run, kind: Kind, key: Key, artifact: Artifact, layer: int | None, metrics: Mapping[str, Any]) -> None:
    """Tell an artifact that this run has made or found, once: the end of the W&B run that was begun, or a whole one in one go."""
    if key.hash in run.told:
        return
    run.told.add(key.hash)
    made = artifact.manifest.get("by") == run.name
    if made and (taken := dict(run.usage())):
        metrics = {**metrics, "usage": taken}
    if key.hash in run.live:
        run.tracker.summary(metrics, layer)
        return
    name = run.name.partition("/")[2]
    given = _of(run, kind, artifact.id, cached=not made)
    own = tags(kind, run.cfg, layer) if made else [*tags(kind, run.cfg, layer), "cached"]
    told = key.hash if made else stored(artifact.id, name)
    tell(run.tracker, run.name, told, layer, metrics, given, own, artifact.path)


def _of(run: Run, kind: Kind, artifact: str, cached: bool = False) -> dict[str, Any]:
    sweep = run.name.partition("/")[0]
    return settings(kind, run.cfg, sweep, run.overrides, run.swept, artifact=artifact, cached=cached)


def _title(name: str, layer: int | None, site: str | None) -> str:
    """``sae-3f2a/000-layer=3/L3/resid_post``."""
    return "/".join([name, *([] if layer is None else [f"L{layer}"]), *([site] if site else [])])


def stored(artifact: str, element: str) -> str:
    """What tells the run of an artifact from the store: two elements may answer with one artifact."""
    return f"{artifact} {element}"


def tell(
    tracker: Tracker, name: str, key: str, layer: int | None, metrics: Mapping[str, Any], given: Mapping[str, Any],
    own_tags: Sequence[str], artifact: Path,
) -> None:  # fmt: skip
    """A run from its beginning to its end: config, a row with the numbers, the per-prompt table where there is one, the summary."""
    place = {} if layer is None else {"layer": layer}
    site = {"site": metrics["site"]} if "site" in metrics else {}
    tracker.start(layer, key, _title(name, layer, site.get("site")), {**given, **place, **site}, own_tags)
    row = {k: v for k, v in status.numbers(metrics).items() if k != "layer"}
    tracker.log(int(metrics.get("steps") or 0), {**site, **row}, layer)
    if (artifact / TABLE).exists():
        tracker.table("per_prompt", artifact / TABLE, layer, ROWS)
    tracker.summary(metrics, layer)
