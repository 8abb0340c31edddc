"""Directories and repositories that hold no model that is read here, named as what they are: by file names and configs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from circuits.errors import UserError

ADAPTER = "adapter_config.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)/config\.json")
_SNAPSHOT = re.compile(r"snapshots/([^/]+)/config\.json")


def refuse(directory: Path) -> None:
    """Say what a directory is that holds no model.

    Raises:
        UserError: naming it, and what to do.
    """
    found = [path.name for path in directory.iterdir() if path.is_file()]
    found += [path.relative_to(directory).as_posix() for path in directory.glob("*/config.json")]
    found += [path.relative_to(directory).as_posix() for path in directory.glob("snapshots/*/config.json")]
    found += [f"{path.name}/" for path in directory.glob("global_step*") if path.is_dir()]
    base = _read(directory / ADAPTER).get("base_model_name_or_path") if ADAPTER in found else None
    if what := named(found, base):
        raise UserError(f"{directory}: {what}")


def named(files: Collection[str], base: str | None = None) -> str | None:
    """What a directory with these files (paths from it) is, and what to do; None where it may be a model.

    `base` is the model that an adapter is of, where that is known.
    """
    names = set(files)
    if ADAPTER in names:
        return (
            f"an adapter (PEFT){f' of {base}' if base else ''}, no whole model; merge it once: "
            "AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(NEW_DIR), with the tokenizer"
        )
    if {"cfg.json", "sae_weights.safetensors"} <= names or {"cfg.json", "sae.safetensors"} <= names:
        return "an SAE, no language model; sae.from=DIR measures one"
    weights = any(name.endswith(".safetensors") or name.endswith(".safetensors.index.json") for name in names)
    if "config.json" in names and weights:
        return None
    if steps := sorted(int(found[1]) for name in names if (found := _CHECKPOINT.fullmatch(name))):
        return f"a training's folder, whose models are in checkpoints below it; name one: checkpoint-{steps[-1]} is the last"
    if commits := sorted(found[1] for name in names if (found := _SNAPSHOT.fullmatch(name))):
        return f"a folder of the Hugging Face cache; its model is in it: snapshots/{commits[-1]}"
    if "zero_to_fp32.py" in names or any(name.startswith("global_step") for name in names):
        return "a DeepSpeed checkpoint; its zero_to_fp32.py makes the weights, save them with save_pretrained"
    if gguf := sorted(name for name in names if name.endswith(".gguf")):
        return f"{gguf[0]} is a model of llama.cpp (GGUF), which is not read here; give the model that it was made from"
    if "params.json" in names and any(name.startswith("consolidated.") for name in names):
        return "weights in their maker's own format (params.json, consolidated…); give the Hugging Face version of the model"
    return None


def quantised(config: Mapping[str, Any]) -> str | None:
    """Why a model's config says that its weights are quantised, or None."""
    found = config.get("quantization_config")
    if not isinstance(found, Mapping):
        return None
    method = found.get("quant_method") or (
        "bitsandbytes" if "load_in_4bit" in found or "load_in_8bit" in found else "?"
    )
    return (
        f"its weights are quantised ({method}): activations, edits and gradients of such weights are not supported; "
        "give the model that it was made from"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
