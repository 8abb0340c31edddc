"""Content hashes of what a config names: a model, a corpus, a foreign SAE. No torch.

A hash is remembered in the store by path and by what changes with a file's content (:func:`circuits.files.fingerprint`), so that a
15 GB model is read once and not once per element. Hub names are pinned: the commit that a revision resolves to is what enters a
key.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import DiskFull, UserError
from circuits.files import fingerprint, read_json, sha256_file, sha256_text, write_json

if TYPE_CHECKING:
    from circuits.models.identify import ModelFacts


SETTLED_NS = 2_000_000_000  # the coarsest clock of file systems in use


@dataclass(frozen=True)
class NamedModel:
    """A model by its directory or hub name alone, as the newest commit there is."""

    id: str
    revision: str | None = None


class Contents:
    """Answers "what is in it" for file-role fields of a config; remembers within and across processes."""

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._values: dict[tuple[Any, ...], Any] = {}
        self._hashes: dict[str, str] = {}
        if memory is not None and memory.exists():
            try:
                self._hashes = dict(read_json(memory))
            except (OSError, ValueError):
                self._hashes = {}  # only a memory: what is lost is computed again

    def of(self, where: str, content: str, section: Any, layers: Sequence[int] = ()) -> Any:
        """What enters a key for field `where` (such as ``data.path``) of `section`, whose content is read by the rule `content`;
        `layers` are the key's."""
        value = getattr(section, where.rpartition(".")[2])
        if content == "model":
            if not hasattr(section, "embedded"):  # a second model, which a task's own section names
                return None if value is None else self.model(NamedModel(value)).identity
            return self.model(section).identity if section.embedded is None else "embedded"
        if content == "corpus":
            return self.corpus(section)
        if value is None:
            return None
        if content == "records":
            return self.records(Path(value))
        if content == "splits":
            return self.splits(Path(value))
        if content == "sae":
            return self.sae(Path(value), layers)
        if content == "bytes":
            return self.one_file(Path(value))
        raise UserError(f"{where}: no rule for content {content!r}; add one to Contents.of")

    def sae(self, directory: Path, layers: Sequence[int] = ()) -> str:
        """The hash of an SAE's files. Of a set, which has one a layer, of those of these layers: it is the same by itself.

        Raises:
            UserError: a layer has none.
        """
        from circuits.sae import cross_layer_sets, places

        try:
            found = places.chosen(directory, layers)
        except ValueError as e:
            raise UserError(f"{directory}: {e}") from e
        contents = [self.directory(place.directory, *place.files) for place in found]
        if len(found) > 1:
            return sha256_text(json.dumps([[place.layer, one] for place, one in zip(found, contents, strict=True)]))
        return contents[0] if contents else self.directory(directory, *places.FILES, cross_layer_sets.FACTS)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` answers, asked for once and not for each element of a sweep."""
        memo = ("once", name)
        if memo not in self._values:
            self._values[memo] = compute()
        return self._values[memo]

    def model(self, model: Any) -> ModelIdentity:
        """The identity, depth and width of a hub model or a directory; see :mod:`circuits.models.identify`."""
        from circuits.models.identify import directory_of, inspect_model
        from circuits.models.weights import TOKENIZER_FILES
        from circuits.store.places import choices

        memo = ("model", model.id, model.revision)
        if memo not in self._values:
            facts = inspect_model(model.id, revision=model.revision, presets=choices("model"))
            directory = directory_of(model.id)
            if directory is not None:
                identity = self.directory(directory, "*.safetensors", "config.json", "*.jinja", *TOKENIZER_FILES)
            else:
                identity = f"{facts.name}@{facts.revision}"
            self._values[memo] = ModelIdentity(identity, facts)
        return self._values[memo]

    def tokenizer(self, model: Any) -> str:
        """The identity of a model's tokenizer: of a directory its files' hash, the family and how many ids it embeds, so that
        directories that agree in these share what is tokenised; of a hub model its name and commit, which need no file."""
        from circuits.models.identify import directory_of
        from circuits.models.weights import TOKENIZER_FILES

        found = self.model(model)
        if directory_of(model.id) is None:
            return found.identity
        files = self.directory(Path(model.id), *TOKENIZER_FILES)
        return f"{files}:{found.facts.model_type}:{found.facts.dims.vocab}"

    def corpus(self, data: Any) -> str | None:
        """The canonical content hash of a corpus, equal for CRLF and LF copies; a hub dataset is named."""
        from circuits.data.corpora import content_hash

        if data.path is None:
            return None
        memo = ("corpus", data.source.value, data.path, data.split)  # how it is read decides what is in it
        if memo not in self._values and not Path(data.path).exists():  # a hub name (its commit) or a pattern
            self._values[memo] = content_hash(data.source.value, data.path, data.split)
        if memo not in self._values:
            files = (
                sorted(p for p in Path(data.path).rglob("*") if p.is_file())
                if Path(data.path).is_dir()
                else [Path(data.path)]
            )
            self._values[memo] = self._remembered(
                f"corpus {data.source.value} {data.split}",
                files,
                lambda: content_hash(data.source.value, data.path, data.split),
            )
        return self._values[memo]

    def records(self, path: Path) -> str:
        """The hash of a file's canonical records: equal for copies with other line ends or spacing, or nulls written out.

        Raises:
            UserError: there is no such file, or a line of it is no JSON object.
        """
        from circuits.data.fielded import hash_records
        from circuits.data.pictures import dataset

        if dataset.is_dataset(path):  # of pictures; a table of prompts is none
            by_split = dataset.files(path)
            told = [f"{split} {self.one_file(file)}" for split, some in sorted(by_split.items()) for file in some]
            return sha256_text("\n".join(told))

        if not path.is_file():
            raise UserError(f"{path}: no such file")
        return self._remembered("records that say something", [path], lambda: hash_records(path, nulls=False))

    def splits(self, path: Path) -> str:
        """The hash of the sides of a split file.

        Raises:
            UserError: there is no such file, or it is none.
        """
        from circuits.data.splits import identity

        if not path.is_file():
            raise UserError(f"{path}: no such file")
        return self._remembered("sides of a split file", [path], lambda: identity(path))

    def one_file(self, path: Path) -> str:
        """SHA-256 over the bytes of a file.

        Raises:
            UserError: there is no such file.
        """
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        return self._remembered("bytes of a file", [path], lambda: sha256_file(path))

    def directory(self, directory: Path, *patterns: str) -> str:
        """SHA-256 over the files of `directory` that match `patterns`, by name and bytes."""
        files = sorted({path for pattern in patterns for path in directory.glob(pattern) if path.is_file()})
        if not files:
            raise UserError(f"{directory}: none of {' '.join(patterns)} in it")

        def compute() -> str:
            return sha256_text(json.dumps([[path.name, sha256_file(path)] for path in files]))

        return self._remembered("directory", files, compute)

    def _remembered(self, what: str, files: Iterable[Path], compute: Callable[[], str]) -> str:
        files = list(files)
        found = [fingerprint(path) for path in files]
        memo = sha256_text(
            json.dumps([what, [(str(p.resolve()), *facts) for p, facts in zip(files, found, strict=True)]])
        )
        if memo not in self._hashes:
            value = compute()
            if [fingerprint(path) for path in files] != found:
                return value  # written while it was read
            self._hashes[memo] = value
            # A write in the same tick of the clock as the last one would leave no trace: what is that new is not kept.
            if self._memory is not None and all(time.time_ns() - facts[-1] > SETTLED_NS for facts in found):
                with contextlib.suppress(
                    OSError, DiskFull
                ):  # only a memory; who needs the place will say what is wrong
                    self._memory.parent.mkdir(parents=True, exist_ok=True)
                    write_json(self._memory, self._hashes)
        return self._hashes[memo]


class ModelIdentity:
    """What is known of a model without loading it."""

    def __init__(self, identity: str, facts: ModelFacts) -> None:
        self.identity, self.facts = identity, facts
