"""Steering directions beside random and orthogonal ones of their norm and beside a prompt, and what is written under them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from circuits.report.content import Block, Cell, Column, Table
from circuits.report.saved import number
from circuits.report.sections import interventions_more as more
from circuits.report.sections import interventions_records as say
from circuits.report.sections.interventions_records import Record
from circuits.report.words import ABSENT, decimal, percent, plus_minus, short

WRITTEN, CUT = 10, 100  # prompts whose texts are shown, characters of a text
PLAIN, PROMPTED, KINDS = "(none)", "prompting", ("random", "orthogonal")
BESIDE = (
    PROMPTED, "prompting_wrong", "prompting_right",
    *(name for kind in KINDS for name in (f"{kind}_n", f"{kind}_mean", f"{kind}_best", f"p_{kind}")),
)  # fmt: skip
"""Numbers that are saved where there were controls and demonstrations."""


def blocks(records: Sequence[Record], problems: list[str]) -> list[Block]:
    """The evidence and the texts, where they were saved; a file that cannot be read is told in `problems`."""
    needed = ("norm", "strength", "effect", "wrong", "n")
    steered = more.saved(records, "steering.parquet", needed, ("unit", "largest"), problems, BESIDE)
    told = ("unit", "sample", "text")
    written = more.saved(records, "generations.parquet", ("nll", "distinct_2"), told, problems)
    found: list[Block] = [steering(steered, written)] if steered else []
    return found + [texts(r, table, steered.get(r)) for r, table in written.items()]


def steering(tables: Mapping[Record, pd.DataFrame], written: Mapping[Record, pd.DataFrame]) -> Table:
    """Each direction with its controls."""
    columns = (
        Column("direction"), Column("norm", True), Column("strength", True, "in norms of the direction; * the strongest one tried"),
        Column("effect", True, "mean, ± the larger arm of its 95% interval"),
        Column("wrong way", True, "prompts that moved against the intent"),
        Column("random", True, "mean / best: farthest in the wanted direction"),
        Column("p", True, "place among random directions, two-sided"),
        Column("orthogonal", True, "mean / best: farthest in the wanted direction"),
        Column("p", True, "place among orthogonal directions, two-sided"),
        Column("prompting", True, "demonstrations in the vector's place, and the prompts that they moved the wrong way"),
        Column("perplexity", True, "plain / steered / prompted, to the model without vector or demonstrations"),
        Column("distinct-2", True, "plain / steered / prompted: different pairs of neighbouring tokens / all of them"),
        Column("n", True),
    )  # fmt: skip
    wanted = " or ".join(sorted({"above 0" if _sign(r) > 0 else "below 0" for r in tables}))
    drawn = [int(n) for t in tables.values() for kind in KINDS if f"{kind}_n" in t for n in t[f"{kind}_n"].dropna()]
    least = f", no less than {say.chance(1 / (1 + max(drawn)))} with so few" if drawn else "; none was measured"
    ahead = [_ahead(r, row) for r, t in tables.items() for row in t.to_dict("records")]
    told = f" {sum(ahead)} of {len(ahead)} go farther than the best of them." if drawn else ""
    caption = (
        f"Effects in {more.units(tables)}; wanted: {wanted}. Strengths were chosen on the other split; * the strongest one tried: "
        "more may do more. Random and orthogonal directions (mean / best) have the same norm and strength; p is the direction's "
        f"place among them{least}.{told} A vector that is no better than random directions of equal norm proves nothing about "
        "representation: any push of that size does as much. One that is better steers, which does not say that the model itself "
        "uses it. In brackets: prompts moved the wrong way. Perplexity and distinct-2 of what is written: plain / steered / "
        "prompted; low perplexity is no praise by itself: a text that repeats itself (low distinct-2) is likely, too."
    )
    rows = {r: [_row(r, row, _fluency(written.get(r))) for row in t.to_dict("records")] for r, t in tables.items()}
    return more.finished("Steering against chance directions and a prompt", columns, rows, caption)


def _row(r: Record, row: Mapping[Any, Any], fluency: Mapping[str, Mapping[Any, Any]]) -> list[Cell]:
    unit, value, wrong = str(row["unit"]), number(row, "effect"), number(row, "wrong")
    norm, strength = number(row, "norm"), number(row, "strength")
    known = [e for e in r.studied.to_dict("records") if e["unit"] == unit]
    star = "*" if row["largest"] == "True" else ""
    cells = [Cell(unit), Cell(short(norm), norm), Cell(ABSENT if strength is None else f"{strength:g}{star}", strength)]
    cells += [Cell(plus_minus(value, say.interval(known[0]) if known else None, 3), value), Cell(percent(wrong), wrong)]
    for kind in KINDS:
        mean, best, p = (number(row, key) for key in (f"{kind}_mean", f"{kind}_best", f"p_{kind}"))
        both = ABSENT if mean is None or best is None else f"{mean:+.3f} / {best:+.3f}"
        cells += [Cell(both, mean), Cell(say.chance(p), p)]
    shown, against, right = (number(row, key) for key in (PROMPTED, "prompting_wrong", "prompting_right"))
    hint = "" if right is None else f"with clean prompts and their right answers: {right:+.3f}"
    cells.append(Cell(ABSENT if shown is None else f"{shown:+.3f} ({percent(against)})", shown, hint))
    for key in ("perplexity", "distinct_2"):
        three = [number(fluency.get(name, {}), key) for name in (PLAIN, unit, PROMPTED)]
        cells.append(
            Cell(" / ".join(decimal(v, 2) for v in three) if any(v is not None for v in three) else ABSENT, three[1])
        )
    n = number(row, "n")
    return [*cells, Cell(ABSENT if n is None else f"{n:.0f}", n)]


def _fluency(table: pd.DataFrame | None) -> dict[str, Mapping[Any, Any]]:
    """Means over the prompts of what was written under each unit; perplexity = exp of the mean."""
    if table is None:
        return {}
    means = table.groupby("unit")[["nll", "distinct_2"]].mean()
    with np.errstate(over="ignore"):
        rows = means.assign(perplexity=np.exp(means["nll"])).to_dict("index")
    return {str(unit): row for unit, row in rows.items()}


def _ahead(r: Record, row: Mapping[Any, Any]) -> bool:
    """Whether a direction goes farther in the wanted direction than all of its controls."""
    value, best = number(row, "effect"), [number(row, f"{kind}_best") for kind in KINDS]
    return value is not None and all(b is not None and _sign(r) * (value - b) > 0 for b in best)


def _sign(r: Record) -> int:
    """Of the effect that is wanted."""
    return 1 if (r.metrics.get("direction") or r.option("direction")) == "denoising" else -1


def texts(r: Record, table: pd.DataFrame, steered: pd.DataFrame | None) -> Table:
    """What was written after the first prompts, side by side: as it is, steered, under a random direction, prompted."""
    names, samples = (list(dict.fromkeys(map(str, table[key]))) for key in ("unit", "sample"))
    chosen = ""
    if steered is not None and steered["effect"].notna().any():
        chosen = str(steered["unit"].iloc[int(np.nanargmax(_sign(r) * steered["effect"].to_numpy(float)))])
    random = f"{chosen.rpartition('.')[0]}.random "
    shown = [one for one in names if not chosen or one in (PLAIN, chosen, PROMPTED) or one.startswith(random)][:4]
    said = {(row["sample"], row["unit"]): str(row["text"]) for row in table.to_dict("records")}
    rows = []
    for sample in samples[:WRITTEN]:
        mine = [said.get((sample, one), ABSENT) or "(nothing)" for one in shown]
        cells = [Cell(f"{t[:CUT]}…", hint=t, code=True) if len(t) > CUT else Cell(t, code=True) for t in mine]
        rows.append([Cell(sample), *cells])
    columns = [Column("prompt"), *(Column({PLAIN: "as it is", PROMPTED: "prompted"}.get(one, one)) for one in shown)]
    which = f" {chosen} goes farthest in the wanted direction." if chosen else ""
    caption = (
        f"Greedy texts after the first {len(rows)} of {len(samples)} prompts; ⏎ is a line end.{which} generations.parquet has all. "
        "Controls: the model as it is, and a random direction of equal norm."
    )
    told = more.finished("What is written", columns, {r: rows}, caption)
    return Table(told.title, told.columns, told.rows, told.caption, folded=True)
