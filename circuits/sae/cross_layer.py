"""Cross-layer transcoder: Ameisen et al. 2025, "Circuit Tracing" (transformer-circuits.pub), "Building an interpretable replacement
model".

    f_s = act(x_s W_enc,s + b_enc,s)          ŷ_t = Σ_{s ≤ t < s + band} f_s W_dec,s→t + b_dec,t          L = Σ_t ‖y_t − ŷ_t‖²

Each layer has an encoder of its MLP's input; its features write to the MLP outputs of that layer and of all later ones (or of
`band` of them). Sparsity as in BatchTopK (arXiv:2412.06410): of a batch of B rows the k·L·B largest pre-activations of all layers
together are kept, so that layers share their features as they need them; outside training those above a threshold, the moving
average of the smallest one that was kept. A feature's decoder rows have norm 1 over all layers that it writes to.

Every product but the encoders' is a sum over active entries (:mod:`circuits.sae.modules.support`), source layer by source layer:
the decoders of one source layer to all its targets are one table, and what it is to write is a slice of the rows of all layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuits.sae.modules.auxiliary import strongest
from circuits.sae.modules.base import SAE, Architecture, Objective, Outcome, SAEConfig
from circuits.sae.modules.batchtopk import move_threshold
from circuits.sae.modules.gradients import Weights, buffer
from circuits.sae.modules.selection import BatchSelection
from circuits.sae.modules.support import Support
from circuits.sae.normalise import Units
from circuits.sae.spec import TrainSpec


def targets(layer: int, layers: int, band: int | None) -> int:
    """To how many layers the features of a layer write."""
    return min(layers - layer, band or layers)


class CrossLayerTranscoder(SAE):
    """Rows of all layers' inputs side by side go in, those of all layers' outputs come out."""

    architecture = "cross_layer"
    saelens = ""

    def __init__(self, cfg: SAEConfig) -> None:
        nn.Module.__init__(self)
        self.cfg, self.block_scales = cfg, ()
        n = self.layers = cfg.blocks
        d, m, out = cfg.d_in // n, cfg.d_sae // n, cfg.width_out // n
        self.W_enc = nn.Parameter(torch.zeros(n, d, m), requires_grad=False)
        self.b_enc = nn.Parameter(torch.zeros(n, m), requires_grad=False)
        self.threshold = nn.Parameter(torch.zeros(n, m), requires_grad=False)
        self.b_dec = nn.Parameter(torch.zeros(cfg.width_out), requires_grad=False)
        self.decoders = nn.ParameterList(
            nn.Parameter(torch.zeros(m, targets(s, n, cfg.band) * out), requires_grad=False) for s in range(n)
        )

    def __repr__(self) -> str:
        cfg, n = self.cfg, self.layers
        band = "" if cfg.band is None else f", band {cfg.band}"
        return f"CrossLayerTranscoder({n} layers: {cfg.d_in // n} → {cfg.d_sae // n:,} features each → {cfg.width_out // n}{band})"

    def activate(self, pre: Float[Tensor, "... layers m"]) -> Float[Tensor, "... layers m"]:
        return pre.relu() * (pre > self.threshold)

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Features of all layers, one layer after the other."""
        parts = x.to(self.W_enc.dtype).unflatten(-1, (self.layers, -1))
        pre = torch.einsum("...ld,ldm->...lm", parts, self.W_enc) + self.b_enc
        f = self.activate(pre).flatten(-2)
        return f if self.massive is None else f * self.massive.kept(x)[..., None]

    def encode_layer(self, layer: int, x: Float[Tensor, "... d"]) -> Float[Tensor, "... m"]:
        """Features of one layer, by its place among them, from what that layer reads; none where that alone is massive."""
        pre = x.to(self.W_enc.dtype) @ self.W_enc[layer] + self.b_enc[layer]
        f = pre.relu() * (pre > self.threshold[layer])
        return f if self.massive is None else f * self.massive.kept_part(layer, x)[..., None]

    def table(self, source: int, target: int) -> Float[Tensor, "m width"] | None:
        """What the features of one layer write to another one, by their places; None where they do not reach it."""
        out = self.cfg.width_out // self.layers
        start = (target - source) * out
        whole = self.decoders[source]
        return whole[:, start : start + out] if 0 <= start < whole.shape[1] else None

    def decode(
        self, f: Float[Tensor, "... d_sae"], x: Float[Tensor, "... d_in"] | None = None
    ) -> Float[Tensor, "... d_out"]:
        found = self.b_dec.expand(*f.shape[:-1], -1).clone()
        out = self.cfg.width_out // self.layers
        for s, (part, table) in enumerate(zip(f.chunk(self.layers, dim=-1), self.decoders, strict=True)):
            found[..., s * out : s * out + table.shape[1]] += part @ table
        return found

    def norms(self) -> Float[Tensor, "layers m layers"]:
        """Of every source layer's features the decoder norm at every target layer, in units in which targets count alike."""
        n, out = self.layers, self.cfg.width_out // self.layers
        found = torch.zeros(n, self.cfg.d_sae // n, n)
        scales = torch.tensor(self.block_scales or (1.0,) * n)
        for s, table in enumerate(self.decoders):
            reach = table.shape[1] // out
            found[s, :, s : s + reach] = table.detach().cpu().unflatten(1, (reach, out)).norm(dim=2)
        return found * scales


class CrossLayerObjective(Objective):
    """The reconstruction error of all layers, and the auxiliary loss on dead features."""

    def __init__(self, spec: TrainSpec) -> None:
        super().__init__(spec)
        self.select = BatchSelection()
        self.state = {"threshold": torch.zeros(())}
        self.n = spec.blocks
        self.out = spec.width_out // max(1, self.n)

    @staticmethod
    def problems(spec: TrainSpec) -> list[str]:
        wrong = []
        if spec.d_out is None:
            wrong.append("a cross-layer transcoder reads one site and writes another: d_out is needed")
        if any(size % spec.blocks for size in (spec.d_in, spec.d_sae, spec.width_out)):
            wrong.append(f"blocks = {spec.blocks}: d_in, d_sae and d_out must be divisible by it")
        elif spec.k is None or not 1 <= spec.k <= spec.d_sae // spec.blocks:
            wrong.append(f"k = {spec.k} is not between 1 and the {spec.d_sae // spec.blocks} features of a layer")
        if spec.band is not None and not 1 <= spec.band <= spec.blocks:
            wrong.append(f"band = {spec.band} is not between 1 and the {spec.blocks} layers")
        return wrong

    def init(self, generator: torch.Generator) -> Weights:
        n, m, d = self.n, self.spec.d_sae // self.n, self.spec.d_in // self.n
        found = {"W_enc": F.normalize(torch.randn(n, m, d, generator=generator), dim=2), "b_enc": torch.zeros(n * m)}
        for s in range(n):
            wide = targets(s, n, self.spec.band) * self.out
            found[f"W_dec.{s}"] = F.normalize(torch.randn(m, wide, generator=generator), dim=1)
        found["b_dec"] = torch.zeros(self.spec.width_out)
        return {name: nn.Parameter(value) for name, value in found.items()}

    def _slice(self, s: int) -> slice:
        return slice(s * self.out, (s + targets(s, self.n, self.spec.band)) * self.out)

    def _pre(self, w: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and pre-activations, layer by layer: [layers, batch, …]."""
        parts = x.unflatten(1, (self.n, -1)).transpose(0, 1).contiguous()
        pre = torch.baddbmm(w["b_enc"].view(self.n, 1, -1), parts, w["W_enc"].transpose(1, 2))
        return parts, pre

    def gradients(self, w: Weights, x: Tensor, y: Tensor, step: int, dead: Int[Tensor, " n_dead"] | None) -> Outcome:
        batch, m = len(x), self.spec.d_sae // self.n
        parts, pre = self._pre(w, x)
        f, index = self.select(pre.view(self.n * batch, m), self.spec.k_at(step) * self.n * batch)
        ends = torch.searchsorted(index, torch.arange(self.n + 1, device=index.device) * (batch * m)).tolist()
        error, supports = w["b_dec"] - y, []
        for s in range(self.n):
            mine = slice(ends[s], ends[s + 1])
            support = Support.flat(index[mine] - s * batch * m, batch, m)
            supports.append((support, f[mine], (f[mine] > 0).to(f.dtype)))
            error[:, self._slice(s)] += support.decode(f[mine], w[f"W_dec.{s}"])
        g = error * (2 / batch)
        fired, along = [], []
        bias, encoder = buffer(w["b_enc"]).view(self.n, -1), buffer(w["W_enc"])
        for s, (support, values, on) in enumerate(supports):
            table, own = w[f"W_dec.{s}"], g[:, self._slice(s)].contiguous()
            h = support.dots(own, table).mul_(on)
            support.weight_gradient(values, own, buffer(table))
            support.weight_gradient(h, parts[s], encoder[s])
            bias[s] = support.feature_sums(h)
            fired.append(support.feature_sums(on))
            along.append(support.feature_sums(values * h))
        torch.sum(g, dim=0, out=buffer(w["b_dec"]))
        terms = {} if dead is None else {"aux": self._auxiliary(w, parts, pre, error, dead, along)}
        whole = torch.cat(fired)
        smallest = torch.where(f > 0, f, torch.inf).min() if len(f) else torch.full((), torch.inf, device=f.device)
        return Outcome(error, whole, whole.sum(), terms, torch.cat(along), smallest)

    def _auxiliary(
        self, w: Weights, parts: Tensor, pre: Tensor, error: Tensor, dead: Tensor, along: list[Tensor]
    ) -> Tensor:
        """What dead features would explain of the rest, layer by layer (modules/auxiliary.py); adds its gradients."""
        batch, m, total = len(error), self.spec.d_sae // self.n, error.new_zeros(())
        for s in range(self.n):
            mine = dead[(dead >= s * m) & (dead < (s + 1) * m)] - s * m
            if not len(mine):
                continue
            z, rows = strongest(pre[s][:, mine], max(1, self.out // 2)), w[f"W_dec.{s}"][mine]
            miss = torch.addmm(error[:, self._slice(s)], z, rows)
            g = miss * (2 * self.spec.aux / batch)
            h = (g @ rows.T).mul_(z != 0)
            buffer(w[f"W_dec.{s}"]).index_add_(0, mine, z.T @ g)
            buffer(w["W_enc"])[s].index_add_(0, mine, h.T @ parts[s])
            buffer(w["b_enc"]).view(self.n, -1)[s].index_add_(0, mine, h.sum(0))
            along[s].index_add_(0, mine, z.mul(h).sum(0))
            total = total + miss.square().sum() * (self.spec.aux / batch)
        return total

    def loss(self, w: Weights, x: Tensor, y: Tensor, step: int, dead: Int[Tensor, " n_dead"] | None) -> Tensor:
        _, pre = self._pre(w, x)
        flat = pre.relu().flatten()
        values, index = flat.topk(self.spec.k_at(step) * self.n * len(x))
        f = torch.zeros_like(flat).scatter(0, index, values).view_as(pre)
        found = w["b_dec"].expand(len(x), -1)
        for s in range(self.n):
            wide = torch.zeros_like(found)
            wide[:, self._slice(s)] = f[s] @ w[f"W_dec.{s}"]
            found = found + wide
        loss = (found - y).square().sum(1).mean()
        if dead is None:
            return loss
        m, residual = self.spec.d_sae // self.n, (y - found).detach()
        for s in range(self.n):
            mine = dead[(dead >= s * m) & (dead < (s + 1) * m)] - s * m
            if len(mine):
                z = strongest(pre[s][:, mine], max(1, self.out // 2))
                miss = residual[:, self._slice(s)] - z @ w[f"W_dec.{s}"][mine]
                loss = loss + self.spec.aux * miss.square().sum(1).mean()
        return loss

    def follow(self, outcome: Outcome, step: int) -> None:
        """Move the threshold towards this batch's smallest positive activation."""
        move_threshold(self.state["threshold"], outcome, self.spec, step)

    @torch.no_grad()
    def export(self, sae: SAE, w: Weights, read: Units, write: Units) -> None:
        """On raw rows: with x' = s ⊙ (x − μ) and y' = t ⊙ (y − ν), t = scale · by, features keep the common scale of the output."""
        if not isinstance(sae, CrossLayerTranscoder):
            raise TypeError(f"a cross-layer transcoder is exported, not a {type(sae).__name__}")
        n, ones = self.n, torch.ones_like(read.mean)
        by_read = (ones if read.by is None else read.by).view(n, -1)
        encoder = w["W_enc"] * (by_read[:, None] * (read.scale / write.scale))
        sae.W_enc.copy_(encoder.transpose(1, 2))
        offset = torch.einsum("lmd,ld->lm", encoder, read.mean.view(n, -1))
        sae.b_enc.copy_(w["b_enc"].view(n, -1) / write.scale - offset)
        sae.threshold.fill_(float(self.state["threshold"]) / write.scale)
        by = torch.ones_like(write.mean) if write.by is None else write.by
        for s, table in enumerate(sae.decoders):
            table.copy_(w[f"W_dec.{s}"] / by[self._slice(s)])
        sae.b_dec.copy_(write.mean + w["b_dec"] / (write.scale * by))
        sae.block_scales = tuple(float(part[0]) for part in by.chunk(n))


ARCHITECTURE = Architecture("cross_layer", CrossLayerTranscoder, CrossLayerObjective)
