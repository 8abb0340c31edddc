"""The dense products of a step that go through a whole table of features, by the faster of torch's libraries.

On a CPU torch hands float32 products to MKL, which is slow where the table is large beside the batch. torch carries oneDNN as
well, behind an operator that its compiler uses, and that is faster there. Where torch has no oneDNN, and on accelerators, every
product is torch's own.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.sae.modules.scratch import scratch

# Builds for Apple's processors have neither.
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def project(
    x: Float[Tensor, "batch d"], table: Float[Tensor, "d_sae d"], bias: Float[Tensor, " d_sae"] | None, buffer: str
) -> Float[Tensor, "batch d_sae"]:
    """x tableᵀ + bias, perhaps in the scratch buffer of that name: valid until the next call with it."""
    if _onednn(x):
        return _linear(x, table, bias)
    out = scratch(buffer, (len(x), len(table)), x)
    return torch.mm(x, table.T, out=out) if bias is None else torch.addmm(bias, x, table.T, out=out)


def combine(
    f: Float[Tensor, "batch d_sae"], table: Float[Tensor, "d_sae d"], bias: Float[Tensor, " d"]
) -> Float[Tensor, "batch d"]:
    """f table + bias."""
    return _linear(f, table.T, bias) if _onednn(f) else torch.addmm(bias, f, table)


def _onednn(x: Tensor) -> bool:
    return ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weightᵀ + bias by oneDNN. (Its ReLU, which the operator could append, turns NaN into 0: a lost loss would go unseen.)"""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
