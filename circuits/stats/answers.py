"""How well target and foil are told apart: the summary of a per-prompt table, over all prompts and per split.

One sign convention: a difference is target − foil, so more is better. Intervals are percentile bootstraps over clusters of
rows (a distinct clean prompt, or a group), because rows of one prompt are not independent. See :mod:`circuits.stats.bootstrap`
and :mod:`circuits.stats.calibration`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from circuits.stats.bootstrap import ratio_interval
from circuits.stats.calibration import binary, calibration

Interval = tuple[float, float]

MEANS = {"logit_diff": "diff", "normalised_diff": "normalised_diff", "pair_acc": "pair_right", "top1": "top1"}
"""A number of the summary, and the column whose mean it is; each has an interval ``<name>_ci``."""


def summarise(table: pd.DataFrame, *, cluster: str, resamples: int, seed: int) -> dict[str, Any]:
    """The summary of all rows, and under ``splits`` that of each split; `cluster` is the column of the sampling unit."""
    whole = _summary(table, cluster, resamples, seed)
    splits = {str(name): _summary(rows, cluster, resamples, seed) for name, rows in table.groupby("split", sort=False)}
    return {**whole, "splits": splits}


def success_rate(normalised: Sequence[float], min_logit_diff: float) -> float:
    """Share of prompts whose difference a token exceeds `min_logit_diff`."""
    return float(np.mean(np.asarray(normalised) > min_logit_diff))


def success_interval(
    normalised: Sequence[float], units: Sequence[int], min_logit_diff: float, *, resamples: int, seed: int
) -> Interval | None:
    """The 95% bootstrap interval of the success rate; prompts of one unit are drawn together."""
    hits = np.asarray(normalised) > min_logit_diff
    return ratio_interval(np.bincount(units, weights=hits), np.bincount(units), seed=seed, resamples=resamples)


def units_of(table: pd.DataFrame, cluster: str) -> list[int]:
    """The number of each row's sampling unit."""
    return [int(code) for code in pd.factorize(table[cluster], sort=True)[0]]


def values(table: pd.DataFrame, metric: str, metrics: Mapping[str, Any]) -> pd.Series | None:
    """What `metric` is the mean of, one value a prompt; None when the table has no such thing.

    Args:
        table: the per-prompt table.
        metric: a name of :data:`MEANS`, ``success_rate``, or a column of the table.
        metrics: the measurement; the success rate is that above its ``min_logit_diff``.
    """
    if metric == "success_rate" and "normalised_diff" in table and metrics.get("min_logit_diff") is not None:
        return (table["normalised_diff"] > metrics["min_logit_diff"]).astype(float)
    column = MEANS.get(metric, metric)
    return table[column].astype(float) if column in table else None


def _summary(rows: pd.DataFrame, cluster: str, resamples: int, seed: int) -> dict[str, Any]:
    units = rows.groupby(cluster, sort=True)
    counts = units.size().to_numpy(dtype=float)
    found: dict[str, Any] = {"n": len(rows), "clusters": len(counts)}
    for name, column in MEANS.items():
        found[name] = float(rows[column].mean())
        interval = ratio_interval(units[column].sum().to_numpy(float), counts, seed=seed, resamples=resamples)
        found[f"{name}_ci"] = None if interval is None else list(interval)
    for name in ("logit_diff", "normalised_diff"):
        given = rows[MEANS[name]]
        found |= {
            f"{name}_median": float(given.median()),
            f"{name}_std": float(given.std(ddof=1)) if len(rows) > 1 else None,
        }
    two = binary(rows["diff"])
    return found | {
        "p_target": float(np.exp(rows["logp_target"]).mean()),
        "length_mismatch_rate": float((rows["target_tokens"] != rows["foil_tokens"]).mean()),
        "ece": two.ece,
        "brier": two.brier,
        "nll": two.nll,
        "calibration": {
            "binary": two.as_dict(),
            "multiclass": calibration(rows["top_probability"].clip(0, 1), rows["top1"]).as_dict(),
        },
    }
