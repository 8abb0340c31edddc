"""Memory planned before anything is started: what the elements of one process take together, against what there is. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from circuits.errors import UserError
from circuits.host import free_memory
from circuits.launch.plan import Element
from circuits.run import machine
from circuits.store import registry
from circuits.words import size


@dataclass(frozen=True)
class Room:
    """What a process may take: of a GPU (None: it computes in main memory, or nobody knows), of main memory."""

    gpu: int | None
    main: int | None
    gpu_called: str = ""
    main_called: str = ""


def here(element: Element, pool: int) -> Room:
    """This machine's room for each of `pool` processes at a time."""
    main = free_memory() // max(1, pool)
    called = f"{size(main)} of memory are free here" + (f" for each of {pool} workers" if pool > 1 else "")
    each, numbers = element.cfg.task.resources.gpus, machine.gpus_for(element.cfg.model.device)
    if not (each and numbers):
        return Room(None, main, main_called=called)
    known = machine.gpu_memory()
    if not all(number in known for number in numbers):
        return Room(1 << 62, main, main_called=called)
    # Workers go to the GPUs with the most free memory; once each has one they share them.
    taken = sorted((known[number] for number in numbers), key=lambda gpu: -gpu.free)[: max(1, pool) * each]
    worst, share = taken[-1], -(-max(1, pool) * each // len(taken))
    told = f"a GPU here has {size(worst.total)}, of which {size(worst.free)} are free"
    told += f", for {share} workers" if share > 1 else ""
    return Room(worst.free // share, main, told, called)


def problems(pack: Sequence[Element], room: Room) -> list[str]:
    """Why the elements of one process do not fit, and how many would; nothing where they do."""
    needs = [element.memory for element in pack if element.memory is not None]
    if not needs:
        return []
    count = sum(need.count for need in needs)
    fixed, each, beside, aside = (
        max(getattr(n, name) for n in needs) for name in ("fixed", "each", "beside", "beside_each")
    )
    total, total_aside = (sum(getattr(n, name) * n.count for n in needs) for name in ("each", "beside_each"))
    if room.gpu is None:
        cases = [(fixed + beside, each + aside, total + total_aside, room.main, room.main_called)]
    else:
        cases = [
            (fixed, each, total, room.gpu, room.gpu_called),
            (beside, aside, total_aside, room.main, room.main_called),
        ]
    keys = registry.kind(pack[0].task).memory_keys
    for start, one, whole, limit, called in cases:
        if limit is None or start + whole <= limit:
            continue
        fits = max(0, (limit - start) // max(1, one))
        mend = f"{fits} fit: take fewer layers in one element, or a smaller pack" if fits else "not even one fits"
        return [
            f"memory: {count} {needs[0].what} take at least {size(start + whole)} in one process, and {called}; "
            f"{mend}; or lower {' or '.join(keys)}"
        ]
    return []


def refuse(packs: Sequence[Sequence[Element]], pool: int) -> None:
    """Refuse what does not fit this machine.

    Raises:
        UserError: with what is needed, what there is, and how many fit.
    """
    found = [line for pack in packs for line in problems(pack, here(pack[0], pool))]
    if found:
        raise UserError(list(dict.fromkeys(found)))
