"""Tables of circuits: methods by their agreement with exact patching, and the largest edges of one."""

from __future__ import annotations

from collections.abc import Sequence

from circuits.report.content import Cell, Column, Table
from circuits.report.saved import number
from circuits.report.sections.attribution_records import Record, signed, with_error
from circuits.report.words import ABSENT, decimal, percent, whole

LARGEST = 20


def ranked(records: Sequence[Record]) -> list[Record]:
    """By agreement with exact patching, the best first; those that were not held against it last."""
    values = [(number(r.metrics, "pearson_without_largest"), number(r.metrics, "pearson")) for r in records]
    keys = [tuple(-2.0 if value is None else value for value in pair) for pair in values]
    order = sorted(range(len(records)), key=lambda i: keys[i], reverse=True)
    return [records[i] for i in order]


def comparison(records: Sequence[Record]) -> Table:
    """A row a measurement."""
    several = len({r.study for r in records}) > 1
    columns = (
        *((Column("study"),) if several else ()), Column("method"),
        Column("r", True, "Pearson of scores and exact effects"),
        Column("r without largest", True, "Pearson without the edge of the largest exact effect"),
        Column("ρ of sizes", True, "Spearman of |score| and |exact effect|"),
        Column("signs right", True, "of edges whose exact effect is larger than 0.02"),
        Column("slope", True, "of exact effects on scores, through 0: above 1, scores are too small"),
        Column("edges in circuit", True), Column("kept mass", True, "share of the sum of |score| over all edges"),
        Column("stability", True, "Jaccard overlap with circuits of resampled prompts, the mean"),
        Column("patched", True, "edges patched exactly"), Column("n", True, "prompts"), Column("artifact"),
    )  # fmt: skip
    rows = []
    for r in records:
        m, v = r.metrics, r.verified
        cells = [Cell(r.study)] if several else []
        cells += [Cell(r.method)]
        for key in ("pearson", "pearson_without_largest", "spearman_sizes"):
            cells.append(Cell(decimal(number(v, key)), number(v, key)))
        signs = number(v, "signs")
        of = f"of {signs:.0f} edges" if signs is not None else ""
        cells.append(Cell(percent(number(v, "sign")), number(v, "sign"), of))
        cells.append(Cell(decimal(number(v, "slope"), 2), number(v, "slope")))
        cells.append(Cell(f"{int(m['circuit_edges']):,} of {int(m['edges']):,}", int(m["circuit_edges"])))
        cells.append(Cell(percent(number(m, "kept_mass")), number(m, "kept_mass")))
        low = number(m, "jaccard_low")
        hint = f"5th percentile {low:.2f}" if low is not None else ""
        cells.append(Cell(decimal(number(m, "jaccard"), 2), number(m, "jaccard"), hint))
        cells += [Cell(whole(number(v, "n")), number(v, "n")), Cell(whole(number(m, "n")), number(m, "n"))]
        rows.append((*cells, Cell(r.label, code=True, hint=f"key {r.entry.ref.key}")))
    caption = (
        "By Pearson's r without the largest edge, because one large edge can make a correlation. Each is held against exact "
        "patching (the control) of its own largest edges and of random others, so that no two are judged by quite the same edges."
    )
    return Table("Methods by agreement with exact patching", columns, tuple(rows), caption)


def largest(r: Record) -> Table:
    """The largest edges, with what a claim about one needs."""
    columns = (
        Column("#", True), Column("edge"), Column("score", True, f"mean, ± one standard error over prompts ({r.unit})"),
        Column("exact", True, f"effect of patching the edge ({r.unit})"),
        Column("inclusion", True, "share of resamplings of the prompts in which the edge is in the circuit"),
        Column("in circuit"), Column("to the logits", False, "whether edges of the circuit lead on to the logits"),
    )  # fmt: skip
    rows = []
    for row in r.edges.head(LARGEST).to_dict("records"):
        score, error, exact = (number(row, key) for key in ("score", "standard_error", "exact"))
        inside = row["in_circuit"] > 0
        rows.append(
            (
                Cell(whole(row["rank"]), row["rank"]),
                Cell(str(row["edge"]), code=True),
                Cell(with_error(score, error), score),
                Cell(signed(exact), exact, "not patched" if exact is None else str(row["verified"])),
                Cell(percent(number(row, "inclusion")), number(row, "inclusion")),
                Cell("yes" if inside else "no"),
                Cell(ABSENT if not inside else "yes" if row["connected"] > 0 else "no"),
            )
        )
    more = f" Of {len(r.edges):,}; edges.parquet has them all." if len(r.edges) > LARGEST else ""
    checked = int(r.exact["sample"].nunique())
    on = f" Exact effects (the control) are means over the first {checked:,} of the prompts." if checked else ""
    caption = f"Above 0 towards the target, below 0 towards the foil.{on} {r.sample}{more} {r.source}"
    return Table(f"Largest edges: {r.condition}", columns, tuple(rows), caption)
