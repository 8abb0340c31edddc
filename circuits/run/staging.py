"""``cluster.stage=DIR``: what is read many times over is copied once to a disk of the machine that reads it.

A copy lies in ``DIR/<content hash>`` and is renamed into place when it is whole, so that nobody reads half of one. Elements on one
machine share it: one copies, the others wait. It stays for whoever comes next; a directory of the job goes with the job.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from circuits.errors import UserError
from circuits.run.leases import Lease
from circuits.words import size

BLOCK = 64 << 20  # bytes
WITHOUT = "leave cluster.stage out to read from where it is"


def place(stage: str) -> Path:
    """The directory on this machine that ``cluster.stage`` names.

    Raises:
        UserError: it names a variable that is not set here.
    """
    expanded = os.path.expandvars(stage)
    if unset := re.search(r"\$\{?(\w+)", expanded):
        raise UserError(f"cluster.stage={stage}: {unset[1]} is not set on this machine; {WITHOUT}")
    return Path(expanded).expanduser()


def staged(
    source: Path,
    content: str,
    files: Sequence[str],
    stage: str,
    waiting: Callable[[Mapping[str, Any]], None],
    pause: Callable[[], None] = lambda: None,
) -> Path:
    """`files` of the directory `source`, whose content has this hash, copied below `stage`; where they are.

    `waiting` is told who copies them now; `pause` is called between blocks and may end it.

    Raises:
        UserError: there is no room, or nothing can be written there.
    """
    root = place(stage)
    target, sizes = root / content, {name: (source / name).stat().st_size for name in files}
    try:
        root.mkdir(parents=True, exist_ok=True)
        lease = Lease(root / f"{content}.lease", by=str(source))
        if lease.wait(waiting, lambda: _whole(target, sizes)):
            try:
                _copy(source, target, sizes, stage, pause)
            finally:
                lease.release()
    except OSError as e:
        raise UserError(f"cluster.stage={stage}: cannot be written ({e.strerror or e}); {WITHOUT}") from e
    return target


def _whole(target: Path, sizes: Mapping[str, int]) -> bool:
    return all((target / name).is_file() and (target / name).stat().st_size == sizes[name] for name in sizes)


def _copy(source: Path, target: Path, sizes: Mapping[str, int], stage: str, pause: Callable[[], None]) -> None:
    if _whole(target, sizes):
        return
    shutil.rmtree(target, ignore_errors=True)  # somebody cut it
    needed, free = sum(sizes.values()), shutil.disk_usage(target.parent).free
    if needed > free:
        told = f"{size(needed)} are needed and {size(free)} are free in {target.parent}"
        raise UserError(f"cluster.stage={stage}: {told}; {WITHOUT}")
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        beside.mkdir()
        for name in sizes:
            with (source / name).open("rb") as read, (beside / name).open("wb") as written:
                while block := read.read(BLOCK):
                    written.write(block)
                    pause()
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
