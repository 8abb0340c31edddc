"""What a long loop makes one by one, each of them kept as a directory of its own until the whole is published."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.files import read_json, write_json
from circuits.tables import read as read_table

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    Found = tuple[Mapping[str, pd.DataFrame], dict[str, Any], Mapping[str, sparse.csc_matrix]]


def once(directory: Path, make: Callable[[], Found]) -> Found:
    """Tables, facts (JSON-able) and matrices, as they are read from `directory`; made and put there where they are not."""
    from scipy import sparse

    if not directory.is_dir():
        tables, facts, matrices = make()
        partial = directory.with_name(f"{directory.name}.new")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, table in tables.items():
            table.to_parquet(partial / f"{name}.parquet")
        write_json(partial / "facts.json", {"tables": list(tables), "matrices": list(matrices), "facts": facts})
        for name, matrix in matrices.items():
            sparse.save_npz(partial / f"{name}.npz", matrix, compressed=False)
        partial.rename(directory)
    there = read_json(directory / "facts.json")
    return (
        {name: read_table(directory / f"{name}.parquet") for name in there["tables"]},
        there["facts"],
        {name: sparse.csc_matrix(sparse.load_npz(directory / f"{name}.npz")) for name in there["matrices"]},
    )
