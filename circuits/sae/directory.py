"""Whether a directory holds an SAE in SAELens's format, without torch: for checks before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


def problems(
    directory: Path, width: int | None, width_out: int | None = None, *, transcodes: bool = False
) -> list[str]:
    """What is wrong with it, one line each: files, the config's sizes, the weights' names; widths of the sites if known."""
    if not directory.is_dir():
        return ["no such directory"]
    missing = [name for name in (CONFIG, WEIGHTS) if not (directory / name).is_file()]
    if missing:
        return [f"no SAELens directory: {' and '.join(missing)} missing"]
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        sizes = {name: int(config[name]) for name in ("d_in", "d_sae", *(["d_out"] if transcodes else []))}
    except (ValueError, KeyError, TypeError) as e:
        return [f"{CONFIG} gives no d_in and d_sae{' and d_out' if transcodes else ''} ({type(e).__name__}: {e})"]
    if "d_out" in config and not transcodes:
        return ["a transcoder; name the site that it reconstructs with sae.target_site=…"]
    if width is not None and sizes["d_in"] != width:
        return [f"its d_in={sizes['d_in']} is not the site's width {width}"]
    if transcodes and width_out is not None and sizes["d_out"] != width_out:
        return [f"its d_out={sizes['d_out']} is not the target site's width {width_out}"]
    try:
        with safe_open(directory / WEIGHTS, framework="np") as f:
            names = set(f.keys())
    except (SafetensorError, OSError) as e:
        return [f"{WEIGHTS} cannot be read ({e})"]
    lacking = sorted({"W_dec", "W_enc", "b_dec"} - names)
    return [f"{WEIGHTS} lacks the tensor {' '.join(lacking)}"] if lacking else []
