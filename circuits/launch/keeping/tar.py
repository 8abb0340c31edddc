"""Plain tar files, written with a list of hashes and read with suspicion. Standard library only.

Written are regular files only, each hashed as it is read; the last member is ``archive.json``: what the archive is of, and the
size and SHA-256 of every other member. Any tar opens it.

Read are files below ``outputs/artifacts/KIND/NAME/``, ``outputs/runs/DAY/ID/`` and ``multirun/DAY/ID/`` that stand in the list, and
nothing else: a link, a device, a name that is absolute, leads upwards or stands there twice makes the whole archive unfit.
:mod:`tarfile` is only asked for headers and bytes; it extracts nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

LIST, CHECK = "archive.json", "sha256"
VERSION = 1
PARTS = {("outputs", "artifacts"): 4, ("outputs", "runs"): 4, ("multirun",): 3}
"""The parts of a name that lead to what is restored as a whole: an artifact, a run, a sweep."""
BLOCK = 4 << 20  # bytes
LONGEST_LIST = 1 << 28  # bytes: a list is held in memory


class Unfit(ValueError):
    """Why an archive cannot be taken, in one line that does not name its file."""


@dataclass(frozen=True)
class Facts:
    """What the list says of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Listing:
    """What an archive holds: what it is of, and its files by name."""

    about: Mapping[str, Any]
    files: Mapping[str, Facts]

    @property
    def units(self) -> list[str]:
        """What is restored as a whole, artifacts before runs, which name them."""
        found = dict.fromkeys(unit_of(name) for name in self.files)
        return sorted(found, key=lambda name: (not name.startswith("outputs/artifacts/"), name))

    def within(self, unit: str) -> dict[str, Facts]:
        """The files of one unit, by their names in it."""
        return {name[len(unit) + 1 :]: facts for name, facts in self.files.items() if name.startswith(f"{unit}/")}

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(facts.bytes for facts in self.files.values())


# -- writing ---------------------------------------------------------------------------------------------------------


class _Hashing:
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, count: int = -1) -> bytes:
        """As a file's."""
        block = self._file.read(count)
        self.digest.update(block)
        return block


def write(target: Path, files: Iterable[tuple[str, Path]], about: Mapping[str, Any]) -> dict[str, Facts]:
    """Write these files under these names to `target`, which must not exist, and force it to the disk; what the list says.

    Raises:
        OSError: a file cannot be read or is none, or there is no room.
    """
    listed: dict[str, Facts] = {}
    with target.open("xb") as out:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, path in files:
                listed[name] = _add(tar, name, path)
            entries = {name: {"bytes": facts.bytes, "sha256": facts.sha256} for name, facts in listed.items()}
            record = {"version": VERSION, **about, "files": entries}
            data = json.dumps({**record, CHECK: check(record)}, indent=1).encode()
            info = tarfile.TarInfo(LIST)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
        out.flush()
        os.fsync(out.fileno())
    return listed


def check(record: Mapping[str, Any]) -> str:
    """What the list says of itself: SHA-256 of all else that is in it, as compact JSON with sorted keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _add(tar: tarfile.TarFile, name: str, path: Path) -> Facts:
    """One file; who owned it is nobody's business."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path}: no regular file")
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = found.st_size, int(found.st_mtime), 0o644
        read = _Hashing(file)
        tar.addfile(info, read)  # type: ignore[arg-type]
    return Facts(info.size, read.digest.hexdigest())


# -- reading ---------------------------------------------------------------------------------------------------------


def read(path: Path, place: Callable[[str, Listing], Path] | None = None) -> Listing:
    """Check an archive to its last byte: its members' names and types, that they are those of its list, their sizes and hashes.

    Args:
        path: the archive.
        place: where a file is to be written while it is checked; asked with a name that was found harmless.

    Raises:
        Unfit: it is no archive of ours, or not whole, or not what was written, or holds what it must not.
        OSError: it cannot be read, or what it holds cannot be written.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = _members(tar)
            listing = _listing(tar, members)
            for member in members:
                if member.isdir() or member.name == LIST:
                    continue
                target = place(member.name, listing) if place else None
                if _copied(tar, member, target) != listing.files[member.name].sha256:
                    raise Unfit(f"{shown(member.name)}: its content is not what was archived")
            return listing
    except (tarfile.TarError, EOFError) as e:
        raise Unfit(f"no tar, or not whole ({e})") from e


def _headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All headers. What :mod:`tarfile` does not foresee in a damaged one is damage, too."""
    try:
        yield from tar
    except (ValueError, IndexError, KeyError, TypeError, ArithmeticError, RecursionError) as e:
        raise Unfit(f"no tar, or not whole ({type(e).__name__} in a header)") from e


def _members(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """All members, each of a kind and under a name that may be."""
    found: dict[str, tarfile.TarInfo] = {}
    for member in _headers(tar):
        name = member.name
        if (why := unfit_name(name)) is not None:
            raise Unfit(f"{shown(name)}: {why}")
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or member.issparse():
            raise Unfit(f"{shown(name)}: {_type(member)}; an archive holds files and directories")
        if name in found:
            raise Unfit(f"{shown(name)}: it is there twice")
        found[name] = member
    files = {name for name, member in found.items() if not member.isdir()}
    for name in found:
        above = next((str(parent) for parent in PurePosixPath(name).parents if str(parent) in files), None)
        if above is not None:
            raise Unfit(f"{shown(name)}: {shown(above)} is a file and a directory")
    return list(found.values())


def _listing(tar: tarfile.TarFile, members: list[tarfile.TarInfo]) -> Listing:
    """The list, which names exactly the files that are there."""
    files = {member.name: member for member in members if not member.isdir()}
    last = files.pop(LIST, None)
    if last is None:
        raise Unfit(f"without {LIST}: no archive of this program, or not whole")
    if last.size > LONGEST_LIST:
        raise Unfit(f"{LIST}: {last.size} bytes")
    try:
        about = json.loads(_bytes(tar, last))
        if about.pop(CHECK) != check(about):
            raise Unfit(f"{LIST}: not what was written")
        listed = {name: Facts(int(facts["bytes"]), str(facts["sha256"])) for name, facts in about.pop("files").items()}
        version = about.pop("version")
    except Unfit:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise Unfit(f"{LIST}: not a list of files ({type(e).__name__})") from e
    if version != VERSION:
        raise Unfit(f"{LIST}: version {version}; this program reads {VERSION}")
    for name in sorted(files.keys() ^ listed.keys()):
        raise Unfit(f"{shown(name)}: {'missing' if name in listed else f'not in {LIST}'}")
    for name, facts in listed.items():
        unit_of(name)
        if files[name].size != facts.bytes:
            raise Unfit(f"{shown(name)}: {files[name].size} bytes, {facts.bytes} were archived")
    return Listing(about, listed)


def unfit_name(name: str) -> str | None:
    """Why a member must not be called so; None where it may."""
    parts = name.rstrip("/").split("/")
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "an absolute name"
    if ".." in parts:
        return "a name that leads upwards"
    if any(part in ("", ".") or len(part.encode(errors="replace")) > 255 for part in parts) or len(name) > 4000:
        return "no name of a file"
    if "\\" in name or not name.isprintable() or any(0xD800 <= ord(letter) < 0xE000 for letter in name):
        return "a name with signs that no file of ours has"
    return None


def unit_of(name: str) -> str:
    """``outputs/artifacts/sae/tiny-L0-…`` of a file in it.

    Raises:
        Unfit: it is in no place of an artifact, a run or a sweep.
    """
    parts = tuple(name.split("/"))
    for head, count in PARTS.items():
        if parts[: len(head)] == head and len(parts) > count:
            if any(part.startswith(".") for part in parts[:count]):
                break
            return "/".join(parts[:count])
    raise Unfit(f"{shown(name)}: neither in an artifact nor in a run or a sweep")


def _copied(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path | None) -> str:
    """SHA-256 of a member's content, which is written to `target` where there is one."""
    file, digest = tar.extractfile(member), hashlib.sha256()
    if file is None:
        raise Unfit(f"{shown(member.name)}: {_type(member)}")
    if target is None:
        while block := file.read(BLOCK):
            digest.update(block)
        return digest.hexdigest()
    with target.open("xb") as out:
        while block := file.read(BLOCK):
            digest.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    if 0 < member.mtime < 1 << 40:
        os.utime(target, (member.mtime, member.mtime))
    return digest.hexdigest()


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


_TYPES = {tarfile.SYMTYPE: "a link", tarfile.LNKTYPE: "a hard link", tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device",
          tarfile.FIFOTYPE: "a pipe"}  # fmt: skip


def _type(member: tarfile.TarInfo) -> str:
    return _TYPES.get(member.type, "a member of an unusual kind")


def shown(name: str) -> str:
    """A member's name as a message has it: on one line, and not longer than one."""
    plain = name.encode(errors="backslashreplace").decode()
    plain = plain if plain.isprintable() else ascii(plain)[1:-1]
    return plain if len(plain) <= 100 else f"…{plain[-99:]}"
