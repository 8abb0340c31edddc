"""Effects of units on the page of a comparison: the verdict in a sentence, the rows farthest from their limits, rank agreement."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from circuits.compare.units import (
    CALIBRATION,
    DIFFERENCE,
    FAIL,
    FURTHER,
    WARN,
    Joined,
    Verdict,
    farthest,
)
from circuits.report.content import Block, Cell, Column, Note, Table
from circuits.report.words import ABSENT, number, plural

SHOWN = 200  # rows on the page
HEADINGS = {"effect": "effect", "logit_diff": "logit difference", "seq_logprob_diff": "log-prob. difference",
            "ece": "calibration (ECE)", "kl": "KL", "p_drop": "p drop", "top1_error": "top-1 error"}  # fmt: skip
LIMITS = (
    f"Within: below {DIFFERENCE} and {WARN:.0%} of the value; a failure: above {FAIL:.0%} of it (of {DIFFERENCE / FAIL} where it "
    f"is smaller); calibration within {CALIBRATION}, a failure only for the run without edits. No limit is set for rank agreement."
)


def sentence(found: Sequence[Joined], judged: bool) -> str:
    """``B against A: 384 effects match; 380 differences within the limits, 4 warnings, no failure. Rank agreement …``"""
    return " ".join(_sentence(one, judged) for one in found)


def _sentence(one: Joined, judged: bool) -> str:
    text = f"{one.other} against {one.base}: {plural(one.units, 'effect')} of units {'match' if one.units != 1 else 'matches'}"
    if judged:
        fails, warns = one.count("failure"), one.count("warning")
        text += f"; {plural(one.count('within'), 'difference')} within the limits"
        text += f", {plural(warns, 'warning')}, {plural(fails, 'failure') if fails else 'no failure'}"
    else:
        effects = one.rows[one.rows["metric"] == "effect"]["difference"].abs()
        text += (
            f"; they differ by {number(effects.mean(), '.3f')} on average and by {number(effects.max(), '.3f')} at most"
        )
    if len(one.ranks):
        lowest = one.ranks.sort_values("rho", kind="stable").iloc[0]
        where = f"{lowest['condition']}, {lowest['edit']}, layer {lowest['layer']}, n = {lowest['n']}"
        text += f". Rank agreement by layer: ρ from {number(lowest['rho'], '.3f')} ({where})"
    return f"{text}."


def rows(found: Sequence[Joined], judged: bool) -> pd.DataFrame:
    """The rows that matter: where limits are asked for, those nearest to or beyond theirs; else the effects that moved most."""
    parts = []
    for one in found:
        shown = one.worst if judged else one.rows[one.rows["metric"] == "effect"]
        parts.append(shown.assign(other=one.other))
    return farthest(pd.concat(parts, ignore_index=True))


def blocks(found: Sequence[Joined], judged: bool) -> list[Block]:
    """Tables for the page."""
    shown = rows(found, judged)
    what = (
        "the limits of a run elsewhere. " + LIMITS if judged else "no limits were asked for (compare.tolerance=device)."
    )
    more = f" {len(shown) - SHOWN} more are in units.csv." if len(shown) > SHOWN else ""
    parts: list[Block] = [Note(f"Effects of units, held against {what}{more}")] if judged else []
    caption = f"{'Farthest from their limits first' if judged else 'Largest first'}.{more} {', '.join(FURTHER)} are in units.csv."
    parts.append(Table("Effects of units", columns(shown, judged), cells(shown.head(SHOWN), judged), caption))
    ranked = [one for one in found if len(one.ranks)]
    if ranked:
        table = pd.concat([one.ranks.assign(other=one.other) for one in ranked], ignore_index=True)
        heads = ("condition", "edit", "scale", "swept", "layer", "sweep", "units", "ρ", "p")
        lines = tuple(
            (
                *(Cell(str(row[name]) or ABSENT) for name in heads[:4]),
                Cell(str(row["layer"]), int(row["layer"])),
                Cell(row["other"]),
                Cell(str(row["n"]), int(row["n"])),
                Cell(number(row["rho"], ".3f"), row["rho"]),
                Cell(number(row["p"], ".3f"), row["p"]),
            )
            for _, row in table.iterrows()
        )
        numeric = ("layer", "units", "ρ", "p")
        caption = "Spearman's ρ of the effects of a layer's units in both sweeps, with its permutation p."
        parts.append(
            Table("Rank agreement by layer", tuple(Column(h, h in numeric) for h in heads), lines, caption, True)
        )
    return parts


def columns(shown: pd.DataFrame, judged: bool) -> tuple[Column, ...]:
    """Headings; scale and what was swept only where there is any."""
    names = [
        "condition",
        "edit",
        *(name for name in ("scale", "swept") if (shown[name] != "").any()),
        "unit",
        "metric",
        "sweep",
    ]
    numbers = ["base", "value", "difference", *(["share"] if judged else [])]
    return (*(Column(n) for n in names), *(Column(n, True) for n in numbers), *([Column("verdict")] if judged else []))


def cells(shown: pd.DataFrame, judged: bool) -> tuple[tuple[Cell, ...], ...]:
    """Rows under :func:`columns`."""
    heads = [column.label for column in columns(shown, judged)]
    found = []
    for _, row in shown.iterrows():
        texts = {name: Cell(str(row[name]) or ABSENT) for name in ("condition", "edit", "scale", "swept", "unit")}
        texts |= {"metric": Cell(HEADINGS.get(row["metric"], row["metric"])), "sweep": Cell(row["other"])}
        texts |= {
            "base": Cell(number(row["a"], ".3f"), row["a"]),
            "value": Cell(number(row["b"], ".3f"), row["b"]),
            "difference": Cell(number(row["difference"], ".3f", sign="+").replace("-", "−"), row["difference"]),
            "share": Cell(ABSENT if row["metric"] == "ece" else f"{row['share']:.1%}", row["share"]),
            "verdict": Cell(row["verdict"]),
        }
        found.append(tuple(texts[name] for name in heads))
    return tuple(found)


def failures(found: Sequence[Joined]) -> str | None:
    """The failures in one line, the worst one named; None where there is none."""
    verdict: Verdict = "failure"
    n = sum(one.count(verdict) for one in found)
    if not n:
        return None
    row = rows(found, judged=True).iloc[0]
    judged = sum(len(one.worst) for one in found)
    worst = f"{row['condition']}, {row['edit']}, {row['unit']}: {HEADINGS.get(row['metric'], row['metric'])}"
    return f"{n:,} of {judged:,} differences are above their limits; farthest {worst} {row['a']:.3f} and {row['b']:.3f}"
