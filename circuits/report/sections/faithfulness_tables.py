"""Tables of judged circuits: measurements by CMD, what the tests of one say in words, and its least needed edges."""

from __future__ import annotations

from collections.abc import Sequence

from circuits.report.content import Cell, Column, Table
from circuits.report.saved import number, part
from circuits.report.sections.attribution_records import signed
from circuits.report.sections.faithfulness_records import Record, between, plain, share
from circuits.report.sections.interventions_records import chance
from circuits.report.words import ABSENT, plural, plus_minus, whole

ALPHA = 0.05
LEAST = 15  # edges of the table of the least needed


def ranked(records: Sequence[Record]) -> list[Record]:
    """By CMD, the smallest first; those of one size only, which have none, last."""
    values = [r.value("cmd") for r in records]
    keys = [(value is None, value or 0.0) for value in values]
    return [records[i] for i in sorted(range(len(records)), key=lambda i: keys[i])]


def comparison(records: Sequence[Record]) -> Table:
    """A row a measurement."""
    several = len({r.study for r in records}) > 1
    columns = (
        *((Column("study"),) if several else ()), Column("method"), Column("ablation", False, "what edges outside a circuit carry"),
        Column("rank", False, "how edges are ranked"),
        Column("CMD", True, "area between f and 1 over shares of edges: 0 where every circuit does as the model; ± 95%"),
        Column("random", True, "CMD of random circuits, the mean"),
        Column("CPR", True, "area under f over shares of edges"),
        Column("f(chosen)", True, "of the chosen circuit; ± 95% over prompts"),
        Column("edges", True, "of the chosen circuit"), Column("completeness", True, "1 − f of all edges but the circuit's"),
        Column("f ≥ .85 at", True, "the smallest share of edges that was tried"),
        Column("random by reader", True, "CMD of random circuits in which each reader keeps its number of edges, the mean"),
        Column("n", True, "prompts"), Column("artifact"),
    )  # fmt: skip
    rows = []
    for r in records:
        m = r.metrics
        cells = [Cell(r.study)] if several else []
        cells += [Cell(r.method), Cell(r.ablation), Cell(r.rank), _measured(r, "cmd", "cmd_ci")]
        cells += [Cell(plain(r.value(key)), r.value(key)) for key in ("random_cmd", "cpr")]
        cells.append(_measured(r, "faithfulness", "faithfulness_ci"))
        cells.append(Cell(f"{int(m['chosen_edges']):,} of {int(m['edges']):,}", int(m["chosen_edges"])))
        cells.append(Cell(plain(r.value("completeness"), 2), r.value("completeness")))
        cells.append(Cell(share(r.value("share_85")), r.value("share_85")))
        cells.append(Cell(plain(r.value("random_by_reader_cmd")), r.value("random_by_reader_cmd")))
        cells.append(Cell(whole(r.n), r.n))
        rows.append((*cells, Cell(r.label, code=True, hint=f"key {r.entry.ref.key}")))
    caption = (
        "By CMD, the smallest (best) first; random circuits of the same sizes are the control. Different ablations ask different "
        "questions of a circuit: compare methods within one."
    )
    return Table("Measurements by CMD", columns, tuple(rows), caption)


def _measured(r: Record, key: str, ends: str) -> Cell:
    value, known = r.value(key), r.interval(ends)
    return Cell(plus_minus(value, known), value, f"95% {between(known)}" if known else "")


def tests(r: Record) -> Table:
    """What each test asks, what it found, and what that means."""
    columns = (Column("question"), Column("measured", True), Column("p", True), Column("in words"))
    rows = [row for row in (*_shares(r), *_equivalence(r), _independence(r), _minimality(r)) if row]
    caption = (
        "A small p speaks against what the test takes for granted: sign test, that the circuit is better than the model as "
        "often as worse; equivalence, that they differ by more than the bound; independence, that what is left without the circuit "
        "has nothing to do with the model's answers; minimality, that an edge matters no more than a random one added (q: over all "
        f"edges tested). {r.source}"
    )
    return Table(f"Tests of the circuit: {r.condition}", columns, tuple(rows), caption)


def _row(question: str, measured: str, p: float | None, words: str) -> tuple[Cell, ...]:
    return Cell(question), Cell(measured), Cell(chance(p), p), Cell(words)


def _shares(r: Record) -> list[tuple[Cell, ...]]:
    value, known, rest = r.value("faithfulness"), r.interval("faithfulness_ci"), r.value("completeness")
    rows = []
    if known:
        low, high = known
        side = "less" if high < 1 else "more"
        words = (
            "as the whole model, within the interval" if low <= 1 <= high else f"{side} than the whole model (f = 1)"
        )
        rows.append(_row("faithful: does the circuit alone do it?", f"f {plus_minus(value, known)}", None, words))
    if rest is not None:
        little = "" if abs(1 - rest) > 0.05 else ": nothing to speak of"
        words = f"without the circuit the rest keeps f = {plain(1 - rest)}{little}"
        rows.append(_row("complete: is there nothing without it?", plain(rest), None, words))
    return rows


def _equivalence(r: Record) -> list[tuple[Cell, ...]]:
    e = part(r.metrics, "equivalence")
    better, sign = number(e, "share_better"), number(e, "p_sign")
    away, bound, p = (number(e, key) for key in ("difference", "bound", "p_equivalence"))
    rows = []
    if better is not None and sign is not None:
        side = "better" if better > 0.5 else "worse"
        words = "no sign of a difference" if sign >= ALPHA else f"it is {side} than the model on most prompts"
        rows.append(_row("equivalent: as often better as worse?", f"better on {share(better)}", sign, words))
    if away is not None and bound is not None and p is not None:
        within = f"within ±{signed(bound).lstrip('+')} {r.unit} (10% of model − no edge)"
        words = f"shown to be as good as the model, {within}" if p < ALPHA else f"not shown to lie {within}"
        rows.append(_row("equivalent: as good on average?", f"{signed(away)} {r.unit}", p, words))
    return rows


def _independence(r: Record) -> tuple[Cell, ...] | None:
    found = part(r.metrics, "independence")
    if not found:
        return None
    p, hsic = number(found, "p"), number(found, "hsic")
    if p is None:
        words = "not tested: too few prompts, or what is left never varies"
    elif p < ALPHA:
        words = "what is left still says something about the model's answers"
    else:
        words = "no sign that what is left knows the model's answers"
    return _row("independent: does what is left know the answer?", f"HSIC {plain(hsic, 4)}", p, words)


def _minimality(r: Record) -> tuple[Cell, ...] | None:
    found = part(r.metrics, "minimality")
    needed, tested = number(found, "needed"), number(found, "tested")
    if needed is None or not tested:
        return None
    return _row("minimal: is every edge needed?", f"{needed:.0f} of {plural(int(tested), 'edge')}", None, _needed(r))


def minimal(r: Record) -> str:
    """How many edges are needed, in words."""
    found = part(r.metrics, "minimality")
    needed, tested, whole_circuit = (number(found, key) for key in ("needed", "tested", "circuit_edges"))
    if needed is None or not tested:
        return ""
    of = f" (of {int(whole_circuit):,} in the circuit)" if whole_circuit and whole_circuit > tested else ""
    return f"{needed:.0f} of the {tested:.0f} edges tested{of} {_needed(r)}"


def _needed(r: Record) -> str:
    least = number(part(r.metrics, "minimality"), "smallest_p")
    few = least is not None and least >= ALPHA
    return "matter more than random edges that are added" + (
        f" (no p falls below {chance(least)} with so few)" if few else f" (q < {ALPHA:g})"
    )


def least(r: Record) -> Table | None:
    """The edges of the circuit that change least when they are taken out."""
    inside = r.minimality[r.minimality["in_circuit"] > 0]
    if not len(inside):
        return None
    order = inside["change"].abs().sort_values(kind="stable").index[:LEAST]
    columns = (
        Column("edge"), Column("change", True, f"of the mean metric when the edge alone is taken out ({r.unit})"),
        Column("p", True, "share of random added edges that change at least as much, counting this one"),
        Column("q", True, "p over all edges tested (Benjamini–Hochberg)"), Column("needed", False, f"q < {ALPHA:g}"),
    )  # fmt: skip
    rows = []
    for row in inside.loc[order].to_dict("records"):
        change, p, q = (number(row, key) for key in ("change", "p", "q"))
        cells = Cell(str(row["edge"]), code=True), Cell(signed(change), None if change is None else abs(change))
        verdict = ABSENT if q is None else "yes" if q < ALPHA else "not shown"
        rows.append((*cells, Cell(chance(p), p), Cell(chance(q), q), Cell(verdict)))
    more = f" The {len(rows)} smallest changes of {len(inside)} edges tested; minimality.parquet has all."
    more = more if len(inside) > len(rows) else ""
    control = f"Control: {plural(int((r.minimality['in_circuit'] == 0).sum()), 'random edge')} added instead."
    return Table(f"Least needed edges: {r.condition}", columns, tuple(rows), f"{control}{more} {r.source}")
