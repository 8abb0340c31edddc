"""What a model directory must hold: a config, whole safetensors weights, a tokenizer. Read from file names and headers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from circuits.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Any one of these is a tokenizer's vocabulary."""
TOKENIZER_FILES = ("*token*", "vocab*", "merges*", "spiece.model")
"""Patterns of all files that a tokenizer is read from."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


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


def check_vocabulary(directory: Path) -> None:
    """Refuse a directory without a tokenizer."""
    if not has_vocabulary(directory):
        raise UserError(f"{directory}: no tokenizer; save one there with tokenizer.save_pretrained")


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


def complete(directory: Path) -> bool:
    """Whether a directory holds whole weights and a tokenizer."""
    try:
        check_weights(directory)
    except UserError:
        return False
    return has_vocabulary(directory)
