"""Reading an artifact's files for a page: a missing or damaged file becomes a line in the report, not an exception."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from circuits import tables
from circuits.errors import Damaged
from circuits.files import read_json
from circuits.report.types import ArtifactRef


def load_json(ref: ArtifactRef, name: str, problems: list[str]) -> dict[str, Any]:
    """The JSON object in `name`; empty, with a line in `problems`, when it cannot be had."""
    try:
        value = read_json(ref.path / name)
    except FileNotFoundError:
        problems.append(f"{ref.label}: {name} is missing")
    except json.JSONDecodeError as e:
        problems.append(f"{ref.label}: {name} is damaged (line {e.lineno}, column {e.colno}: {e.msg})")
    except (OSError, UnicodeDecodeError) as e:
        problems.append(f"{ref.label}: {name} cannot be read ({tables.reason(e, ref.path / name)})")
    else:
        if isinstance(value, dict):
            return value
        problems.append(f"{ref.label}: {name} is damaged (a JSON object is wanted, found {type(value).__name__})")
    return {}


def load_metrics(
    ref: ArtifactRef, needed: Sequence[str], problems: list[str], null: bool = True
) -> dict[str, Any] | None:
    """An artifact's measurement, ``metrics.json``; None, with a line in `problems`, where it lacks one of `needed`.

    `null`: whether a null counts as a value.
    """
    metrics = load_json(ref, "metrics.json", problems)
    lacking = [name for name in needed if name not in metrics or (metrics[name] is None and not null)]
    if metrics and lacking:
        problems.append(f"{ref.label}: metrics.json lacks {', '.join(lacking)}")
    return None if lacking else metrics


def whole_table(ref: ArtifactRef, name: str, problems: list[str]) -> pd.DataFrame | None:
    """The parquet table `name` as it is; None, with a line in `problems`, when it cannot be had."""
    path = ref.path / name
    try:
        return tables.read(path)
    except Damaged as e:
        problems.append(f"{ref.label}: {name} is {str(e).removeprefix(f'{path}: ')}")
    return None


def load_table(
    ref: ArtifactRef, name: str, columns: Sequence[str], problems: list[str], texts: Sequence[str] = ()
) -> pd.DataFrame | None:
    """The numeric `columns` that the parquet table `name` has, a line in `problems` where one is lacking, and those of `texts`
    that it has; None without a table."""
    table = whole_table(ref, name, problems)
    if table is None:
        return None
    lacking = [column for column in columns if column not in table]
    if lacking:
        problems.append(f"{ref.label}: {name} lacks {', '.join(lacking)}")
    kept = table[[column for column in columns if column in table]]
    if not all(map(pd.api.types.is_numeric_dtype, kept.dtypes)):
        kept = kept.apply(pd.to_numeric, errors="coerce")
    beside = [column for column in texts if column in table]
    return kept.join(table[beside]) if beside else kept


def part(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A group of facts that may be lacking."""
    found = facts.get(key)
    return found if isinstance(found, Mapping) else {}


def number(row: Mapping[Any, Any], key: str) -> float | None:
    """A value that may be lacking or undefined."""
    value = row.get(key)
    return None if value is None or pd.isna(value) else float(value)
