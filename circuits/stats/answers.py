"""How well target and foil are told apart: the summary of a per-prompt table, over all prompts and per split.

One sign convention: a difference is target − foil, so more is better. Intervals are percentile bootstraps over clusters of
rows (a distinct clean prompt, or a group), because rows of one prompt are not independent. See :mod:`circuits.stats.bootstrap`
and :mod:`circuits.stats.calibration`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from circuits.stats.bootstrap import ratio_interval
from circuits.stats.calibration import binary, calibration

MEANS = {"logit_diff": "diff", "normalised_diff": "normalised_diff", "pair_acc": "pair_right", "top1": "top1"}
"""A number of the summary, and the column whose mean it is; each has an interval ``<name>_ci``."""


def summarise(table: pd.DataFrame, *, cluster: str, resamples: int, seed: int) -> dict[str, Any]:
    """The summary of all rows, and under ``splits`` that of each split; `cluster` is the column of the sampling unit."""
    whole = _summary(table, cluster, resamples, seed)
    splits = {str(name): _summary(rows, cluster, resamples, seed) for name, rows in table.groupby("split", sort=False)}
    return {**whole, "splits": splits}


def success_rate(normalised: list[float], min_logit_diff: float) -> float:
    """Share of prompts whose difference a token exceeds `min_logit_diff`."""
    return float(np.mean(np.asarray(normalised) > min_logit_diff))


def _summary(rows: pd.DataFrame, cluster: str, resamples: int, seed: int) -> dict[str, Any]:
    units = rows.groupby(cluster, sort=True)
    counts = units.size().to_numpy(dtype=float)
    found: dict[str, Any] = {"n": len(rows), "clusters": len(counts)}
    for name, column in MEANS.items():
        found[name] = float(rows[column].mean())
        interval = ratio_interval(units[column].sum().to_numpy(float), counts, seed=seed, resamples=resamples)
        found[f"{name}_ci"] = None if interval is None else list(interval)
    two = binary(rows["diff"])
    return found | {
        "logit_diff_median": float(rows["diff"].median()),
        "logit_diff_std": float(rows["diff"].std(ddof=1)) if len(rows) > 1 else None,
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
