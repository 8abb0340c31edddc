"""What a model is, from its ``config.json`` and file names alone: no torch, no transformers, no weights in memory.

`inspect_model` answers before anything is started: family, sizes and, for a hub name, the commit it is pinned to. A
directory is checked for safetensors weights, whole ones. A hub name is looked up in the local Hugging Face cache first
(:mod:`circuits.models.hub`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from circuits.errors import UserError
from circuits.models import hub, unread
from circuits.models.sites import Dims, dims_of, family_of
from circuits.models.weights import WEIGHTS, check_vocabulary, check_weights, complete, read_config


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


def inspect_model(
    name_or_dir: str, revision: str | None = None, presets: Sequence[str] = (), fresh: bool = False
) -> ModelFacts:
    """Identify a model directory or hub name. `presets` are shown as choices when the name is unknown.

    `fresh` asks the hub what `revision` is now although the cache knows what it was.
    """
    directory = directory_of(name_or_dir)
    if directory is not None and directory.is_dir():
        if revision is not None:
            raise UserError(f"model.revision={revision}: {name_or_dir} is a directory; only hub names have revisions")
        unread.refuse(directory)
        config = read_config(directory)
        if problem := unread.quantised(config):
            raise UserError(f"{name_or_dir}: {problem}")
        check_weights(directory)
        check_vocabulary(directory)
        return _facts(name_or_dir, directory.resolve(), None, config)
    if directory is not None and directory.is_file():
        if directory.suffix == ".gguf":
            raise UserError(f"{unread.named([name_or_dir])}")
        raise UserError(
            f"{name_or_dir} is a file; a model is a directory with config.json and {WEIGHTS}, or a hub name"
        )
    if directory is not None:
        raise UserError(f"{name_or_dir}: no such model directory")
    try:
        commit, config = hub.config_of(name_or_dir, revision, presets, fresh)
    except UserError as e:
        if (Path(name_or_dir) / "config.json").is_file():
            raise UserError(f"{e}; for the model directory here write ./{name_or_dir}") from e
        raise
    if problem := unread.quantised(config):
        raise UserError(f"{name_or_dir}: {problem}")
    return _facts(name_or_dir, None, commit, config)


def directory_of(name: str) -> Path | None:
    """The directory that `name` stands for, whether or not it is there; None where it is a hub name.

    A single word is a hub name: a folder that happens to be called ``gpt2`` takes no model's place, ``./gpt2`` names it.
    """
    path = Path(name).expanduser()
    if path.is_absolute() or name.startswith(("./", "../")) or name in (".", "..") or ("/" in name and path.exists()):
        return path
    return None


def cached_weights(name_or_dir: str, revision: str | None = None) -> Path | None:
    """The directory with a model's whole weights and tokenizer, if it is on this machine: nothing is asked of a network.

    For a hub name: its snapshot in the Hugging Face cache (``HF_HOME``) at `revision`, a branch, tag or commit.
    """
    directory = directory_of(name_or_dir) or hub.cached(name_or_dir, revision)
    return directory if directory is not None and complete(directory) else None


@lru_cache
def parameters(name_or_dir: str, revision: str | None = None) -> int | None:
    """How many numbers a model's weights are, from the headers of its safetensors files; None when they are not on this machine.

    Remembered: a sweep's preflight asks for every element.
    """
    directory = cached_weights(name_or_dir, revision)
    if directory is None:
        return None
    count = 0
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        count += sum(math.prod(facts["shape"]) for name, facts in header.items() if name != "__metadata__")
    return count


def local_files(facts: ModelFacts) -> Path:
    """The directory that holds the model's files, downloading what the cache lacks of a hub model."""
    if facts.path is not None:
        return facts.path
    return cached_weights(facts.name, facts.revision) or hub.download(facts.name, facts.revision)


def _facts(name: str, path: Path | None, revision: str | None, config: Mapping[str, Any]) -> ModelFacts:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UserError(f"{name}: its config.json names no model_type, so it is no transformers model")
    family_of(model_type, name)
    return ModelFacts(name, path, revision, model_type, dims_of(config))
