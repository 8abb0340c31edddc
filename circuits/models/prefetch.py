"""Fetching models into the Hugging Face cache while there is a network, for machines that have none.

Only what runs read is fetched: config, safetensors weights, tokenizer. A branch or tag is resolved anew, and what the cache has
of that commit is not fetched again, so that repeating is cheap and an interrupted download goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from circuits.errors import UserError
from circuits.fetched import Fetched, check_room, fetched, files_of
from circuits.models import hub
from circuits.models.identify import cached_weights, inspect_model
from circuits.models.weights import has_vocabulary


def fetch_model(name: str, revision: str | None = None, presets: Sequence[str] = ()) -> Fetched:
    """Fetch a hub model at a branch, tag or commit; without a network, what the cache has of it must be whole."""
    facts = inspect_model(name, revision, presets, fresh=True)
    if facts.path is not None or facts.revision is None:
        raise UserError(f"{name} is a directory: there is nothing to fetch")
    before = files_of(hub.cached(name, facts.revision))
    found = cached_weights(name, facts.revision)
    if found is None:
        found = _download(name, facts.revision, before)
    return fetched(name, facts.revision, found, before)


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
