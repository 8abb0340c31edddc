"""Tensors and JSON facts in one safetensors file, whole or absent, and known to be whole when read.

The header carries the JSON meta and a SHA-256 over meta, names, types, shapes and bytes. The file is written beside its
place, synced and renamed, so a crash leaves the old one as it was. A file that was cut or altered on disk is told by its digest.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuits.errors import Damaged, DiskFull
from circuits.files import put

FACTS = "facts"


def digest(tensors: Mapping[str, Tensor], meta: str) -> str:
    """SHA-256 over everything a tensor file holds, independent of the order of the tensors in the file."""
    sha = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        sha.update(f"\n{name} {t.dtype} {list(t.shape)}\n".encode())
        sha.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a tensor file atomically. `meta` must be JSON-able."""
    text = json.dumps(meta, sort_keys=True, allow_nan=False)
    whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    # One entry: of several, safetensors writes the order by chance, and equal files would have different bytes.
    header = {FACTS: json.dumps({"meta": text, "digest": digest(whole, text)})}
    put(path, lambda temporary: _write(temporary, whole, header), make=True)


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata=header)
    except SafetensorError as e:  # the library wraps the system's error into its own
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "went away while it was written to", str(path.parent)) from e
        raise DiskFull(
            f"{path.parent}: the checkpoint could not be written ({e}); free some space, then run again"
        ) from e


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and verify a tensor file; Damaged names the file and what is wrong with it."""
    try:
        with safe_open(path, framework="pt") as f:
            header = f.metadata() or {}
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, UnicodeDecodeError) as e:
        raise Damaged(f"{path} is truncated or no safetensors file ({e})") from e
    if FACTS in header:
        header = json.loads(header[FACTS])
    if "meta" not in header or "digest" not in header:
        raise Damaged(f"{path} is no checkpoint: its header lacks meta or digest")
    if digest(tensors, header["meta"]) != header["digest"]:
        raise Damaged(f"{path} was altered: its content does not match its digest")
    return tensors, json.loads(header["meta"])
