"""Labels of features: a CSV that people edit by hand, and the template that they begin with.

Columns ``feature`` and ``label``, and ``layer`` where one file serves several; further columns are the reader's own (the template
has ``suggestion``). A row without a label labels nothing. Written so that a spreadsheet opens it; a byte-order mark, as
spreadsheets write, is no matter. No torch, no pandas::

    from circuits.features import labels
    names = labels.read(Path("labels-L3.csv"), layer=3)      # {17: "plural subject", …}
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from circuits.errors import UserError
from circuits.files import write_atomic

COLUMNS = ("layer", "feature", "label", "suggestion")
SHOWN_ERRORS = 5


def read(path: Path, layer: int | None = None, d_sae: int | None = None) -> dict[int, str]:
    """Feature → label. `layer` picks the rows of that layer where the file has a column for it.

    Raises:
        UserError: with every finding (at most five), by file and line.
    """
    text = _text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: dict[tuple[int | None, int], tuple[str, int]] = {}
    errors: list[str] = []
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        for column in ("feature", "label"):
            if header.count(column) != 1:
                raise UserError(
                    f"{path}, line 1: the columns are {','.join(header) or 'none'}; one feature and one label are needed, "
                    "separated by commas: feature,label"
                )
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            try:
                _add(found, header, row, reader.line_num, d_sae, layer)
            except ValueError as e:
                errors.append(f"{path}, line {reader.line_num}: {e}")
    except csv.Error as e:
        errors.append(f"{path}, line {reader.line_num}: not CSV ({e})")
    if errors:
        more = [f"{path}: {len(errors) - SHOWN_ERRORS} more lines of this kind"] if len(errors) > SHOWN_ERRORS else []
        raise UserError(errors[:SHOWN_ERRORS] + more)
    return {
        feature: label for (at, feature), (label, _) in found.items() if label and (None in (at, layer) or at == layer)
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8; save it as CSV UTF-8") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e


def _add(
    found: dict[tuple[int | None, int], tuple[str, int]],
    header: Sequence[str],
    row: Sequence[str],
    line: int,
    d_sae: int | None,
    layer: int | None,
) -> None:
    """Join one row; ValueError says what is wrong with it."""
    if len(row) != len(header):
        raise ValueError(f"{len(row)} cells under {len(header)} columns; a label with a comma stands in quotes")
    cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
    feature = _number("feature", cells["feature"])
    at = _number("layer", cells["layer"]) if cells.get("layer") else None
    if d_sae is not None and feature >= d_sae and (None in (at, layer) or at == layer):
        raise ValueError(f"feature {feature} is out of range: the SAE has {d_sae} features (0-{d_sae - 1})")
    if (at, feature) in found:
        raise ValueError(f"feature {feature} is labelled before, in line {found[at, feature][1]}")
    found[at, feature] = (cells["label"], line)


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name} {text!r} is no number; whole numbers from 0")
    return int(text)


def write_template(path: Path, layer: int, suggestions: Mapping[int, str], given: Mapping[int, str]) -> None:
    """A file to edit: every feature, with the label it has and a suggestion beside it."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for feature, suggestion in suggestions.items():
        writer.writerow([layer, feature, given.get(feature, ""), suggestion])
    write_atomic(path, out.getvalue().encode("utf-8"))
