"""Models on the Hugging Face hub: which commit a name stands for, and its files, through the client's own cache.

The cache is asked first; only what is not there asks the network, and that gives up after :data:`NETWORK_SECONDS`. A branch or
tag is what it was when it was first used here; `fresh` asks the hub what it is now. Every failure is one line that says what
to run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from circuits.errors import UserError, suggest
from circuits.models import unread
from circuits.models.weights import INDEX, WEIGHTS, check_weights, read_object
from circuits.words import reason

Answer = TypeVar("Answer")

NETWORK_SECONDS = 10.0
"""Longest wait for the hub. Its client retries failed requests on its own for longer than anyone should watch."""

WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
UNWANTED = ["*/*", "consolidated*", "adapter_*"]
"""What is downloaded of a hub model: no pickles, no second copies of the weights in other formats."""


class NotReached(UserError):
    """The hub did not answer."""


def config_of(
    name: str, revision: str | None, presets: Sequence[str] = (), fresh: bool = False
) -> tuple[str, dict[str, Any]]:
    """(commit, config) of a hub name, from the cache where it is there, else from the network; the other way if `fresh`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as e:
        raise UserError(
            f"unknown model {name!r}: neither a directory nor a possible hub name{_choices(name, presets)}"
        ) from e
    found = cached(name, revision)
    if fresh or found is None:
        try:
            asked = _within(NETWORK_SECONDS, name, lambda: _ask(name, revision, presets), revision, presets)
            found = Path(asked).parent
        except NotReached:
            if found is None:
                raise
    return found.name, read_object(found / "config.json")  # …/snapshots/<commit>


def cached(name: str, revision: str | None) -> Path | None:
    """The cache's snapshot of a hub name at a branch, tag or commit, if it has one with a config; it may lack weights."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None  # no possible hub name
    return Path(found).parent if isinstance(found, str) else None


def wanted(files: Iterable[str]) -> list[str]:
    """Those of a hub model's files that runs read."""
    from huggingface_hub.utils import filter_repo_objects

    return list(filter_repo_objects(files, allow_patterns=WANTED, ignore_patterns=UNWANTED))


def download(name: str, commit: str | None) -> Path:
    """Fetch what the cache lacks of a hub model's files; where they are."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HTTPError

    try:
        found = snapshot_download(
            name, revision=commit, allow_patterns=WANTED, ignore_patterns=UNWANTED, etag_timeout=5
        )
    except GatedRepoError as e:
        raise UserError(_gated(name, commit)) from e
    except (HTTPError, OSError) as e:
        raise NotReached(f"{name}: its weights are not in the local cache and {_unreachable(name, e, commit)}") from e
    check_weights(Path(found))
    return Path(found)


def _ask(name: str, revision: str | None, presets: Sequence[str]) -> str:
    """Fetch ``config.json``, once the hub has said that safetensors weights are there. The cache learns what `revision` is."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        # model_info makes one attempt; a download would retry a dead network for half a minute.
        info = HfApi().model_info(name, revision=revision, timeout=5)
        files = [sibling.rfilename for sibling in info.siblings or []]
        if what := unread.named(files):
            raise UserError(f"{_at(name, revision)} on the hub: {what}")
        if "config.json" not in files:
            raise UserError(f"{name} on the hub is no transformers model: no config.json")
        if WEIGHTS not in files and INDEX not in files:
            raise UserError(f"{_at(name, revision)} on the hub has no safetensors weights; pickled ones are refused")
        return hf_hub_download(name, "config.json", revision=revision, etag_timeout=5)
    except GatedRepoError as e:
        raise UserError(_gated(name, revision)) from e
    except RevisionNotFoundError as e:
        raise UserError(f"model.revision={revision}: {name} has no such branch, tag or commit on the hub") from e
    except RepositoryNotFoundError as e:
        raise UserError(
            f"unknown model {name!r}: no directory, and no (public) hub model{_choices(name, presets)}; for a private one "
            "log in with: hf auth login"
        ) from e
    except (HTTPError, OSError) as e:
        raise NotReached(not_reached(name, revision, e, presets)) from e


def _within(seconds: float, name: str, ask: Callable[[], str], revision: str | None, presets: Sequence[str]) -> str:
    try:
        return within(seconds, ask)
    except TimeoutError as e:
        raise NotReached(not_reached(name, revision, e, presets)) from e


def within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """`ask()`, abandoned after `seconds`: a silent network holds a request far longer than its own time-out says.

    Raises:
        TimeoutError: no answer by then.
    """
    answer: list[Answer] = []
    failure: list[UserError] = []

    def run() -> None:
        try:
            answer.append(ask())
        except UserError as e:
            failure.append(e)

    thread = threading.Thread(target=run, daemon=True, name="hub-lookup")
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not answer:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return answer[0]


def not_reached(name: str, revision: str | None, why: Exception, presets: Sequence[str] = ()) -> str:
    """One line for a hub that did not answer: what is missing, why, what to run."""
    if (
        "/" not in name and revision is None and name not in presets
    ):  # nearly always a mistyped preset, so say that first
        unknown = f"unknown model {name!r}: no preset, directory or cached model"
        return f"{unknown}, and {_unreachable(name, why)}{_choices(name, presets)}"
    return f"{_at(name, revision)} is not in the local Hugging Face cache and {_unreachable(name, why, revision)}"


def _unreachable(name: str, why: Exception, revision: str | None = None) -> str:
    return (
        f"the hub was not reached ({reason(why)}); where there is network run: {_prefetch(name, revision)}, "
        "or give the directory of a copy"
    )


def _gated(name: str, revision: str | None) -> str:
    return (
        f"{name} is gated: accept its licence on https://huggingface.co/{name}, log in with: hf auth login, then run: "
        f"{_prefetch(name, revision)}"
    )


def _prefetch(name: str, revision: str | None) -> str:
    return f"python launch.py task=prefetch model={name}" + (f" model.revision={revision}" if revision else "")


def _at(name: str, revision: str | None) -> str:
    return f"{name} at revision {revision}" if revision else name


def _choices(name: str, presets: Sequence[str]) -> str:
    return suggest(name, presets, "models") if presets and name not in presets else ""
