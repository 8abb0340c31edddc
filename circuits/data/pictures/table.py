"""Pictures from a table of captions: CSV, TSV or JSON lines with a picture's file in every row (one row a caption, or a picture).

Or from a dataset that holds them (:mod:`circuits.data.pictures.dataset`).

Columns: ``image_path`` and ``en_caption`` (``ar_caption`` for Arabic) are needed; ``image_id``, ``english_prompt``,
``arabic_prompt``, ``group``, ``split`` and any further column (a factor, where it is equal in all rows of a picture) are read too.
Rows of one picture are one sample with several captions, and so are files with equal bytes: a picture, or a caption of it, that
stands in the table twice counts once. Every file is opened and decoded.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from circuits.data import fielded
from circuits.data.fielded import Row, absent
from circuits.data.pictures import dataset, lexicon
from circuits.data.pictures.saved import LANGUAGES, Picture
from circuits.data.seeds import derive_seed
from circuits.errors import UserError, suggest

CAPTION = {"english": "en_caption", "arabic": "ar_caption"}
PROMPT = {"english": "english_prompt", "arabic": "arabic_prompt"}
DEFAULT_PROMPT = {
    "english": "Describe the person in this image in detail.",
    "arabic": "صف الشخص في هذه الصورة بالتفصيل.",
}
KNOWN = {"sample_id", "image_id", "image_path", "gender", "split", "group", *CAPTION.values(), *PROMPT.values()}
TEST_SHARE = 1 / 3
"""Of the pictures, where neither the table nor a number says how many are for confirmation."""
NAMED = 5
"""Faults that are named; all are counted."""


@dataclass
class Built:
    """A set to be written, and what was found on the way."""

    pictures: list[Picture]
    left_out: dict[str, int]
    findings: list[str] = field(default_factory=list)


@dataclass
class _One:
    """What the rows of one picture say."""

    path: str
    place: str
    stored: tuple[Path, int] | None = None
    """File and row of a dataset that has its bytes."""
    again: list[tuple[str, tuple[Path, int]]] = field(default_factory=list)
    """Further rows with the same ``image_id``."""
    captions: dict[str, list[str]] = field(default_factory=lambda: {language: [] for language in LANGUAGES})
    prompts: dict[str, str] = field(default_factory=dict)
    fields: dict[str, set[str]] = field(default_factory=dict)


def read(
    path: Path,
    images: Path,
    languages: Sequence[str],
    *,
    n: int | None,
    n_test: int | None,
    seed: int,
    max_broken: float,
    allow_small: bool = False,
) -> Built:
    """The pictures of a table, labelled and split.

    Args:
        images: the directory that ``image_path`` is relative to.
        languages: those that are asked in; each needs its captions.
        n: how many pictures for training (and discovery), drawn by `seed`; None: all.
        n_test: how many for testing; None: a third.
        max_broken: the share of pictures that may be missing or broken.

    Raises:
        UserError: a column or a language is missing, too many pictures are broken, fewer than asked for are there.
    """
    found = _gather(path, languages)
    pictures, broken = _opened(found, images, languages)
    share = len(broken) / max(1, len(found))
    findings = [f"{len(broken)} of {len(found)} pictures are left out: {'; '.join(broken[:NAMED])}"] if broken else []
    if share > max_broken:
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise UserError(
            f"{path}: {len(broken)} of {len(found)} pictures cannot be used ({share:.1%}; behaviour.max_broken={max_broken:g}): "
            f"{'; '.join(broken[:NAMED])}{more}"
        )
    whole = len(pictures)
    pictures, copies = _once(pictures)
    if copies:
        findings.append(
            f"{len(copies)} files are equal to another one, byte by byte: their captions count as that picture's "
            f"({', '.join(copies[:NAMED])}{' …' if len(copies) > NAMED else ''})"
        )
    pictures = split(pictures, n, n_test, seed, allow_small, str(path))
    left = {"broken": len(broken), "copies": len(copies), "not drawn": whole - len(copies) - len(pictures)}
    unknown = sum(p.label == "unknown" for p in pictures)
    if unknown:
        findings.append(f"{unknown} of {len(pictures)} pictures have captions without a word of gender (label unknown)")
    return Built(pictures, left, findings)


def rows(path: Path) -> Iterator[Row]:
    """The rows of a table or a dataset.

    Raises:
        UserError: naming file and place.
    """
    return dataset.rows(path) if dataset.is_dataset(path) else fielded.rows(path)


def _gather(path: Path, languages: Sequence[str]) -> dict[str, _One]:
    found: dict[str, _One] = {}
    for row in rows(path):
        stored = row.fields.pop(dataset.STORED, None)
        _check_columns(row, path, languages)
        given = row.fields.get("image_id")
        name = str(row.fields["image_path"] if absent(given) or given == "" else given)
        if stored and absent(given) and name in found:  # names in a dataset need not differ: only bytes tell
            name = row.place
        one = found.setdefault(name, _One(str(row.fields["image_path"]), row.place, stored))
        if stored and one.stored != stored:
            one.again.append((row.place, stored))
        elif one.path != str(row.fields["image_path"]):
            raise UserError(
                f"{row.place}: image_id {name} has {row.fields['image_path']} here and {one.path} at {one.place}"
            )
        for language in languages:
            told = row.fields.get(CAPTION[language])
            texts = [str(text) for text in (told if isinstance(told, list) else [told]) if text]
            one.captions[language] += [text for text in texts if text not in one.captions[language]]
            if prompt := row.fields.get(PROMPT[language]):
                one.prompts[language] = str(prompt)
        for key, value in row.fields.items():
            if value is not None and (key not in KNOWN or key in ("group", "split")):
                one.fields.setdefault(key, set()).add(str(value))
    if not found:
        raise UserError(f"{path}: no row in it")
    for language in languages:
        without = [name for name, one in found.items() if not one.captions[language]]
        if len(without) == len(found):
            raise UserError(
                f"{path}: no caption in {language}; fill {CAPTION[language]}, or leave it out of behaviour.languages"
            )
    return found


def _check_columns(row: Row, path: Path, languages: Sequence[str]) -> None:
    for name in ("image_path", *(CAPTION[language] for language in languages)):
        if name not in row.fields:
            raise UserError(f"{path}: no column {name}" + suggest(name, row.fields, "columns"))
    if not row.fields["image_path"]:
        raise UserError(f"{row.place}: image_path is empty")


def _opened(found: Mapping[str, _One], images: Path, languages: Sequence[str]) -> tuple[list[Picture], list[str]]:
    """The pictures whose files can be decoded, and what is wrong with the others."""
    pictures, broken = [], []
    for name, one in found.items():
        file = images / one.path if one.stored is None else one.stored[0]
        content, fault = _decoded(file, one.stored)
        if fault:
            broken.append(f"{images / one.path} ({one.place}): {fault}")
            continue
        for place, also in one.again:
            if dataset.encoded(*also) != content:
                raise UserError(f"{place}: image_id {name} has another picture here than at {one.place}")
        labels = {
            language: lexicon.vote(lexicon.label(text, language) for text in one.captions[language])
            for language in languages
        }
        single = {key: next(iter(values)) for key, values in one.fields.items() if len(values) == 1}
        pictures.append(
            Picture(
                id=name,
                split=single.pop("split", ""),
                group=single.pop("group", name),
                label=lexicon.together(labels),
                labels=labels,
                captions={language: one.captions[language] for language in languages},
                prompts={language: one.prompts.get(language, DEFAULT_PROMPT[language]) for language in languages},
                factors=single,
                file=str(file.absolute()),
                row=None if one.stored is None else one.stored[1],
                sha256=hashlib.sha256(content).hexdigest(),
            )
        )
    return pictures, broken


def _decoded(file: Path, stored: tuple[Path, int] | None = None) -> tuple[bytes, str]:
    """The bytes of a picture, and why it is none."""
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        content = file.read_bytes() if stored is None else dataset.encoded(*stored) or b""
        with Image.open(io.BytesIO(content)) as image:
            image.convert("RGB")
    except FileNotFoundError:
        return b"", "missing"
    except UnidentifiedImageError:
        return b"", "no picture"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        return b"", f"broken ({str(e).splitlines()[0][:60]})"
    return content, ""


def _once(pictures: Sequence[Picture]) -> tuple[list[Picture], list[str]]:
    """Pictures with equal bytes are one, with all their captions; which are copies of which."""
    found: dict[str, Picture] = {}
    copies: list[str] = []
    for one in pictures:
        if (known := found.get(one.sha256)) is None:
            found[one.sha256] = one
            continue
        copies.append(f"{one.id} of {known.id}")
        captions = {
            language: [*known.captions[language], *(c for c in texts if c not in known.captions[language])]
            for language, texts in one.captions.items()
        }
        labels = {
            language: lexicon.vote(lexicon.label(text, language) for text in texts)
            for language, texts in captions.items()
        }
        found[one.sha256] = replace(known, captions=captions, labels=labels, label=lexicon.together(labels))
    return list(found.values()), copies


def split(
    pictures: Sequence[Picture], n: int | None, n_test: int | None, seed: int, allow_small: bool, where: str
) -> list[Picture]:
    """Draw training and test pictures, groups whole; a split that the table gives to all of its pictures stands.

    Raises:
        UserError: fewer than asked for.
    """
    given = Counter(one.split for one in pictures)
    if given[""]:
        if len(given) > 1:
            raise UserError(f"{where}: {given['']} pictures have no split and {len(pictures) - given['']} have one")
        groups = sorted({one.group for one in pictures})
        order = np.random.default_rng(derive_seed(seed, "pictures", "split")).permutation(len(groups))
        sizes = Counter(one.group for one in pictures)
        wanted = round(len(pictures) * TEST_SHARE) if n_test is None else n_test
        side, held = {}, 0
        for i in order:
            side[groups[i]] = "test" if held < wanted else "train"
            held += sizes[groups[i]] if held < wanted else 0
        pictures = [replace(one, split=side[one.group]) for one in pictures]
    elif unknown := set(given) - {"train", "test"}:
        raise UserError(f"{where}: split {sorted(unknown)[0]!r}; splits: train test; leave the others out")
    found = []
    for name, most in (("train", n), ("test", n_test)):
        mine = [one for one in pictures if one.split == name]
        if most is not None and len(mine) < most and not allow_small:
            key = "n_samples" if name == "train" else "n_test"
            raise UserError(
                f"{where}: {len(mine)} {name} pictures of {len(pictures)}, behaviour.{key}={most} asks for more; "
                "lower it, or take what there is with behaviour.allow_small=true"
            )
        found += mine if most is None else _drawn(mine, most, seed)
    kept = {one.id for one in found}
    return [one for one in pictures if one.id in kept]


def _drawn(pictures: Sequence[Picture], most: int, seed: int) -> list[Picture]:
    """At most so many pictures, by whole groups."""
    groups = sorted({one.group for one in pictures})
    order = np.random.default_rng(derive_seed(seed, "pictures", "draw")).permutation(len(groups))
    sizes, taken, total = Counter(one.group for one in pictures), set(), 0
    for i in order:
        if total + sizes[groups[i]] <= most:
            taken.add(groups[i])
            total += sizes[groups[i]]
    return [one for one in pictures if one.group in taken]


def summary(built: Built, languages: Sequence[str]) -> dict[str, Any]:
    """Numbers for the end table and the report."""
    pictures = built.pictures
    return {
        "n_train": sum(p.split == "train" for p in pictures),
        "n_test": sum(p.split == "test" for p in pictures),
        "n_groups": len({p.group for p in pictures}),
        "n_distinct": len(pictures),
        "left_out": sum(built.left_out.values()),
        "findings": len(built.findings),
        "labels": dict(Counter(p.label for p in pictures)),
        "labels_by_language": {language: dict(Counter(p.labels[language] for p in pictures)) for language in languages},
        "agreement": agreement(pictures, languages),
    }


def agreement(pictures: Sequence[Picture], languages: Sequence[str]) -> dict[str, float] | None:
    """How well two languages' labels agree: the share that is equal, and Cohen's κ (1960); None with one language."""
    if len(languages) < 2 or not pictures:
        return None
    a, b = ([p.labels[language] for p in pictures] for language in languages[:2])
    equal = float(np.mean([x == y for x, y in zip(a, b, strict=True)]))
    chance = sum((a.count(one) / len(a)) * (b.count(one) / len(b)) for one in lexicon.LABELS)
    return {"equal": equal, "kappa": (equal - chance) / (1 - chance) if chance < 1 else 1.0}
