"""The section of SAEs: how well each reconstructs, how sparsely, what that costs the model, and how it was trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from circuits.drawing.style import natural
from circuits.report.content import Answer, Block, Cell, Column, Note, Part, Table
from circuits.report.registry import View, section
from circuits.report.sections import sae_words as say
from circuits.report.sections.sae_curves import CURVES, density_figures, training_figures, untold
from circuits.report.sections.sae_figures import CE_SCORE, DEAD, EXPLAINED, frontier, measure_figure
from circuits.report.sections.sae_records import Record, read_all
from circuits.report.words import decimal, percent, plural, short, span, whole

# Columns of the full table: heading, name in metrics.json, how it is written.
FULL: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("MSE", "mse", short),
    ("CE clean", "ce_clean", decimal),
    ("CE spliced", "ce_spliced", decimal),
    ("CE zeroed", "ce_zero", decimal),
    ("KL", "kl", short),
    ("norm ratio", "norm_ratio", decimal),
    ("relative bias", "relative_bias", decimal),
    ("dense", "dense_fraction", percent),
    ("decoder cosine", "decoder_cosine", decimal),
    ("twins", "twin_fraction", percent),
    ("d_in", "d_in", whole),
    ("d_sae", "d_sae", whole),
    ("passes", "passes", short),
    ("rows", "n_rows", whole),
    ("sequences", "n_sequences", whole),
)
NEWER = (
    "Norm ratio and relative bias: 1 where reconstructions have the right length, below 1 where they shrink. Dense: features on "
    "over 10% of rows. Decoder cosine: mean largest cosine of a decoder row with another one; twins: rows where it exceeds 0.9."
)


@section("sae", order=40)
def sae(view: View) -> Part:
    """Read every SAE of the sweep and show it."""
    records, problems = read_all(view)
    explained = measure_figure(view, records, EXPLAINED, control=True)
    table = _table(view, records)
    blocks: list[Block | None] = [frontier(view, records), measure_figure(view, records, CE_SCORE)]
    blocks += [measure_figure(view, records, DEAD), *density_figures(view, records)]
    curves: list[Block] = [figure for curve in CURVES for figure in training_figures(view, records, curve)]
    first: tuple[Block, ...] = (explained, table) if explained else (*curves[:1], table)
    blocks += curves if explained else curves[1:]
    if said := untold(records):
        blocks.append(Note(said))
    blocks.append(_full_table(view, records))
    return Part(
        title="Sparse autoencoders",
        lead=_lead(records),
        blocks=tuple(block for block in blocks if block),
        answer=Answer(_sentence(records), first),
        problems=tuple(problems),
    )


def _lead(records: Sequence[Record]) -> str:
    kinds = sorted({r.architecture for r in records if r.architecture}, key=natural)
    sites = sorted({r.site for r in records if r.site})
    parts = [f"{plural(len(records), 'SAE')}", say.layers(records)]
    parts += [", ".join(kinds), f"at {', '.join(sites)}" if sites else ""]
    return " · ".join(part for part in parts if part) + "."


def _sentence(records: Sequence[Record]) -> str:
    """The answer in words, from the same numbers as the figure."""
    having = [r for r in records if "explained_variance" in r.numbers]
    if not having:
        return f"{plural(len(records), 'SAE')} made, but no explained variance could be read."
    values = [r.numbers["explained_variance"] for r in having]
    best = max(having, key=lambda r: r.numbers["explained_variance"])
    text = f"Explained variance {span(values)} on held-out rows ({plural(len(having), 'SAE')})"
    if len(having) > 1:
        text += f"; highest {say.value_with_interval(best, 'explained_variance')} at {say.who(best)}"
    controls = [r.control for r in having if r.control is not None]
    untrained = f"Untrained SAEs: {span(controls)}." if controls else "No untrained control was saved."
    return say.join([f"{text}.", untrained, say.baselines(having), say.massive(having)])


def _swept_columns(view: View) -> list[Column]:
    values = {key: [_number_or_text(e.element.swept.get(key, "0")) for e in view.entries] for key in view.swept}
    return [
        Column("layer", True),
        *(Column(key, all(isinstance(value, float) for value in found)) for key, found in values.items()),
    ]


def _swept_cells(view: View, record: Record) -> list[Cell]:
    swept = record.entry.element.swept
    return [
        Cell("–" if record.layer is None else str(record.layer), record.layer),
        *(Cell(swept.get(key, "–"), _number_or_text(swept.get(key, ""))) for key in view.swept),
    ]


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


FROZEN = {
    "frozen_decoder": "explained variance where the decoder stays as it was drawn; trained for an eighth of the steps",
    "frozen_encoder": "explained variance where the encoder stays as it was drawn; trained for an eighth of the steps",
}


def _frozen(records: Sequence[Record]) -> list[str]:
    """The frozen baselines that any SAE has."""
    return [name for name in FROZEN if any(name in r.baselines for r in records)]


def _table(view: View, records: Sequence[Record]) -> Table:
    columns = _swept_columns(view)
    columns += [
        Column("explained variance", True, "held out, ± the larger arm of the 95% interval"),
        Column("untrained", True, "explained variance of the same SAE before training"),
        *(Column(name.replace("_", " "), True, FROZEN[name]) for name in _frozen(records)),
        Column("L0", True, "features that fire on a row"),
        Column("dead", True, "share of features that count as dead"),
        Column("CE score", True, "1: predicts as well as the untouched model; 0: no better than with the site zeroed"),
        Column("steps", True),
        Column("artifact"),
    ]
    rows = []
    for r in records:
        l0 = r.get("l0")
        rows.append(
            (
                *_swept_cells(view, r),
                _measured(r, "explained_variance"),
                Cell(decimal(r.control), r.control),
                *(Cell(decimal(r.baselines.get(name)), r.baselines.get(name)) for name in _frozen(records)),
                Cell("–" if l0 is None else f"{l0:,.1f}", l0, _exact(r, "l0")),
                Cell(percent(r.get("dead_fraction")), r.get("dead_fraction")),
                _measured(r, "ce_score"),
                Cell(whole(r.get("steps")), r.get("steps")),
                Cell(r.label, code=True, hint=f"key {r.entry.ref.key}"),
            )
        )
    return Table("SAEs", tuple(columns), tuple(rows), f"{say.sample(records)} ± is the larger arm of the 95% interval.")


def _measured(record: Record, name: str) -> Cell:
    return Cell(say.value_with_interval(record, name), record.get(name), _exact(record, name))


def _exact(record: Record, name: str) -> str:
    interval = record.intervals.get(name)
    return f"95% interval [{interval[0]:.5g}, {interval[1]:.5g}]" if interval else ""


def _full_table(view: View, records: Sequence[Record]) -> Table:
    columns = _swept_columns(view)
    columns += [Column(heading, True) for heading, _, _ in FULL]
    columns += [Column("never fired", True), Column("architecture"), Column("artifact")]
    rows = []
    for r in records:
        cells = [Cell(write(r.get(name)), r.get(name)) for _, name, write in FULL]
        never = r.density.never if r.density else None
        cells += [Cell(whole(never), never), Cell(r.architecture or "–"), Cell(r.label, code=True)]
        rows.append((*_swept_cells(view, r), *cells))
    return Table("All measurements", tuple(columns), tuple(rows), "CE and KL in nats per token. " + NEWER, folded=True)
