"""Fetching hub datasets into the Hugging Face cache while there is a network: the whole repository at one commit.

Runs then read the copy (circuits/data/hub.py), with the same key as if they streamed it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from circuits.data import hub
from circuits.errors import UserError
from circuits.fetched import Fetched, check_room, fetched


def fetch_dataset(name: str) -> Fetched:
    """Fetch a hub dataset (``owner/name`` or ``owner/name:subset``) as its main branch is now."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError

    repository = name.partition(":")[0]
    commit, copy = _commit(name)
    before = {str(p.relative_to(copy)): p.stat().st_size for p in copy.rglob("*") if p.is_file()} if copy else {}
    if copy is not None and copy.name == commit:
        return fetched(name, commit, copy, before)
    try:
        info: Any = HfApi().dataset_info(repository, revision=commit, files_metadata=True, timeout=20)
        check_room(name, {file.rfilename: file.size or 0 for file in info.siblings or []}, {})
        # By the branch's name, so that the cache learns which commit it is.
        found = snapshot_download(repository, repo_type="dataset", ignore_patterns=hub.UNREAD, etag_timeout=5)
    except (HTTPError, OSError) as e:
        reason = (str(e) or type(e).__name__).splitlines()[0][:120]
        raise UserError(f"data.path={name}: fetching it broke ({reason}); the same command goes on from there") from e
    return fetched(name, Path(found).name, Path(found), {})


def _commit(name: str) -> tuple[str, Path | None]:
    """(the commit of the main branch now, the cache's copy); without a network, that of the copy."""
    copy = hub.cached_dataset(name)
    try:
        return hub.hub_commit(name, fresh=True), copy
    except UserError:
        if copy is None:
            raise
        return copy.name, copy
