"""The section of sparse probing: what a few features say, beside all, the activations, random features and chance."""

from __future__ import annotations

from typing import Any

import pandas as pd

from circuits.report.content import Answer, Block, Cell, Column, Part, Table
from circuits.report.registry import Entry, View, section
from circuits.report.saved import load_metrics, load_table, whole_table
from circuits.report.words import percent, plural

NEEDED = ("k", "n_prompts", "n_test", "n_levels", "all", "raw", "layer")
ABSORPTION = ("factor", "level", "dictionary", "main", "n", "full", "fraction", "low", "high", "by")
PROBES = {"sae": "SAE", "random": "random dictionary", "shuffled": "labels shuffled"}


@section("probing", order=45)
def probing(view: View) -> Part:
    """Read every probing of the sweep and show it."""
    problems: list[str] = []
    found = [(entry, m) for entry in view.entries if (m := load_metrics(entry.ref, NEEDED, problems)) is not None]
    blocks: list[Block] = [_means(found)] if found else []
    for entry, metrics in found:
        table = whole_table(entry.ref, "probes.parquet", problems)
        if table is not None:
            blocks.append(_levels(entry, metrics, table))
        if metrics.get("absorption") is not None:
            swallowed = load_table(entry.ref, "absorption.parquet", ABSORPTION, problems)
            blocks += [] if swallowed is None else [_absorption(entry, metrics, swallowed)]
    answer = Answer(_sentence([m for _, m in found]), tuple(blocks[:1]))
    return Part("Sparse probing", f"{plural(len(found), 'SAE')}.", tuple(blocks[1:]), answer, tuple(problems))


def _sentence(found: list[dict[str, Any]]) -> str:
    known = [m for m in found if m.get(f"sae_{m['k'][0]}") is not None]
    if not known:
        return "No probe could be read."
    best = max(known, key=lambda m: m[f"sae_{m['k'][0]}"])
    few, most = best["k"][0], best["k"][-1]
    says = {name: percent(best[f"{name}_{most}"]) for name in PROBES}
    levels = plural(best["n_levels"], "level")
    return (
        f"{plural(few, 'feature')} of layer {best['layer']} say {percent(best[f'sae_{few}'])} of {levels} right (balanced, on "
        f"{best['n_test']} test prompts), {most} {says['sae']}; all features {percent(best['all'])}, the activations "
        f"{percent(best['raw'])}; {most} of a random dictionary {says['random']}, labels shuffled {says['shuffled']}."
        f"{_absorbed(best)}"
    )


def _absorbed(m: dict[str, Any]) -> str:
    if m.get("absorption") is None or m.get("absorbed") is None:
        return ""
    beside = (
        "" if m.get("absorption_random") is None else f" ({percent(m['absorption_random'])} in the random dictionary)"
    )
    return (
        f" Other features stand for {percent(m['absorption'])} of what a level's own features would say{beside}; on "
        f"{percent(m['absorbed'])} of its prompts these are silent and one other does it alone."
    )


def _means(found: list[tuple[Entry, dict[str, Any]]]) -> Table:
    ks = list(dict.fromkeys(k for _, m in found for k in m["k"]))
    columns = [Column("layer", True), Column("series")]
    columns += [Column(f"{title}, {k}", True) for name, title in PROBES.items() for k in ks]
    columns += [Column("all features", True), Column("activations", True), Column("artifact")]
    rows = []
    for entry, m in found:
        values = [m.get(f"{name}_{k}") for name in PROBES for k in ks] + [m["all"], m["raw"]]
        rows.append(
            (
                Cell(str(m["layer"]), m["layer"]),
                Cell(entry.element.series or "–"),
                *(Cell(percent(value), value) for value in values),
                Cell(entry.ref.label, code=True),
            )
        )
    note = "Balanced accuracy on test prompts, mean over all levels of all factors; 50% is a guess. The number: features read."
    return Table("What features say", tuple(columns), tuple(rows), note)


def _levels(entry: Entry, metrics: dict[str, Any], table: pd.DataFrame) -> Table:
    few = metrics["k"][0]
    columns = (
        Column("factor"),
        Column("level"),
        Column(f"{few} of the SAE", True, "with its 95% interval over test prompts"),
        Column("feature"),
        Column("all", True),
        Column("activations", True),
        Column(f"{few} random", True),
        Column("shuffled", True),
    )
    rows = []
    for (factor, level), mine in table.groupby(["factor", "level"], sort=False):
        sae = mine[(mine["probe"] == "sae") & (mine["k"] == few)].iloc[0]

        def of(name: str, k: int | None = None, mine: pd.DataFrame = mine) -> Cell:
            some = mine[(mine["probe"] == name) & ((mine["k"] == k) if k is not None else True)]["accuracy"]
            value = float(some.iloc[0])
            return Cell(percent(value), value)

        between = f"{percent(float(sae['accuracy']))} [{percent(float(sae['low']))}, {percent(float(sae['high']))}]"
        features = ", ".join(str(one) for one in sae["features"])
        rows.append(
            (Cell(str(factor)), Cell(str(level)), Cell(between, float(sae["accuracy"])), Cell(features), of("all"), of("raw"),
             of("random", few), of("shuffled", few))
        )  # fmt: skip
    return Table(
        f"Level by level, layer {metrics['layer']}", columns, tuple(rows), f"From {entry.ref.label}.", folded=True
    )


def _absorption(entry: Entry, metrics: dict[str, Any], table: pd.DataFrame) -> Table:
    columns = (
        Column("factor"),
        Column("level"),
        Column("own features", hint="the level's main features"),
        Column("absorbed", True, "of the probe's direction, what other features carry in their place; with its 95% interval"),
        Column("wholly", True, "prompts on which no main feature is on and one other carries it"),
        Column("by", hint="the feature that does so most often"),
        Column("random", True, "absorbed, in a random dictionary of equal size and sparsity"),
        Column("n", True, "test prompts of the level that the probe gets right"),
    )  # fmt: skip
    rows = []
    for (factor, level), mine in table.groupby(["factor", "level"], sort=False):
        sae, random = (mine[mine["dictionary"] == name].iloc[0] for name in ("sae", "random"))
        value, none = float(sae["fraction"]), int(sae["n"]) == 0
        between = "–" if none else f"{percent(value)} [{percent(float(sae['low']))}, {percent(float(sae['high']))}]"
        rows.append(
            (
                Cell(str(factor)),
                Cell(str(level)),
                Cell(", ".join(str(one) for one in sae["main"]) or "none"),
                Cell(between, None if none else value),
                Cell("–" if none else percent(float(sae["full"])), None if none else float(sae["full"])),
                Cell("–" if int(sae["by"]) < 0 else str(int(sae["by"]))),
                Cell("–" if int(random["n"]) == 0 else percent(float(random["fraction"])), None),
                Cell(str(int(sae["n"])), int(sae["n"])),
            )
        )
    note = f"Feature absorption (arXiv:2409.14507), level by level. From {entry.ref.label}."
    return Table(f"Absorption, layer {metrics['layer']}", columns, tuple(rows), note, folded=True)
