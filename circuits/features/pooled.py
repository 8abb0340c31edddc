"""A store of activations as features of samples: one sparse number for each sample and feature, and how good the SAE is there.

Rows are encoded in parts and pooled over each sample's tokens at once (``max`` or ``mean``), so that memory grows with what is
active and not with tokens × features. Explained variance is measured on the way, by token type: an SAE that reads images badly must
not be believed on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from circuits.activations.store import ActivationStore
from circuits.errors import UserError
from circuits.sae.memory import FEATURES_AT_ONCE
from circuits.sae.modules import SAE


@dataclass
class Quality:
    """Sums from which explained variance follows: 1 − Σ ‖x − x̂‖² / Σ ‖x − mean‖²."""

    rows: int = 0
    error: float = 0.0
    squares: float = 0.0
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def add(self, x: Tensor, error: Tensor) -> None:
        """More rows ``[n, width]``, with the squared error of each."""
        if not len(x):
            return
        wide = x.double()
        self.rows += len(x)
        self.error += float(error.double().sum())
        self.squares += float(wide.square().sum())
        summed = wide.sum(0).cpu().numpy()
        self.total = summed if not len(self.total) else self.total + summed

    @property
    def explained_variance(self) -> float | None:
        """None of fewer than two rows, or rows without variance."""
        if self.rows < 2:
            return None
        variance = self.squares - float(np.square(self.total).sum()) / self.rows
        return 1 - self.error / variance if variance > 0 else None


@dataclass(frozen=True)
class Pooled:
    """One store's features by sample."""

    values: sparse.csc_matrix
    """``[samples, d_sae]``, samples by their number in the set; dropped ones have no value."""
    present: NDArray[np.bool_]
    """Which samples have rows."""
    quality: dict[str, Quality]
    """By token type, and ``all``."""
    l0: float
    """Mean number of active features a row."""

    @property
    def dead(self) -> int:
        """Features that no sample has."""
        return int((np.diff(self.values.indptr) == 0).sum())

    @property
    def mean_activation(self) -> float:
        """Over samples and features where it is not zero."""
        return float(self.values.data.mean()) if self.values.nnz else 0.0


def pool(
    store: ActivationStore,
    sae: SAE,
    n_samples: int,
    how: str = "max",
    *,
    skip_first: int = 0,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Pooled:
    """Encode and pool a whole store, but for the first `skip_first` positions of each sample.

    Raises:
        UserError: an SAE of another width than the store's.
    """
    if sae.cfg.d_in != store.width:
        raise UserError(
            f"an SAE of width {sae.cfg.d_in} on activations of width {store.width}: made for another model or site"
        )
    index = store.rows
    kept = np.flatnonzero(index["position"].to_numpy() >= skip_first)
    samples = index["sample"].to_numpy()[kept]
    types = index["token_type"].astype(str).to_numpy()[kept] if "token_type" in index else None
    quality = {"all": Quality(), **({name: Quality() for name in np.unique(types)} if types is not None else {})}
    starts = np.flatnonzero(np.concatenate([[True], samples[1:] != samples[:-1]])) if len(samples) else np.zeros(0, int)
    ends = np.append(starts[1:], len(samples))
    at_once, parts, active = max(1, FEATURES_AT_ONCE // sae.cfg.d_sae), [], 0
    first = 0
    while first < len(starts):  # at a time whole samples, as many as fit
        last = first + 1
        while last < len(starts) and ends[last] - starts[first] <= at_once:
            last += 1
        rows = slice(int(starts[first]), int(ends[last - 1]))
        x = torch.from_numpy(store.float32(kept[rows])).to(sae.W_enc.device)
        f = sae.encode(x)
        error = (sae.decode(f, x) - x).float().square().sum(-1)
        quality["all"].add(x, error)
        for name in quality.keys() - {"all"}:
            mine = torch.from_numpy(types[rows] == name).to(x.device) if types is not None else slice(None)
            quality[name].add(x[mine], error[mine])
        active += int((f > 0).sum())
        parts.append(_by_sample(f, samples[rows], how))
        first = last
        tell(int(ends[last - 1]), len(samples))
    values = (
        sparse.vstack([part for part, _ in parts], format="csr") if parts else sparse.csr_matrix((0, sae.cfg.d_sae))
    )
    numbers = np.concatenate([numbers for _, numbers in parts]) if parts else np.zeros(0, np.int64)
    present = np.zeros(n_samples, bool)
    present[numbers] = True
    placed = sparse.csr_matrix((np.ones(len(numbers), np.float32), (numbers, np.arange(len(numbers)))),
                               shape=(n_samples, len(numbers)))  # fmt: skip
    return Pooled(sparse.csc_matrix(placed @ values, dtype=np.float32), present, quality, active / max(1, len(samples)))


def _by_sample(f: Tensor, samples: NDArray[np.int64], how: str) -> tuple[Any, NDArray[np.int64]]:
    numbers, place = np.unique(samples, return_inverse=True)
    index = torch.from_numpy(place).to(f.device)[:, None].expand_as(f)
    out = torch.zeros(len(numbers), f.shape[1], device=f.device, dtype=f.dtype)
    out.scatter_reduce_(0, index, f, "amax" if how == "max" else "mean", include_self=how == "max")
    return sparse.csr_matrix(out.float().cpu().numpy()), numbers
