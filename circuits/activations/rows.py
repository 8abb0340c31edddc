"""The row index of captured activations, ``rows.parquet``: which row came from which token of which sample.

It is written window by window, so that its size is bounded by the disk only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from circuits.activations.samples import BLOCK, Samples, kept_positions, row_columns
from circuits.activations.store import NORMS, ROWS, VALUES
from circuits.data.npy import open_npy
from circuits.files import disk_errors

if TYPE_CHECKING:
    from circuits.activations.capture import Plan

POSITIONS = 64  # of which the metrics give the mean norm
_WORDS = ("sample_id", "behaviour", "split", "group", "language")


def write(path: Path, samples: Samples, plan: Plan, dropped: set[int]) -> int:
    """Write the index of every captured row, in the order of the values; how many rows. `dropped` samples have none."""
    rows, writer = 0, None
    with disk_errors(path):
        try:
            for start in range(0, len(samples), BLOCK):
                table = _table(samples, plan, dropped, start, min(start + BLOCK, len(samples)), rows)
                writer = writer or pq.ParquetWriter(path, table.schema)
                writer.write_table(table)
                rows += len(table)
        finally:
            if writer is not None:
                writer.close()
    return rows


def _table(samples: Samples, plan: Plan, dropped: set[int], start: int, stop: int, first_row: int) -> pa.Table:
    tokens = samples.window(start, stop)
    keep = kept_positions(tokens, plan.last_n, plan.skip_first, plan.select)
    if plan.select == "mean":  # one row a sample, which stands at the last of the tokens that it is the mean of
        keep = keep & (torch.arange(keep.shape[1]) == tokens.last[:, None])
    keep[[number - start for number in dropped if start <= number < stop]] = False
    columns = row_columns(tokens, keep, plan.last_n)
    sequence = columns.pop("_sequence")
    found: dict[str, Any] = {"row": pa.array(np.arange(first_row, first_row + len(sequence)))}
    found |= {name: pa.array(column) for name, column in columns.items()}
    if "token_type" in found:
        found["token_type"] = found["token_type"].dictionary_encode()
    for name, values in samples.columns(start, stop).items():
        words = pa.array(values, pa.string() if name in _WORDS or name.startswith("factor.") else None)
        found[name] = words.take(pa.array(sequence)).dictionary_encode()
    return pa.table(found)


def summary(directory: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a written store: its size, its norms in the mean and by position, what was dropped."""
    rows = facts["n_rows"]
    norms = open_npy(directory / NORMS, (rows,))
    by = "position" if facts["last_n"] is None else "from_end"
    index = pq.read_table(directory / ROWS, columns=[by, "sample"])
    place = index[by].to_numpy()
    counts = np.bincount(place)
    sums = np.bincount(place, weights=norms)
    seen = np.flatnonzero(counts)[:POSITIONS]
    return {
        "rows": rows,
        "samples": facts["n_samples"],
        "dropped": len(facts["dropped"]),
        "gigabytes": (directory / VALUES).stat().st_size / 1e9,
        **{name: facts[name] for name in ("site", "layer", "width", "dtype")},
        "norm": float(norms.mean(dtype=np.float64)) if rows else None,
        "norm_ci": _interval(norms, index["sample"].to_numpy()),
        "norm_by_position": {
            "by": by,
            "positions": seen.tolist(),
            "mean": (sums[seen] / counts[seen]).tolist(),
            "rows": counts[seen].tolist(),
        },
    }


def _interval(values: NDArray[np.float32], samples: NDArray[np.int64]) -> list[float] | None:
    """95% interval of the mean over rows, with whole samples as the unit (linearised ratio of sums, Cochran 1977, ch. 6)."""
    _, sample = np.unique(samples, return_inverse=True)
    counts, sums = np.bincount(sample), np.bincount(sample, weights=values)
    if len(counts) < 2:
        return None
    mean = sums.sum() / counts.sum()
    spread = np.sqrt(len(counts) / (len(counts) - 1) * np.square(sums - mean * counts).sum()) / counts.sum()
    return [float(mean - 1.96 * spread), float(mean + 1.96 * spread)]
