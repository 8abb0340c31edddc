"""The text stream that SAEs are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from circuits.schema.fields import file


class DataSource(Enum):
    """Where the token stream comes from."""

    embedded = "embedded"  # the generator that the embedded model was trained on
    text = "text"  # .txt files; documents are separated by blank lines
    jsonl = "jsonl"  # one JSON object a line
    datasets = "datasets"  # a local `datasets` directory or a hub name


@dataclass
class DataConfig:
    """The text stream that SAEs are trained on; never the behaviour's prompts."""

    source: DataSource = DataSource.embedded
    path: str | None = file(None)
    field: str | None = None  # the JSON key or the dataset column that holds the text
    split: str | None = None
    context: int = 64  # tokens a sequence
    heldout: float | None = None  # share of the documents kept for evaluation
    max_tokens: int | None = None


def check(data: DataConfig) -> list[str]:
    errors = []
    source = data.source.value
    if data.source is DataSource.embedded:
        for name in ("path", "field", "split", "heldout", "max_tokens"):
            if getattr(data, name) is not None:
                value = getattr(data, name)
                errors.append(
                    f"data.{name}={value}: data=embedded does not read it; choose data=text, jsonl or datasets"
                )
    elif data.path is None:
        errors.append(
            f"data={source} needs data.path=FILE or a directory" + (" or hub name" if source == "datasets" else "")
        )
    if data.source is DataSource.text and data.field is not None:
        errors.append(f"data.field={data.field}: data=text does not read it; for JSON lines choose data=jsonl")
    if data.source is not DataSource.datasets and data.split is not None and data.source is not DataSource.embedded:
        errors.append(f"data.split={data.split}: only data=datasets reads it")
    if data.context < 2:
        errors.append(f"data.context={data.context}: at least 2 tokens")
    if data.heldout is not None and not 0 < data.heldout < 1:
        errors.append(f"data.heldout={data.heldout}: a share between 0 and 1")
    if data.max_tokens is not None and data.max_tokens < data.context:
        errors.append(f"data.max_tokens={data.max_tokens}: at least one context ({data.context})")
    return errors
