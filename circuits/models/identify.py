"""What a model is, from its ``config.json`` and file names alone: no torch, no transformers, no weights in memory.

`inspect_model` answers before anything is started: family, sizes and, for a hub name, the commit it is pinned to. A
directory is checked for safetensors weights, whole ones. A hub name is looked up in the local Hugging Face cache
first; only what is not cached asks the network, and that gives up after :data:`NETWORK_SECONDS`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.errors import UserError, suggest
from circuits.models.sites import Dims, dims_of, family_of

NETWORK_SECONDS = 10.0
"""Longest wait for the hub. Its client retries failed requests on its own for longer than anyone should watch."""

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Any one of these is a tokenizer's vocabulary."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_UNWANTED = ["*/*", "consolidated*", "adapter_*"]


@dataclass(frozen=True)
class ModelFacts:
    """A model named, found and measured, not loaded."""

    name: str
    """As the user wrote it."""
    path: Path | None
    """The directory, for a model given as one; None for a hub name."""
    revision: str | None
    """The commit a hub name is pinned to; None for a directory."""
    model_type: str
    dims: Dims


def inspect_model(name_or_dir: str, revision: str | None = None, presets: Sequence[str] = ()) -> ModelFacts:
    """Identify a model directory or hub name. `presets` are shown as choices when the name is unknown."""
    directory = Path(name_or_dir).expanduser()
    if directory.is_dir():
        config = read_config(directory)
        check_weights(directory)
        return _facts(name_or_dir, directory.resolve(), None, config)
    if directory.is_file():
        raise UserError(
            f"{name_or_dir} is a file; a model is a directory with config.json and {WEIGHTS}, or a hub name"
        )
    if name_or_dir.startswith(("/", "./", "../", "~")):
        raise UserError(f"{name_or_dir}: no such model directory")
    commit, config = _hub_config(name_or_dir, revision, presets)
    return _facts(name_or_dir, None, commit, config)


def local_files(facts: ModelFacts) -> Path:
    """The directory that holds the model's files, downloading what the cache lacks of a hub model."""
    if facts.path is not None:
        return facts.path
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError

    cached = try_to_load_from_cache(facts.name, "config.json", revision=facts.revision)
    if isinstance(cached, str) and _complete(Path(cached).parent):
        return Path(cached).parent
    try:
        found = snapshot_download(
            facts.name, revision=facts.revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED, etag_timeout=5
        )
    except (HTTPError, OSError) as e:
        raise UserError(f"{facts.name}: its weights are not in the local cache and {_unreachable(e)}") from e
    check_weights(Path(found))
    return Path(found)


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed ``config.json`` of a model directory."""
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory} is no model directory: no config.json")
    return read_object(path)


def check_weights(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, each there and whole; anything else is refused in one line."""
    if (directory / INDEX).is_file():
        weight_map = read_object(directory / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{directory / INDEX} has no weight_map; save the model again with save_pretrained")
        files = [directory / name for name in sorted(set(weight_map.values()))]
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise UserError(f"{directory}: {INDEX} names files that are not there: {' '.join(missing)}")
    elif (directory / WEIGHTS).is_file():
        files = [directory / WEIGHTS]
    else:
        raise UserError(_no_weights(directory))
    for path in files:
        _check_whole(path)
    return files


def has_vocabulary(directory: Path) -> bool:
    """Whether a tokenizer is saved in a directory; transformers makes up an empty one where there is none."""
    return any((directory / name).is_file() for name in VOCABULARIES)


def _no_weights(directory: Path) -> str:
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if not pickles:
        return f"{directory} holds no weights: neither {WEIGHTS} nor {INDEX}"
    return (
        f"{directory} has only pickled weights ({pickles[0]}), which can run code when read and are refused; convert "
        "them once where you trust them: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
    )


def _check_whole(path: Path) -> None:
    """A safetensors file is 8 bytes of header length, a JSON header, then exactly the bytes its offsets promise."""
    try:
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(length)) if length < path.stat().st_size else {}
        end = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
        raise UserError(f"{path} is no whole safetensors file (truncated or damaged); copy or download it again") from e
    if path.stat().st_size != 8 + length + end:
        raise UserError(f"{path} is {path.stat().st_size} bytes, its header promises {8 + length + end}; copy it again")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object, or one line saying what is wrong with it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:  # malformed JSON and bytes that are not UTF-8
        raise UserError(f"{path} is not valid JSON: {str(e).splitlines()[0]}") from e
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, it holds a {type(value).__name__}")
    return value


def _facts(name: str, path: Path | None, revision: str | None, config: Mapping[str, Any]) -> ModelFacts:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UserError(f"{name}: its config.json names no model_type, so it is no transformers model")
    family_of(model_type, name)
    return ModelFacts(name, path, revision, model_type, dims_of(config))


def _complete(directory: Path) -> bool:
    try:
        check_weights(directory)
    except UserError:
        return False
    return has_vocabulary(directory)


def _hub_config(name: str, revision: str | None, presets: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """(commit, config) of a hub name, from the cache where it is there, else from the network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError as e:
        raise UserError(
            f"unknown model {name!r}: neither a directory nor a possible hub name{_choices(name, presets)}"
        ) from e
    if not isinstance(cached, str):
        cached = _within(NETWORK_SECONDS, name, lambda: _download_config(name, revision, presets), presets)
    return Path(cached).parent.name, read_object(Path(cached))  # …/snapshots/<commit>/config.json


def _download_config(name: str, revision: str | None, presets: Sequence[str]) -> str:
    """Fetch ``config.json`` at a pinned commit, once the hub has said that safetensors weights are there."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        # model_info makes one attempt; a download would retry a dead network for half a minute.
        info = HfApi().model_info(name, revision=revision, timeout=5)
        files = [sibling.rfilename for sibling in info.siblings or []]
        if "config.json" not in files:
            raise UserError(f"{name} on the hub is no transformers model: no config.json")
        if WEIGHTS not in files and INDEX not in files:
            raise UserError(f"{name} on the hub has no safetensors weights; pickled ones are refused")
        return hf_hub_download(name, "config.json", revision=info.sha, etag_timeout=5)
    except GatedRepoError as e:
        raise UserError(
            f"{name} is gated: accept its licence on huggingface.co, then log in with: hf auth login"
        ) from e
    except RevisionNotFoundError as e:
        raise UserError(f"{name} has no revision {revision!r} on the hub") from e
    except RepositoryNotFoundError as e:
        raise UserError(
            f"unknown model {name!r}: no directory, and no (public) hub model{_choices(name, presets)}"
        ) from e
    except (HTTPError, OSError) as e:
        raise UserError(_not_reached(name, e, presets)) from e


def _within(seconds: float, name: str, ask: Callable[[], str], presets: Sequence[str]) -> str:
    """`ask()`, abandoned after `seconds`: a silent network holds a request far longer than its own time-out says."""
    answer: list[str] = []
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
        raise UserError(_not_reached(name, TimeoutError(f"no answer in {seconds:g} s"), presets))
    return answer[0]


def _not_reached(name: str, why: Exception, presets: Sequence[str]) -> str:
    if "/" not in name:  # nearly always a mistyped preset, so say that first
        unknown = f"unknown model {name!r}: no preset, directory or cached model"
        return f"{unknown}, and {_unreachable(why)}{_choices(name, presets)}"
    return f"{name} is not in the local Hugging Face cache and {_unreachable(why)}"


def _unreachable(why: Exception) -> str:
    reason = (str(why) or type(why).__name__).splitlines()[0][:120]
    return (
        f"the hub was not reached ({reason}); where there is network run: hf download NAME, "
        "or give the directory of a copy"
    )


def _choices(name: str, presets: Sequence[str]) -> str:
    return suggest(name, presets, "models") if presets else ""
