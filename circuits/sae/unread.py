"""Directories that hold no SAE that is read here, named as what they are: from the names of their files alone. No torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

CONFIG, WEIGHTS, SPARSIFY_WEIGHTS = "cfg.json", "sae_weights.safetensors", "sae.safetensors"
DICTIONARY = "ae.pt"
SCOPE = "params.safetensors"
CROSS_LAYER = re.compile(r"(?:W_(?:enc|dec)|params_layer)_\d+\.safetensors")
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")
_SHOWN, _MOST, _DEEP = 8, 5000, 4
_RISK = "a pickle, which can run code when it is read and is refused"


def listing(directory: Path) -> list[str]:
    """The files of a directory and of those below it, as paths from it: not deeper, and not more, than tells what it is."""
    found = []
    for path in itertools.islice(directory.rglob("*"), _MOST):
        inner = path.relative_to(directory)
        if len(inner.parts) <= _DEEP and path.is_file():
            found.append(inner.as_posix())
    return found


def named(files: Collection[str]) -> str | None:
    """What a directory with these files (paths from it) is, and what to do; None where nothing is known."""
    paths = [PurePosixPath(file) for file in files]
    names = {path.name for path in paths if len(path.parts) == 1}
    if inner := places(files):
        more = " …" if len(inner) > _SHOWN else ""
        count = f"{len(inner)} SAE{'s' * (len(inner) > 1)}"
        return f"holds {count} in directories below it; name one of them: {' '.join(inner[:_SHOWN])}{more}"
    if "adapter_config.json" in names:
        return "an adapter of a language model (PEFT), no SAE"
    if "config.json" in names and any(name.startswith(("model", "pytorch_model")) for name in names):
        return "a language model, no SAE"
    if "manifest.json" in names:
        return "an artifact that is no SAE"
    if DICTIONARY in names:
        return (
            f"an SAE of dictionary_learning, saved as {DICTIONARY}: {_RISK}; where you trust it, SAELens reads it from the hub "
            "(loader dictionary_learning_1) and its save_model writes a directory that is read here"
        )
    if any(CROSS_LAYER.match(name) for name in names):
        return "a cross-layer transcoder, whose features write to all later layers: task=clt takes it"
    if SCOPE in names and "config.json" not in names:
        return f"{SCOPE} without the config.json of Gemma Scope 2 beside it, which says where it reads and writes"
    if arrays := sorted(name for name in names if name.endswith(".npz")):
        return (
            f"an SAE as {arrays[0]}, as Gemma Scope's are, which is not read here; convert it once with SAELens: "
            "SAE.from_pretrained(RELEASE, ID).save_model(DIR)"
        )
    if pickled := sorted(name for name in names if name.endswith((*PICKLES, *(f"{end}.gz" for end in PICKLES)))):
        return f"holds {pickled[0]}: {_RISK}; convert it where you trust it, for example to a SAELens directory with save_model"
    return None


def places(files: Collection[str]) -> list[str]:
    """The directories below that hold an SAE, of a kind that is read here or not."""
    paths = [PurePosixPath(file) for file in files]
    weights = {WEIGHTS, SPARSIFY_WEIGHTS, DICTIONARY, SCOPE, "params.npz"}
    return sorted({str(path.parent) for path in paths if path.name in weights and len(path.parts) > 1})
