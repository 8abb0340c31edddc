"""The section of attribution: which edges make a behaviour, how far their scores can be trusted, and how methods compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuits.report.content import Answer, Block, Note, Part
from circuits.report.registry import View, either, section
from circuits.report.saved import number, part
from circuits.report.sections import attribution_figures as figures
from circuits.report.sections import attribution_tables as tables
from circuits.report.sections.attribution_features import feature_graphs
from circuits.report.sections.attribution_features_records import is_features
from circuits.report.sections.attribution_graph import graph
from circuits.report.sections.attribution_records import Record, read_all, signed
from circuits.report.words import percent, plural, visible

SHOWN = 12  # circuits that are drawn; the comparison has all


@section("attribution", order=70)
def attribution(view: View) -> Part:
    """Show the circuits of the sweep, and its feature graphs."""
    return either(view, is_features, feature_graphs, _circuits)


def _circuits(view: View) -> Part:
    """Read every circuit of the sweep and show it."""
    records, problems = read_all(view)
    if not records:
        return Part("Attribution", "", (), Answer("No circuit could be read.", ()), tuple(problems))
    ranked = tables.ranked(records)
    blocks: list[Block] = []
    first: list[Block] = [tables.comparison(ranked)] if len(ranked) > 1 else []
    for i, r in enumerate(ranked[:SHOWN]):
        name = f"attribution-{i}"
        drawn = graph(f"{name}-circuit", r, problems)
        mine: list[Block | None] = [
            figures.node_map(f"{name}-nodes", r), figures.scatter(f"{name}-exact", r), tables.largest(r),
            figures.pieces(f"{name}-pieces", r),
        ]  # fmt: skip
        here = blocks if i else first
        rest = limits(r)
        named = f"{r.condition}: {rest[0].lower()}{rest[1:]}" if rest and len(ranked) > 1 and not i else rest
        here += [Note(text) for text in (finding(r) if i else "", named) if text]
        if drawn:
            here.append(drawn)
        blocks += [block for block in mine if block]
    if len(ranked) > SHOWN:
        blocks.append(Note(f"{len(ranked) - SHOWN} more are in the comparison only; each one's own report draws it."))
    conditions = list(dict.fromkeys(r.condition for r in ranked))
    lead = f"{plural(len(ranked), 'circuit')}: {', '.join(conditions)}."
    answer = Answer(_best(ranked) + finding(ranked[0]), tuple(first))
    return Part("Attribution", lead, tuple(blocks), answer, tuple(problems))


def _best(ranked: list[Record]) -> str:
    """Which of several agrees best with exact patching; nothing is said of one."""
    values = [number(r.metrics, "pearson_without_largest") for r in ranked]
    if len(ranked) < 2 or values[0] is None:
        return ""
    known = [value for value in values if value is not None]
    return (
        f"Of {len(ranked)} measurements, {ranked[0].condition} agrees best with exact patching (r {values[0]:.3f} without the "
        f"largest edge; the lowest is {min(known):.3f}). "
    )


def finding(r: Record) -> str:
    """What was found, in numbers: the circuit, and how far its scores can be trusted."""
    return f"{_circuit(r)} {_agreement(r)}"


def limits(r: Record) -> str:
    """What the edges that were not patched can hide, and what the circuit depends on."""
    return " ".join(text for text in (_missed(r), _hidden(r), _stability(r)) if text)


def _missed(r: Record) -> str:
    m = part(r.metrics, "missed")
    largest, tested = number(m, "largest"), number(m, "tested")
    if told := m.get("told"):
        return visible(str(told))
    if largest is None or tested is None:
        return ""
    return (
        f"Nodes outside of the circuit, patched for real in {plural(int(tested), 'group')}, move the metric by at most "
        f"{percent(largest)} of the difference."
    )


def _circuit(r: Record) -> str:
    m = r.metrics
    share, kept = number(m, "circuit_share"), number(m, "kept_mass")
    writers = number(m, "circuit_nodes")
    text = f"{r.condition}: {int(m['circuit_edges']):,} of {plural(int(m['edges']), 'edge')}"
    text += f" ({percent(share)})" if share is not None else ""
    text += f" from {plural(int(writers), 'writer')}" if writers is not None else ""
    text += f" carry {percent(kept)} of all |score|" if kept is not None else " are the circuit"
    base, other = number(m, "base"), number(m, "other")
    if base is not None and other is not None:
        runs = ("corrupt", "clean") if m.get("direction") == "denoising" else ("clean", "corrupt")
        text += f"; all edges together take the answer from {signed(base)} ({runs[0]}) to {signed(other)} {r.unit} ({runs[1]})"
    return f"{text} (n = {plural(int(m['n']), 'prompt')})."


def _agreement(r: Record) -> str:
    v = r.verified
    whole, rest = number(v, "pearson"), number(v, "pearson_without_largest")
    if whole is None:
        return "Scores were not held against exact patching."
    without = f", {rest:.3f} without the largest edge" if rest is not None else ""
    return f"Scores agree with exact patching at r = {whole:.3f}{without} ({plural(int(v['n']), 'edge')} patched)."


def _hidden(r: Record) -> str:
    h = part(r.verified, "hidden")
    most, share, total = (number(h, key) for key in ("largest", "share_larger", "total_at_most"))
    rest, drawn = number(h, "rest"), number(h, "sample")
    if most is None or share is None or total is None or not rest or not drawn:
        return ""
    return (
        f"Of the {plural(int(rest), 'edge')} that were not patched, at most {percent(share)} have a larger effect than "
        f"{_size(most)} {r.unit} (the largest of {int(drawn):,} drawn at random), and together they hide at most {_size(total)} "
        f"{r.unit} (95% confidence)."
    )


def _stability(r: Record) -> str:
    whole, low = number(r.metrics, "jaccard"), number(r.metrics, "jaccard_low")
    told = []
    if whole is not None:
        lowest = f" (5th percentile {low:.2f})" if low is not None else ""
        told.append(f"Drawn anew from the prompts, the circuit's edges overlap with it by Jaccard {whole:.2f}{lowest}")
    by = [_wording(w) for w in r.metrics.get("wordings") or [] if isinstance(w, Mapping)]
    if found := [text for text in by if text]:
        told.append(f"{'b' if told else 'B'}etween prompts that differ in one factor: {', '.join(found)}")
    return "; ".join(told) + "." if told else ""


def _wording(w: Mapping[str, Any]) -> str:
    mine, chance = number(w, "jaccard"), number(w, "random")
    if mine is None:
        return ""
    beside = f" (random parts of equal size {chance:.2f})" if chance is not None else ""
    return f"{w.get('factor')} {mine:.2f}{beside}"


def _size(value: float) -> str:
    return signed(value).lstrip("+")
