"""Tables of a study: the strongest units, every head under every edit, how far edits agree, and the run without edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from circuits.report.content import Cell, Column, Table
from circuits.report.saved import number
from circuits.report.sections import interventions_records as say
from circuits.report.sections.interventions_records import Record
from circuits.report.words import ABSENT, decimal, percent, visible, whole

TOP = 12  # rows of the first table, over all conditions
LONG = 24  # rows of a table that is not folded
HEADS = 3000  # rows of the tables of heads, over all conditions
NAMED = 5  # prompts left out that are named


def top(records: Sequence[Record]) -> Table:
    """The strongest units of each condition, with everything that a claim needs."""
    several, controlled = len(records) > 1, any(r.controlled for r in records)
    columns = [Column("condition")] if several else []
    columns += [
        Column("unit"), Column("edit"), Column("effect", True, "mean, ± the larger arm of its 95% interval"),
        Column("q", True, "Benjamini-Hochberg over the units of an edit"), Column("q (BY)", True, "Benjamini-Yekutieli"),
        Column("verdict", False, "effect: q below the limit; none: equivalent to none; open: neither"),
        Column("detectable", True, "the least effect found with a power of 80%; where the verdict is open"),
        Column("flips", True, "prompts whose likeliest token was the target and no longer is"),
        Column("KL", True, "nats, of the run without edits to the edited one"),
        Column("p drop", True, "what the target's probability loses"),
        Column("top-1 error", True, "prompts whose likeliest token is not the target"),
    ]  # fmt: skip
    if controlled:
        columns += [Column("percentile", True, "among the controls"), Column("p (controls)", True, "two-sided")]
    columns += [Column("n", True), Column("artifact")]
    each = max(3, TOP // max(1, len(records)))
    rows = [_row(r, row, several, controlled) for r in records for row in r.ranked.head(each).to_dict("records")]
    bounds = {f"{b:.2g}" for r in records if "bound" in r.studied for b in r.studied["bound"].dropna().unique()}
    within = f" within ±{', '.join(sorted(bounds))}" if 0 < len(bounds) < 4 else " within the bound in summary.parquet"
    most = f"The {each} strongest {'of each condition' if several else 'of all'}; summary.parquet has the rest. "
    most = most if any(len(r.ranked) > each for r in records) else ""
    caption = (
        f"{most}Effects in {' or '.join(sorted({r.unit for r in records}))}. {say.SIGN} "
        f"None: equivalent to 0{within}. {say.sample(records, control=True)}"
    )
    return Table("Strongest units", tuple(columns), tuple(rows), caption)


def _row(r: Record, row: Mapping[Any, Any], several: bool, controlled: bool) -> tuple[Cell, ...]:
    verdict = str(row["verdict"])
    detectable = number(row, "detectable") if verdict == "open" else None
    cells = [Cell(r.condition)] if several else []
    cells += [
        Cell(str(row["unit"])),
        Cell(str(row["edit"])),
        Cell(say.plus(row), row["effect"], say.effect(row)),
        *(Cell(say.chance(number(row, key)), number(row, key)) for key in ("q", "q_by")),
        Cell(verdict or ABSENT),
        Cell(ABSENT if detectable is None else f"{detectable:.2f}", detectable),
        Cell(percent(number(row, "flip")), number(row, "flip")),
        *(Cell(decimal(number(row, key)), number(row, key)) for key in ("kl", "p_drop")),
        Cell(percent(number(row, "top1_error")), number(row, "top1_error")),
    ]
    if controlled:
        place = number(row, "percentile")
        cells += [
            Cell(ABSENT if place is None else f"{place:.0f}", place),
            Cell(say.chance(number(row, "p_null")), number(row, "p_null")),
        ]
    return (*cells, Cell(whole(row["n"]), row["n"]), Cell(r.label, code=True, hint=f"key {r.entry.ref.key}"))


def heads(r: Record, at_most: int) -> Table:
    """Every head under every edit, side by side; direct effect and repairs where they were measured."""
    direct = {"direct", "direct_frozen"} <= set(r.studied) and bool(r.studied["direct"].notna().any())
    columns = [Column("head")] + [Column(edit, True, f"total effect, {r.unit}") for edit in r.edits]
    if direct:
        for edit in r.edits:
            at = f", {edit}" if len(r.edits) > 1 else ""
            columns += [
                Column(f"direct{at}", True, "what the head's change alone does through the final norm"),
                Column(f"norm{at}", True, "repair by the final norm: direct − direct with the norm frozen"),
                Column(f"later{at}", True, "repair by later layers: total − direct"),
            ]
    found = {(str(row["unit"]), str(row["edit"])): row for row in r.studied.to_dict("records")}
    units = list(dict.fromkeys(r.studied["unit"]))
    strongest = {unit: i for i, unit in enumerate(r.top)}
    kept = sorted(units, key=lambda unit: strongest.get(unit, len(units)))[:at_most]
    rows = []
    for unit in [unit for unit in units if unit in set(kept)]:
        mine: list[Mapping[Any, Any]] = [found.get((unit, edit), {}) for edit in r.edits]
        cells = [Cell(unit)]
        for row in mine:
            star = "*" if (number(row, "q") or 1.0) < r.alpha or number(row, "q") == 0 else ""
            value = number(row, "effect")
            cells.append(Cell(ABSENT if value is None else f"{value:+.2f}{star}", _rounded(value)))
        for row in mine if direct else []:
            total, straight, frozen = (number(row, key) for key in ("effect", "direct", "direct_frozen"))
            norm = None if straight is None or frozen is None else straight - frozen
            later = None if total is None or straight is None else total - straight
            cells += [Cell(ABSENT if v is None else f"{v:+.2f}", _rounded(v)) for v in (straight, norm, later)]
        rows.append(tuple(cells))
    more = f" The {len(rows):,} strongest of {len(units):,}." if len(rows) < len(units) else ""
    said = (
        " Total = direct + repair by later layers; direct = direct with the final norm frozen + repair by the norm."
        if direct
        else " Direct effects were not measured."
    )
    held = f"{say.sample([r], control=True)} {say.sources([r])}"
    caption = f"Mean effects in {r.unit}; * q < {r.alpha:g}. {say.SIGN}{said}{more} {held}"
    return Table(f"Every head: {r.condition}", tuple(columns), tuple(rows), caption, folded=len(rows) > LONG)


def _rounded(value: float | None) -> float | None:
    """What sorts a long table: short, because there are many."""
    return None if value is None else float(f"{value:.4g}")


def agreement(r: Record) -> Table | None:
    """Spearman's ρ between edits, with its permutation p: a small matrix."""
    pairs = {(str(a["a"]), str(a["b"])): a for a in r.metrics.get("agreement") or [] if {"a", "b"} <= set(a)}
    edits = [edit for edit in r.edits if any(edit in pair for pair in pairs)]
    if not edits:
        return None
    rows = []
    for a in edits:
        cells = [Cell(visible(a))]
        for b in edits:
            one = pairs.get((a, b)) or pairs.get((b, a)) or {}
            rho, p = one.get("rho"), one.get("p")
            text = "1" if a == b else ABSENT if rho is None else f"{rho:+.2f} (p {say.chance(p)})"
            cells.append(Cell(text, 1.0 if a == b else rho))
        rows.append(tuple(cells))
    n = max((int(a.get("n") or 0) for a in pairs.values()), default=0)
    caption = f"Spearman's ρ between the mean effects of two edits over {n} units; p by permutation. {say.sources([r])}"
    columns = (Column("edit"), *(Column(visible(edit), True) for edit in edits))
    return Table(f"Do the edits agree: {r.condition}", columns, tuple(rows), caption)


def without(records: Sequence[Record]) -> Table:
    """The run without edits: what effects are measured from, how well calibrated, and who was left out."""
    columns = (
        Column("condition"), Column("edits"), Column("difference", True, "mean of target − foil"),
        Column("right", True, "share of prompts with a difference above zero"), Column("top-1 error", True),
        Column("ECE, pair", True, "expected calibration error of the choice between target and foil"),
        Column("ECE, all tokens", True, "expected calibration error of the likeliest token"),
        Column("prompts left out", False, "without a donor of another group"), Column("artifact"),
    )  # fmt: skip
    rows = []
    for r in records:
        alike: dict[tuple[Any, ...], list[str]] = {}
        left_out = r.metrics.get("left_out") or {}
        for edit, m in (r.metrics.get("base") or {}).items():
            keys = ("difference", "pair_acc", "top1_error", "ece", "ece_multiclass")
            values = tuple(number(m, key) for key in keys)
            alike.setdefault((values, tuple(left_out.get(edit) or ())), []).append(visible(edit))
        for (values, absent), edits in alike.items():
            names = " ".join(absent[:NAMED]) + (" …" if len(absent) > NAMED else "")
            rows.append(
                (
                    Cell(r.condition),
                    Cell(", ".join(edits)),
                    Cell(decimal(values[0], 2), values[0]),
                    *(Cell(percent(v), v) for v in values[1:3]),
                    *(Cell(decimal(v), v) for v in values[3:]),
                    Cell(f"{len(absent)}: {visible(names)}" if absent else "none"),
                    Cell(r.label, code=True),
                )
            )
    corrupt = any(r.metrics.get("direction") == "denoising" for r in records)
    told = " Denoising starts from the corrupt prompts: what is shown is theirs." if corrupt else ""
    caption = f"The same prompts through the untouched model.{told} {say.sample(records)}"
    return Table("Without edits", columns, tuple(rows), caption)
