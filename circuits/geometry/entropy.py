"""Entropies of Gaussians fitted to activations, and the KL divergence between two of them (SPEC TL-20).

With N rows in D dimensions, the covariance Σ over N − 1 and ε = 1e-3, in nats and up to the constant D/2·ln 2πe:

=========  ========================================================================================================
full       ½ log det(Σ + ε·tr(Σ)/D · I)
diagonal   ½ Σ_d log(v_d + ε · mean v), v_d the variance of dimension d
subspace   ½ Σ_{j ≤ k} log(λ_j + ε · mean λ_{1..k}); k is the smallest number of principal components that hold 95% of
           the variance, at most 256
=========  ========================================================================================================

Differential entropy of a Gaussian: Cover & Thomas 2006, theorem 8.4.1. Σ has at most N − 1 eigenvalues above 0: with N ≤ D the
other D − N + 1 terms of `full` are all ½ log of the ridge, so that it measures the total variance more than the shape.

No D × D matrix is made where N < D: eigenvalues come from a thin SVD of the centred rows (of Gram matrices for many positions at
once), and Σ⁻¹ is applied in the rows' own span and as 1/ridge outside of it. All in float64: the ridge can be a millionth of the
trace, below what float32 resolves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 1e-3
FLOOR = 1e-30
"""Of what a logarithm is taken of."""
VARIANCE, MOST = 0.95, 256
"""Share of the variance that the subspace holds, and its most dimensions."""


@dataclass(frozen=True)
class Fit:
    """A Gaussian fitted to rows."""

    n: int
    mean: Float[Tensor, " width"]
    centred: Float[Tensor, "n width"]
    eigenvalues: Float[Tensor, " m"]
    """Of Σ, largest first; those beyond m = min(n, width) are 0."""
    directions: Float[Tensor, "width m"]

    @staticmethod
    def of(x: Float[Tensor, "n width"]) -> Fit:
        """The fit of at least two rows.

        Raises:
            ValueError: fewer than two.
        """
        if len(x) < 2:
            raise ValueError(f"{len(x)} rows have no covariance: at least 2")
        x = x.double()
        mean = x.mean(0)
        centred = x - mean
        _, s, directions = torch.linalg.svd(centred, full_matrices=False)
        return Fit(len(x), mean, centred, s.square() / (len(x) - 1), directions.mT)

    @property
    def width(self) -> int:
        """D."""
        return self.centred.shape[1]

    @property
    def ridge(self) -> Tensor:
        """ε·tr(Σ)/D."""
        return RIDGE * self.eigenvalues.sum() / self.width


def full(fit: Fit) -> float:
    """½ log det of the ridged covariance."""
    return float(_half_log_det(fit.eigenvalues, fit.width))


def diagonal(fit: Fit) -> float:
    """The same with all correlations set to 0."""
    v = fit.centred.square().sum(0) / (fit.n - 1)
    return float(_logs(v + RIDGE * v.mean()).sum() / 2)


def subspace(fit: Fit) -> tuple[float, int]:
    """The entropy within the principal components that hold 95% of the variance, and their number."""
    held = fit.eigenvalues.cumsum(0)
    k = int((held < VARIANCE * held[-1]).sum()) + 1
    top = fit.eigenvalues[: min(k, MOST)]
    return float(_logs(top + RIDGE * top.mean()).sum() / 2), len(top)


def per_token(x: Float[Tensor, "n pos width"]) -> float:
    """`full` at each position, averaged; NaN without a position.

    The positions are to be those that all rows have and at which they differ: a single point has no entropy.
    """
    n, pos, width = x.shape
    if pos == 0:
        return math.nan
    x = x.double().transpose(0, 1)
    centred = x - x.mean(1, keepdim=True)
    small = centred @ centred.mT if n <= width else centred.mT @ centred
    eigenvalues = torch.linalg.eigvalsh(small / (n - 1)).clamp(min=0)
    return float(_half_log_det(eigenvalues, width).mean())


def gaussian_kl(p: Fit, q: Fit) -> float:
    """KL(p ‖ q) = ½[tr(Σ_q⁻¹Σ_p) + Δᵀ Σ_q⁻¹ Δ − D + ln det Σ_q/det Σ_p], each Σ with its own ridge, Δ the means' difference."""
    width = p.width
    trace = _inverse_form(q, p.centred) / (p.n - 1) + p.ridge * _inverse_trace(q)
    shift = _inverse_form(q, (q.mean - p.mean)[None])
    volumes = 2 * (_half_log_det(q.eigenvalues, width) - _half_log_det(p.eigenvalues, width))
    return float((trace + shift - width + volumes) / 2)


def _half_log_det(eigenvalues: Float[Tensor, "*batch m"], width: int) -> Float[Tensor, "*batch"]:
    """½ log det(Σ + ridge) from the eigenvalues of Σ that may differ from 0."""
    ridge = RIDGE * eigenvalues.sum(-1) / width
    rest = width - eigenvalues.shape[-1]
    return (_logs(eigenvalues + ridge[..., None]).sum(-1) + rest * _logs(ridge)) / 2


def _inverse_form(fit: Fit, rows: Float[Tensor, "n width"]) -> Tensor:
    """Σ_rows rowᵀ (Σ + ridge)⁻¹ row: within the fit's directions, and outside of them."""
    inside = (rows @ fit.directions).square().sum(0)
    outside = (rows.square().sum() - inside.sum()).clamp(min=0)
    return (inside / (fit.eigenvalues + fit.ridge)).sum() + outside / fit.ridge


def _inverse_trace(fit: Fit) -> Tensor:
    """tr (Σ + ridge)⁻¹."""
    return (1 / (fit.eigenvalues + fit.ridge)).sum() + (fit.width - len(fit.eigenvalues)) / fit.ridge


def _logs(x: Tensor) -> Tensor:
    return x.clamp(min=FLOOR).log()
