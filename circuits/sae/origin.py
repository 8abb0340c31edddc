"""For which model and site an SAE says it was made, beside where it is used. No torch.

Names of one thing differ (``gpt2-small`` is ``gpt2``, the stream before block 3 is the one after block 2), and a directory's name
may be anybody's: so what differs is a remark, not an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from circuits.models.sites import hook_name, site_of_hook
from circuits.sae.declared import Found
from circuits.sae.directory import is_sparsify, read


def remarks(directory: Path, model: str, site: str, layers: Sequence[int]) -> list[str]:
    """What its config says of its origin that is not so here, one line each.

    Args:
        directory: of the SAE; one that cannot be read has none.
        model: a hub name or a model's directory.
        site, layers: where it is used.
    """
    try:
        found = read(directory)
    except (OSError, ValueError):
        return []
    said, hook = _of_which_model(directory, found), _at_which_hook(directory, found)
    lines = []
    for layer in layers:
        here = hook_name(site, layer)
        other_model = said is not None and not same_model(said, model)
        other_site = hook is not None and not _same_site(hook, site, layer, transcodes=found.d_out is not None)
        if other_model or other_site:
            made = " at ".join(name for name in (said, hook) if name)
            lines.append(f"it says that it was made for {made}, and is used on {model} at {here}")
    if found.processing:
        options = ", ".join(f"{name}={value}" for name, value in found.processing.items())
        lines.append(f"it was made on activations of a model loaded with {options}; here the model is as it is saved")
    return lines


def same_model(said: str, model: str) -> bool:
    """Whether two names can be of one model: by their last part, letters and digits; of a directory by the folders above, too."""
    parts = [part.rpartition("--")[2] for part in Path(model).parts[-3:]]  # …/models--owner--name/snapshots/<commit>
    try:
        parts.append(
            str(json.loads((Path(model) / "config.json").read_text(encoding="utf-8")).get("_name_or_path", ""))
        )
    except (OSError, ValueError, AttributeError):
        pass
    return _bare(said) in {_bare(part) for part in parts}


def _bare(name: str) -> str:
    last = name.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-")
    return re.sub(r"[^0-9a-z]", "", {"gpt2-small": "gpt2"}.get(last, last))


def _same_site(hook: str, site: str, layer: int, *, transcodes: bool) -> bool:
    found = site_of_hook(hook)
    if found is None:
        return False
    if transcodes and found[0] == "mlp_out":  # sparsify names a transcoder by the module
        found = ("mlp_in", found[1])
    return _stream(*found) == _stream(site, layer)


def _stream(site: str, layer: int) -> tuple[str, int]:
    """The stream before a block is the one after the block before it."""
    return ("resid_post", layer - 1) if site == "resid_pre" else (site, layer)


def _of_which_model(directory: Path, found: Found) -> str | None:
    """What the config says; of sparsify's SAEs what the training's config says, one directory up."""
    if found.model is not None or not is_sparsify(directory):
        return found.model
    try:
        said = json.loads((directory.parent / "config.json").read_text(encoding="utf-8")).get("model")
    except (OSError, ValueError, AttributeError):
        return None
    return said if isinstance(said, str) else None


def _at_which_hook(directory: Path, found: Found) -> str | None:
    """What the config says; of sparsify's SAEs the directory's name, where it is one of a module."""
    if found.hook is not None or not is_sparsify(directory):
        return found.hook
    return directory.name if site_of_hook(directory.name) is not None else None
