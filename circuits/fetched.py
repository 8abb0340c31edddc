"""What a fetch into the Hugging Face cache has brought, and whether there is room for it. Of models and of datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from circuits import words
from circuits.errors import UserError
from circuits.space import space


@dataclass(frozen=True)
class Fetched:
    """What is in the cache now."""

    name: str
    commit: str
    path: Path
    files: int
    bytes: int
    new_bytes: int
    """Of these, what this call fetched."""


def fetched(name: str, commit: str, path: Path, before: Mapping[str, int]) -> Fetched:
    """What a snapshot holds, beside what it held `before`."""
    after = files_of(path)
    new = sum(size for file, size in after.items() if before.get(file) != size)
    return Fetched(name, commit, path, len(after), sum(after.values()), new)


def check_room(name: str, wanted: Mapping[str, int], before: Mapping[str, int]) -> None:
    """Refuse a download that the cache's disk cannot hold."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    needed, there = sum(size for file, size in wanted.items() if file not in before), space(cache)
    if needed > there.bytes:
        raise UserError(
            f"{name}: {words.size(needed)} are to be fetched and there is {there} in {cache}; "
            "free some, or set HF_HOME to another place"
        )


def files_of(path: Path | None) -> dict[str, int]:
    """The files below a snapshot and their sizes; dangling links (an interrupted download) are none."""
    if path is None:
        return {}
    return {str(file.relative_to(path)): file.stat().st_size for file in path.rglob("*") if file.is_file()}
