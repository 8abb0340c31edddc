"""The row index: which activation row came from which token of which sample.

Activations are flat rows ``[N, width]``; this table of equal length says, for each of them, where it was. It travels
beside them as parquet, opens in pandas, and is what "held out by group" and "position of interest" are computed from.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from circuits.errors import Damaged
from circuits.files import write_atomic
from circuits.model_input import ModelInput

_NUMBERS = ("row", "sample", "position", "token_id")


@dataclass(frozen=True)
class RowIndex:
    """One entry a row; the optional columns are absent (None) where a study has no such thing."""

    row: NDArray[np.int64]
    """The row's number in the stored activations; kept by `select`."""
    sample: NDArray[np.int64]
    """The sequence it came from, as its source names it."""
    position: NDArray[np.int64]
    """The token's position in the sequence, from 0."""
    token_id: NDArray[np.int64]
    group: NDArray[Any] | None = None
    """What is held out together (a prompt's clean text, an image)."""
    token_type: NDArray[Any] | None = None
    """For example subject, verb, last, image."""
    language: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        for name, column in self.columns().items():
            if column.shape != (len(self.row),):
                raise ValueError(f"row index: column {name} has shape {column.shape}, expected ({len(self.row)},)")

    def __len__(self) -> int:
        return len(self.row)

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns that are there, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in found.items() if column is not None}

    def select(self, rows: NDArray[Any]) -> RowIndex:
        """The entries at `rows` (numbers or a mask of this index's length); they keep their row numbers."""
        return RowIndex(**{name: column[rows] for name, column in self.columns().items()})

    @classmethod
    def from_tokens(cls, tokens: ModelInput, keep: Bool[Tensor, "n pos"], first_row: int = 0) -> RowIndex:
        """The kept tokens in reading order: sequence by sequence, position by position."""
        sequence, position = (index.numpy() for index in keep.cpu().nonzero(as_tuple=True))
        ids: Int[Tensor, "n pos"] = tokens.ids.cpu()
        return cls(
            row=np.arange(first_row, first_row + len(sequence)),
            sample=tokens.samples.cpu().numpy()[sequence],
            position=position,
            token_id=ids.numpy()[sequence, position],
        )

    def to_parquet(self, path: Path) -> None:
        """Write atomically; words are dictionary-encoded."""
        table = pa.table({name: _arrow(name, column) for name, column in self.columns().items()})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_atomic(path, buffer.getvalue())

    @classmethod
    def from_parquet(cls, path: Path) -> RowIndex:
        """Read what `to_parquet` wrote; `Damaged` when it is not that."""
        try:
            table = pq.read_table(path)
        except FileNotFoundError as e:
            raise Damaged(f"{path}: missing") from e
        except (pa.ArrowException, OSError) as e:
            raise Damaged(f"{path}: truncated or altered ({str(e).splitlines()[0]})") from e
        if missing := [name for name in _NUMBERS if name not in table.column_names]:
            raise Damaged(f"{path}: no column {' '.join(missing)}")
        known = {field.name for field in fields(cls)}
        return cls(**{name: _numpy(table[name]) for name in table.column_names if name in known})


def _arrow(name: str, column: NDArray[Any]) -> pa.Array:
    if name in _NUMBERS:
        return pa.array(column, pa.int64())
    return pa.array(column.tolist(), pa.string()).dictionary_encode()


def _numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    words = pa.types.is_dictionary(column.type)
    return (column.cast(pa.string()) if words else column).to_numpy()
