"""The section of interventions: what edits change, unit by unit, against controls, across edits and across conditions."""

from __future__ import annotations

from collections.abc import Sequence

from circuits.report.content import Answer, Block, Figure, Part
from circuits.report.registry import View, either, section
from circuits.report.sections import captions
from circuits.report.sections import interventions_across as across
from circuits.report.sections import interventions_groups as groups
from circuits.report.sections import interventions_more as more
from circuits.report.sections import interventions_steering as steering
from circuits.report.sections import interventions_tables as tables
from circuits.report.sections.interventions_figures import figures, looks_of
from circuits.report.sections.interventions_forests import nulls
from circuits.report.sections.interventions_records import Record, counted, effect, read_all
from circuits.report.words import plural

SAID = 4  # conditions whose answer is spelt out


@section("interventions", order=60)
def interventions(view: View) -> Part:
    """Show every study of the sweep, of behaviours and of captions."""
    return either(view, captions.is_captions, captions.captions, _studies)


def _studies(view: View) -> Part:
    """Read every study of a behaviour and show it."""
    records, problems = read_all(view)
    if not records:
        return Part("Interventions", "", (), Answer("No study of interventions could be read.", ()), tuple(problems))
    kinds = list(dict.fromkeys(r.kind for r in records))
    first: list[Block] = []
    blocks: list[Block] = []
    for number, kind in enumerate(kinds):
        mine = [r for r in records if r.kind == kind]
        drawn: list[Figure] = figures(mine, number)
        if drawn and not first:
            first.append(drawn.pop(0))
        blocks += [*drawn, *_shown(number, mine), *more.blocks(mine, problems), *steering.blocks(mine, problems)]
    first.append(tables.top(records))
    blocks.append(tables.without(records))
    conditions = list(dict.fromkeys(r.condition for r in records))
    lead = f"{plural(len(records), 'study').replace('studys', 'studies')}: {', '.join(conditions)}."
    return Part("Interventions", lead, tuple(blocks), Answer(_sentence(records), tuple(first)), tuple(problems))


def _shown(number: int, records: Sequence[Record]) -> list[Block]:
    """What the studies of one kind show beyond their effects."""
    found: list[Block] = []
    looks = looks_of(records)
    for i, r in enumerate(records):
        name = f"interventions-{number}-{i}"
        drawn = [nulls(f"{name}-null-{k}", looks, r, edit) for k, edit in enumerate(r.edits)]
        found += [figure for figure in drawn if figure]
        found += groups.blocks(name, looks, r)
        if r.kind == "heads":
            found.append(tables.heads(r, max(1, tables.HEADS // len(records))))
        if table := tables.agreement(r):
            found.append(table)
    for i, model in enumerate(dict.fromkeys(r.model for r in records)):
        found += across.blocks(f"interventions-{number}-across-{i}", [r for r in records if r.model == model])
    return found


def _sentence(records: Sequence[Record]) -> str:
    """The strongest unit of each condition, and how many have an effect, none, or are open."""
    told = [_answer(r) for r in records[:SAID]]
    rest = f" {len(records) - SAID} more below." if len(records) > SAID else ""
    return " ".join(told) + rest


def _answer(r: Record) -> str:
    n = f"n = {plural(int(r.metrics['n']), 'prompt')}"
    if not len(r.ranked):
        return f"{r.condition}: no effect of {counted(r)} is defined ({n})."
    row = r.ranked.iloc[0].to_dict()
    edit = f" ({row['edit']})" if len(r.edits) > 1 else ""
    undefined = len(r.studied) - len(r.ranked)
    rest = f", {undefined:,} undefined" if undefined else ""
    return (
        f"{r.condition}: strongest {row['unit']}{edit} {effect(row)} {r.unit}; of {counted(r)}, {r.verdicts('effect'):,} with an "
        f"effect (q < {r.alpha:g}), {r.verdicts('none'):,} equivalent to none, {r.verdicts('open'):,} open{rest} ({n})."
    )
