"""The active entries of a batch of feature activations, and the sums over them that a sparse training step consists of.

With few of a row's features active, every product but the encoder's forward is a weighted sum of few rows:

    decode            out[b]   = Σ_{(b,i)} v_{bi} · table[i]         a bag of embeddings per row
    dots              out_{bi} = ⟨g[b], table[i]⟩                    a dense product sampled at the entries
    weight_gradient   out[i]   = Σ_{(b,i)} v_{bi} · table[b]         entries sorted by feature: a CSR matrix times a dense one

On a CPU with MKL the last two are its CSR kernels, writing into buffers that exist; elsewhere ``embedding_bag`` does all
three, so that no kernel of our own is needed on an accelerator either. Every sum has a fixed order: results repeat bit by bit.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from circuits.sae.modules.scratch import scratch

SPARSE_SHARE = 0.1
"""On a CPU, sums over entries beat dense products below this share of active entries (measured: about 0.14)."""
ACCELERATOR_SHARE = 1 / 1024
"""On a GPU, whose matrix units make dense products cheap, below this one (a guess: not measured). Others take dense products."""

with warnings.catch_warnings():  # that CSR tensors are in beta is said once a process: here, to nobody
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(
        torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0), (1, 1)
    )


def sparse_pays(entries: int, batch: int, d_sae: int, device: torch.device) -> bool:
    """Whether a step with this many active entries is faster by sums over them than by dense products."""
    share = {"cpu": SPARSE_SHARE, "cuda": ACCELERATOR_SHARE}.get(device.type, 0.0)
    return entries <= share * batch * d_sae


class Support:
    """Where activations are non-zero: entry n is at row `rows[n]` (ascending) and feature `features[n]`."""

    def __init__(
        self,
        rows: Int[Tensor, " n"],
        features: Int[Tensor, " n"],
        starts: Int[Tensor, " batch_plus_1"],
        d_sae: int,
    ) -> None:
        self.rows, self.features, self.starts, self.d_sae = rows, features, starts, d_sae
        self.native = rows.device.type == "cpu" and torch.backends.mkl.is_available()
        self._sorted: tuple[Tensor, Tensor] | None = None

    @classmethod
    def uniform(cls, features: Int[Tensor, "batch k"], d_sae: int) -> Support:
        """k entries in every row."""
        batch, k = features.shape
        starts = torch.arange(0, batch * k + 1, k, device=features.device)
        rows = torch.arange(batch, device=features.device).repeat_interleave(k)
        return cls(rows, features.flatten(), starts, d_sae)

    @classmethod
    def flat(cls, index: Int[Tensor, " n"], batch: int, d_sae: int) -> Support:
        """Ascending positions in the flattened ``[batch, d_sae]``."""
        rows = index // d_sae
        starts = torch.searchsorted(rows, torch.arange(batch + 1, device=index.device))
        return cls(rows, index - rows * d_sae, starts, d_sae)

    @classmethod
    def where(cls, mask: Bool[Tensor, "batch d_sae"]) -> tuple[Support, Int[Tensor, " n"]]:
        """The True entries, and their positions in the flattened mask. Waits for the device."""
        index = mask.view(-1).nonzero().squeeze(1)
        return cls.flat(index, *mask.shape), index

    def decode(self, values: Float[Tensor, " n"], table: Float[Tensor, "d_sae d"]) -> Float[Tensor, "batch d"]:
        """Σ of a row's entries, each times the table's row of its feature."""
        starts = self.starts[:-1]
        return F.embedding_bag(self.features, table, starts, per_sample_weights=values, mode="sum")

    def dots(self, g: Float[Tensor, "batch d"], table: Float[Tensor, "d_sae d"]) -> Float[Tensor, " n"]:
        """⟨g[row], table[feature]⟩ at every entry: what reaches an activation from the gradient of its row's decoding."""
        if self.native:
            ones = torch.ones_like(self.features, dtype=g.dtype)
            shape = (len(g), self.d_sae)
            here = torch.sparse_csr_tensor(self.starts, self.features, ones, shape, check_invariants=False)
            return torch.sparse.sampled_addmm(here, g, table.T, beta=0).values()
        with torch.enable_grad():
            values = torch.zeros_like(self.features, dtype=g.dtype, requires_grad=True)
            sums = self.decode(values, table.detach())
        return torch.autograd.grad(sums, values, g)[0]

    def weight_gradient(
        self,
        values: Float[Tensor, " n"],
        table: Float[Tensor, "batch d"],
        out: Float[Tensor, "d_sae d"],
        rows: Int[Tensor, " n"] | None = None,
    ) -> None:
        """Σ of a feature's entries, each times the table's row of its batch row (or of `rows`), into `out`."""
        order, starts = self.by_feature()
        at, weights = (self.rows if rows is None else rows)[order], values[order]
        if self.native:
            shape = (self.d_sae, len(table))
            matrix = torch.sparse_csr_tensor(starts, at, weights, shape, check_invariants=False)
            torch.addmm(out, matrix, table, beta=0, out=out)
        else:
            out.copy_(F.embedding_bag(at, table, starts[:-1], per_sample_weights=weights, mode="sum"))

    def by_feature(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " d_sae_plus_1"]]:
        """The entries' order by feature (stable), and where each feature's begin."""
        if self._sorted is None:
            narrow = torch.int16 if self.d_sae < 1 << 15 else torch.int32  # radix sort: half the bytes, half the time
            found, order = self.features.to(narrow).sort(stable=True)
            bounds = torch.arange(self.d_sae + 1, device=found.device)
            self._sorted = (order, torch.searchsorted(found.to(bounds.dtype), bounds))
        return self._sorted

    def feature_sums(self, values: Float[Tensor, " n"]) -> Float[Tensor, " d_sae"]:
        """Σ of the values of each feature's entries. (On an accelerator index_add_ sums in any order.)"""
        if values.device.type != "cpu":
            order, starts = self.by_feature()
            return F.embedding_bag(order, values[:, None], starts[:-1], mode="sum").squeeze(1)
        return torch.zeros(self.d_sae, dtype=values.dtype, device=values.device).index_add_(0, self.features, values)


def sparse_support(mask: Bool[Tensor, "batch d_sae"]) -> tuple[Support, Int[Tensor, " n"]] | None:
    """The support of `mask` when sums over it are the faster way, else None; on an accelerator always None."""
    if mask.device.type != "cpu" or not few(mask.count_nonzero(), mask):
        return None
    return Support.where(mask)


def few(count: Tensor, over: Shaped[Tensor, "batch d_sae"]) -> bool:
    """Whether `count` active entries of a batch are few enough for sums over them; on an accelerator False without a look, since
    reading the count would make the host wait."""
    return count.device.type == "cpu" and sparse_pays(int(count), len(over), over.shape[1], over.device)


def positive(f: Float[Tensor, "batch d_sae"], bound: float = 0.0) -> Bool[Tensor, "batch d_sae"]:
    """f > bound, in a buffer that the next call overwrites."""
    return torch.gt(f, bound, out=scratch("mask", tuple(f.shape), f, torch.bool))
