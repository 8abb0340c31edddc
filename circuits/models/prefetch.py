"""Fetching models into the Hugging Face cache while there is a network, for machines that have none.

Only what runs read is fetched: config, safetensors weights, tokenizer. A branch or tag is resolved anew, and what the cache has
of that commit is not fetched again, so that repeating is cheap and an interrupted download goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits import words
from circuits.errors import UserError
from circuits.models import hub
from circuits.models.identify import cached_weights, inspect_model
from circuits.models.weights import has_vocabulary


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


def fetch_model(name: str, revision: str | None = None, presets: Sequence[str] = ()) -> Fetched:
    """Fetch a hub model at a branch, tag or commit; without a network, what the cache has of it must be whole."""
    facts = inspect_model(name, revision, presets, fresh=True)
    if facts.path is not None or facts.revision is None:
        raise UserError(f"{name} is a directory: there is nothing to fetch")
    before = _files(hub.cached(name, facts.revision))
    found = cached_weights(name, facts.revision)
    if found is None:
        found = _download(name, facts.revision, before)
    return fetched(name, facts.revision, found, before)


def fetched(name: str, commit: str, path: Path, before: Mapping[str, int]) -> Fetched:
    """What a snapshot holds, beside what it held `before`."""
    after = _files(path)
    new = sum(size for file, size in after.items() if before.get(file) != size)
    return Fetched(name, commit, path, len(after), sum(after.values()), new)


def _download(name: str, commit: str, before: Mapping[str, int]) -> Path:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        siblings: list[Any] = HfApi().model_info(name, revision=commit, files_metadata=True, timeout=20).siblings or []
    except (HTTPError, OSError) as e:
        raise hub.NotReached(hub.not_reached(name, commit, e)) from e
    sizes = {file.rfilename: file.size or 0 for file in siblings}
    check_room(name, {file: sizes[file] for file in hub.wanted(sizes)}, before)
    path = hub.download(name, commit)
    if not has_vocabulary(path):
        raise UserError(f"{name} on the hub has no tokenizer, so no text can be given to it")
    return path


def check_room(name: str, wanted: Mapping[str, int], before: Mapping[str, int]) -> None:
    """Refuse a download that the cache's disk cannot hold."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    needed, free = sum(size for file, size in wanted.items() if file not in before), shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{name}: {words.size(needed)} are to be fetched and {words.size(free)} are free in {cache}; "
            "free some, or set HF_HOME to another place"
        )


def _files(path: Path | None) -> dict[str, int]:
    """The files below a snapshot and their sizes; dangling links (an interrupted download) are none."""
    if path is None:
        return {}
    return {str(file.relative_to(path)): file.stat().st_size for file in path.rglob("*") if file.is_file()}
