"""Calibration of probabilistic predictions: expected calibration error, Brier score, negative log-likelihood.

Confidence conf_i in [0, 1], outcome y_i in {0, 1}. ECE = Σ_b (n_b / N) |mean y − mean conf| over equal-width bins of the
confidence (Naeini et al. 2015; Guo et al. 2017), Brier = mean (conf − y)² (Brier 1950), NLL = −mean log p(y) with p clipped
to [1e-6, 1 − 1e-6].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

BINS = 10
CLIP = 1e-6


@dataclass(frozen=True)
class Calibration:
    """The scores, and the bins of a reliability diagram (bins without a prediction have NaN means)."""

    ece: float
    brier: float
    nll: float
    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    def as_dict(self) -> dict[str, object]:
        """Plain JSON; empty bins have null."""
        return {
            "ece": self.ece,
            "brier": self.brier,
            "nll": self.nll,
            "bins": {
                "count": self.count.tolist(),
                "confidence": [None if np.isnan(v) else float(v) for v in self.confidence],
                "accuracy": [None if np.isnan(v) else float(v) for v in self.accuracy],
            },
        }


def calibration(confidence: ArrayLike, outcome: ArrayLike, bins: int = BINS) -> Calibration:
    """Calibration of predictions with `confidence` in [0, 1] whose `outcome` is 1 where they were right."""
    conf, y = np.asarray(confidence, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    if conf.ndim != 1 or conf.shape != y.shape or not len(conf):
        raise ValueError(f"confidence and outcome must be equally long and not empty, got {conf.shape} and {y.shape}")
    if not ((conf >= 0) & (conf <= 1)).all():
        raise ValueError("a confidence lies between 0 and 1")
    place = np.minimum((conf * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_conf = np.bincount(place, weights=conf, minlength=bins) / count
        mean_y = np.bincount(place, weights=y, minlength=bins) / count
    filled = count > 0
    ece = float((count[filled] / len(conf) * np.abs(mean_y - mean_conf)[filled]).sum())
    p = np.clip(conf, CLIP, 1 - CLIP)
    nll = float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))
    return Calibration(ece, float(np.mean((conf - y) ** 2)), nll, count, mean_conf, mean_y)


def binary(difference: ArrayLike, bins: int = BINS) -> Calibration:
    """Of a choice between two answers from their logit difference: conf = max(σ(d), 1 − σ(d)), right where d > 0."""
    d = np.asarray(difference, dtype=np.float64)
    return calibration(expit(np.abs(d)), d > 0, bins)
