"""What only some studies save, as tables over all of them; of it, heads given back to their zeroed group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from circuits.report.content import Block, Cell, Column, Table
from circuits.report.saved import load_table, number
from circuits.report.sections import interventions_records as say
from circuits.report.sections.interventions_records import Record
from circuits.report.sections.interventions_tables import LONG
from circuits.report.words import percent, plus_minus, visible

LISTED = 200  # rows of a table


def saved(
    records: Sequence[Record],
    file: str,
    numbers: Sequence[str],
    words: Sequence[str],
    problems: list[str],
    beside: Sequence[str] = (),
) -> dict[Record, pd.DataFrame]:
    """A table of those that have it, words on one line, with the numbers `beside` where it has them; what it lacks is a problem."""
    found = {}
    for r in records:
        ref = r.entry.ref
        table = load_table(ref, file, numbers, problems, (*words, *beside)) if (ref.path / file).exists() else None
        if table is None or not {*numbers, *words} <= set(table):
            lacking = [] if table is None else [word for word in words if word not in table]
            problems += [f"{ref.label}: {file} lacks {', '.join(lacking)}"] if lacking else []
        elif len(table):
            for name in [*numbers, *(name for name in beside if name in table)]:
                table[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
            for word in words:
                table[word] = table[word].astype(object).where(table[word].notna(), "").astype(str).map(visible)
            found[r] = table
    return found


def finished(
    title: str, columns: Sequence[Column], rows: Mapping[Record, Sequence[Sequence[Cell]]], caption: str
) -> Table:
    """One table of several studies: each row with its study, where there is more than one."""
    several = len(rows) > 1
    held = (Column("condition"), *columns, Column("artifact")) if several else tuple(columns)
    whole = [
        (Cell(r.condition), *cells, Cell(r.label, code=True)) if several else tuple(cells)
        for r, mine in rows.items()
        for cells in mine
    ]
    first = f"The first {LISTED} of {len(whole):,}. " if len(whole) > LISTED else ""
    named = title if several else f"{title}: {next(iter(rows)).condition}"
    claim = f"{first}{caption} {say.sample(list(rows))} {say.sources(list(rows))}"
    return Table(named, held, tuple(whole[:LISTED]), claim, folded=len(whole) > LONG)


def units(records: Mapping[Record, Any]) -> str:
    """Of their effects."""
    return " or ".join(sorted({r.unit for r in records}))


def blocks(records: Sequence[Record], problems: list[str]) -> list[Block]:
    """The table of rescues, where one was saved; a file that cannot be read is told in `problems`."""
    numbers, words = ("base", "zeroed", "restored", "recovered"), ("unit", "kept", "rescued")
    tables = saved(records, "rescues.parquet", numbers, words, problems)
    return [rescues(tables)] if tables else []


def rescues(tables: Mapping[Record, pd.DataFrame]) -> Table:
    """Each head that was given back to its zeroed group: how far it brings the difference back."""
    columns = (
        Column("group"), Column("head given back"), Column("without edits", True, "mean of target − foil"),
        Column("zeroed", True, "the whole group zeroed; ± the larger arm of the 95% interval of its effect"),
        Column("restored", True, "all of the group but this head zeroed; ± as before"),
        Column("recovered", True, "1 − (restored − without edits) / (zeroed − without edits)"),
        Column("rescued", False, "restored is within 1% of the difference without edits"),
    )  # fmt: skip
    caption = (
        f"Mean differences target − foil in {units(tables)}. A group of heads is zeroed as a whole, then once for each member with "
        "that head's own output given back. Recovered: the share of the group's effect that this undoes; above 100% it goes past "
        "the run without edits, below 0% it is farther from it than the zeroed group; undefined where the group changes less than "
        "1%. Rescued: within 1% of the difference without edits, on average over the prompts. Controls: the same prompts without "
        "edits, and with the whole group zeroed."
    )
    return finished("Does one head rescue its group", columns, {r: _rescues(r, t) for r, t in tables.items()}, caption)


def _rescues(r: Record, table: pd.DataFrame) -> list[list[Cell]]:
    effects = {str(row["unit"]): row for row in r.studied.to_dict("records") if row["edit"] == "restore"}
    rows = []
    for row in table.to_dict("records"):
        unit, kept = str(row["unit"]), str(row["kept"])
        base, share = number(row, "base"), number(row, "recovered")
        cells = [Cell(unit), Cell(kept), Cell(plus_minus(base, None, 2), base)]
        for key, name in (("zeroed", unit), ("restored", f"{unit} keep {kept}")):
            ends, value = say.interval(effects.get(name, {})), number(row, key)
            around = None if ends is None or base is None else (base + ends[0], base + ends[1])
            cells.append(Cell(plus_minus(value, around, 2), value))
        passed = "no" if row["rescued"] != "True" else "yes" if share is not None else "nothing was lost"
        rows.append([*cells, Cell(percent(share), share), Cell(passed)])
    return rows
