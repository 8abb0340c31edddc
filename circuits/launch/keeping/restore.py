"""An archive back into a store: checked in a place beside it, then put there by renaming, one artifact or sweep at a time.

Nothing that is there is replaced. What is there and the same is left, what is there and different is named.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from circuits.errors import Damaged, UserError
from circuits.files import fsync_dir, read_json, sha256_file
from circuits.launch.keeping import tar
from circuits.launch.keeping.tar import Facts, Listing, Unfit
from circuits.space import space
from circuits.store.keys import HASH_CHARACTERS
from circuits.store.store import MANIFEST, content_hash, verify
from circuits.words import size

MARK = ".restoring-"  # of a place in which an archive is checked
ARTIFACTS = "outputs/artifacts"


@dataclass
class Restored:
    """What became of the parts of an archive, each by its name in it."""

    listing: Listing
    new: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    differing: dict[str, str] = field(default_factory=dict)  # with what is different


class _Places:
    """Where an archive's files go: first beside the store's own directories, on their disks, under a name that nobody looks at."""

    def __init__(self, outputs: Path, multirun: Path) -> None:
        self._roots = {ARTIFACTS: outputs / "artifacts", "outputs/runs": outputs / "runs", "multirun": multirun}
        self._mark = f"{MARK}{uuid.uuid4().hex[:8]}"
        self._made: list[Path] = []
        self._roomy = False

    def _split(self, name: str) -> tuple[Path, str]:
        head = next(head for head in self._roots if name.startswith(f"{head}/"))
        return self._roots[head], name[len(head) + 1 :]

    def checked(self, name: str) -> Path:
        """Where a file, or a part, lies while the archive is checked."""
        root, rest = self._split(name)
        return root / self._mark / rest

    def final(self, name: str) -> Path:
        """Where it belongs."""
        root, rest = self._split(name)
        return root / rest

    def file(self, name: str, listing: Listing) -> Path:
        """Where to write a file now, its directory made."""
        if not self._roomy:
            self._room(listing)
        path = self.checked(name)
        self.directory(path.parent)
        return path

    def directory(self, path: Path) -> None:
        """Make a directory, and remember what of it is new."""
        missing = [parent for parent in (path, *path.parents) if not parent.exists()]
        self._made += reversed(missing)
        path.mkdir(parents=True, exist_ok=True)

    def _room(self, listing: Listing) -> None:
        self._roomy = True
        root = next(parent for parent in (self._roots[ARTIFACTS], *self._roots[ARTIFACTS].parents) if parent.is_dir())
        there = space(root)
        if listing.bytes > there.bytes:
            raise UserError(f"{size(listing.bytes)} are needed and there is {there} in {root}")

    def clear(self) -> None:
        """Take away what was only for checking, and directories that stayed empty."""
        for root in self._roots.values():
            shutil.rmtree(root / self._mark, ignore_errors=True)
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                path.rmdir()


def restore(file: Path, outputs: Path, multirun: Path) -> Restored:
    """Check an archive, and put what is in it below `outputs` and `multirun`.

    Raises:
        UserError: the archive is unfit, or there is no room; nothing was restored.
    """
    places = _Places(outputs, multirun)
    try:
        listing = tar.read(file, places.file)
        for unit in listing.units:
            if unit.startswith(f"{ARTIFACTS}/"):
                _check_artifact(places.checked(unit), listing.within(unit))
        found = Restored(listing)
        for unit in listing.units:
            _publish(unit, places, found)
        return found
    except FileNotFoundError as e:
        raise UserError(f"archive.restore={file}: no such file") from e
    except (Unfit, UserError, Damaged) as e:
        raise UserError(f"archive.restore={file}: {_plain(e, places)}; nothing was restored") from e
    except OSError as e:
        raise UserError(f"archive.restore={file}: {e.strerror or e} ({e.filename or outputs}); run it again") from e
    finally:
        places.clear()


def _plain(error: Exception, places: _Places) -> str:
    """A message without the name of the place in which the archive was checked."""
    return str(error).replace(f"{places._mark}/", "")


def _check_artifact(path: Path, files: Mapping[str, Facts]) -> None:
    """Whether a directory is the artifact that its name says.

    Raises:
        Unfit, Damaged: it is not.
    """
    name = f"{path.parent.name}/{path.name}"
    manifest = verify(path, deep=True)
    if manifest["kind"] != path.parent.name or path.name.rpartition("-")[2] != str(manifest["key"])[:HASH_CHARACTERS]:
        raise Unfit(f"{name}: its {MANIFEST} is that of another artifact")
    if set(manifest["files"]) != set(files) - {MANIFEST}:
        raise Unfit(f"{name}: its {MANIFEST} names other files than there are")


def _publish(unit: str, places: _Places, found: Restored) -> None:
    source, target = places.checked(unit), places.final(unit)
    artifact = unit.startswith(f"{ARTIFACTS}/")
    if artifact:
        target = _holder(target)
    if not target.exists() and not target.is_symlink():
        places.directory(target.parent)
        with contextlib.suppress(FileExistsError):
            try:
                source.rename(target)
            except OSError as e:
                if not target.exists():  # else somebody was faster
                    raise UserError(f"{target}: {e.strerror}") from e
            else:
                fsync_dir(target.parent)
                found.new.append(unit)
                return
    why = _unlike_artifact(source, target) if artifact else _unlike_run(found.listing.within(unit), target)
    if why is None:
        found.equal.append(unit)
    else:
        found.differing[unit] = why


def _holder(target: Path) -> Path:
    """The artifact of this key that is there under whatever label, else `target`."""
    if target.exists():
        return target
    others = target.parent.glob(f"[!.]*-{target.name.rpartition('-')[2]}/{MANIFEST}")
    return next((manifest.parent for manifest in others), target)


def _unlike_artifact(mine: Path, there: Path) -> str | None:
    """In what the artifact that is there is another one."""
    try:
        found = verify(there)
    except Damaged as e:
        return f"what is there is damaged ({e}); move it away, and restore again"
    here = read_json(mine / MANIFEST)
    same = content_hash(here["files"], here.get("measured", ())) == content_hash(
        found["files"], found.get("measured", ())
    )
    return None if same else "what is there has the same key and another content"


def _unlike_run(files: Mapping[str, Facts], there: Path) -> str | None:
    """In what the run or sweep that is there is another one."""
    other = []
    for name, facts in files.items():
        path = there / name
        if not path.is_file() or path.stat().st_size != facts.bytes or sha256_file(path) != facts.sha256:
            other.append(name)
    if not other:
        return None
    more = f" and {len(other) - 3} more" if len(other) > 3 else ""
    return f"{len(other)} of {len(files)} files are not as archived: {', '.join(other[:3])}{more}"
