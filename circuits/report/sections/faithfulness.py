"""The section of faithfulness: how well circuits do a behaviour alone, at which sizes, and whether they are whole and minimal."""

from __future__ import annotations

from circuits.report.content import Answer, Block, Note, Part
from circuits.report.registry import View, section
from circuits.report.saved import part
from circuits.report.sections import faithfulness_figures as figures
from circuits.report.sections import faithfulness_tables as tables
from circuits.report.sections.attribution_records import signed
from circuits.report.sections.faithfulness_records import Record, between, plain, read_all, share
from circuits.report.words import plural

RANDOM = (
    ("random_cmd", "random circuits"),
    ("random_by_reader_cmd", "random ones with each reader's number of edges"),
)
SHOWN = 8  # circuits that are drawn one by one; the comparison has all


@section("faithfulness", order=75)
def faithfulness(view: View) -> Part:
    """Read every judgement of the sweep and show it."""
    records, problems = read_all(view)
    if not records:
        return Part("Faithfulness", "", (), Answer("No judgement of a circuit could be read.", ()), tuple(problems))
    best = tables.ranked(records)
    first: list[Block | None] = []
    if len(best) > 1:
        first += [tables.comparison(best), figures.curves("faithfulness-all", best)]
    blocks: list[Block | None] = []
    for i, r in enumerate(best[:SHOWN]):
        name = f"faithfulness-{i}"
        here = blocks if i or len(best) > 1 else first
        if i:
            blocks.append(Note(finding(r)))
        here += [Note(limits(r)), figures.curve(f"{name}-curve", r), tables.tests(r)]
        blocks += [figures.scatter(f"{name}-prompts", r), figures.minimality(f"{name}-edges", r), tables.least(r)]
        if not len(r.prompts()):
            blocks.append(Note(f"{r.condition}: not drawn prompt by prompt, because no circuit of all edges was run."))
    if len(best) > SHOWN:
        blocks.append(Note(f"{len(best) - SHOWN} more are in the comparison only; each one's own report draws it."))
    lead = f"{plural(len(best), 'judged circuit')}: {', '.join(dict.fromkeys(r.condition for r in best))}."
    answer = Answer(_best(best) + finding(best[0]), tuple(block for block in first if block))
    return Part("Faithfulness", lead, tuple(block for block in blocks if block), answer, tuple(problems))


def _best(best: list[Record]) -> str:
    """Which of several has the smallest CMD; nothing is said of one."""
    values = [value for r in best if (value := r.value("cmd")) is not None]
    if len(best) < 2 or best[0].value("cmd") is None:
        return ""
    return (
        f"Of {len(best)} measurements, {best[0].condition} has the smallest CMD ({plain(values[0])}; the largest is "
        f"{plain(values[-1])}). "
    )


def finding(r: Record) -> str:
    """What was found, in numbers."""
    m = r.metrics
    known = r.interval("faithfulness_ci")
    ends = f" (95% interval {between(known)})" if known else ""
    size = f"{int(m['chosen_edges']):,} of {plural(int(m['edges']), 'edge')}"
    of = f" ({share(r.value('chosen_share'))})" if r.value("chosen_share") is not None else ""
    text = (
        f"{r.condition}: the circuit of {size}{of} alone keeps f = {plain(r.value('faithfulness'))}{ends} of what the model does "
        f"over no edge at all ({signed(r.value('model'))} against {signed(r.value('empty'))} {r.unit}; n = {plural(r.n, 'prompt')}"
        f"{r.held})."
    )
    return " ".join(found for found in (text, _areas(r), _first(r)) if found)


def _areas(r: Record) -> str:
    cmd = r.value("cmd")
    if cmd is None:
        return ""
    known = r.interval("cmd_ci")
    ends = f" ({between(known)})" if known else ""
    nulls = [f"{words} {plain(value)}" for key, words in RANDOM if (value := r.value(key)) is not None]
    beside = f", {', '.join(nulls)}" if nulls else ", not held against random circuits"
    cpr = f"; CPR {plain(r.value('cpr'))}" if r.value("cpr") is not None else ""
    return f"CMD {plain(cmd)}{ends}{beside}{cpr}."


def _first(r: Record) -> str:
    tried = [float(x) for x in r.metrics.get("shares") or []]
    if not tried:
        return ""
    at = r.value("share_85")
    if at is None:
        return f"f does not reach .85 at any share that was tried (up to {share(tried[-1])})."
    return f"f first reaches .85 at {share(at)} of the edges."


def limits(r: Record) -> str:
    """Whether the circuit is whole, as good as the model, and free of edges that it does not need."""
    texts = []
    rest = r.value("completeness")
    if rest is not None:
        texts.append(f"Completeness {plain(rest)}: all edges but the circuit's keep f = {plain(1 - rest)}")
    if part(r.metrics, "minimality"):
        texts.append(tables.minimal(r))
    constant = r.value("constant_share")
    if constant is not None and constant > 0.5:
        texts.append(
            f"the model's metric is the same on {share(constant)} of the prompts, so that tests over prompts say little"
        )
    return f"{r.condition}: " + "; ".join(text for text in texts if text) + "." if texts else ""
