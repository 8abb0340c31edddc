"""The store: immutable, input-keyed artifacts under ``outputs/artifacts/<kind>/<label>-<hash>/``.

An artifact is complete when its ``manifest.json`` exists; it is written last, into a temporary sibling directory that is
then renamed into place, so a reader never sees half of one. Of several writers the first rename wins and the others verify
and adopt it. On every read hashes are checked while the artifact is small, else sizes and blocks of its files; all hashes on
demand. A damaged artifact is named, moved aside and made again, never trusted.

Beside an artifact ``D`` stand, while it is being made: ``D.partial/`` (unfinished work, resumed by whoever comes),
``D.lease`` (who is making it now) and ``D.claim`` (which live sweep will).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.errors import Damaged
from circuits.files import (
    SAMPLE_BYTES,
    SAMPLES,
    disk_errors,
    fsync_dir,
    fsync_file,
    read_json,
    sample_sha256,
    sha256_file,
    sha256_text,
    write_json,
)
from circuits.store import pulse
from circuits.store.keys import HASH_CHARACTERS, Key
from circuits.store.leases import Lease, Note, settle

MANIFEST, CONFIG = "manifest.json", "config.yaml"
FORCED = "forced-by.json"  # in unfinished work of reuse=force
NOTES = ("lease", "claim")
LISTED_S = 1.0  # a listing of a kind's artifacts serves for so long
HASHED_ON_READ = 32 << 20  # bytes: below this an artifact's hashes are checked on every read (well under 0.1 s)


@dataclass(frozen=True)
class Artifact:
    """A complete artifact on disk."""

    path: Path
    manifest: dict[str, Any]

    def __repr__(self) -> str:
        return f"Artifact({self.id})"

    @property
    def id(self) -> str:
        """``kind/label-hash``."""
        return f"{self.manifest['kind']}/{self.path.name}"

    @property
    def content(self) -> str:
        """One hash over the hashes of all its files: what was really made, whatever the key says."""
        return content_hash(self.manifest["files"], self.manifest.get("measured", ()))


def _identity(path: Path) -> tuple[int, int] | None:
    """Which directory stands at `path` now; None when there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_ctime_ns


def content_hash(files: dict[str, Any], measured: Sequence[str] = (), besides: Sequence[str] = (CONFIG,)) -> str:
    """SHA-256 over names and hashes of the files of a manifest that are content.

    Those are none that hold times and memory (`measured`), and not the config: what of it decides the content is in the key, and
    the rest (device, checkpoints, logging) may differ.
    """
    kept = sorted((name, facts) for name, facts in files.items() if name not in (*measured, *besides))
    return sha256_text("\n".join(f"{name} {facts['sha256']}" for name, facts in kept))


def verify(path: Path, deep: bool | None = None) -> dict[str, Any]:
    """The manifest of the artifact at `path`.

    Args:
        path: the artifact's directory.
        deep: check all hashes; None: only while the artifact is small, else blocks of its files; False: only sizes.

    Raises:
        Damaged: the manifest or a file is missing, truncated or altered; the message names it.
    """
    try:
        manifest = read_json(path / MANIFEST)
        files = manifest["files"]
        total = sum(facts["bytes"] for facts in files.values())
        missing = {"kind", "key", "layers"} - set(manifest) | {
            "sha256" for facts in files.values() if "sha256" not in facts
        }
    except FileNotFoundError as e:
        raise Damaged(f"{path}: no {MANIFEST}") from e
    except OSError as e:
        raise Damaged(f"{path / MANIFEST}: cannot be read ({e.strerror})") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Damaged(f"{path / MANIFEST}: not a manifest ({e})") from e
    if missing:
        raise Damaged(f"{path / MANIFEST}: not a manifest (without {' '.join(sorted(missing))})")
    try:
        _verify_files(path, files, deep or (deep is None and total <= HASHED_ON_READ), sampled=deep is None)
    except OSError as e:
        raise Damaged(f"{e.filename}: cannot be read ({e.strerror})") from e
    return manifest


def _verify_files(path: Path, files: dict[str, Any], deep: bool, sampled: bool) -> None:
    for name, facts in files.items():
        file = path / name
        if not file.is_file():
            raise Damaged(f"{file}: missing")
        if file.stat().st_size != facts["bytes"]:
            raise Damaged(f"{file}: {file.stat().st_size} bytes, {facts['bytes']} were written")
    for name, facts in files.items() if deep or sampled else ():
        if "sample" in facts and not deep:
            whole = sample_sha256(path / name) == facts["sample"]
        else:
            whole = not deep or sha256_file(path / name) == facts["sha256"]
        if not whole:
            raise Damaged(f"{path / name}: its content is not what was written")


def _facts(file: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    size = file.stat().st_size
    sampled = {"sample": sample_sha256(file)} if size > SAMPLES * SAMPLE_BYTES else {}
    return {"bytes": size, "sha256": sha256_file(file), **sampled}


def _umask() -> int:
    """The process's file-creation mask (which can only be read by setting it)."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


class Store:
    """Finds, makes and publishes artifacts below `root`."""

    def __init__(self, root: Path, say: Callable[[str], None] = lambda text: None) -> None:
        self.root, self._say = root, say
        self._notes: dict[Path, Note] = {}
        self._listed: dict[str, tuple[float, int, dict[str, str]]] = {}

    def path(self, key: Key) -> Path:
        """Where the artifact of `key` is or will be. Its hash decides: a label may name a copy of the same file."""
        path = self.root / key.kind / key.dirname
        if path.exists():
            return path
        return path.with_name(self._names(path.parent).get(key.hash[:HASH_CHARACTERS], path.name))

    def _names(self, folder: Path) -> dict[str, str]:
        """The artifacts of a kind by their hashes. Listed when the folder has changed, and then not for a while.

        A store of many thousand artifacts is asked for thousands of keys; a name that is missed for a second is only a copy's.
        """
        moment = time.monotonic()
        listed = self._listed.get(folder.name)
        if listed is not None and moment - listed[0] < LISTED_S:
            return listed[2]
        try:
            changed = folder.stat().st_mtime_ns
            if listed is None or listed[1] != changed:
                names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), reverse=True)  # noqa: PTH208
                listed = (moment, changed, {name.rpartition("-")[2]: name for name in names})
        except FileNotFoundError:
            listed = (moment, 0, {})
        self._listed[folder.name] = (moment, *listed[1:])
        return listed[2]

    def beside(self, key: Key, suffix: str) -> Path:
        """``D.partial``, ``D.lease`` or ``D.claim`` of `key`."""
        path = self.path(key)
        part = f".{key.share}" if key.share and suffix != "partial" else ""
        return path.with_name(f"{path.name}{part}.{suffix}")

    def find(self, key: Key, deep: bool | None = None) -> Artifact | None:
        """The artifact of `key`, or None when it is absent or damaged (a damaged one is named; making it anew replaces it)."""
        path = self.path(key)
        while (seen := _identity(path)) is not None:
            try:
                return Artifact(path, verify(path, deep))
            except Damaged as e:
                if _identity(path) == seen:
                    self._say(f"damaged artifact {key.id}: {e}; it will be made again")
                    return None
                # somebody replaced it while it was read: look at the new one
        return None

    def holder(self, key: Key) -> dict[str, Any] | None:
        """Who is making the artifact now, or will: the live lease or claim."""
        return next(filter(None, (self.note(key, suffix).live() for suffix in NOTES)), None)

    def note(self, key: Key, suffix: str) -> Note:
        """The lease or the claim of `key`. It is kept: silence on another host shows only to who looks twice."""
        return self.note_at(self.beside(key, suffix))

    def note_at(self, path: Path) -> Note:
        """The lease or claim at `path`, kept."""
        return self._notes.setdefault(path, Note(path))

    def settle(
        self,
        keys: Iterable[Key],
        pause: Callable[[], None] = lambda: None,
        say: Callable[[str], None] | None = None,
        suffixes: Sequence[str] = NOTES,
    ) -> None:
        """Look at leases and claims until it is known which of their owners live; says what it waits for, and what it found.

        A single look cannot tell a process on another host that was killed from one that works.
        """
        say = say or self._say
        names: dict[Note, str] = {self.note(key, suffix): key.id for key in keys for suffix in suffixes}
        shown: list[Note] = []

        def tell(note: Note, facts: Mapping[str, Any], alive: bool | None) -> None:
            who = f"pid {facts['pid']} on {facts['host']}" if facts["pid"] else "somebody who left no name"
            if alive is None:
                if not shown:
                    limit = f"up to {pulse.STALE_S:g} s"
                    say(f"{names[note]} is being made by {who}; waiting for a sign of life from there, {limit}")
                shown.append(note)
            elif not alive:
                say(f"{names[note]}: no sign of life from {who}; it is taken over")

        settle(list(names), tell, pause)

    def lease(self, key: Key, **facts: Any) -> Lease:
        """A lease on making the artifact of `key` (not yet acquired)."""
        return Lease(self.note(key, "lease"), key=key.id, **facts)

    def partial(self, key: Key, owner: str | None = None) -> Path:
        """The directory of unfinished work of `key`.

        Args:
            key: the artifact.
            owner: when given (``reuse=force``), work of any other owner is thrown away first; the same owner resumes its own.
        """
        path = self.beside(key, "partial")
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            if owner is not None:
                note = path / FORCED
                if not note.exists() or read_json(note) != owner:
                    shutil.rmtree(path)
                    path.mkdir()
                    write_json(note, owner)
        return path

    @contextlib.contextmanager
    def writing(self, key: Key) -> Iterator[Path]:
        """A temporary directory beside the artifact's place, removed unless it was published."""
        path = self.path(key)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        with disk_errors(path):
            temporary.mkdir(parents=True)
            try:
                yield temporary
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def publish(
        self,
        key: Key,
        written: Path,
        facts: dict[str, Any],
        replace: bool = False,
        whole: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Artifact:
        """Rename `written` (from :meth:`writing`) into place, its manifest last.

        Args:
            key: the artifact.
            written: the directory that holds its files.
            facts: joined to the manifest: inputs, code, environment, dropped rows …
            replace: put it in the place of a valid artifact too (``reuse=force``).
            whole: a context in which nothing is cut, for the moment at which the artifact appears and its unfinished work goes.

        Returns:
            The artifact in place: ours, or the winner's if another writer was first.
        """
        path = self.path(key)
        with disk_errors(path):
            files = {}
            for file in sorted(p for p in written.rglob("*") if p.is_file()):
                file.chmod(0o666 & ~_umask())  # some libraries write files that only their owner may read
                fsync_file(file)
                files[str(file.relative_to(written))] = _facts(file)
            manifest = {
                "kind": key.kind,
                "label": key.label,
                "key": key.hash,
                "layers": list(key.layers),
                **facts,
                "files": files,
            }
            write_json(written / MANIFEST, manifest)
            for directory in (written, *(p for p in written.rglob("*") if p.is_dir())):
                fsync_dir(directory)
            with whole():
                self._listed.pop(key.kind, None)  # ours is to be found at once, under whatever label
                artifact = self._rename(key, written, path, manifest, replace)
                fsync_dir(path.parent)
                shutil.rmtree(self.beside(key, "partial"), ignore_errors=True)
        return artifact

    def _rename(self, key: Key, written: Path, path: Path, manifest: dict[str, Any], replace: bool) -> Artifact:
        while True:
            try:
                written.rename(path)
                return Artifact(path, manifest)
            except OSError as e:
                if e.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
            winner = None if replace else self.find(key)
            if winner is not None:
                return winner
            aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{'old' if replace else 'damaged'}")
            try:
                path.rename(aside)
            except FileNotFoundError:
                continue  # another writer moved it aside already
            if not replace and self._valid(aside) and not path.exists():
                aside.rename(path)  # another writer had replaced the damaged one in between: adopt it
                continue
            if aside.is_dir() and not aside.is_symlink():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.unlink(missing_ok=True)

    @staticmethod
    def _valid(path: Path) -> bool:
        try:
            verify(path)
        except Damaged:
            return False
        return True

    def sweep_leftovers(self, older_than_s: float = 24 * 3600) -> list[Path]:
        """Remove temporary directories of writers that died more than `older_than_s` seconds ago; what was removed.

        So goes unfinished work of what another process has published, unless it is a forced run's.
        """
        hidden = [path for path in self.root.glob("*/.*") if path.suffix in (".tmp", ".old", ".damaged")]
        overtaken = [
            path
            for path in self.root.glob("*/*.partial")
            if (path.with_suffix("") / MANIFEST).exists() and not (path / FORCED).exists()
        ]
        removed = []
        for path in (*hidden, *overtaken):
            with contextlib.suppress(FileNotFoundError):  # another process sweeps, too
                if time.time() - path.stat().st_mtime > older_than_s:
                    shutil.rmtree(path, ignore_errors=True)
                    removed.append(path)
        return removed
