"""Parquet tables of artifacts: read whole, or said to be damaged in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from circuits.errors import Damaged

if TYPE_CHECKING:
    import pandas as pd


def read(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The table in `path`, or some of its columns.

    Raises:
        Damaged: it is not there, not whole, or lacks one of `columns`.
    """
    import pandas as pd
    import pyarrow as pa

    try:
        return pd.read_parquet(path, columns=None if columns is None else list(columns))
    except (OSError, ValueError, pa.ArrowException) as e:
        raise Damaged(
            f"{path}: {'missing' if isinstance(e, FileNotFoundError) else f'damaged ({reason(e, path)})'}"
        ) from e


def reason(error: BaseException, file: Path) -> str:
    """The first line of what reading `file` said, without a path of this machine in it."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.replace(str(file), file.name).splitlines() or [type(error).__name__])[0][:120]
