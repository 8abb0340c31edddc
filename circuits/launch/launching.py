"""Launching: make a plan (what is asked for, what of it is there, what waits for what), and hand it to whoever ``cluster`` says.

No torch. A plan holds the elements of one task, or of several, each waiting for those that make its inputs.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from circuits.errors import UserError
from circuits.launch import answers, cores, local, planning, states
from circuits.launch.backend import Backend
from circuits.launch.chain import Chain, ordered
from circuits.launch.plan import Element, Plan, Shape, standing
from circuits.launch.planning import keys_of, model_dims
from circuits.launch.sweep import Sweep, create, kind_of, relaunched, shape_of
from circuits.prose import put
from circuits.run import config, status
from circuits.schema import Backend as Place
from circuits.schema import Where
from circuits.store import registry
from circuits.store.contents import Contents
from circuits.store.keys import Key
from circuits.store.kinds import ModelDims
from circuits.store.layers import ranges
from circuits.store.store import Store

Compose = Callable[[Sequence[str]], Any]


def launch(compose: Compose, lists: Sequence[Sequence[str]], launcher: Mapping[str, Any] | None = None) -> int:
    """Plan a sweep, run it where ``cluster`` says, show how it went; the exit code.

    Args:
        compose: overrides → composed config.
        lists: the overrides of each element.
        launcher: the ``hydra.launcher.*`` values that were given.

    Raises:
        UserError: anything that preflight finds; nothing was started.
    """
    base = Path.cwd()
    if (service := _taking_over(lists)) is not None:
        return int(service(compose, lists, base, launcher or {}))
    elements = planning.plan(compose, lists, base)
    gc.freeze()
    gc.enable()
    first = elements[0].cfg
    if first.task.where is Where.here:
        module, _, name = first.task._target_.rpartition(".")
        function = getattr(importlib.import_module(module), name)
        with _heard_as_ctrl_c():
            return max(function(element.cfg) for element in elements)
    return start(elements, base, launcher or {})


@contextlib.contextmanager
def _heard_as_ctrl_c() -> Iterator[None]:
    """What ends a launcher raises KeyboardInterrupt with its name: a task that runs here puts away what it had begun."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, end) for number in local.heard()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _taking_over(lists: Sequence[Sequence[str]]) -> Callable[..., int] | None:
    """The ``launch`` of a service task that makes elements of its own out of what was typed (``task=pipeline``)."""
    tasks = dict.fromkeys(word.partition("=")[2] for words in lists for word in words if word.startswith("task="))
    found = {task: function for task in tasks if (function := getattr(registry.modules().get(task), "launch", None))}
    if found and len(tasks) > 1:
        raise UserError(
            f"task={','.join(tasks)}: task={next(iter(found))} is no part of a sweep; start one after the other"
        )
    return next(iter(found.values()), None)


def start(elements: list[Element], base: Path, launcher: Mapping[str, Any], shape: Shape | None = None) -> int:
    """Run checked elements where ``cluster`` says, a pipeline's in its `shape`; the exit code."""
    for remark in dict.fromkeys(remark for element in elements for remark in element.remarks):
        _say(f"warning: {remark}")
    store = _store(elements)
    store.sweep_leftovers()
    cores.settle(elements, store)
    backend = backend_of(elements, launcher)
    return _run(elements, store, backend, lambda: create(elements, base, launcher, shape), shape)


def _run(
    elements: list[Element], store: Store, backend: Backend, sweep: Callable[[], Sweep], shape: Shape | None = None
) -> int:
    backend.refuse(elements)
    with backend.alone(store, _say):
        ended = backend.start(plan(elements, store, backend, shape), sweep)
    return ended()


def plan(elements: list[Element], store: Store, backend: Backend, shape: Shape | None = None) -> Plan:
    """What of these elements is there, what the rest asks for, and for whom each waits.

    Raises:
        UserError: ``reuse=readonly`` and something does not exist; an input that nobody makes.
    """
    find = _memo(store.find)
    backend.settle(store, (key for element in elements for key in element.keys.values() if find(key) is None))
    found = standing(elements, find, store.holder)
    contents = Contents(store.root / ".hashes.json")
    chain = Chain(store, contents, backend.job_of, find)
    if shape is not None:
        found.refused = chain.refused(found, shape, lambda element: answers.gate_of(element, store, contents))
    after = chain.after(found.to_run)
    if shape is not None:
        after = ordered(after, found, shape, lambda key: backend.job_of(store.holder(key) or {}))
    return Plan(elements, store, found, backend.packs(found.to_run, store), after, backend.requests(found.to_run))


def backend_of(elements: Sequence[Element], launcher: Mapping[str, Any]) -> Backend:
    """Who runs these elements.

    Raises:
        UserError: values for a launcher that is not asked for.
    """
    if elements[0].cfg.cluster.backend is Place.slurm:
        from circuits.launch.slurm.launcher import Slurm

        return Slurm(launcher)
    if launcher:
        raise UserError(
            f"hydra.launcher.{next(iter(launcher))}: cluster=local does not read it; cluster=slurm, csd3 and ncc do"
        )
    return local.Local()


def recover(sweep: Sweep) -> int:
    """Run, or submit, exactly the elements of `sweep` whose artifacts are missing, under their original numbers.

    Raises:
        UserError: what the elements would make has changed since.
    """
    elements = planned(sweep)
    store = _store(elements)
    find = _memo(store.find)
    if all(find(key) is not None for element in elements for key in element.keys.values()):
        return _nothing_missing(sweep, elements, store)
    backend = backend_of(elements, _without_deadly(sweep, sweep.record.get("hydra_launcher") or {}))
    return run_again(sweep, elements, backend)


def run_again(sweep: Sweep, elements: list[Element], backend: Backend) -> int:
    """Run what is missing of a recorded sweep's elements, in its own directory; the exit code."""

    def again() -> Sweep:
        if isinstance(backend, local.Local):
            relaunched(sweep)
        return sweep

    return _run(elements, _store(elements), backend, again, shape_of(sweep))


def _without_deadly(sweep: Sweep, launcher: Mapping[str, Any]) -> Mapping[str, Any]:
    """`launcher` without the nodes on which elements of `sweep` died one after the other; each is named."""
    if not states.on_cluster(sweep):
        return launcher
    from circuits.launch.slurm.states import deadly_nodes

    found = deadly_nodes(sweep)
    for node, indices in found.items():
        _say(f"note: {node} is left out: elements {ranges(indices)} died on it without a word")
    nodes = [*filter(None, [launcher.get("exclude")]), *sorted(found)]
    return {**launcher, "exclude": ",".join(nodes)} if found else launcher


def _store(elements: Sequence[Element]) -> Store:
    return Store(Path(elements[0].cfg.outputs) / "artifacts", say=_say)


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
    changed, elements = [], []
    contents: dict[str, Contents] = {}
    dims: dict[Any, ModelDims] = {}
    for item in sweep.record["elements"]:
        cfg = config.load(sweep.directory(item) / "config.yaml")
        mine = contents.setdefault(cfg.outputs, Contents(Path(cfg.outputs) / "artifacts" / ".hashes.json"))
        kind = kind_of(sweep, item)
        element = Element(item["index"], item["overrides"], cfg, item["swept"], tuple(item["layers"]))
        element.stage = item.get("stage", "")
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
    elements = planning.plan(lambda words: tree, [[]], base)
    resources = elements[0].cfg.task.resources
    resources.cpus = resources.cpus or 1  # such a launcher may run many jobs here
    elements[0].cfg.cluster.workers, elements[0].cfg.cluster.backend = 0, Place.local
    return _run(elements, _store(elements), local.Local(), lambda: create(elements, base))


def _say(text: str) -> None:
    put(text)


def _memo(find: Callable[[Key], Any]) -> Callable[[Key], Any]:
    """`find`, asked once per key (a damaged artifact is named once)."""
    known: dict[str, Any] = {}

    def remembered(key: Key) -> Any:
        if key.hash not in known:
            known[key.hash] = find(key)
        return known[key.hash]

    return remembered
