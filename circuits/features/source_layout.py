"""Artifacts of the picture study under the names and in the forms of the documents that it comes from (SPEC section 5).

``layer_10_english.pt`` and ``sae_final.pt`` are plain dicts: ``torch.load(path, weights_only=True)`` reads them.
"""

from __future__ import annotations

import io
import shutil
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from circuits.activations.store import ActivationStore
from circuits.data.pictures.saved import PictureSet
from circuits.data.pictures.table import CAPTION, PROMPT
from circuits.files import disk_errors, write_json
from circuits.sae import formats

EXTRACTION = Path("checkpoints/full_layers_ncc")
SAES = Path("checkpoints/saes")
DATA = Path("data/processed")
FIGURES = Path("visualizations")
REPORT = FIGURES / "FINAL_REPORT"
RESULTS = FIGURES / "comprehensive_all_layers" / "comprehensive_analysis_results.json"
CROSS_LAYER = FIGURES / "cross_layer_analysis_full" / "cross_layer_results.json"


def write_activations(store: ActivationStore, pictures: PictureSet, out: Path) -> Path:
    """One layer and language as ``[samples, positions, hidden]``, padded on the right, with its mask and token types."""
    rows, n = store.rows, len(pictures)
    sample, position = rows["sample"].to_numpy(), rows["position"].to_numpy()
    start = int(position.min()) if len(position) else 0
    length = int(position.max()) - start + 1 if len(position) else 0
    values = torch.zeros(n, length, store.width, dtype=torch.from_numpy(store.float32(slice(0, 0))).dtype)
    mask, image = torch.zeros(n, length, dtype=torch.bool), torch.zeros(n, length, dtype=torch.bool)
    at = (torch.from_numpy(sample.copy()), torch.from_numpy(position - start))
    values[at] = torch.from_numpy(store.float32(slice(None)))
    mask[at] = True
    if "token_type" in rows:
        image[at] = torch.from_numpy(np.asarray(rows["token_type"].astype(str) == "image"))
    path = out / EXTRACTION / "layer_checkpoints" / f"layer_{store.layer}_{store.facts['language']}.pt"
    _save(
        path,
        {
            "layer": store.layer,
            "language": store.facts["language"],
            "activations": values,
            "attention_mask": mask,
            "token_types": image.long(),
            "genders": [one.label for one in pictures],
            "sample_ids": [one.id for one in pictures],
            "hidden_size": store.width,
            "model": str(store.facts["model"]),
            "revision": str(store.facts.get("revision")),
            "dtype": store.dtype,
            "dropped": [int(one["sample"]) for one in store.facts.get("dropped", [])],
        },
    )
    return path


def write_sae(directory: Path, layer: int, out: Path) -> Path:
    """``saes/layer_10/sae_final.pt`` (the state dict), with config and metrics beside it."""
    sae, place = formats.load(directory), out / SAES / f"layer_{layer}"
    _save(place / "sae_final.pt", {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()})
    with disk_errors(place):
        for name, given in (("config.json", "cfg.json"), ("metrics.json", "metrics.json")):
            (place / name).write_bytes((directory / given).read_bytes())
    return place / "sae_final.pt"


def write_pictures(pictures: PictureSet, out: Path) -> Path:
    """``samples.csv``, a row a caption, and ``images/``; ``behaviour.path=`` reads it (a caption that stands twice counts once)."""
    place = out / DATA
    with disk_errors(place):
        (place / "images").mkdir(parents=True, exist_ok=True)
        files = [_image(pictures, i, place / "images") for i in range(len(pictures))]
    rows: list[dict[str, Any]] = []
    for one, file in zip(pictures, files, strict=True):
        known = {"image_id": one.id, "image_path": f"images/{file}", "split": one.split, "group": one.group}
        known |= {PROMPT[name]: one.prompts[name] for name in pictures.languages} | dict(one.factors)
        captions = [one.captions[name] for name in pictures.languages]
        for said in zip_longest(*captions, fillvalue=""):
            named = {CAPTION[name]: text for name, text in zip(pictures.languages, said, strict=True)}
            rows.append({"sample_id": len(rows), **known, **named, "gender": one.label})
    with disk_errors(place):
        pd.DataFrame(rows).to_csv(place / "samples.csv", index=False)
    return place / "samples.csv"


def _image(pictures: PictureSet, i: int, folder: Path) -> str:
    """A picture's file, called by its place: the bytes that it came as, and a PNG of one that was drawn here."""
    content = pictures.content(i)
    if content is None:
        pictures.image(i).save(folder / f"{i:06d}.png")
        return f"{i:06d}.png"
    name = (
        f"{i:06d}.{str(Image.open(io.BytesIO(content)).format).lower()}"  # as its bytes say: a dataset's have no name
    )
    (folder / name).write_bytes(content)
    return name


def write_report(sweep: Path, out: Path) -> Path | None:
    """The study's page as Markdown, with the figures that it shows; None where none has been written."""
    page = sweep / "report.md"
    if not page.exists():
        return None
    place = out / REPORT / f"COMPLETE_ANALYSIS_REPORT_{sweep.name}.md"
    with disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, place)
        if (sweep / "figures").is_dir():
            shutil.copytree(sweep / "figures", place.parent / "figures", dirs_exist_ok=True)
    return place


def write_result(found: dict[str, Any], path: Path) -> None:
    """A result as JSON."""
    write_json(path, found, make=True)


def _save(path: Path, content: dict[str, Any]) -> None:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
