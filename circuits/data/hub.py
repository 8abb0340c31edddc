"""Documents in `datasets` form: a directory from ``save_to_disk``, parquet or arrow files, or a name on the hub.

Local files are read with pyarrow itself, batch by batch: nothing is converted into a cache and neither `datasets` nor
torch is imported. Only a hub name needs `datasets` (streaming, at a fixed commit); code that comes with a dataset is
never run.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import UserError, suggest
from circuits.files import read_json

if TYPE_CHECKING:
    import pyarrow as pa

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?::[\w.-]+)?")
"""``owner/name`` or ``owner/name:subset``."""
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
_SPLITS |= {"dev": "validation", "test": "test", "testing": "test", "eval": "test"}
ENDINGS = (".parquet", ".arrow")
_TIMEOUT = 8.0
UNREAD = ["*.py", ".git*"]
"""Not fetched with a dataset: code that comes with it is never run."""


def split_files(path: Path, split: str | None) -> list[Path]:
    """The data files of one split, in order: `split`, else ``train``, else the only one there is."""
    by_split = files_by_split(path)
    wanted = split or ("train" if "train" in by_split or len(by_split) > 1 else next(iter(by_split)))
    if wanted not in by_split:
        raise UserError(
            f"{path}: no split {wanted!r}{suggest(wanted, by_split, 'splits')}; choose with data.split=NAME"
        )
    return whole(path, by_split[wanted])


def whole(path: Path, files: list[Path]) -> list[Path]:
    """The files, if all of them are there.

    Raises:
        UserError: naming one that is not.
    """
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{path}: incomplete, {missing[0].name} is missing; save or download it again")
    return files


def files_by_split(path: Path) -> dict[str, list[Path]]:
    """The data files of every split, in order.

    Raises:
        UserError: there are none, or ``save_to_disk`` was cut.
    """
    by_split = _saved_splits(path) if is_saved(path) else _loose_splits(path)
    if not by_split:
        raise UserError(f"{path}: no data in it; expected a directory made by save_to_disk, or parquet or arrow files")
    return by_split


def check_field(file: Path, field: str) -> None:
    """Raise unless the file is readable and has a column of strings named `field`."""
    import pyarrow as pa

    schema = schema_of(file)
    if field not in schema.names:
        fields = suggest(field, schema.names, "fields")
        raise UserError(f"{file}: no field {field!r}{fields}; name the one with the text by data.field=NAME")
    kind = schema.field(field).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(f"{file}: field {field!r} holds {kind}, expected strings")


def schema_of(file: Path) -> pa.Schema:
    """The columns of a parquet or arrow file.

    Raises:
        UserError: it is neither, or cut.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file) if file.suffix.lower() == ".parquet" else _arrow_schema(file)
    except (pa.ArrowInvalid, pa.ArrowException) as e:
        raise UserError(
            f"{file}: not readable as {'parquet' if file.suffix.lower() == '.parquet' else 'arrow'} (truncated or another format)"
        ) from e


def file_documents(file: Path, field: str) -> Iterator[str]:
    """The strings of one parquet or arrow file in order; nulls and those without a visible character are left out."""
    import pyarrow as pa

    check_field(file, field)
    try:
        for batch in batches(file, field):
            yield from (text for text in batch.column(field).to_pylist() if text and text.strip())
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as e:
        raise UserError(f"{file}: damaged ({_first_line(e)}); save or download it again") from e


def cached_dataset(name: str, revision: str | None = None) -> Path | None:
    """The cache's whole copy of a hub dataset at a branch, tag or commit (made by task=prefetch), if there is one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository = name.partition(":")[0]
    try:
        found = snapshot_download(
            repository, repo_type="dataset", revision=revision, ignore_patterns=UNREAD, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    return Path(found)


def hub_commit(name: str, revision: str | None = None, fresh: bool = False) -> str:
    """The commit that `revision` (default: the main branch) of a dataset on the hub names.

    What task=prefetch has fetched stays what it is; anything else, and with `fresh` everything, is asked of the hub.
    """
    copy = None if fresh else cached_dataset(name, revision)
    if copy is not None:
        return copy.name  # …/snapshots/<commit>
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise UserError(f"data.path={name}: the hub is switched off (HF_HUB_OFFLINE); {_fetch_first(name)}")
    import urllib.error
    import urllib.request

    from huggingface_hub import constants, get_token

    repository = name.partition(":")[0]
    address = f"{constants.ENDPOINT}/api/datasets/{repository}/revision/{revision or 'main'}"
    request = urllib.request.Request(address)
    if token := get_token():
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            return str(json.load(answer)["sha"])
    except urllib.error.HTTPError as e:
        where = f" at revision {revision}" if revision else ""
        raise UserError(
            f"data.path={name}: the hub has no such dataset{where} that you may read (HTTP {e.code}); "
            "check the name, or log in with: hf auth login"
        ) from e
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"data.path={name}: the hub cannot be reached; {_fetch_first(name)}") from e


def hub_documents(name: str, field: str, split: str | None, revision: str | None = None) -> Iterator[str]:
    """The strings of a hub dataset at a fixed commit, from the cache's copy if there is one, else streamed."""
    commit = hub_commit(name, revision)
    copy = cached_dataset(name, commit)
    import datasets

    repository, _, subset = name.partition(":")
    where = {"path": repository, "revision": commit} if copy is None else {"path": str(copy)}
    try:
        stream = datasets.load_dataset(**where, name=subset or None, split=split or "train", streaming=True)
    except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as e:
        # An unknown split or subset, files of no known format, or a loading script (which is refused, not run).
        raise UserError(f"data.path={name}: {_first_line(e)}") from e
    for number, row in enumerate(_hub_rows(name, stream)):
        if field not in row:
            fields = suggest(field, row, "fields")
            raise UserError(f"data.path={name}: no field {field!r}{fields}; name it by data.field=NAME")
        text = row[field]
        if text is not None and not isinstance(text, str):
            raise UserError(
                f"data.path={name}, row {number}: field {field!r} is {type(text).__name__}, expected a string"
            )
        if text and text.strip():
            yield text


def _hub_rows(name: str, stream: Any) -> Iterator[dict[str, Any]]:
    try:
        yield from stream
    except OSError as e:
        raise UserError(f"data.path={name}: the connection to the hub broke ({e}); {_fetch_first(name)}") from e


def _fetch_first(name: str) -> str:
    return f"where there is network run: python launch.py task=prefetch data=datasets data.path={name}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def is_saved(path: Path) -> bool:
    """Whether a directory was made by ``save_to_disk``."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _saved_splits(path: Path) -> dict[str, list[Path]]:
    """Files by split of a directory made by ``save_to_disk`` (of a Dataset: one split named train)."""
    try:
        if (path / "dataset_dict.json").is_file():
            names = read_json(path / "dataset_dict.json")["splits"]
            return {name: _state_files(path / name) for name in names}
        return {"train": _state_files(path)}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}: not a complete save_to_disk directory ({e}); save it again") from e


def _state_files(path: Path) -> list[Path]:
    return [path / entry["filename"] for entry in read_json(path / "state.json")["_data_files"]]


def _loose_splits(path: Path) -> dict[str, list[Path]]:
    """Parquet and arrow files by the split that their name or folder begins with (``train-00000-of-00002.parquet``)."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix.lower() in ENDINGS)
    found: dict[str, list[Path]] = {}
    for file in files:
        if not any(part.startswith(".") for part in file.relative_to(path).parts):
            found.setdefault("train" if path.is_file() else _split_name(file.relative_to(path)), []).append(file)
    return found


def _split_name(file: Path) -> str:
    """By the first word of its name, or by its folder (a directory is one dataset, wherever it lies)."""
    words = itertools.chain(re.split(r"[-_.]", file.stem)[:1], [file.parent.name])
    return next((_SPLITS[word.lower()] for word in words if word.lower() in _SPLITS), "train")


def _arrow_schema(file: Path) -> pa.Schema:
    import pyarrow as pa
    import pyarrow.ipc

    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_stream(source).schema


def batches(file: Path, field: str | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a parquet or arrow file, with at least the column `field` (None: all)."""
    import pyarrow as pa
    import pyarrow.ipc
    import pyarrow.parquet as pq

    if file.suffix.lower() == ".parquet":
        with pq.ParquetFile(file) as parquet:
            yield from parquet.iter_batches(batch_size=1024, columns=None if field is None else [field])
        return
    with pa.memory_map(str(file)) as source:
        yield from pa.ipc.open_stream(source)
