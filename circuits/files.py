"""Files that are whole or absent: atomic writes, durable renames, content hashes. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from circuits.errors import DiskFull


def fsync_dir(path: Path) -> None:
    """Make the directory entries of `path` durable (the rename itself, not only the file's bytes)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Make the bytes of `path` durable."""
    with path.open("rb") as f:
        os.fsync(f.fileno())


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a quota or a missing permission while writing below `path` into one line."""
    reasons = {
        errno.ENOSPC: "no space left on the device",
        errno.EDQUOT: "the disk quota is used up",
        errno.EACCES: "no permission to write",
        errno.EPERM: "no permission to write",
        errno.EROFS: "the file system is read-only",
        errno.EFBIG: "the file-size limit was reached",
    }
    try:
        yield
    except OSError as e:
        if e.errno not in reasons:
            raise
        mend = "free some space or choose another place with outputs=DIR, then run the same command again"
        raise DiskFull(f"{path}: {reasons[e.errno]}; {mend}") from e


def write_atomic(path: Path, data: bytes, durable: bool = True) -> None:
    """Write `data` so that a reader of `path` sees the old content or the new one, never a part.

    Args:
        path: the file.
        data: its new content.
        durable: also force it to the disk; not needed for what is only shown (progress).
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with disk_errors(path):
        try:
            with temporary.open("wb") as f:
                f.write(data)
                f.flush()
                if durable:
                    os.fsync(f.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            fsync_dir(path.parent)


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """`write_atomic` of readable JSON (NaN is refused: it would not be JSON)."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode(), durable)


def read_json(path: Path) -> Any:
    """Parse a UTF-8 JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
