"""What the section of attribution says and shows of feature graphs."""

from __future__ import annotations

from collections.abc import Mapping

from circuits.report.content import Answer, Block, Note, Part
from circuits.report.registry import View
from circuits.report.saved import number
from circuits.report.sections import attribution_features_tables as tables
from circuits.report.sections.attribution_features_graph import graph
from circuits.report.sections.attribution_features_records import FeatureRecord, read_all
from circuits.report.sections.attribution_records import signed
from circuits.report.words import decimal, percent, plural, ranges, visible

SHOWN = 4  # measurements whose graphs are drawn
NAMED = 3  # features of the finding


def feature_graphs(view: View) -> Part:
    """Read every measurement of feature graphs and show it."""
    records, problems = read_all(view)
    if not records:
        return Part("Feature graphs", "", (), Answer("No feature graph could be read.", ()), tuple(problems))
    first: list[Block] = [tables.comparison(records)] if len(records) > 1 else []
    blocks: list[Block] = []
    for i, r in enumerate(records[:SHOWN]):
        name = f"features-{i}"
        here = blocks if i else first
        here += [Note(text) for text in (finding(r) if i else "", strongest(r)) if text]
        drawn = graph(f"{name}-graph", r)
        here += [drawn] if drawn else []
        found = [tables.strongest(r), tables.trust(r), tables.checks(f"{name}-checks", r)]
        blocks += [block for block in found if block]
    if len(records) > SHOWN:
        blocks.append(Note(f"{len(records) - SHOWN} more are not drawn here; each one's own report draws it."))
    lead = f"{plural(len(records), 'measurement')}: {', '.join(dict.fromkeys(r.condition for r in records))}."
    return Part("Feature graphs", lead, tuple(blocks), Answer(finding(records[0]), tuple(first)), tuple(problems))


def finding(r: FeatureRecord) -> str:
    """What was found, in numbers: how much the graphs explain, and how far they can be trusted."""
    site = f" at {r.site}" if r.site else ""
    site += " of a cross-layer transcoder" if r.metrics.get("cross_layer") else ""
    layers = f" of layers {ranges(r.layers)}" if r.layers else ""
    graphs = f"{r.condition}: graphs of features{site}{layers} (effects: n = {plural(r.n, 'prompt')}; {plural(r.graphs, 'graph')})"
    explained = [
        f"{words} {percent(r.value(key))}"
        for key, words in (("replacement", "replacement"), ("completeness", "completeness"))
        if r.value(key) is not None
    ]
    text = f"{graphs}: {', '.join(explained)}." if explained else f"{graphs}."
    return " ".join(found for found in (text, _checked(r), _unexplained(r)) if found)


def _checked(r: FeatureRecord) -> str:
    slope, fit, edits = r.value("slope"), r.value("r2"), int((r.checks["together"] <= 1).sum())
    if slope is None and fit is None:
        return "Effects were not held against taking features out."
    said = [
        f"slope {decimal(slope, 2)}" if slope is not None else "",
        f"R² {decimal(fit, 2)}" if fit is not None else "",
    ]
    n = f" ({plural(edits, 'edit')})" if edits else ""
    return f"Taking out one feature changes the metric as predicted with {', '.join(text for text in said if text)}{n}."


def _unexplained(r: FeatureRecord) -> str:
    errors, patterns = r.value("error_share"), r.value("attention_share")
    told = [f"{percent(errors)} of effects go through errors of reconstruction"] if errors is not None else []
    if patterns is not None:
        told.append(
            f"{percent(patterns)}{'' if told else ' of effects go'} through attention patterns, which the graphs do not explain"
        )
    text = " and ".join(told)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def strongest(r: FeatureRecord) -> str:
    """The strongest features over prompts, in words."""
    given = [row for row in r.metrics.get("strongest") or [] if isinstance(row, Mapping)]
    rows = given or r.features.reindex(r.features["effect_mean"].abs().sort_values(ascending=False).index).to_dict(
        "records"
    )
    told = []
    for row in rows[:NAMED]:
        effect = number(row, "effect_mean")
        if effect is None or number(row, "layer") is None or number(row, "feature") is None:
            continue
        label = f" “{visible(str(row['label']))}”" if row.get("label") else ""
        told.append(f"L{int(row['layer'])}/{int(row['feature'])}{label} {signed(effect)} {r.unit}")
    return f"Strongest over prompts: {', '.join(told)}." if told else ""
