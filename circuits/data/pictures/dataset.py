"""Pictures that a directory of the `datasets` library holds: what ``save_to_disk`` wrote, or parquet or arrow files.

A column of images (``image``, or the only one there is) has the encoded bytes, or says where the files are; captions are
columns of strings or of lists of strings; class labels go by their names; columns of other images and of vectors are left alone.
The pictures stay where they are: one is found again by its file and row, without a copy and without `datasets` or torch.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.data import hub
from circuits.data.fielded import Row
from circuits.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

STORED = "\0stored"
"""The field of a row under which its picture's (file, row) stands, where the file has its bytes."""


def is_dataset(path: Path) -> bool:
    """Whether a path names a dataset and not a table of captions."""
    if path.is_dir():
        return hub.is_saved(path) or any(file.suffix.lower() in hub.ENDINGS for file in path.rglob("*"))
    return path.suffix.lower() in hub.ENDINGS and path.exists()


def files(path: Path) -> dict[str, list[Path]]:
    """The data files, by split.

    Raises:
        UserError: it is not whole.
    """
    return {split: hub.whole(path, some) for split, some in hub.files_by_split(path).items()}


def rows(path: Path) -> Iterator[Row]:
    """A record for each row of every split: its columns, ``image_path`` for its image, and `STORED`.

    Where there are several splits they are the rows' ``split``, if no column says it.

    Raises:
        UserError: a file is damaged, or has no column of images or of their paths.
    """
    by_split = files(path)
    for split, some in by_split.items():
        for file in some:
            yield from _rows(file, {"split": split} if len(by_split) > 1 else {})


def _rows(file: Path, given: Mapping[str, str]) -> Iterator[Row]:
    import pyarrow as pa

    try:
        schema, number = hub.schema_of(file), 0
        column, names = _image_column(file, schema), _class_names(schema)
        told = [field.name for field in schema if field.name != column and _is_told(field.type)]
        for batch, inside in _batches(file, schema, column, told):
            for record, within in zip(batch.to_pylist(), inside, strict=True):
                fields = {key: _named(names[key], record[key]) if key in names else record[key] for key in told}
                path = (record.get(column) or {}).get("path") if column else fields.get("image_path")
                if within:
                    fields |= {"image_path": path or f"{file.name}#{number}", STORED: (file, number)}
                elif column:
                    fields["image_path"] = path
                yield Row(number, f"{file}, row {number}", {**given, **fields})
                number += 1
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{file}: damaged ({(str(e).splitlines() or ['?'])[0]}); save or download it again") from e


def _batches(
    file: Path, schema: pa.Schema, column: str | None, told: Sequence[str]
) -> Iterator[tuple[pa.RecordBatch, Sequence[bool]]]:
    """The rows without the bytes of pictures, and of each whether the file has these bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    nested = column is not None and _is_struct(schema.field(column).type)
    if file.suffix.lower() == ".arrow":
        for batch in hub.batches(file):  # mapped: only what is looked at is read
            kept = batch.select(list(told))
            if column is None:
                yield kept, [False] * len(kept)
                continue
            images = batch.column(column)
            if nested:
                paths = pa.StructArray.from_arrays([images.field("path")], ["path"], mask=images.is_null())
                kept = kept.append_column(column, paths)
            yield kept, _there(images, nested)
        return
    with pq.ParquetFile(file) as parquet:
        for group in range(parquet.num_row_groups):
            kept = parquet.read_row_group(group, columns=[*told, *([f"{column}.path"] if nested else [])])
            inside = [False] * len(kept) if column is None else _in_group(parquet, group, column, nested)
            start = 0
            for batch in kept.to_batches():
                yield batch, inside[start : start + len(batch)]
                start += len(batch)


def _in_group(parquet: Any, group: int, column: str, nested: bool) -> Sequence[bool]:
    """Which rows of a row group have a picture's bytes; by its statistics, where all or none have."""
    facts = parquet.metadata.row_group(group)
    leaf = f"{column}.bytes" if nested else column
    for i in range(facts.num_columns):
        one = facts.column(i)
        known = one.path_in_schema == leaf and one.is_stats_set and one.statistics.has_null_count
        if known and one.statistics.null_count in (0, facts.num_rows):
            return [one.statistics.null_count == 0] * facts.num_rows
    read = parquet.read_row_group(group, columns=[leaf]).column(column).combine_chunks()
    return _there(read, nested)


def _there(images: Any, nested: bool) -> list[bool]:
    """Which images have bytes."""
    found = (images.field("bytes") if nested else images).is_valid().to_pylist()
    return [one and whole for one, whole in zip(found, images.is_valid().to_pylist(), strict=True)]


# -- one picture -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parts:
    """The parts of a file that are read at once: row groups, record batches."""

    column: str
    starts: list[int]
    sizes: list[int]
    batches: Sequence[Any] | None
    """Of a mapped arrow file."""


def encoded(file: Path, row: int) -> bytes | None:
    """The bytes of the picture in a row; None where there is no such row, or it only says where its file is."""
    name, changed = str(file), file.stat().st_mtime_ns
    parts = _parts(name, changed)
    part = bisect_right(parts.starts, row) - 1
    if part < 0 or row - parts.starts[part] >= parts.sizes[part]:
        return None
    images = parts.batches[part].column(parts.column) if parts.batches is not None else _group(name, changed, part)
    value = images[row - parts.starts[part]].as_py()
    found = value.get("bytes") if isinstance(value, dict) else value
    return None if found is None else bytes(found)


@lru_cache(maxsize=64)
def _parts(name: str, _changed: int) -> _Parts:
    import pyarrow as pa
    import pyarrow.ipc
    import pyarrow.parquet as pq

    file = Path(name)
    column = str(_image_column(file, hub.schema_of(file)))
    if file.suffix.lower() == ".parquet":
        facts = pq.read_metadata(file)
        sizes = [facts.row_group(i).num_rows for i in range(facts.num_row_groups)]
        batches = None
    else:
        batches = list(pa.ipc.open_stream(pa.memory_map(name)))  # mapped: nothing is read yet
        sizes = [len(batch) for batch in batches]
    return _Parts(column, [0, *accumulate(sizes)][:-1], sizes, batches)


@lru_cache(maxsize=1)
def _group(name: str, changed: int, part: int) -> Any:
    """The images of a row group; one at a time is held."""
    import pyarrow.parquet as pq

    column = _parts(name, changed).column
    with pq.ParquetFile(name) as parquet:
        return parquet.read_row_group(part, columns=[column]).column(column)


# -- columns ---------------------------------------------------------------------------------------------------------


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind)) and {kind.field(i).name for i in range(kind.num_fields)} >= {"bytes", "path"}


def _is_told(kind: Any) -> bool:
    """Whether a column can be a caption, a name or a factor: plain values, and lists of strings."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
        return bool(types.is_string(kind) or types.is_large_string(kind))
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(text or types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind))


def _image_column(file: Path, schema: pa.Schema) -> str | None:
    """The column with the pictures; None where ``image_path`` says where each file is.

    Raises:
        UserError: there is neither, or several columns could be it.
    """
    import pyarrow as pa

    def holds(kind: Any) -> bool:
        return _is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [field.name for field in schema if holds(field.type)]
    if "image" in found or len(found) == 1:
        return "image" if "image" in found else found[0]
    if "image_path" in schema.names:
        return None
    what = f"several columns of images ({' '.join(found)})" if found else "no column of images"
    raise UserError(f"{file}: {what}; columns: {' '.join(schema.names)}; call it image")


def _class_names(schema: pa.Schema) -> dict[str, Sequence[str]]:
    """The names of class labels, which are stored as numbers, by column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {
        name: one["names"]
        for name, one in features.items()
        if isinstance(one, dict) and one.get("_type") == "ClassLabel" and isinstance(one.get("names"), list)
    }


def _named(names: Sequence[str], value: int | None) -> str | None:
    """A class label's name; None where it has none (−1 stands for "no label")."""
    return names[value] if value is not None and 0 <= value < len(names) else None
