"""A tokenised corpus as an artifact. No task of its own: whoever needs it first makes it, once for all layers and sweeps."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.files import exists
from circuits.run.content import Contents
from circuits.run.kinds import Kind, readable
from circuits.schema import BaseConfig, DataConfig

if TYPE_CHECKING:
    from circuits.run.context import Context, Work


def extra(cfg: BaseConfig, contents: Contents) -> Mapping[str, Any]:
    """The tokenizer's identity; the model's weights do not matter here."""
    return {"tokenizer": "embedded" if cfg.model.embedded is not None else contents.tokenizer(cfg.model)}


def label(cfg: BaseConfig, layers: tuple[int, ...]) -> str:
    """``corpus-gpt2``: the corpus and the tokenizer."""
    return f"{readable(cfg.data.path or cfg.data.source.value)}-{readable(cfg.model.id)}"


KIND = Kind(
    name="tokens",
    version=1,
    sections=("data", "seed"),
    label=label,
    inputs=lambda cfg: ("tiny",) if cfg.model.embedded is not None else (),
    may_need=("tiny",),
    extra=extra,
    inline=True,
    load="circuits.data.textstore:TextStore",
    bytes=lambda cfg, dims: (4 * min(cfg.data.max_tokens or 0, 50_000_000),) * 2,
)


BYTES = 4  # of text that give a token, at least about


def _total(data: DataConfig) -> int | None:
    """How many tokens will be read; None where the text ends before ``data.max_tokens``: nobody knows where."""
    path = Path(data.path or "")
    if data.max_tokens is None or not exists(path):  # on the hub, or a pattern
        return data.max_tokens
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return data.max_tokens if sum(file.stat().st_size for file in files) > BYTES * data.max_tokens else None


def build(context: Context, work: Work) -> None:
    """Tokenise the corpus and publish it."""
    from circuits.data.corpora import documents
    from circuits.data.textstore import FILES, finished, tokenise
    from circuits.models.identify import inspect_model, local_files
    from circuits.models.load import load_tokenizer

    data = context.cfg.data
    model = inspect_model(*context.model_files())
    with context.phase("loading the tokenizer"):
        tokenizer = load_tokenizer(local_files(model))

    total = _total(data)

    def progress(count: int, tokens: int) -> None:
        context.show("tokenising", tokens, total, "token")

    # A hub dataset is read at the commit that is in the key, whatever its main branch has become since.
    _, pinned, commit = str(context.run.contents.corpus(data)).rpartition("@")
    texts = documents(
        data.source.value, data.path, data.field or "text", data.split, revision=commit if pinned else None
    )

    facts = finished(work.partial) or tokenise(  # it may have been cut while it was published
        texts,
        tokenizer,
        work.partial,
        context=data.context,
        heldout_fraction=data.heldout or 0.05,
        max_tokens=data.max_tokens,
        seed=context.cfg.seed,
        progress=progress,
        vocabulary=model.dims.vocab,
        keeper=context.keeper({"tokens": work}, "place"),
    )

    def write(out: Path) -> None:
        for name in FILES:
            shutil.copyfile(work.partial / name, out / name)

    context.say(f"made {work.commit(write).id}: {facts['n_tokens']:,} tokens of {facts['n_documents']:,} documents")
