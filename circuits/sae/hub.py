"""SAEs on the Hugging Face hub: the one directory that is named, and of it the files that are read. No torch.

    owner/name                          owner/name/blocks.8.hook_resid_pre          owner/name/layers.10@a-branch-or-commit

Of circuit-tracer's transcoders, whose layers share a config, the files of all layers are fetched and the config last: where that is
in the cache, they are. The client's own cache is asked first, as for models: a branch is what it was when it was first used here.
What is not there is fetched; every failure is one line.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from circuits.errors import UserError
from circuits.models.hub import NETWORK_SECONDS, within
from circuits.sae import unread
from circuits.sae.places import ALONE, SET_CONFIG, SET_WEIGHTS
from circuits.sae.unread import CONFIG, WEIGHTS
from circuits.words import reason

NAME = re.compile(r"(?P<repository>\w[\w.-]*/[\w.-]+)(?P<folder>(?:/[^/@]+)*)/?(?:@(?P<revision>[^@\s]+))?")
CONFIGS = (*dict.fromkeys(config for _, config, _ in ALONE), SET_CONFIG)
_NAMED = 8
"""Directories of a repository that are named in an error."""


def directory(name: str) -> Path:
    """Where the files of the SAE `name` are on this machine, fetched if need be: …/snapshots/<commit>/…

    Raises:
        UserError: there is no such SAE, or the hub was not reached.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise UserError("no such directory, and no possible artifact or hub name (owner/name or owner/name/DIRECTORY)")
    repository, folder, revision = found["repository"], found["folder"].strip("/"), found["revision"]
    here = _cached(repository, folder, revision)
    return here if here is not None else _fetched(repository, folder, revision)


def _cached(repository: str, folder: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for config in CONFIGS:
        try:
            found = try_to_load_from_cache(repository, str(PurePosixPath(folder, config)), revision=revision)
        except HFValidationError as e:
            raise UserError("no such directory, and no possible hub name") from e
        if isinstance(found, str):
            place = Path(found).parent
            if _parts({file.name for file in place.glob("*") if file.is_file()}):
                return place
    return None


def _parts(names: set[str]) -> set[str]:
    """Which of a directory's files are an SAE, or one of each layer; none where it holds none."""
    for _, config, weights in ALONE:
        if config in names and weights in names:
            return {config, weights, *({"sparsity.safetensors"} & names)}
    layers = {name for name in names if SET_WEIGHTS.fullmatch(name)}
    return {SET_CONFIG, *layers} if SET_CONFIG in names and layers else set()


def _fetched(repository: str, folder: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import disable_progress_bars

    from circuits.models.prefetch import check_room

    if not sys.stderr.isatty():
        disable_progress_bars()
    sizes = _files(repository, folder, revision)
    check_room(repository, sizes, {})
    try:  # by the branch's name, so that the cache learns which commit it is
        first = [path for path in sizes if PurePosixPath(path).name != SET_CONFIG]
        for patterns in [first] if len(first) == len(sizes) else [first, list(sizes)]:
            snapshot = snapshot_download(repository, revision=revision, allow_patterns=patterns, etag_timeout=5)
    except (HTTPError, OSError) as e:
        raise UserError(f"fetching it broke ({reason(e)}); the same command goes on from there") from e
    return Path(snapshot) / folder


def _files(repository: str, folder: str, revision: str | None) -> dict[str, int]:
    """The files of the SAE in a repository, and their sizes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    def ask() -> Any:
        try:
            return HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=5)
        except GatedRepoError as e:
            told = f"https://huggingface.co/{repository}, log in with: hf auth login"
            raise UserError(f"{repository} is gated: accept its licence on {told}") from e
        except RevisionNotFoundError as e:
            raise UserError(f"{repository} has no branch, tag or commit {revision} on the hub") from e
        except RepositoryNotFoundError as e:
            raise UserError("no such directory, and no (public) repository of that name on the hub") from e
        except (HTTPError, OSError) as e:
            raise UserError(_unreached(e)) from e

    try:
        info = within(NETWORK_SECONDS, ask)
    except TimeoutError as e:
        raise UserError(_unreached(e)) from e
    sizes = {PurePosixPath(file.rfilename): file.size or 0 for file in info.siblings or []}
    folders: dict[PurePosixPath, set[str]] = {}
    for path in sizes:
        folders.setdefault(path.parent, set()).add(path.name)
    parts = _parts(folders.get(PurePosixPath(folder), set()))
    if not parts:
        here = PurePosixPath(folder)
        inner = [str(path.relative_to(here)) for path in sizes if path.is_relative_to(here)]
        if what := unread.named(inner):
            raise UserError(f"{repository}{f'/{folder}' * bool(folder)}: {what}")
        others = sorted(str(place) for place, names in folders.items() if _parts(names))
        more = " …" if len(others) > _NAMED else ""
        named = f"; directories with one: {' '.join(others[:_NAMED])}{more}" if others else ""
        raise UserError(f"{repository} has no SAE in {folder or 'its root'} ({CONFIG} and {WEIGHTS}){named}")
    return {str(PurePosixPath(folder, name)): sizes[PurePosixPath(folder, name)] for name in sorted(parts)}


def _unreached(why: Exception) -> str:
    return (
        f"no such directory, it is not in the local Hugging Face cache, and the hub was not reached ({reason(why)}); where there "
        "is network the same command fetches it, or give the directory of a copy"
    )
