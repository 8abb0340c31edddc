"""Launching: plan a sweep, see what of it is there, and hand the rest to whoever ``cluster`` says. No torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from circuits.errors import UserError
from circuits.run import answers, config, cores, local, memory, status
from circuits.run.content import Contents
from circuits.run.keys import Key
from circuits.run.kinds import ModelDims
from circuits.run.plan import Element, Standing, keys_of, model_dims, plan, room, standing
from circuits.run.store import Store
from circuits.run.sweep import Sweep, create, kind_of, relaunched
from circuits.schema import Backend, Where


def launch(
    compose: Callable[[Sequence[str]], Any], lists: Sequence[Sequence[str]], launcher: Mapping[str, Any] | None = None
) -> int:
    """Plan a sweep, run it where ``cluster`` says, show how it went; the exit code.

    Args:
        compose: overrides → composed config.
        lists: the overrides of each element.
        launcher: the ``hydra.launcher.*`` values that were given.

    Raises:
        UserError: anything that preflight finds; nothing was started.
    """
    base = Path.cwd()
    elements = plan(compose, lists, base)
    first = elements[0].cfg
    if len({element.cfg.task.name for element in elements}) > 1:
        raise UserError("task: one sweep is over one task; start the tasks one after the other")
    if first.task.where is Where.here:
        function = getattr(
            importlib.import_module(first.task._target_.rsplit(".", 1)[0]), first.task._target_.rsplit(".", 1)[1]
        )
        return max(function(element.cfg) for element in elements)
    for remark in dict.fromkeys(remark for element in elements for remark in element.remarks):
        _say(f"warning: {remark}")
    store = Store(Path(first.outputs) / "artifacts", say=_say)
    store.sweep_leftovers()
    cores.settle(elements, store)
    if first.cluster.backend is Backend.slurm:
        return _to_slurm(elements, store, launcher or {}, lambda: create(elements, base, launcher))
    if launcher:
        raise UserError(
            f"hydra.launcher.{next(iter(launcher))}: cluster=local does not read it; cluster=slurm, csd3 and ncc do"
        )
    sorted_out = standing(elements, _memo(store.find), store.holder)
    pool = local.pool_size(first, len(sorted_out.to_run))
    memory.refuse(sorted_out.to_run, pool)
    room(sorted_out.to_run, pool)
    sweep = create(elements, base)
    return local.LocalLauncher(sweep, elements, sorted_out, store).run()


def _to_slurm(elements: list[Element], store: Store, launcher: Mapping[str, Any], sweep: Callable[[], Sweep]) -> int:
    """Preflight against the cluster, then, alone with the store, see what is missing and submit it."""
    from circuits.run.slurm import launcher as slurm
    from circuits.run.slurm.submission import alone

    cluster = elements[0].cfg.cluster
    slurm.refuse(elements, launcher, cluster.dry_run)
    if cluster.dry_run:
        to_run = _standing(elements, store).to_run
        slurm.refuse_memory(to_run, launcher)
        slurm.dry_run(elements, to_run, launcher)
        return 0
    with alone(store, _say):
        sorted_out = _standing(elements, store)
        slurm.refuse_memory(sorted_out.to_run, launcher)
        room(sorted_out.to_run, cluster.parallelism or len(sorted_out.to_run))
        job = slurm.SlurmLauncher(sweep(), elements, sorted_out, store, launcher)
        code = job.submit()
    return job.wait() if code is None else code


def _standing(elements: Sequence[Element], store: Store) -> Standing:
    """What is there, for a launcher that leaves: it looks at what others hold until it knows who of them lives."""
    find = _memo(store.find)
    store.settle(key for element in elements for key in element.keys.values() if find(key) is None)
    return standing(elements, find, store.holder)


def recover(sweep: Sweep) -> int:
    """Run, or submit, exactly the elements of `sweep` whose artifacts are missing, under their original numbers.

    Raises:
        UserError: what the elements would make has changed since.
    """
    elements = planned(sweep)
    first = elements[0].cfg
    store = Store(Path(first.outputs) / "artifacts", say=_say)
    sorted_out = standing(elements, _memo(store.find), store.holder)
    if len(sorted_out.cached) == len(elements):
        return _nothing_missing(sweep, elements, store)
    if first.cluster.backend is Backend.slurm:
        return _to_slurm(elements, store, sweep.record.get("hydra_launcher", {}), lambda: sweep)
    pool = local.pool_size(first, len(sorted_out.to_run))
    memory.refuse(sorted_out.to_run, pool)
    room(sorted_out.to_run, pool)
    relaunched(sweep)
    return local.LocalLauncher(sweep, elements, sorted_out, store).run()


def _nothing_missing(sweep: Sweep, elements: list[Element], store: Store) -> int:
    """Say so. An element that failed here and whose artifacts were made elsewhere since answers from the store."""
    for element in elements:
        answers.answer_cached(sweep, element, store, _say)
    print(f"{sweep.id}: nothing is missing, all {len(elements)} elements are done")
    known = {element.index: status.read(sweep.directory(element)) for element in elements}
    answers.write_failed(sweep, known, _say)
    return answers.exit_code(known.values())


def planned(sweep: Sweep) -> list[Element]:
    """The elements of a sweep on disk, as they were planned.

    Raises:
        UserError: a key changed since (an edited file, another version of the kind).
    """
    kind, changed, elements = kind_of(sweep), [], []
    contents: dict[str, Contents] = {}
    dims: dict[Any, ModelDims] = {}
    for item in sweep.record["elements"]:
        cfg = config.load(sweep.directory(item) / "config.yaml")
        mine = contents.setdefault(cfg.outputs, Contents(Path(cfg.outputs) / "artifacts" / ".hashes.json"))
        element = Element(item["index"], item["overrides"], cfg, item["swept"], tuple(item["layers"]))
        element.keys = keys_of(kind, cfg, element.layers, mine)
        model = (cfg.model.id, cfg.model.revision, str(cfg.model.embedded))
        if model not in dims:
            dims[model] = model_dims(cfg)
        element.bytes = kind.bytes(cfg, dims[model])
        element.memory = kind.memory(cfg, dims[model], element.layers)
        if {key.id for key in element.keys.values()} != set(item["artifacts"].values()):
            changed.append(item["name"])
        elements.append(element)
    if changed:
        raise UserError(
            f"{sweep.id}: what {' '.join(changed)} would make has changed since it was submitted (an edited file, or other code); "
            f"launch it anew: {sweep.record['command']}"
        )
    return elements


def one_here(tree: Any) -> int:
    """One element in this process: Hydra's stock launchers call this, in a job of theirs; the exit code."""
    base = Path.cwd()
    elements = plan(lambda words: tree, [[]], base)
    store = Store(Path(elements[0].cfg.outputs) / "artifacts", say=_say)
    resources = elements[0].cfg.task.resources
    resources.cpus = resources.cpus or 1  # such a launcher may run many jobs here
    elements[0].cfg.cluster.workers, elements[0].cfg.cluster.backend = 0, Backend.local
    return local.LocalLauncher(
        create(elements, base), elements, standing(elements, _memo(store.find), store.holder), store
    ).run()


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _memo(find: Callable[[Key], Any]) -> Callable[[Key], Any]:
    """`find`, asked once per key (a damaged artifact is named once)."""
    known: dict[str, Any] = {}

    def remembered(key: Key) -> Any:
        if key.hash not in known:
            known[key.hash] = find(key)
        return known[key.hash]

    return remembered
