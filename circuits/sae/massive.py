"""Massive activations: the few rows whose norm is many times that of the others, and which an SAE is not made for.

Llama-like models write a constant of enormous norm at their first token, some also at the first line break after it (Sun et al.
2024, "Massive activations in large language models", arXiv:2402.17762). In SmolLM2's layer 12 one held-out row in four thousand
holds 71% of all variance (docs/real-model.md): an SAE that reconstructs these and nothing else explains 71%. The first position
is left out anyway (`sae.skip_first`). A row elsewhere is *massive* where its norm is more than `sae.massive` times the median
norm, and massive rows are left out of training and of every measure where they *dominate*: where they hold more than half of
the variance. Whether they do is settled once, on the rows from which the units of training come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

DOMINATING = 0.5
"""Share of the variance from which on massive rows are left out."""


@dataclass(frozen=True)
class Massive:
    """Which rows are left out. Rows may have several parts side by side (a transcoder's x and y, a crosscoder's layers); one part
    is enough."""

    widths: tuple[int, ...]
    limits: tuple[float, ...]
    """The largest norm of each part that is kept; infinite where nothing dominates."""

    def kept_part(self, part: int, rows: Float[Tensor, "... width"]) -> Bool[Tensor, ...]:
        """As :meth:`kept`, of one part and by it alone."""
        return ~(torch.linalg.vector_norm(rows.float(), dim=-1) > self.limits[part])

    def kept(self, rows: Float[Tensor, "... d"]) -> Bool[Tensor, ...]:
        """Rows that are not massive, on their own device and without waiting for it. Of rows that are the first parts only (a
        transcoder's x) those are looked at. A NaN is kept: it is refused elsewhere."""
        keep, start = torch.ones(rows.shape[:-1], dtype=torch.bool, device=rows.device), 0
        for width, limit in zip(self.widths, self.limits, strict=True):
            if math.isfinite(limit) and start < rows.shape[-1]:
                part = rows[..., start : start + width].float()
                keep &= ~(torch.linalg.vector_norm(part, dim=-1) > limit)
            start += width
        return keep

    def facts(self) -> list[float | None]:
        """The limits, JSON-able."""
        return [limit if math.isfinite(limit) else None for limit in self.limits]


def of_facts(facts: Sequence[float | None] | None, d_in: int, d_out: int | None = None) -> Massive | None:
    """Back from :meth:`Massive.facts`.

    Raises:
        ValueError: they are not what that gives for these widths.
    """
    if facts is None:
        return None
    limits = tuple(math.inf if limit is None else float(limit) for limit in facts)
    widths = parts(d_in, d_out, max(1, len(limits) // (1 if d_out is None else 2)))
    if len(widths) != len(limits) or sum(widths) != d_in + (d_out or 0):
        raise ValueError(f"massive = {list(facts)} does not fit rows of {d_in + (d_out or 0)}")
    return Massive(widths, limits)


def parts(d_in: int, d_out: int | None = None, blocks: int = 1) -> tuple[int, ...]:
    """Widths of the parts of a row: its blocks, then those of the site that is reconstructed."""
    return (d_in // blocks,) * blocks + (() if d_out is None else (d_out // blocks,) * blocks)


def find(rows: Float[Tensor, "n d"], widths: Sequence[int], times: float | None) -> Massive | None:
    """What is massive among rows like these; None where nothing dominates, or `times` is None (everything is kept)."""
    if times is None or not len(rows):
        return None
    limits = [_limit(part, times) for part in rows.detach().cpu().split(list(widths), dim=-1)]
    return Massive(tuple(widths), tuple(limits)) if any(map(math.isfinite, limits)) else None


def sentence(metrics: Mapping[str, Any]) -> str:
    """What a reader of an SAE's metrics is to know of it; empty where all rows count."""
    found = metrics.get("massive")
    if not found:
        return ""
    rows, variance = found["rows"], found["variance"]
    return (
        f"massive activations, {rows:.2%} of the rows with {variance:.0%} of the variance, are left out (sae.massive)"
    )


def _limit(rows: Float[Tensor, "n d"], times: float) -> float:
    x = rows.double()
    norms = x.norm(dim=1)
    limit = times * float(norms.median())
    large = norms > limit
    if limit <= 0 or not bool(large.any()):
        return math.inf
    squares = (x - x.mean(0)).square().sum(1)
    return limit if float(squares[large].sum() / squares.sum()) > DOMINATING else math.inf
