"""What groups do beyond their members: synergy against additivity, and Shapley values of heads."""

from __future__ import annotations

from typing import Any

import numpy as np

from circuits.drawing.style import INK, Looks
from circuits.report.content import Block, Cell, Column, Figure, Table
from circuits.report.saved import number
from circuits.report.sections import interventions_records as say
from circuits.report.sections.interventions_forests import rows_sheet
from circuits.report.sections.interventions_records import Record
from circuits.report.sheet import Sheet, drawing, identity, label_axes, marks, reference
from circuits.report.words import decimal, plural

LISTED = 200  # groups of the table
ADDITIVE, SUPER = "additive or less", "super-additive"


def blocks(name: str, looks: Looks, r: Record) -> list[Block]:
    """Everything that a study says of groups."""
    found: list[Block] = []
    if len(r.groups):
        found += [synergy(f"{name}-synergy", r), synergy_table(r)]
    if len(r.shapley) and r.shapley["shapley"].notna().any():
        found.append(shapley(f"{name}-shapley", looks, r))
    return found


def synergy(name: str, r: Record) -> Figure:
    """Each group's joint effect against the sum of its members' own."""
    table, beyond = r.groups, r.groups["super_additive"].astype(bool)
    looks = Looks([ADDITIVE, SUPER])
    with drawing():
        sheet = Sheet(name, looks, [ADDITIVE, SUPER], height=3.4, width=6.2, shown="marks")
        axes = sheet.axes
        both = table[["sum", "joint"]].to_numpy(float)
        low, high = min(0.0, float(np.nanmin(both))), max(0.0, float(np.nanmax(both)))
        room = 0.05 * (high - low) or 1.0
        identity(axes, low - room, high + room, dashed=True)
        reference(axes, x=0, y=0)
        for label, chosen in ((ADDITIVE, ~beyond), (SUPER, beyond)):
            rows = table[chosen & table["sum"].notna() & table["joint"].notna()].to_dict("records")
            for row in rows:
                if ends := say.interval(row):
                    bar = row["sum"] + ends[0], row["sum"] + ends[1]
                    axes.vlines(row["sum"], *bar, color=looks[label].color, linewidth=0.8, alpha=0.6, zorder=2)
            style: dict[str, Any] = {**marks(looks[label]), "markersize": 5, "zorder": 3}
            sure = [row for row in rows if row["q"] < r.alpha]
            ring: dict[str, Any] = {
                "linestyle": "none",
                "marker": "o",
                "markersize": 9,
                "markerfacecolor": "none",
                "color": INK,
            }
            axes.plot(
                [row["sum"] for row in sure], [row["joint"] for row in sure], **ring, markeredgewidth=0.8, zorder=4
            )
            (artist,) = axes.plot([row["sum"] for row in rows], [row["joint"] for row in rows], **style)
            sheet.tell(artist, [_told(r, row) for row in rows])
        axes.set_xlim(low - room, high + room)
        label_axes(axes, f"sum of the members' own effects ({r.unit})", f"effect of the group ({r.unit})")
    title = f"Groups against their members: {r.condition}"
    caption = (
        "One marker a group; on the dashed diagonal a group does what its members do alone, added up (the control). Farther from 0 "
        "than the diagonal: super-additive, the members stand in for each other. "
        f"Rings: q < {r.alpha:g}. Bars: 95% intervals of the synergy, joint − sum. {say.SIGN} {say.sample([r])} {say.sources([r])}"
    )
    alt = f"Joint effect against the sum of single effects of {plural(len(table), 'group')}, {int(beyond.sum())} super-additive"
    return sheet.finish(title=title, caption=caption, alt=alt, data=table.assign(artifact=r.label))


def _told(r: Record, row: Any) -> str:
    return (
        f"{row['unit']}, {row['edit']}: joint {row['joint']:+.2f}, sum {row['sum']:+.2f} {r.unit}\n"
        f"synergy {say.effect(row, 'synergy')}, q {say.chance(number(row, 'q'))}"
    )


def synergy_table(r: Record) -> Table:
    """Synergy group by group, the largest first."""
    columns = (
        Column("group"), Column("edit"), Column("size", True), Column("joint", True, f"effect of the group, {r.unit}"),
        Column("sum", True, "of the members' own effects"), Column("synergy", True, "joint − sum, ± as above"),
        Column("q", True, "that the synergy is 0"), Column("additivity", True, "joint / sum; undefined where the sum is 0"),
        Column("extra", True, "|joint| − the largest |effect| of a member"),
        Column("super-additive", False, "the synergy has the sign of the joint effect"),
    )  # fmt: skip
    order = r.groups["synergy"].abs().sort_values(ascending=False, kind="stable").index
    rows = []
    for row in r.groups.loc[order].head(LISTED).to_dict("records"):
        joint, total, additivity, extra = (
            Cell(decimal(v, 2), v) for v in (number(row, key) for key in ("joint", "sum", "additivity", "extra"))
        )
        synergy_ = Cell(say.plus(row, "synergy"), number(row, "synergy"), say.effect(row, "synergy"))
        cells = [
            Cell(str(row["unit"])),
            Cell(str(row["edit"])),
            Cell(f"{row['size']:.0f}", row["size"]),
            joint,
            total,
            synergy_,
        ]
        cells += [Cell(say.chance(number(row, "q")), number(row, "q")), additivity, extra]
        rows.append((*cells, Cell("yes" if row["super_additive"] else "no")))
    more = f" The {LISTED} largest of {len(r.groups)}; groups.parquet has all." if len(r.groups) > LISTED else ""
    caption = f"q: Benjamini-Hochberg within an edit. {say.sample([r])}{more} {say.sources([r])}"
    return Table(f"Synergy: {r.condition}", columns, tuple(rows), caption)


def shapley(name: str, looks: Looks, r: Record) -> Figure:
    """A bar a head, with its interval, and its effect alone."""
    table = r.shapley[r.shapley["shapley"].notna()]
    table = table.loc[table["shapley"].abs().sort_values(ascending=False, kind="stable").index]
    table["unit"] = [f"L{a:.0f}.H{b:.0f}" for a, b in zip(table["layer"], table["item"], strict=True)]
    units, edits = list(dict.fromkeys(table["unit"])), list(dict.fromkeys(table["edit"]))
    thick = 0.7 / len(edits)
    with drawing():
        sheet = rows_sheet(name, looks, edits, units, control="alone")
        for k, edit in enumerate(edits):
            rows = table[table["edit"] == edit].to_dict("records")
            ys = [len(units) - 1 - units.index(str(row["unit"])) + thick * ((len(edits) - 1) / 2 - k) for row in rows]
            wide = [row["shapley"] for row in rows]
            bars = sheet.axes.barh(ys, wide, 0.8 * thick, color=looks[edit].color, alpha=0.45)
            for bar, row, y in zip(bars, rows, ys, strict=True):
                told = f"Shapley {say.effect(row, 'shapley')}, alone {row['alone']:+.2f} {r.unit}"
                sheet.tell(bar, f"{row['unit']}, {edit}: {told}")
                if ends := say.interval(row):
                    sheet.axes.hlines(y, *ends, color=looks[edit].color, linewidth=1.4, zorder=3)
            sheet.control(sheet.axes, [row["alone"] for row in rows], ys, zorder=4)
        label_axes(sheet.axes, f"Shapley value ({r.unit})", "")
    title = f"Shares of single heads: {r.condition}"
    caption = (
        f"Sampled Shapley values: a head's mean marginal effect over {int(table['orders'].max())} orders, half of them drawn at "
        "random and half their reverses; they sum to the effect of all together. Diamonds: the head edited alone. Intervals are "
        f"over prompts, not over orders. {say.SIGN} {say.sample([r])} {say.sources([r])}"
    )
    alt = f"Shapley values of {plural(len(units), 'head')}, largest {units[0]}"
    return sheet.finish(title=title, caption=caption, alt=alt, data=table.assign(artifact=r.label))
