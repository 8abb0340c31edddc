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
from circuits.sae import places
from circuits.sae.declared import Found
from circuits.sae.directory import read
from circuits.sae.places import Form, Place


def remarks(directory: Path, model: str, site: str, layers: Sequence[int], target: str | None = None) -> list[str]:
    """What configs say of their origin that is not so here, one line each; of a set one line for all its layers.

    Args:
        directory: of the SAE or the set; one that cannot be read has none.
        model: a hub name or a model's directory.
        site, layers: where it is used.
        target: the site that a transcoder is to reconstruct.
    """
    try:
        found = {place: read(place) for place in places.chosen(directory, layers)}
    except (OSError, ValueError):
        return []
    lines = []
    for place, what in found.items():
        own = layers if place.layer is None else [place.layer]
        lines += [told for layer in own if (told := _elsewhere(place, what, model, site, layer, target))]
    if len(found) > 1 and len(lines) > 1:
        lines = [f"{lines[0]} (and so on for {len(lines)} of {len(found)} layers)"]
    processing = next((what.processing for what in found.values() if what.processing), None)
    if processing:
        options = ", ".join(f"{name}={value}" for name, value in processing.items())
        lines.append(f"it was made on activations of a model loaded with {options}; here the model is as it is saved")
    return lines


def _elsewhere(place: Place, found: Found, model: str, site: str, layer: int, target: str | None) -> str | None:
    """What an SAE says of its model and its sites, where it is used with others."""
    said, hook, transcodes = _of_which_model(place, found), _at_which_hook(place, found), found.d_out is not None
    here, out = hook_name(site, layer), None if target is None else hook_name(target, layer)
    other_model = said is not None and not same_model(said, model)
    other_site = hook is not None and not _same_site(hook, site, layer, transcodes=transcodes)
    other_target = bool(found.hook_out and target) and not _same_site(str(found.hook_out), str(target), layer)
    if not (other_model or other_site or other_target):
        return None
    made = " at ".join(name for name in (said, hook) if name) + (f" to {found.hook_out}" if other_target else "")
    return f"it says that it was made for {made}, and is used on {model} at {here}" + (
        f" to {out}" if other_target else ""
    )


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


def _same_site(hook: str, site: str, layer: int, *, transcodes: bool = False) -> bool:
    found = site_of_hook(hook)
    if found is None:
        return False
    if transcodes and found[0] == "mlp_out":  # sparsify names a transcoder by the module
        found = ("mlp_in", found[1])
    return _stream(*found) == _stream(site, layer)


def _stream(site: str, layer: int) -> tuple[str, int]:
    """The stream before a block is the one after the block before it."""
    return ("resid_post", layer - 1) if site == "resid_pre" else (site, layer)


def _of_which_model(place: Place, found: Found) -> str | None:
    """What the config says; of sparsify's SAEs what the training's config says, one directory up."""
    if found.model is not None or place.form is not Form.sparsify:
        return found.model
    try:
        said = json.loads((place.directory.parent / "config.json").read_text(encoding="utf-8")).get("model")
    except (OSError, ValueError, AttributeError):
        return None
    return said if isinstance(said, str) else None


def _at_which_hook(place: Place, found: Found) -> str | None:
    """What the config says; of sparsify's SAEs the directory's name, where it is one of a module."""
    if found.hook is not None or place.form is not Form.sparsify:
        return found.hook
    return place.directory.name if site_of_hook(place.directory.name) is not None else None
