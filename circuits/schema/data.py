"""The text stream that SAEs are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from circuits.schema.fields import file
from circuits.schema.reading import When


class DataSource(Enum):
    """Where the token stream comes from."""

    embedded = "embedded"  # the generator that the embedded model was trained on
    text = "text"  # .txt files; documents are separated by blank lines
    jsonl = "jsonl"  # one JSON object a line
    datasets = "datasets"  # a local `datasets` directory or a hub name
    pictures = "pictures"  # the training pictures of a behaviour of pictures, with their captions


@dataclass
class DataConfig:
    """The text stream that SAEs are trained on; never the behaviour's prompts."""

    source: DataSource = DataSource.embedded  # where the text comes from
    path: str | None = file(None, "corpus")  # file, directory, pattern or (datasets) hub name
    field: str | None = None  # the JSON key or the dataset column that holds the text
    split: str | None = None  # of a hub dataset
    context: int = 64  # tokens a sequence
    heldout: float | None = None  # share of the documents kept for evaluation
    max_tokens: int | None = None  # tokenise no more than so many


MADE = (DataSource.embedded, DataSource.pictures)  # read from no file of text
FILES = tuple(source.value for source in DataSource if source not in MADE)
READ_WHEN = {
    **{f"data.{name}": (When("data.source", FILES),) for name in ("path", "heldout", "max_tokens")},
    "data.field": (When("data.source", ("jsonl", "datasets")),),
    "data.split": (When("data.source", ("datasets",)),),
}


def check(data: DataConfig) -> list[str]:
    errors = []
    source = data.source.value
    if data.source not in MADE and data.path is None:
        errors.append(
            f"data={source} needs data.path=FILE or a directory" + (" or hub name" if source == "datasets" else "")
        )
    if data.context < 2:
        errors.append(f"data.context={data.context}: at least 2 tokens")
    if data.heldout is not None and not 0 < data.heldout < 1:
        errors.append(f"data.heldout={data.heldout}: a share between 0 and 1")
    if data.max_tokens is not None and data.max_tokens < data.context:
        errors.append(f"data.max_tokens={data.max_tokens}: at least one context ({data.context})")
    return errors
