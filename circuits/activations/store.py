"""A store of activations on disk: flat rows of one site and layer, with an index of where each row came from.

The directory of an ``activations`` artifact::

    values.npy     [n_rows, width]: float32, float16, or bfloat16 as its 16 bits (uint16)
    norms.npy      [n_rows]: each row's Euclidean norm
    rows.parquet   row, sample, position, from_end, token_id, padded, split, group, factor.* … (opens in pandas)
    meta.json      site, layer, width, dtype, n_rows, n_samples, model, dropped samples

Rows stand in the order of samples, then positions. Nothing is read until it is asked for; opening loads no torch::

    store = circuits.open("activations", layer=3, activations__site="mlp_out")
    x = store.tensor(slice(0, 1000))                    # torch, the stored type, no copy
    last = store.float32(store.rows.query("from_end == 0").row.to_numpy())

For training, rows come shuffled from :class:`circuits.activations.reservoir.Reservoir`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from circuits import tables
from circuits.data.npy import open_npy
from circuits.errors import Damaged
from circuits.files import read_json

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float
    from torch import Tensor


VALUES, NORMS, ROWS, META = "values.npy", "norms.npy", "rows.parquet", "meta.json"
FILES = (VALUES, META)
"""What is read for training."""
STORED = {"fp32": "float32", "bf16": "uint16", "fp16": "float16"}


class ActivationStore:
    """The activations in `directory`, memory-mapped."""

    def __init__(self, directory: Path) -> None:
        self.path = Path(directory)
        self.facts = _facts(self.path)
        self.site: str = self.facts["site"]
        self.layer: int = self.facts["layer"]
        self.width: int = self.facts["width"]
        self.dtype: str = self.facts["dtype"]
        self.n_rows: int = self.facts["n_rows"]
        self.values = open_npy(self.path / VALUES, (self.n_rows, self.width))
        if self.values.dtype != STORED[self.dtype]:
            raise Damaged(f"{self.path / VALUES}: holds {self.values.dtype}, its facts say {self.dtype}")

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        return f"ActivationStore({self.site}, layer {self.layer}: {self.n_rows:,} rows of {self.width}, {self.dtype}; {self.path})"

    @property
    def norms(self) -> NDArray[np.float32]:
        """Each row's Euclidean norm."""
        return open_npy(self.path / NORMS, (self.n_rows,))

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The row index: which token of which sample each row came from, and what is known of the sample.

        Raises:
            Damaged: the file is not whole.
        """
        return tables.read(self.path / ROWS)

    def float32(self, rows: slice | NDArray[Any]) -> NDArray[np.float32]:
        """Rows (a slice or their numbers) as float32, in memory."""
        return widened(self.values[rows])

    def tensor(self, rows: slice = slice(None)) -> Float[Tensor, "rows width"]:
        """A stretch of rows as a tensor of the stored type: a view of the file, not to be written to."""
        import warnings

        import torch

        with warnings.catch_warnings():  # torch warns that the file is read-only, which is meant
            warnings.simplefilter("ignore", UserWarning)
            if self.dtype == "bf16":
                return torch.from_numpy(self.values[rows].view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(self.values[rows])

    def grid(self, last_n: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The last `last_n` positions of every sample, ``[samples, last_n, width]``, and where there is one.

        A sample that is shorter has no value at the left: zeros there, and False in the second array.
        """
        samples, place = np.unique(self.rows["sample"].to_numpy(), return_inverse=True)
        column = last_n - 1 - self.rows["from_end"].to_numpy()
        inside = column >= 0
        values = np.zeros((len(samples), last_n, self.width), np.float32)
        valid = np.zeros((len(samples), last_n), bool)
        values[place[inside], column[inside]] = self.float32(np.flatnonzero(inside))
        valid[place[inside], column[inside]] = True
        return values, valid


def widened(values: NDArray[Any]) -> NDArray[np.float32]:
    """Stored values as float32; 16-bit integers are bfloat16, the upper half of a float32."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _facts(directory: Path) -> dict[str, Any]:
    path = directory / META
    try:
        facts = read_json(path)
        known = {"site", "layer", "width", "dtype", "n_rows"} <= facts.keys() and facts["dtype"] in STORED
    except FileNotFoundError as e:
        raise Damaged(f"{path}: missing; {directory} is no store of activations") from e
    except (ValueError, AttributeError, TypeError) as e:
        raise Damaged(f"{path}: damaged ({e})") from e
    if not known:
        raise Damaged(f"{path}: not the facts of a store of activations")
    return facts
