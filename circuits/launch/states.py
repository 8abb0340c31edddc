"""How the elements of any sweep fare, whoever runs them, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from circuits.launch.sweep import Sweep
from circuits.run import status
from circuits.state import State, state_of
from circuits.store.leases import Note
from circuits.store.places import LAUNCHER

FREE_WORKER = "for a free worker"


def facts_of(sweep: Sweep) -> dict[int, dict[str, Any]]:
    """Every element's status by its number; for a cluster's sweep with what its queue says."""
    if on_cluster(sweep):
        from circuits.launch.slurm.states import facts_of as of_cluster

        return of_cluster(sweep)
    return {item["index"]: _local(sweep, item) for item in sweep.record["elements"]}


def look_twice(sweeps: Iterable[Sweep], say: Callable[[str], None]) -> None:
    """Before a single look at these sweeps: see of what runs on other machines whether it does."""
    far = [sweep for sweep in sweeps if (_far(sweep) if on_cluster(sweep) else _launcher_lives(sweep) is None)]
    status.look_twice((sweep.directory(item) for sweep in far for item in sweep.record["elements"]), say)


def _launcher_lives(sweep: Sweep) -> bool | None:
    launcher = sweep.record["launcher"]
    return status.process_alive(launcher["host"], launcher["pid"], launcher["started"], launcher.get("machine"))


def on_cluster(sweep: Sweep) -> bool:
    """Whether a scheduler runs it."""
    return bool(sweep.record["launcher"]["backend"] != "local")


def ended(sweep: Sweep) -> None:
    """Nothing of `sweep` will change by itself any more: keep what a cluster's accounting says of it."""
    if on_cluster(sweep):
        from circuits.launch.slurm.states import record_accounting

        record_accounting(sweep)


_launchers: dict[Path, Note] = {}  # kept: silence on another host shows only to who looks twice


def _local(sweep: Sweep, item: dict[str, Any]) -> dict[str, Any]:
    """An element's status, with what it waits for; one that waits for a launcher that is gone waits for nobody."""
    facts = status.read(sweep.directory(item))
    if state_of(facts) is not State.waiting:
        return facts
    alive = _launcher_lives(sweep)
    if alive is None:
        alive = _launchers.setdefault(sweep.path, Note(sweep.path / LAUNCHER)).live() is not None
    if not alive:
        return {**facts, "state": State.never_started}
    return {**facts, "reason": facts.get("reason") or FREE_WORKER}


def load(sweep: Sweep, known: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """How busy the partitions are in whose queue elements of `sweep` wait."""
    waiting = [str(facts["job"]) for facts in known.values() if state_of(facts) is State.pending and facts.get("job")]
    if not waiting or not on_cluster(sweep) or _far(sweep):
        return []
    from circuits.launch.slurm.states import load_of

    return load_of(waiting)


def hints(sweep: Sweep, known: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """The commands that help now: cancel, queue again, recover."""
    states = {index: state_of(facts) for index, facts in known.items()}
    lines = []
    if on_cluster(sweep) and not _far(sweep):
        live = [str(known[index]["job"]) for index, state in states.items() if state.live and known[index].get("job")]
        if live:
            lines.append(
                f"cancel    scancel {' '.join(sorted({job.split('_')[0] for job in live}))}      one: scancel {live[0]}"
            )
        running = [str(known[index]["job"]) for index, state in states.items() if state is State.running]
        if running:
            lines.append(f"requeue   scontrol requeue {running[0]}      (it goes on from its last checkpoint)")
    if any(state.badly for state in states.values()):
        lines.append(f"again     python launch.py task=recover of={sweep.id}      (only what is missing)")
    return lines


def _far(sweep: Sweep) -> bool:
    from circuits.launch.slurm.states import far_cluster

    return far_cluster(sweep)
