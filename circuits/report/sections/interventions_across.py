"""Studies of several behaviours side by side: units by conditions, units that all share, and rank agreement by layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from circuits.drawing.style import Looks
from circuits.report.charts import PANELS, multiples
from circuits.report.content import Block, Cell, Column, Figure, Table
from circuits.report.saved import number
from circuits.report.sections import interventions_records as say
from circuits.report.sections.interventions_maps import Axis, Panel, heatmap
from circuits.report.sections.interventions_records import Record
from circuits.report.sheet import drawing, marks, reference
from circuits.report.words import ABSENT, plural
from circuits.stats.many import corrected, rank_agreement

ROWS = 40  # units of the matrix
TOP = 10  # units of a condition among which shared ones are looked for
LEAST = 4  # units of a layer for a rank correlation
TESTS = 600  # rank correlations of a page, about: each takes some milliseconds
SEED = 0


def blocks(name: str, records: Sequence[Record]) -> list[Block]:
    """What the studies of one kind and one model have in common; empty for one, or where they share no unit."""
    edits = [edit for edit in records[0].edits if sum(edit in r.edits for r in records) > 1]
    if len(records) < 2 or not edits:
        return []
    tables = {edit: _effects(records, edit) for edit in edits}
    tables = {edit: table for edit, table in tables.items() if table.notna().sum(axis=1).max() > 1}
    if not tables:
        return []
    found: list[Block] = [_matrix(f"{name}-conditions", records, tables), _shared(records, tables)]
    ranks = _ranks(records, tables)
    if len(ranks):
        found += [_rank_figure(f"{name}-ranks", records, ranks, len(tables)), _rank_table(records, ranks)]
    return found


def _effects(records: Sequence[Record], edit: str) -> pd.DataFrame:
    """Mean effects, a row a unit and a column a condition; NaN where it was not measured."""
    columns = {
        r.condition: r.studied[r.studied["edit"] == edit].drop_duplicates("unit").set_index("unit")["effect"]
        for r in records
    }
    return pd.DataFrame(columns, index=list(dict.fromkeys(unit for c in columns.values() for unit in c.index)))


def _matrix(name: str, records: Sequence[Record], tables: dict[str, pd.DataFrame]) -> Figure:
    """Units by conditions, a map an edit."""
    size = pd.concat([table.abs().max(axis=1) for table in tables.values()], axis=1).max(axis=1)
    units = [str(unit) for unit in size.sort_values(ascending=False, kind="stable").index[:ROWS]]
    every = [(r.condition, row) for r in records for row in r.studied.to_dict("records")]
    rows = {(condition, row["edit"], row["unit"]): row for condition, row in every}
    of = {r.condition: r for r in records}
    conditions = list(of)
    panels = []
    for edit, table in tables.items():
        values = table.reindex(units)[conditions].to_numpy(float)
        dots = np.zeros(values.shape, dtype=bool)
        told: dict[tuple[int, int], str] = {}
        for (i, unit), (j, condition) in itertools.product(enumerate(units), enumerate(conditions)):
            if (row := rows.get((condition, edit, unit))) is not None:
                dots[i, j] = row["q"] < of[condition].alpha
                told[i, j] = f"{unit}, {condition}, {edit}: {say.effect(row)} {of[condition].unit}"
        panels.append(Panel(edit, values, dots, lambda i, j, told=told: told.get((i, j), "")))  # type: ignore[misc]
    title = "Units by condition"
    more = f" The {ROWS} strongest of {len(size)} units." if len(size) > ROWS else ""
    caption = (
        f"Mean effect, a map an edit, the strongest unit of any condition on top.{more} Dots: q < {records[0].alpha:g}. "
        f"{say.sample(records, control=True)} {say.sources(records)}"
    )
    alt = f"Mean effects of {plural(len(units), 'unit')} in {plural(len(records), 'condition')}"
    data = pd.concat([table.rename_axis("unit").reset_index().assign(edit=edit) for edit, table in tables.items()])
    return heatmap(
        name, panels, Axis("", units), Axis("", conditions), f"mean effect ({records[0].unit})", alpha=records[0].alpha,
        title=title, caption=caption, alt=alt, data=data, across=5,
    )  # fmt: skip


def _shared(records: Sequence[Record], tables: dict[str, pd.DataFrame]) -> Table:
    """The units that are among the strongest of every condition, beside how many would be by chance."""
    rows = []
    for edit, table in tables.items():
        known = table.dropna(axis=1, how="all")
        k = min(TOP, len(known))
        best = [set(known[c].abs().dropna().nlargest(k).index) for c in known]
        shared = [str(unit) for unit in known.index if all(unit in mine for mine in best)]
        expected = len(known) * float(np.prod([len(mine) / len(known) for mine in best]))
        cells = [Cell(edit), Cell(f"{len(shared)} of {k}", len(shared)), Cell(f"{expected:.1f}", expected)]
        cells += [Cell(", ".join(shared) or "none"), *(Cell(str(len(found)), len(found)) for found in (known, best))]
        rows.append(tuple(cells))
    columns = (
        Column("edit"), Column("shared", True), Column("by chance", True, "expected of random rankings"), Column("units"),
        Column("measured", True, "units"), Column("conditions", True),
    )  # fmt: skip
    caption = f"Units among the {TOP} largest |effect| of every condition. {say.sources(records)}"
    return Table("Invariant units", columns, tuple(rows), caption)


def _ranks(records: Sequence[Record], tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Spearman's ρ of two conditions over the units of a layer, with permutation p and its correction over all of them."""
    placed = pd.concat(
        [r.studied[["unit", "layer"]] for r in records if "layer" in r.studied]
        or [pd.DataFrame(columns=["unit", "layer"])]
    )
    layers = placed.dropna().drop_duplicates("unit").set_index("unit")["layer"]
    pairs = list(itertools.combinations([r.condition for r in records], 2))
    found: list[tuple[str, str, str, int, float, float, int]] = []
    at_most = max(1, TESTS // max(1, len(pairs) * layers.nunique()))
    for (edit, table), (a, b) in itertools.product(list(tables.items())[:at_most], pairs):
        both = table[[a, b]].dropna()
        for layer, mine in both.groupby(layers.reindex(both.index).to_numpy()):
            if len(mine) >= LEAST and len(found) < 2 * TESTS:
                rho, p = rank_agreement(mine[a], mine[b], seed=SEED, least=LEAST)
                found.append((edit, a, b, int(float(str(layer))), rho, p, len(mine)))
    ranks = pd.DataFrame(found, columns=["edit", "a", "b", "layer", "rho", "p", "n"])
    return ranks.assign(q=corrected(ranks["p"])) if ranks["rho"].notna().any() else ranks[:0]


def _rank_figure(name: str, records: Sequence[Record], ranks: pd.DataFrame, n_edits: int) -> Figure:
    """ρ by layer, a panel a pair of conditions."""
    pairs = list(dict.fromkeys(zip(ranks["a"], ranks["b"], strict=True)))
    shown, edits = pairs[:PANELS], list(dict.fromkeys(ranks["edit"]))
    looks = Looks(edits)
    with drawing():
        series = edits if len(edits) > 1 else []
        sheet, placed = multiples(name, looks, series, shown, "layer", "Spearman's ρ", title=" · ".join)
        for (a, b), axes in placed.items():
            reference(axes, y=0)
            axes.set_ylim(-1.08, 1.08)
            for edit in edits:
                mine = ranks[(ranks["a"] == a) & (ranks["b"] == b) & (ranks["edit"] == edit) & ranks["rho"].notna()]
                axes.plot(mine["layer"], mine["rho"], color=looks[edit].color, linewidth=0.9, alpha=0.6)
                (artist,) = axes.plot(mine["layer"], mine["rho"], **marks(looks[edit]), clip_on=False)
                rows = mine.to_dict("records")
                told = [f"layer {t['layer']}, {edit}: ρ {t['rho']:+.2f}, p {say.chance(t['p'])}" for t in rows]
                sheet.tell(artist, told)
    more = f" The first {PANELS} of {len(pairs)} pairs." if len(pairs) > PANELS else ""
    more += f" Only of {', '.join(edits)}: more would take long." if len(edits) < n_edits else ""
    caption = (
        f"Rank agreement of the mean effects of two conditions over the units of a layer ({LEAST} at least; layers where it is "
        f"undefined are left out).{more} 0: no agreement (the control). {say.sample(records)} {say.sources(records)}"
    )
    alt = f"Spearman's ρ by layer of {plural(len(shown), 'pair')} of conditions"
    return sheet.finish(title="Rank agreement of conditions by layer", caption=caption, alt=alt, data=ranks)


def _rank_table(records: Sequence[Record], ranks: pd.DataFrame) -> Table:
    columns = (
        Column("condition"), Column("other"), Column("edit"), Column("layer", True), Column("ρ", True),
        Column("p", True, "by permutation"),
        Column("q", True, "Benjamini-Hochberg over this table"), Column("units", True),
    )  # fmt: skip
    rows = []
    for t in ranks.to_dict("records"):
        rho = number(t, "rho")
        cells = [*(Cell(str(t[key])) for key in ("a", "b", "edit")), Cell(str(t["layer"]), t["layer"])]
        cells += [Cell(ABSENT if rho is None else f"{rho:+.2f}", rho)]
        cells += [Cell(say.chance(number(t, key)), number(t, key)) for key in ("p", "q")]
        rows.append((*cells, Cell(str(t["n"]), t["n"])))
    return Table("Rank agreement of conditions", columns, tuple(rows), say.sources(records), folded=True)
