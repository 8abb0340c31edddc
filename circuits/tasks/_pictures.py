"""The picture side of ``task=prompts``: what a set of pictures depends on, what is wrong with it, how it is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError
from circuits.files import sha256_text, write_json
from circuits.schema import BaseConfig
from circuits.schema.behaviour import languages
from circuits.schema.behaviour import words as attribute_words
from circuits.schema.model import scenes_of
from circuits.store.contents import Contents

if TYPE_CHECKING:
    from circuits.data.fielded import Row
    from circuits.data.pictures.table import Built
    from circuits.run.context import Context, Work


def identity(cfg: BaseConfig, contents: Contents) -> Mapping[str, Any]:
    """For the key: the drawings and their biases, or the bytes of the pictures that a table names (those that are there)."""
    if cfg.behaviour.path is None:
        from circuits.tiny.vision import spec

        scenes = scenes_of(cfg.model)
        biases = {} if scenes is None else {"context_bias": scenes.context_bias, "word_bias": scenes.word_bias}
        return {"scenes": contents.once("scenes", spec.fingerprint), **biases}

    def told() -> str:
        files = sorted(set(_files(cfg)))
        return "\n".join(f"{name} {contents.one_file(path) if path.is_file() else 'missing'}" for name, path in files)

    return {
        "captions": "each once",  # before, a caption that stood twice had two votes
        "images": contents.once(f"pictures {cfg.behaviour.path} {cfg.behaviour.images}", lambda: sha256_text(told())),
    }


DRAWN = (600, 300)
"""Training and test pictures that are drawn where nobody says how many."""


def normal(cfg: BaseConfig) -> BaseConfig:
    """How many pictures are drawn, written out; a table has as many as it has."""
    behaviour = cfg.behaviour
    if behaviour.path is not None:
        return cfg
    train, test = (given if given is not None else default
                   for given, default in zip((behaviour.n_samples, behaviour.n_test), DRAWN, strict=True))  # fmt: skip
    return replace(cfg, behaviour=replace(behaviour, n_samples=train, n_test=test))


def problems(cfg: BaseConfig) -> list[str]:
    """A table that cannot be read; no pictures at all."""
    if cfg.behaviour.path is None:
        if scenes_of(cfg.model) is None:
            return [
                f"behaviour={cfg.behaviour.name}: model={cfg.model.id} needs pictures: behaviour.path=FILE.csv (with "
                "image_path, en_caption, ar_caption; behaviour.images=DIR) or a dataset's directory; model=tiny_vlm draws its own"
            ]
        return []
    try:
        if next(iter(_rows(cfg)), None) is None:
            return [f"{cfg.behaviour.path}: no row in it"]
    except UserError as e:
        return list(e.messages)
    return []


def _images(cfg: BaseConfig) -> Path:
    """The directory that a table's image_path is relative to."""
    given = cfg.behaviour.images
    path = Path(str(cfg.behaviour.path))
    return Path(given) if given is not None else path if path.is_dir() else path.parent


def _rows(cfg: BaseConfig) -> Iterator[Row]:
    from circuits.data.pictures.table import rows

    path = Path(str(cfg.behaviour.path))
    for row in rows(path):
        if "image_path" not in row.fields:
            raise UserError(f"{path}: no column image_path; it names each row's picture")
        yield row


def _files(cfg: BaseConfig) -> list[tuple[str, Path]]:
    """What a table calls each picture, and its file; those that a dataset holds are part of it."""
    from circuits.data.pictures.dataset import STORED

    names = [str(row.fields["image_path"]) for row in _rows(cfg) if STORED not in row.fields]
    return [(name, _images(cfg) / name) for name in names]


def make(context: Context, work: Work) -> None:
    """Draw or read the pictures, label, split and publish."""
    from circuits.data.pictures import saved, table

    run, behaviour = context.run.cfg, context.cfg.behaviour
    asked, drawn = languages(behaviour), None
    meta: dict[str, Any]
    with context.phase("making the set of pictures"):
        if behaviour.path is None:
            built, drawn = _drawn(run, asked)
        else:
            built = table.read(
                Path(behaviour.path),
                _images(run),
                asked,
                n=behaviour.n_samples,
                n_test=behaviour.n_test,
                seed=context.cfg.seed,
                max_broken=behaviour.max_broken,
                allow_small=behaviour.allow_small,
            )
    metrics, meta = table.summary(built, asked), {"languages": list(asked)}
    if drawn is not None:
        from circuits.tiny.vision.pictures import words

        meta["words"] = words(asked)
    elif given := attribute_words(behaviour):
        meta["words"] = given

    def write(out: Path) -> None:
        saved.write(out, built.pictures, meta, drawn)
        write_json(out / "lint.json", {"findings": built.findings, "left_out": built.left_out})
        write_json(out / "metrics.json", metrics)

    artifact = work.commit(write, dropped={"rows": metrics["left_out"], **built.left_out})
    for line in built.findings:
        context.say(f"lint: {line}")
    labels = "  ".join(f"{name} {n}" for name, n in metrics["labels"].items())
    context.say(f"{metrics['n_train']} training and {metrics['n_test']} test pictures ({labels}): {artifact.id}")


def _drawn(cfg: BaseConfig, asked: tuple[str, ...]) -> tuple[Built, Any]:
    from circuits.tiny.vision.pictures import drawn

    behaviour, scenes = normal(cfg).behaviour, scenes_of(cfg.model)
    if scenes is None:
        raise UserError(problems(cfg)[0])
    return drawn(
        asked, behaviour.n_samples or 0, behaviour.n_test or 0, cfg.seed, scenes.context_bias, scenes.word_bias
    )
