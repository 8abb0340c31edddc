"""Threads of the elements of a sweep here, settled before anything starts.

Results are bit-identical for equal numbers of threads, so the number is part of the plan: it stands in every element's
``config.yaml``, beside its unfinished work and in its provenance. ``task.resources.cpus=N`` says it. Where nothing is said, an
element takes this machine's cores divided by the workers that run at a time: all of them where it runs alone, one where the
elements fill the cores; never more than ``OMP_NUM_THREADS`` of the shell. That number follows from the whole sweep, not from
what of it is still to be made, and unfinished work goes on with the number that it was begun with. On a cluster it is one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from circuits.run import machine, threads
from circuits.schema import Backend

if TYPE_CHECKING:
    from circuits.launch.plan import Element
    from circuits.store.store import Store


def settle(elements: Sequence[Element], store: Store) -> None:
    """Give every element its number of threads, unless it was asked for."""
    first = elements[0].cfg
    asking = [element for element in elements if element.cfg.task.resources.cpus is None]
    if first.cluster.backend is not Backend.local:
        share, begun = 1, {}
    else:
        share, begun = _share(elements), {element.index: _begun(element, store) for element in asking}
        if first.pack > 1:  # those of one process have one number
            begun = dict.fromkeys(begun, next(filter(None, begun.values()), None))
    for element in asking:
        element.cfg.task.resources.cpus = begun.get(element.index) or share


def workers(elements: int, pack: int, asked: int | None, fits: int) -> int:
    """Worker processes at a time: what was asked for, else as many as fit and as the elements need; 0 means this process."""
    return asked if asked is not None else max(1, min(fits, -(-elements // pack)))


def _share(elements: Sequence[Element]) -> int:
    cfg, cores = elements[0].cfg, machine.cores()
    fits = cores
    if cfg.task.resources.gpus and machine.gpus():
        fits = max(1, machine.gpus() // cfg.task.resources.gpus)
    running = workers(len(elements), cfg.pack, cfg.cluster.workers, fits)
    running = min(max(1, running), -(-len(elements) // cfg.pack))
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    share = max(1, cores // running)
    return min(share, int(limit)) if limit.isdigit() and int(limit) else share


def _begun(element: Element, store: Store) -> int | None:
    """The threads of its unfinished work, if there is some."""
    return next(filter(None, (threads.noted(store.beside(key, "partial")) for key in element.keys.values())), None)
