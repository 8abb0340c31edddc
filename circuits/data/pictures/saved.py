"""Sets of pictures, as a ``prompts`` artifact of a behaviour of pictures holds them.

The directory has ``pictures.parquet`` (a row for each picture, with its captions, labels and split), ``images.npy`` where the
pictures were drawn here (those of files stay where they are, and are known by their SHA-256) and ``meta.json``. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits import tables
from circuits.data.fielded import absent
from circuits.data.npy import open_npy
from circuits.data.pictures.dataset import encoded
from circuits.errors import Damaged, UserError, suggest
from circuits.files import read_json, write_json

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

PICTURES, IMAGES, META = "pictures.parquet", "images.npy", "meta.json"
LANGUAGES = ("english", "arabic")


@dataclass(frozen=True)
class Picture:
    """One picture: the unit of every statistic."""

    id: str
    split: str
    """``train`` or ``test``; no group is in both."""
    group: str
    """Pictures that belong together (twins): the unit that is drawn by a bootstrap."""
    label: str
    """What the captions of both languages say of gender: male, female, mixed, unknown."""
    labels: Mapping[str, str]
    """The same by language."""
    captions: Mapping[str, Sequence[str]]
    prompts: Mapping[str, str]
    factors: Mapping[str, str] = field(default_factory=dict)
    """What else is known of it (place, whether the person's gender is seen)."""
    file: str | None = None
    sha256: str = ""
    row: int | None = None
    """Of a dataset's file, which has its bytes."""


@dataclass(frozen=True)
class PictureSet:
    """Pictures in order."""

    pictures: tuple[Picture, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    directory: Path | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.pictures)

    def __getitem__(self, index: int) -> Picture:
        return self.pictures[index]

    def __repr__(self) -> str:
        return f"PictureSet({len(self)} pictures, {' '.join(self.languages)})"

    @property
    def languages(self) -> list[str]:
        """The languages that are asked in."""
        return list(self.meta["languages"])

    @property
    def controls(self) -> list[str]:
        """What there is in place of the pictures: ``blank``, and of drawn ones ``masked`` and ``swapped``."""
        return ["blank", *self.meta.get("controls", [])]

    @cached_property
    def _drawn(self) -> dict[str, Any]:
        names = ["", *self.meta.get("controls", [])] if "images" in self.meta and self.directory is not None else []
        shape = tuple(self.meta.get("images", ()))
        return {name: open_npy(Path(str(self.directory)) / images_name(name), shape) for name in names}

    def image(self, index: int, control: str | None = None) -> Image:
        """The picture `index` of the set as it was written, RGB; or a `control` in its place.

        Raises:
            UserError: its file is gone or another one; no such control.
        """
        import io

        from PIL import Image

        if control is not None and control not in self.controls:
            raise UserError(f"control {control}: these pictures have {' '.join(self.controls)}")
        if control == "blank":
            return Image.new("RGB", self.image(index).size, (128, 128, 128))
        content = self.content(index)
        if content is None:
            return Image.fromarray(np.asarray(self._drawn[control or ""][index]))
        return Image.open(io.BytesIO(content)).convert("RGB")

    def content(self, index: int) -> bytes | None:
        """The bytes of its file, as it was prepared; None where it was drawn here.

        Raises:
            UserError: its file is gone or another one.
        """
        one = self.pictures[index]
        if one.file is None:
            return None
        try:
            content = Path(one.file).read_bytes() if one.row is None else encoded(Path(one.file), one.row) or b""
        except OSError as e:
            raise UserError(f"{one.file}: the picture of {one.id} cannot be read ({e.strerror})") from e
        if hashlib.sha256(content).hexdigest() != one.sha256:
            raise UserError(
                f"{one.file}: the picture of {one.id} has changed since it was prepared; run task=prompts again"
            )
        return content

    def where(self, split: str | None = None, **factors: str) -> list[int]:
        """The places of the pictures of a split, and with these factors."""
        if split is not None and split not in {one.split for one in self}:
            raise UserError(f"split={split}: no picture is in it" + suggest(split, {p.split for p in self}, "splits"))
        return [
            i
            for i, one in enumerate(self)
            if (split is None or one.split == split) and all(one.factors.get(k) == v for k, v in factors.items())
        ]

    def table(self) -> pd.DataFrame:
        """A row for each picture: id, split, group, label, ``label.<language>``, ``factor.<name>``."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"id": p.id, "split": p.split, "group": p.group, "label": p.label}
                | {f"label.{language}": value for language, value in p.labels.items()}
                | {f"factor.{name}": value for name, value in p.factors.items()}
                for p in self
            ]
        )


_JSON = ("labels", "captions", "prompts", "factors")


THUMBNAIL = 96
"""Pixels of the longer side of a small picture for a page."""


def write_thumbnails(pictures: PictureSet, which: Sequence[int], folder: Path) -> None:
    """Small PNGs of some pictures, called by their place in the set."""
    folder.mkdir(exist_ok=True)
    for i in which:
        image = pictures.image(i)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.save(folder / f"{i}.png")


def images_name(control: str) -> str:
    """``images.npy``, ``images-masked.npy``."""
    return f"images-{control}.npy" if control else IMAGES


def write(
    directory: Path, pictures: Sequence[Picture], meta: Mapping[str, Any], drawn: Mapping[str, Any] | None = None
) -> None:
    """Write a set into `directory`; `drawn` ``[n, height, width, 3]``, eight bits, where the pictures are no files: under "" the
    pictures themselves, under other names controls."""
    import pandas as pd

    rows = [
        {
            name: json.dumps(dict(value), ensure_ascii=False) if name in _JSON else value
            for name, value in vars(p).items()
        }
        for p in pictures
    ]
    pd.DataFrame(rows).to_parquet(directory / PICTURES, index=False)
    facts = dict(meta)
    if drawn is not None:
        for name, pixels in drawn.items():
            np.save(directory / images_name(name), np.ascontiguousarray(pixels), allow_pickle=False)
        facts |= {"images": list(drawn[""].shape), "controls": [name for name in drawn if name]}
    write_json(directory / META, facts)


def read(directory: Path) -> PictureSet:
    """The set in `directory`.

    Raises:
        Damaged: it is not whole.
        UserError: it is a set of text prompts.
    """

    if not (directory / PICTURES).exists() and (directory / "prompts.jsonl").exists():
        raise UserError(f"{directory}: prompts of text, no pictures; choose behaviour=gender_bias")
    try:
        meta = read_json(directory / META)
    except (OSError, ValueError) as e:
        raise Damaged(f"{directory}: no whole set of pictures ({str(e).splitlines()[0]})") from e
    rows = tables.read(directory / PICTURES).to_dict("records")
    return PictureSet(tuple(_picture(row) for row in rows), meta, directory)


def _picture(row: Mapping[Any, Any]) -> Picture:
    """Of a row as pandas gives it: numbers beside nulls are floats there."""
    found = {name: json.loads(value) if name in _JSON else value for name, value in row.items() if not absent(value)}
    return Picture(**(found | {"row": int(found["row"])} if "row" in found else found))
