"""What this process may still take of the machine's main memory, what it keeps, and whether the kernel killed for it. No torch.

A job's limit is that of its control group, which the machine's own figures do not show: on a node of a terabyte a job of 32 GB
would be killed long before the node is full.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

MINE, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
#: Files of a control group's limit and use, and what of the use can be taken back at once: version 2, version 1.
_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}

_TRIM, _MMAPS = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>
KEPT = 1 << 30
"""Bytes that are free at the end of the heap before they are given back."""


def keep_memory() -> bool:
    """Have memory that was freed used again, rather than given back to the kernel at once; whether that was arranged.

    glibc maps every tensor above 32 MB anew, and its pages are cleared one by one at their first touch: with 64 sequences of 128
    tokens a fifth of a small model's forward pass. From here on they come from the heap, as smaller ones do. Other C libraries
    are left as they are, and so is glibc where the environment has told it what to do.
    """
    told = any(name.startswith("MALLOC_") for name in os.environ)
    if told or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAPS, 0)) and bool(mallopt(_TRIM, KEPT))


def free_memory(mine: Path = MINE, groups: Path = GROUPS) -> int:
    """Bytes that are free: of the machine, and of each control group that we are in (their parents limit us too)."""
    left = [limit - used for limit, used in _limits(mine, groups)]
    return max(0, min([int(psutil.virtual_memory().available), *left]))


def memory_kills(mine: Path = MINE, groups: Path = GROUPS, machine: Path = Path("/proc/vmstat")) -> int | None:
    """How many processes the kernel has killed for memory: of our control group, else of the whole machine; None: it does not say.

    A group counts its own processes whoever's limit was reached. Two looks tell whether it happened in between.
    """
    places = [machine]
    with contextlib.suppress(OSError):
        for line in mine.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            group = path.lstrip("/")
            if "memory" in controllers.split(","):
                places.insert(0, groups / "memory" / group / "memory.oom_control")
            elif not controllers:
                places.insert(0, groups / group / "memory.events")
    for place in places:
        with contextlib.suppress(OSError):
            for line in place.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return None


def _limits(mine: Path, groups: Path) -> Iterator[tuple[int, int]]:
    try:
        lines = mine.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        controller = "memory" if "memory" in controllers.split(",") else controllers
        if controller not in _FILES:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for place in (group, *group.parents):
            if (found := _limit(groups / controller / place, *_FILES[controller])) is not None:
                yield found


def _limit(group: Path, limit: str, used: str, back: str) -> tuple[int, int] | None:
    """Limit and use of one group; None where it has none, or is not ours to see."""
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return None
        facts = dict(line.split(" ", 1) for line in (group / "memory.stat").read_text().splitlines())
        return int(most), int((group / used).read_text()) - int(facts.get(back, 0))
    except (OSError, ValueError):
        return None
