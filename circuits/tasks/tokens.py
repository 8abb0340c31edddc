"""A tokenised corpus as an artifact. No task of its own: whoever needs it first makes it, once for all layers and sweeps."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.files import exists
from circuits.schema import BaseConfig, DataConfig
from circuits.store.contents import Contents
from circuits.store.kinds import Input, Kind, Layers, ModelDims
from circuits.store.labels import readable
from circuits.tasks._shared import model_input

if TYPE_CHECKING:
    from circuits.data.textstore import TextStore
    from circuits.run.context import Context, Work


BYTES = 4  # of text that give a token, at least about


class Tokens(Kind):
    """A tokenised corpus."""

    name = "tokens"
    keep = "regenerable"
    sections = ("data", "seed")
    needs = ("tiny",)
    inline = True

    def extra(self, cfg: BaseConfig, contents: Contents) -> Mapping[str, Any]:
        """The tokenizer's identity; the model's weights do not matter here."""
        return {"tokenizer": "embedded" if cfg.model.embedded is not None else contents.tokenizer(cfg.model)}

    def label(self, cfg: BaseConfig, layers: Layers) -> str:
        """``corpus-gpt2``: the corpus and the tokenizer."""
        return f"{readable(cfg.data.path or cfg.data.source.value)}-{readable(cfg.model.id)}"

    def inputs(self, cfg: BaseConfig, layers: Layers) -> list[Input]:
        """The model, whose tokenizer cuts the text."""
        return model_input(cfg)

    def check(self, cfg: BaseConfig, dims: ModelDims, layers: Layers) -> list[str]:
        """A corpus that cannot be read."""
        from circuits.data.corpora import problems

        data = cfg.data
        found = () if data.path is None else problems(data.source.value, data.path, data.field or "text", data.split)
        return list(found)

    def remarks(self, cfg: BaseConfig, layers: Layers) -> list[str]:
        """What a person should know of how the corpus is read."""
        from circuits.data.corpora import remarks

        data = cfg.data
        return (
            [] if data.path is None else list(remarks(data.source.value, data.path, data.field or "text", data.split))
        )

    def bytes(self, cfg: BaseConfig, dims: ModelDims) -> tuple[int, int]:
        """Four bytes a token."""
        return (4 * min(cfg.data.max_tokens or 0, 50_000_000),) * 2

    def make(self, context: Context, works: Mapping[Any, Work]) -> None:
        """Tokenise the corpus and publish it."""
        (work,) = works.values()
        try:
            self._make(context, work)
        except FileNotFoundError:  # another process was first, and cleared the unfinished work
            if context.run.store.find(work.key) is None:
                raise
            context.say(f"{work.key.id} was made by another process meanwhile")

    def _make(self, context: Context, work: Work) -> None:
        """`make`, as if nobody else did."""
        from circuits.data.corpora import documents
        from circuits.data.textstore import FILES, finished, tokenise
        from circuits.models.identify import inspect_model, local_files
        from circuits.models.load import load_tokenizer

        data, mine = context.cfg.data, work.own("tokens")
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

        facts = finished(mine) or tokenise(  # it may have been cut while it was published
            texts,
            tokenizer,
            mine,
            context=data.context,
            heldout_fraction=data.heldout or 0.05,
            max_tokens=data.max_tokens,
            seed=context.cfg.seed,
            progress=progress,
            vocabulary=model.dims.vocab,
            keeper=context.keeper({"tokens": work}, f"{mine.name}/place"),
        )

        def write(out: Path) -> None:
            for name in FILES:
                shutil.copyfile(mine / name, out / name)

        context.say(f"made {work.commit(write).id}: {facts['n_tokens']:,} tokens of {facts['n_documents']:,} documents")

    def load(self, path: Path) -> TextStore:
        """The tokenised corpus."""
        from circuits.data.textstore import TextStore

        return TextStore(path)


KIND = Tokens()


def _total(data: DataConfig) -> int | None:
    """How many tokens will be read; None where the text ends before ``data.max_tokens``: nobody knows where."""
    path = Path(data.path or "")
    if data.max_tokens is None or not exists(path):  # on the hub, or a pattern
        return data.max_tokens
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return data.max_tokens if sum(file.stat().st_size for file in files) > BYTES * data.max_tokens else None
