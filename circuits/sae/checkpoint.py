"""Checkpoints: one safetensors file each, whole or absent, and known to be whole when read.

The header carries the JSON meta and a SHA-256 over meta, names, types, shapes and bytes. The file is written beside its
place, synced and renamed, so a crash leaves the old checkpoints as they were. A file that was cut or altered on disk is
told by its digest: `latest` moves it aside as ``*.damaged`` and goes back to the one before.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuits.errors import Damaged, DiskFull
from circuits.files import disk_errors, fsync_dir, fsync_file
from circuits.host import free_memory

PATTERN = "step-*.safetensors"
WAITING_SHARE = 1 / 8
"""Of the free memory, for checkpoints that wait to be written; one may always wait, whatever its size."""


class Checkpoint(NamedTuple):
    """What `latest` found."""

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


class Writer:
    """Writes checkpoints in a thread of its own, in order, so that training goes on meanwhile.

    A write that failed is raised by the next call, and at the end; the context manager ends when all are written.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._waiting: deque[tuple[Future[None], int]] = deque()

    def __enter__(self) -> Writer:
        return self

    def submit(self, write: Callable[[], None], nbytes: int) -> None:
        """`write()` soon; waits while too many bytes are waiting. `nbytes`: how much it holds until then."""
        room = WAITING_SHARE * free_memory()
        while self._waiting and (self._waiting[0][0].done() or sum(size for _, size in self._waiting) + nbytes > room):
            self._waiting.popleft()[0].result()
        self._waiting.append((self._pool.submit(write), nbytes))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True)
        failures = [e for future, _ in self._waiting if (e := future.exception()) is not None]
        if failures and kind is None:
            raise failures[0]


def path_for(directory: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies; names sort by step."""
    return directory / f"step-{step:09d}.safetensors"


def digest(tensors: Mapping[str, Tensor], meta: str) -> str:
    """SHA-256 over everything a checkpoint holds, independent of the order of the tensors in the file."""
    sha = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        sha.update(f"\n{name} {t.dtype} {list(t.shape)}\n".encode())
        sha.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically. `meta` must be JSON-able."""
    text = json.dumps(meta, sort_keys=True, allow_nan=False)
    whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(temporary, whole, {"meta": text, "digest": digest(whole, text)})
            fsync_file(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_dir(path.parent)


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata=header)
    except SafetensorError as e:  # the library wraps the system's error into its own
        raise DiskFull(
            f"{path.parent}: the checkpoint could not be written ({e}); free some space, then run again"
        ) from e


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and verify a checkpoint; Damaged names the file and what is wrong with it."""
    try:
        with safe_open(path, framework="pt") as f:
            header = f.metadata() or {}
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, UnicodeDecodeError) as e:
        raise Damaged(f"{path} is truncated or no safetensors file ({e})") from e
    if "meta" not in header or "digest" not in header:
        raise Damaged(f"{path} is no checkpoint: its header lacks meta or digest")
    if digest(tensors, header["meta"]) != header["digest"]:
        raise Damaged(f"{path} was altered: its content does not match its digest")
    return tensors, json.loads(header["meta"])


def paths(directory: Path) -> list[Path]:
    """The checkpoints of a directory, oldest first."""
    return sorted(directory.glob(PATTERN))


def prune(directory: Path, keep: int) -> list[Path]:
    """Delete all but the newest `keep` checkpoints, and what interrupted writes left; the deleted paths.

    Only for the one process that writes here: another one's unfinished file would be taken for a leftover.
    """
    found = paths(directory)
    gone = found[: max(0, len(found) - keep)] + sorted(directory.glob(f".{PATTERN}.*.tmp"))
    for path in gone:
        path.unlink(missing_ok=True)
    return gone


def latest(directory: Path, on_damaged: Callable[[Path, str], None] | None = None) -> Checkpoint | None:
    """The newest checkpoint that is whole. Damaged ones are moved aside as ``*.damaged`` and reported."""
    for path in reversed(paths(directory)):
        try:
            return Checkpoint(path, *load(path))
        except Damaged as e:
            aside = path.with_name(path.name + ".damaged")
            path.replace(aside)
            if on_damaged is not None:
                on_damaged(aside, str(e))
    return None
