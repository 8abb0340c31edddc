"""Launching: plan a sweep, see what of it is there, and hand the rest to whoever ``cluster`` says. No torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from circuits.errors import UserError
from circuits.run import local
from circuits.run.keys import Key
from circuits.run.plan import plan, room, standing
from circuits.run.store import Store
from circuits.run.sweep import create
from circuits.schema import Where


def launch(compose: Callable[[Sequence[str]], Any], lists: Sequence[Sequence[str]]) -> int:
    """Plan a sweep, run it where ``cluster`` says, show how it went; the exit code.

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
    store = Store(Path(first.outputs) / "artifacts", say=lambda text: print(text, file=sys.stderr))
    store.sweep_leftovers()
    sorted_out = standing(elements, _memo(store.find), store.holder)
    room(sorted_out.to_run, local.pool_size(first, len(sorted_out.to_run)))
    sweep = create(elements, base)
    return local.LocalLauncher(sweep, elements, sorted_out, store).run()


def _memo(find: Callable[[Key], Any]) -> Callable[[Key], Any]:
    """`find`, asked once per key (a damaged artifact is named once)."""
    known: dict[str, Any] = {}

    def remembered(key: Key) -> Any:
        if key.hash not in known:
            known[key.hash] = find(key)
        return known[key.hash]

    return remembered
