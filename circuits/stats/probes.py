"""A linear probe: L2-regularised logistic regression, judged on groups that it was not fitted on.

    min_w  Σ log(1 + exp(−y (x·w + b))) + λ/2 ‖w‖²        features standardised on the training side (Cox 1958; L-BFGS)

Folds are made of whole groups, so that twins, or captions of one picture, never stand on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Probe:
    """A fitted probe."""

    mean: Array
    scale: Array
    weights: Array
    bias: float

    def p(self, x: Array) -> Array:
        """P(class 1) of each row ``[n, features]``."""
        return np.asarray(expit(((x - self.mean) / self.scale) @ self.weights + self.bias))


def fit(x: Array, y: NDArray[np.bool_], penalty: float = 1.0, weights: Array | None = None) -> Probe:
    """Fit on rows ``[n, features]``, each counted with its weight (1 where None); features without variance get no weight.

    Raises:
        ValueError: one class only.
    """
    if y.all() or not y.any():
        raise ValueError("a probe needs both classes")
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    z, sign = (x - mean) / scale, np.where(y, 1.0, -1.0)
    counted = np.ones(len(y)) if weights is None else weights

    def loss(theta: Array) -> tuple[float, Array]:
        margin = sign * (z @ theta[:-1] + theta[-1])
        pull = -sign * expit(-margin) * counted
        gradient = np.append(z.T @ pull + penalty * theta[:-1], pull.sum())
        return float((counted * np.logaddexp(0, -margin)).sum() + penalty / 2 * theta[:-1] @ theta[:-1]), gradient

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return Probe(mean, scale, np.asarray(found.x[:-1]), float(found.x[-1]))


def folds(groups: Sequence[object], n: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row: whole groups, drawn into `n` folds of about equal numbers of groups."""
    _, code = np.unique(np.asarray([str(one) for one in groups]), return_inverse=True)
    place = np.random.default_rng(seed).permutation(int(code.max(initial=-1)) + 1)
    return np.asarray(place[code] % n, np.int64)


def held_out(
    x: Array, y: NDArray[np.bool_], fold: NDArray[np.int64], tested: Sequence[Array], penalty: float = 1.0
) -> list[Array]:
    """P(class 1) of every row by the probe that was fitted without its fold, for each of the matrices `tested` (same rows)."""
    found = [np.full(len(y), np.nan) for _ in tested]
    for one in np.unique(fold):
        inside = fold == one
        probe = fit(x[~inside], y[~inside], penalty)
        for out, other in zip(found, tested, strict=True):
            out[inside] = probe.p(other[inside])
    return found
