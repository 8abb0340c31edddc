"""Effects of units in two sweeps of interventions, unit by unit: how far each moved, and whether that is within stated limits.

Every artifact of a study keeps ``summary.parquet`` (one row a unit and edit) and ``effects.parquet`` (one a prompt, too). Rows
of two sweeps match by what was measured: condition, edit, layer, unit, scale, metric, and whatever else was swept. Controls are
drawn anew by each study and are not compared.

Limits (SPEC TL-22; a run on another device or in another number format): a difference of two means is *within* them below 0.05
and 5% of the value, a *warning* above either, and a *failure* above 10%; the share is that of the base's value, or of 0.5 where
that is smaller, so that small effects are held to 0.05 and not to a share of nearly nothing. Calibration (ECE of the choice between
target and foil) is within 0.01; more is a failure for the run without edits, and a warning for a single unit, whose ECE moves by
a whole prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from circuits import tables
from circuits.compare.terms import entered
from circuits.files import read_json
from circuits.report.types import ArtifactRef
from circuits.stats.calibration import binary
from circuits.stats.many import rank_agreement

KEYS = ("condition", "edit", "layer", "unit", "scale", "swept", "metric")
"""What rows match by."""
WITHOUT = "(none)"  # the unit of a run without edits
FURTHER = ("kl", "p_drop", "top1_error")  # shown beside, not judged
DIFFERENCE, WARN, FAIL, CALIBRATION = 0.05, 0.05, 0.10, 0.01
LEAST = DIFFERENCE / FAIL  # the value from which on shares are of the value itself
SHOWN_ELSEWHERE = ("layer", "behaviour", "behaviour.path", "intervention.edit", "intervention.scale")
Verdict = Literal["within", "warning", "failure", ""]


@dataclass(frozen=True)
class Units:
    """What a sweep measured of units: rows of `KEYS` and ``value``, and the prompts of each condition."""

    rows: pd.DataFrame
    samples: dict[str, frozenset[str]]
    repeated: int = 0

    def __bool__(self) -> bool:
        return len(self.rows) > 0


@dataclass(frozen=True)
class Joined:
    """Two sweeps side by side: `rows` has ``a``, ``b``, ``difference``, ``share``, ``verdict``; `only` is what has no match."""

    base: str
    other: str
    rows: pd.DataFrame
    ranks: pd.DataFrame
    only: dict[str, list[str]]

    def count(self, verdict: Verdict) -> int:
        """Rows of a verdict."""
        return int((self.rows["verdict"] == verdict).sum())

    @property
    def worst(self) -> pd.DataFrame:
        """The rows that are judged, the farthest from their limit first."""
        return farthest(self.rows[self.rows["verdict"] != ""])

    @property
    def units(self) -> int:
        """Units and edits that match."""
        found = self.rows[(self.rows["metric"] == "effect")]
        return len(found)


def farthest(rows: pd.DataFrame) -> pd.DataFrame:
    """Failures, then warnings, each by how much of its limit it takes; the largest first where nothing is judged."""
    order = rows["verdict"].map({"failure": 0, "warning": 1}).fillna(2)
    return (
        rows.assign(order=order)
        .sort_values(["order", "of_limit"], ascending=[True, False], kind="stable")
        .drop(columns="order")
    )


def units_of(refs: Iterable[tuple[ArtifactRef, Sequence[tuple[str, str]]]]) -> Units:
    """The rows of a sweep's artifacts, each with what was swept in it; empty where they keep no effects of units."""
    tables: list[pd.DataFrame] = []
    samples: dict[str, frozenset[str]] = {}
    for ref, swept in refs:
        if not (ref.path / "summary.parquet").exists() or not (ref.path / "effects.parquet").exists():
            continue
        table, ids = _rows(ref, [pair for pair in swept if pair[0] not in SHOWN_ELSEWHERE])
        tables.append(table)
        for condition in table["condition"].unique():
            samples[condition] = samples.get(condition, frozenset()) | ids
    if not tables:
        return Units(pd.DataFrame(columns=[*KEYS, "value"]), {})
    rows = pd.concat(tables, ignore_index=True)
    repeated = rows.duplicated(list(KEYS)) & (rows["unit"] != WITHOUT)
    return Units(rows.drop_duplicates(list(KEYS)), samples, int((repeated & (rows["metric"] == "effect")).sum()))


def _rows(ref: ArtifactRef, swept: Sequence[tuple[str, str]]) -> tuple[pd.DataFrame, frozenset[str]]:
    """An artifact's rows, and the ids of its prompts."""
    summary, metrics, config = (
        tables.read(ref.path / "summary.parquet"),
        read_json(ref.path / "metrics.json"),
        entered(ref),
    )
    long = tables.read(ref.path / "effects.parquet", ["unit", "sample", "condition", "edit", "metric", "value"])
    compared = str(metrics.get("compared", "logit_diff"))
    studied = summary[summary["control"] == ""]
    values = long[long["metric"] == compared]
    ece = values.groupby(["unit", "edit"], observed=True)["value"].agg(lambda v: binary(v).ece if len(v) else np.nan)
    parts = [
        studied[["unit", "edit", "layer"]].assign(metric=name, value=studied[name].astype(float))
        for name in ("effect", compared, *FURTHER)
        if name in studied
    ]
    of_unit = [float(ece.get((row.unit, row.edit), np.nan)) for row in studied.itertuples()]  # type: ignore[call-overload]
    parts.append(studied[["unit", "edit", "layer"]].assign(metric="ece", value=of_unit))
    without = [
        {"unit": WITHOUT, "edit": edit, "layer": pd.NA, "metric": metric, "value": base.get(name)}
        for edit, base in (metrics.get("base") or {}).items()
        for metric, name in ((compared, "difference"), ("ece", "ece"))
    ]
    if without:
        parts.append(pd.DataFrame(without).astype({"layer": "Int64", "value": float}))
    rows = pd.concat(parts, ignore_index=True)
    rows["condition"] = " ".join(sorted(map(str, long["condition"].unique())))
    scale = config.get("intervention.scale", "")
    rows["scale"] = np.where(rows["edit"] == "scale", scale, "")
    rows["swept"] = ", ".join(f"{key}={value}" for key, value in swept)
    return rows[rows["value"].notna()][[*KEYS, "value"]], frozenset(map(str, long["sample"].unique()))


def other_prompts(base: Units, other: Units) -> list[str]:
    """The conditions that both have, measured on unlike prompts."""
    found = []
    for condition in sorted(set(base.samples) & set(other.samples)):
        mine, its = base.samples[condition], other.samples[condition]
        if mine != its:
            found.append(
                f"prompts of {condition} ({len(mine)} and {len(its)} sample ids, {len(mine & its)} of them the same)"
            )
    return found


def joined(base: tuple[str, Units], other: tuple[str, Units], judge: bool) -> Joined | None:
    """Two sweeps side by side; None where nothing matches. `judge`: say of each difference whether it is within the limits."""
    keys = list(KEYS)
    both = base[1].rows.merge(other[1].rows, on=keys, how="outer", suffixes=("_a", "_b"), indicator=True)
    match = both["_merge"] == "both"
    if not match.any():
        return None
    only = {}
    for name, side in ((base[0], "left_only"), (other[0], "right_only")):
        left = both[(both["_merge"] == side) & (both["metric"] == "effect")]
        only[name] = [place(row) for _, row in left.iterrows()]
    rows = both[match].drop(columns="_merge").rename(columns={"value_a": "a", "value_b": "b"})
    rows["difference"] = rows["b"] - rows["a"]
    rows["share"] = rows["difference"].abs() / np.maximum(rows["a"].abs(), LEAST)
    rows["verdict"], rows["of_limit"] = _judged(rows) if judge else ("", rows["difference"].abs())
    return Joined(base[0], other[0], rows.reset_index(drop=True), _ranks(rows), only)


def _judged(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The verdict on each difference, and how much of its limit it takes."""
    size, share = rows["difference"].abs().to_numpy(), rows["share"].to_numpy()
    calibration = (rows["metric"] == "ece").to_numpy()
    without = (rows["unit"] == WITHOUT).to_numpy()
    over = size >= CALIBRATION
    failed = np.where(calibration, over & without, share > FAIL)
    warned = np.where(calibration, over, (share > WARN) | (size >= DIFFERENCE))
    verdict = np.select([failed, warned], ["failure", "warning"], "within")
    of_limit = np.where(calibration, size / CALIBRATION / np.where(without, 1, 2), share / FAIL)
    judged = ~rows["metric"].isin(FURTHER).to_numpy()
    return np.where(judged, verdict, ""), np.where(judged, of_limit, 0.0)


def _ranks(rows: pd.DataFrame) -> pd.DataFrame:
    """Spearman's ρ of the units of each layer by their effect in both sweeps, where there are four or more."""
    effects = rows[(rows["metric"] == "effect") & rows["layer"].notna()]
    found = []
    for key, group in effects.groupby(["condition", "edit", "scale", "swept", "layer"], sort=False):
        rho, p = rank_agreement(group["a"], group["b"], seed=0)
        if np.isfinite(rho):
            found.append({**dict(zip(("condition", "edit", "scale", "swept", "layer"), key, strict=True)),
                          "n": len(group), "rho": rho, "p": p})  # fmt: skip
    return pd.DataFrame(found, columns=["condition", "edit", "scale", "swept", "layer", "n", "rho", "p"])


def place(row: pd.Series) -> str:
    """``facts, zero, L0.H2``."""
    parts = [row["condition"], row["edit"], row["scale"] and f"scale {row['scale']}", row["swept"], row["unit"]]
    return ", ".join(str(part) for part in parts if part)


def table(found: Sequence[Joined]) -> pd.DataFrame:
    """All matched rows of all sweeps, as ``units.csv`` has them."""
    return pd.concat([one.rows.assign(base=one.base, other=one.other) for one in found], ignore_index=True)[
        ["base", "other", *KEYS, "a", "b", "difference", "share", "verdict"]
    ].rename(columns={"a": "base_value", "b": "other_value"})


def ranks(found: Sequence[Joined]) -> pd.DataFrame:
    """Rank agreement by layer of all sweeps, as ``ranks.csv`` has it."""
    return pd.concat([one.ranks.assign(base=one.base, other=one.other) for one in found], ignore_index=True)
