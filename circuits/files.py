"""Files that are whole or absent: atomic writes, durable renames, content hashes. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from circuits.errors import DiskFull

STALE_TRIES = 5


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
    """Turn what the file system refuses while writing below `path` into one line; what it does not know stays as it was raised."""
    try:
        yield
    except OSError as e:
        if e.errno not in REASONS:
            raise
        raise DiskFull(f"{path}: {REASONS[e.errno]}; {MEND}, then run the same command again") from e


MEND = "free some space or choose another place with outputs=DIR"
REASONS = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission to write",
    errno.EPERM: "no permission to write",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file-size limit was reached",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.ENOTDIR: "a part of the path is a file, no directory",
    errno.EISDIR: "there is a directory of this name",
    errno.ELOOP: "a symbolic link leads to itself",
    errno.EIO: "the device does not read or write",
    errno.ESTALE: "the file server took it away while it was open",
    errno.EMFILE: "too many open files (ulimit -n)",
    errno.ENXIO: "there is no such device",
    errno.EINVAL: "the file system does not take this name",
}
"""What is said of an error number of the file system."""


def exists(path: Path) -> bool:
    """Whether there is such a file or directory; what cannot be one (a name of 300 letters, one below a file) is not there."""
    try:
        return path.exists()
    except OSError:
        return False


AGAIN = 5


def write_atomic(path: Path, data: bytes, durable: bool = True, make: bool = False) -> None:
    """Write `data` so that a reader of `path` sees the old content or the new one, never a part.

    Args:
        path: the file.
        data: its new content.
        durable: also force it to the disk; not needed for what is only shown (progress).
        make: see :func:`put`.
    """
    put(path, lambda temporary: temporary.write_bytes(data), durable, make)


def put(path: Path, write: Callable[[Path], object], durable: bool = True, make: bool = False) -> None:
    """Let `write` make a file beside `path`, and rename it there.

    Another process may clear away what it takes for a leftover, or the whole directory: then the file is written again.

    Args:
        path: the file.
        write: writes the file that it is given.
        durable: also force it to the disk.
        make: make the directory where it is missing.

    Raises:
        FileNotFoundError: there is no directory (without `make`), or it goes away again and again.
    """
    with disk_errors(path):
        for left in reversed(range(AGAIN)):
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
            try:
                if make:
                    path.parent.mkdir(parents=True, exist_ok=True)
                write(temporary)
                if durable:
                    fsync_file(temporary)
                temporary.replace(path)
                if durable:
                    fsync_dir(path.parent)
                return
            except FileNotFoundError:
                if not left or not (make or path.parent.is_dir()):
                    raise
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise


def known(value: Any) -> Any:
    """A JSON-able value with null in place of every number that is none (NaN, infinity)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: known(one) for key, one in value.items()}
    return [known(one) for one in value] if isinstance(value, (list, tuple)) else value


def write_json(path: Path, value: Any, durable: bool = True, make: bool = False) -> None:
    """`write_atomic` of readable JSON (NaN is refused: it would not be JSON)."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode(), durable, make)


def read_bytes(path: Path) -> bytes:
    """A small file that others replace while it is read. What a network file system calls stale is opened anew.

    Raises:
        FileNotFoundError: there is none, or its directory went away.
    """
    for _ in range(STALE_TRIES):
        try:
            return path.read_bytes()
        except OSError as e:
            if e.errno != errno.ESTALE:
                raise
    raise FileNotFoundError(errno.ENOENT, "went away while it was read", str(path))


def read_json(path: Path) -> Any:
    """Parse a UTF-8 JSON file."""
    return json.loads(read_bytes(path).decode())


def fingerprint(path: Path) -> tuple[int, ...]:
    """What changes whenever a file's content does: not its size and modification time alone, which ``cp -p`` and ``touch`` set.

    The time of the last change of the file's own record cannot be set by anybody.
    """
    facts = path.stat()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


SAMPLES, SAMPLE_BYTES = 32, 64 << 10


def sample_sha256(path: Path) -> str:
    """SHA-256 over the size of a file and `SAMPLES` blocks of it, evenly from its first to its last byte, in hex.

    For files too large to be read whole each time: it tells truncation, lost stretches (each of more than a thirtieth of the file)
    and another file of the same size, in milliseconds. A single altered byte it may miss.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as f:
        for number in range(SAMPLES):
            f.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
            digest.update(f.read(SAMPLE_BYTES))
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
