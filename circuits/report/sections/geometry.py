"""The section of geometric signatures: what zeroing heads changes, beside what random sets of as many other heads change."""

from __future__ import annotations

from collections.abc import Sequence

from circuits.drawing.style import Looks
from circuits.geometry.names import METHODS, SUBSPACE_K, TITLES, UNITS
from circuits.report.content import Answer, Block, Cell, Column, Note, Part, Table
from circuits.report.registry import View, section
from circuits.report.saved import load_metrics
from circuits.report.sections.geometry_figures import null
from circuits.report.sections.geometry_records import LEVEL, Record, sample
from circuits.report.words import ABSENT, decimal, plural, ranges, short, span, whole

NEEDED = ("n", "layer", "head_layer", "heads", "baseline", "ablated", "deltas", "random_control", "n_controls")
DRAWN = 6  # layers that have a figure of their own
SUMMARY = (
    ("output_entropy", 3), ("full", 1), ("diagonal", 1), ("subspace", 2), ("per_token", 1), ("step_length", 2),
)  # fmt: skip
WITH_INTERVAL = ("output_entropy",)


@section("geometry", order=45)
def geometry(view: View) -> Part:
    """Read every signature of the sweep and show it."""
    problems: list[str] = []
    found = [(entry, load_metrics(entry.ref, NEEDED, problems)) for entry in view.entries]
    records = [Record(entry, metrics) for entry, metrics in found if metrics is not None]
    looks = Looks(r.series for r in records)
    records.sort(key=lambda r: (r.layer, looks.rank(r.series)))
    layers = {layer: [r for r in records if r.layer == layer] for layer in sorted({r.layer for r in records})}
    figures = [null(looks, layer, mine) for layer, mine in list(layers.items())[:DRAWN]]
    first: list[Block] = [*figures[:1], *([_summary(records)] if records else [])]
    blocks: list[Block] = [*figures[1:]]
    if len(layers) > DRAWN:
        blocks.append(Note(f"Figures of layers {ranges(list(layers)[:DRAWN])}; the tables have all layers."))
    blocks += [_table(layer, mine) for layer, mine in layers.items()]
    return Part(
        title="Geometry",
        lead=f"{plural(len(records), 'signature')}: the residual stream with and without some heads.",
        blocks=(*blocks, *_notes(records)),
        answer=Answer(_sentence(records), tuple(first)),
        problems=tuple(problems),
    )


def _sentence(records: Sequence[Record]) -> str:
    if not records:
        return "No geometric signature could be read."
    which = {r.heads for r in records}
    what = f"Zeroing {which.pop()}" if len(which) == 1 else f"Zeroing heads ({len(which)} choices)"
    changes = [float(r.metrics["deltas"]["output_entropy"]) for r in records]
    tests, hits = sum(len(r.tests) for r in records), sum(r.significant for r in records)
    controls = {int(r.metrics["n_controls"]) for r in records}
    sets = f"{span(sorted(controls), 0)} random {'sets' if max(controls) > 1 else 'set'} of as many other heads"
    return (
        f"{what} changes the output entropy by {span(changes)} nats ({plural(len(records), 'measurement')}); {hits} of "
        f"{tests} changes stand out (q < {LEVEL:g}) from those of {sets}."
    )


def _summary(records: Sequence[Record]) -> Table:
    shown = [(key, digits) for key, digits in SUMMARY if any(r.metrics["deltas"].get(key) is not None for r in records)]
    columns = (
        Column("series"),
        Column("layer", True, "where the residual stream is looked at"),
        Column("zeroed"),
        *(
            Column(f"Δ {TITLES[key].removesuffix(' entropy') if key in METHODS else TITLES[key]}", True)
            for key, _ in shown
        ),
        Column("stand out", True, f"metrics whose change has q < {LEVEL:g} against the control"),
        Column("controls", True, "random sets of as many other heads of the same layer"),
        Column("prompts", True),
        Column("artifact"),
    )
    rows = []
    for r in records:
        every = " (all)" if r.metrics["random_control"].get("all") else ""
        rows.append(
            (
                Cell(r.series),
                Cell(str(r.layer), r.layer),
                Cell(r.heads),
                *(_change(r, key, digits) for key, digits in shown),
                Cell(f"{r.significant} of {len(r.tests)}", r.significant),
                Cell(whole(r.metrics["n_controls"]) + every, r.metrics["n_controls"]),
                Cell(whole(r.metrics["n"]), r.metrics["n"]),
                Cell(r.entry.ref.label, code=True),
            )
        )
    caption = (
        "Δ is ablated − baseline, entropies in nats; in brackets the 95% bootstrap interval over prompts, where the metric is a "
        "mean over them. q: Benjamini-Hochberg over the metrics of a signature, of two-sided p-values."
    )
    return Table("Signatures", columns, tuple(rows), caption)


def _change(r: Record, key: str, digits: int) -> Cell:
    """A delta, with its interval for the output entropy."""
    value, between = r.metrics["deltas"].get(key), (r.metrics.get("intervals") or {}).get(key)
    ends = (
        f" [{decimal(between[0], digits)}, {decimal(between[1], digits)}]" if between and key in WITH_INTERVAL else ""
    )
    return Cell(decimal(value, digits) + ends, value)


def _table(layer: int, records: Sequence[Record]) -> Table:
    """All metrics of a layer, series side by side."""
    columns = (
        Column("metric"),
        Column("series"),
        Column("baseline", True),
        Column("ablated", True),
        Column("Δ", True, "ablated − baseline"),
        Column("random Δ", True, "mean ± standard deviation over the control sets"),
        Column("p", True, "two-sided: twice the smaller one-sided p, at most 1"),
        Column("p lower", True, "one-sided: (1 + controls with a Δ at most as high) / (controls + 1)"),
        Column("p upper", True, "one-sided: (1 + controls with a Δ at least as high) / (controls + 1)"),
        Column("q", True, "Benjamini-Hochberg over the metrics of this signature"),
    )
    rows = [_row(r, i, metric) for i, metric in enumerate(TITLES) for r in records if metric in r.tests]
    caption = (
        f"{sample(records)}. No p can be below 1/(controls + 1), no two-sided one below 2/(controls + 1). Entropies of Gaussian "
        "fits leave out the constant D/2·ln 2πe. The activation KL is KL(baseline ‖ ablated), and so 0 for the baseline itself."
    )
    return Table(f"All metrics, layer {layer}", columns, tuple(rows), caption)


def _row(r: Record, place: int, metric: str) -> tuple[Cell, ...]:
    test = r.tests[metric]
    baseline, ablated, delta = (r.metrics[part].get(metric) for part in ("baseline", "ablated", "deltas"))
    dimensions = [r.metrics[part].get(SUBSPACE_K) for part in ("baseline", "ablated")]
    k = f" (k = {dimensions[0]:.0f}→{dimensions[1]:.0f})" if metric == "subspace" and None not in dimensions else ""
    random = ABSENT if test.get("mean") is None else f"{short(test['mean'])} ± {short(test.get('std'))}"
    unit = f", {UNITS[metric]}" if metric in UNITS else ""
    return (
        Cell(TITLES[metric] + unit + k, place),
        Cell(r.series),
        *(Cell(short(value), value) for value in (baseline, ablated, delta)),
        Cell(random, test.get("mean")),
        *(Cell(decimal(test.get(key)), test.get(key)) for key in ("p_two_sided", "p_lower", "p_upper", "q")),
    )


def _notes(records: Sequence[Record]) -> list[Block]:
    notes: list[Block] = []
    if few := [r for r in records if r.metrics.get("few_prompts")]:
        n, width = (span(sorted({int(r.metrics[key]) for r in few}), 0) for key in ("n", "width"))
        notes.append(
            Note(
                f"Fewer prompts than dimensions ({n} in {width}): full and per-token entropy and the activation KL mostly measure "
                "the ridge, which follows the total variance; subspace and diagonal entropy do not."
            )
        )
    if records:
        notes.append(
            Note(
                "The measurement is deterministic: another seed draws other control sets and changes nothing else, so there are no "
                "intervals over seeds. Intervals of means over prompts are in metrics.json; the entropies, which are of all "
                "prompts together, have the control alone."
            )
        )
    return notes
