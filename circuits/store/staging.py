"""``cluster.stage=DIR``: what is read many times over is copied once to a disk of the machine that reads it.

A copy lies in ``DIR/<content hash>``. It is compared with the artifact's hashes while it is written, and renamed into place when it
is whole, so that nobody reads half of one; whoever comes next compares blocks of it. Elements on one machine share it: one copies,
the others wait. It stays; a directory of the job goes with the job.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from circuits.errors import Damaged, UserError
from circuits.files import fsync_dir, sample_sha256
from circuits.space import space
from circuits.store.leases import Lease
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
    files: Mapping[str, str],
    stage: str,
    waiting: Callable[[Mapping[str, Any]], None],
    pause: Callable[[], None] = lambda: None,
) -> Path:
    """`files` (names and SHA-256) of the directory `source`, whose content has this hash, copied below `stage`; where they are.

    `waiting` is told who copies them now; `pause` is called between blocks and may end it.

    Raises:
        UserError: there is no room, or nothing can be written there.
        Damaged: what was read is not what was once written at `source`.
    """
    root = place(stage)
    target, blocks = root / content, {name: sample_sha256(source / name) for name in files}
    try:
        root.mkdir(parents=True, exist_ok=True)
        lease = Lease(root / f"{content}.lease", by=str(source))
        if lease.wait(waiting, lambda: _whole(target, blocks)):
            try:
                if not _whole(target, blocks):
                    _copy(source, target, files, stage, pause)
            finally:
                lease.release()
    except OSError as e:
        raise UserError(f"cluster.stage={stage}: cannot be written ({e.strerror or e}); {WITHOUT}") from e
    return target


def _whole(target: Path, blocks: Mapping[str, str]) -> bool:
    return all((target / name).is_file() and sample_sha256(target / name) == found for name, found in blocks.items())


def _copy(source: Path, target: Path, files: Mapping[str, str], stage: str, pause: Callable[[], None]) -> None:
    shutil.rmtree(target, ignore_errors=True)  # somebody cut it
    needed = sum((source / name).stat().st_size for name in files)
    there = space(target.parent)
    if needed > there.bytes:
        told = f"{size(needed)} are needed and there is {there} in {target.parent}"
        raise UserError(f"cluster.stage={stage}: {told}; {WITHOUT}")
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        beside.mkdir()
        for name, written in files.items():
            if _copied(source / name, beside / name, pause) != written:
                raise Damaged(
                    f"{source / name}: its content is not what was written; task=status status.verify=true checks all"
                )
        fsync_dir(beside)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _copied(source: Path, target: Path, pause: Callable[[], None]) -> str:
    """Copy one file durably; SHA-256 of what was read."""
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as written:
        while block := read.read(BLOCK):
            written.write(block)
            digest.update(block)
            pause()
        written.flush()
        os.fsync(written.fileno())
    return digest.hexdigest()
