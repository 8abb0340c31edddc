"""Pictures that a directory of the `datasets` library holds: what ``save_to_disk`` wrote, or parquet or arrow files.

A column of images (``image``, or the only one there is) has the encoded bytes, or says where the files are; captions are
columns of strings or of lists of strings; names stand for class labels. The pictures stay where they are: one is found again by its
file and row, without a copy and without `datasets` or torch.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
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
ENDINGS = (".parquet", ".arrow")


def is_dataset(path: Path) -> bool:
    """Whether a path names a dataset and not a table of captions."""
    return path.suffix in ENDINGS or (path.is_dir() and (hub.is_saved(path) or bool(_loose(path))))


def _loose(path: Path) -> list[Path]:
    return [file for file in path.rglob("[!.]*") if file.suffix in ENDINGS]


def files(path: Path) -> dict[str, list[Path]]:
    """The data files, by split.

    Raises:
        UserError: it is not whole.
    """
    by_split = hub.files_by_split(path)
    if missing := [file for some in by_split.values() for file in some if not file.is_file()]:
        raise UserError(f"{path}: incomplete, {missing[0].name} is missing; save or download it again")
    return by_split


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
        inside = column is not None and encoded(file, 0) is not None
        for batch in _batches(file, schema, column):
            for record in batch.to_pylist():
                fields = {key: names[key][value] if key in names and value is not None else value
                          for key, value in record.items() if key != column}  # fmt: skip
                place = f"{file}, row {number}"
                yield Row(number, place, {**given, **fields, **_image(file, number, column, record, inside)})
                number += 1
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{file}: damaged ({(str(e).splitlines() or ['?'])[0]}); save or download it again") from e


def _image(file: Path, number: int, column: str | None, record: Mapping[str, Any], inside: bool) -> dict[str, Any]:
    """What a row calls its picture; and where its bytes are, if they are `inside` the file."""
    if column is None:
        return {}
    path = (record.get(column) or {}).get("path")
    return {"image_path": path or f"{file.name}#{number}", STORED: (file, number)} if inside else {"image_path": path}


def encoded(file: Path, row: int) -> bytes | None:
    """The bytes of the picture in a row; None where the row only says where its file is, or there is no such row."""
    column, starts, read = _opened(str(file), file.stat().st_mtime_ns)
    if not starts:
        return None
    part = bisect_right(starts, row) - 1
    value = read(part).column(column)[row - starts[part]].as_py()
    found = value.get("bytes") if isinstance(value, dict) else value
    return None if found is None else bytes(found)


@lru_cache(maxsize=16)
def _opened(name: str, _changed: int) -> tuple[str, list[int], Any]:
    """The column of images of a file, the first row of each of its parts, and what reads a part."""
    import pyarrow as pa
    import pyarrow.ipc
    import pyarrow.parquet as pq

    file = Path(name)
    column = _image_column(file, hub.schema_of(file))
    if file.suffix == ".parquet":
        parquet = pq.ParquetFile(file)
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        read = lru_cache(maxsize=2)(lambda part: parquet.read_row_group(part, columns=[column]))
        return str(column), [0, *accumulate(sizes)][:-1], read
    batches = list(pa.ipc.open_stream(pa.memory_map(name)))  # mapped: nothing is read yet
    return str(column), [0, *accumulate(len(batch) for batch in batches)][:-1], batches.__getitem__


def _batches(file: Path, schema: pa.Schema, column: str | None) -> Iterator[pa.RecordBatch]:
    """The rows, without the bytes of the pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted: list[str] = [name for name in schema.names if name != column]
    nested = column is not None and _is_struct(schema.field(column).type)
    if file.suffix == ".parquet":
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(256, columns=[*wanted, f"{column}.path"] if nested else wanted):
                yield batch
        return
    for batch in hub.batches(file):
        kept = batch.select(wanted)
        if nested:
            paths = batch.column(column).field("path")
            kept = kept.append_column(str(column), pa.StructArray.from_arrays([paths], ["path"]))
        yield kept


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind)) and {kind.field(i).name for i in range(kind.num_fields)} >= {"bytes", "path"}


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
        return {name: one["names"] for name, one in features.items() if one.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
