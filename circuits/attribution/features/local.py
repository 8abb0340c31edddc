"""One prompt with SAEs or transcoders in place: what is active, what they leave out, and the linear map between them.

Every chosen layer's output site (of an SAE the site itself, of a transcoder the site that it writes) is cut out of the graph: what
follows is computed from a leaf of equal value, f W_dec + b_dec + error; of a cross-layer transcoder that is a sum over this and all
earlier layers. A row of the graph is the gradient of one target (a feature's activation, a logit) at all leaves, so an edge is what
a source adds, wherever it writes, times that gradient: its direct effect, through no other feature. With transcoders attention
patterns and norms are constants, and the map is linear (Ameisen et al. 2025, "Circuit tracing"; Dunefsky et al. 2024,
arXiv:2406.11944); a skip connection stays in the graph. With SAEs it is the ordinary gradient between neighbouring sites (Marks et
al., arXiv:2403.19647).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.attribution.anatomy import Anatomy
from circuits.attribution.features.dictionaries import Dictionaries
from circuits.attribution.rules import applied
from circuits.model_input import ModelInput
from circuits.models.hooks import Edit, forward
from circuits.models.modules import module_at


@dataclass(frozen=True)
class Active:
    """What is active in one layer: position, feature and activation of each, and what is left out.

    Attributes:
        position: ``[n]``.
        feature: ``[n]``.
        value: f of each, ``[n]``.
        error: output − reconstruction, ``[pos, width]``.
        out: the output site itself, ``[pos, width]``.
    """

    position: Int[Tensor, " n"]
    feature: Int[Tensor, " n"]
    value: Float[Tensor, " n"]
    error: Float[Tensor, "pos width"]
    out: Float[Tensor, "pos width"]

    @cached_property
    def places(self) -> list[tuple[int, Int[Tensor, " some"]]]:
        """Of each position with active features: which of the n they are."""
        return [(p, (self.position == p).nonzero()[:, 0]) for p in self.position.unique().tolist()]


@dataclass
class Local:
    """A prompt run once, `copies` times over, with the graph kept, so that many targets can be differentiated."""

    anatomy: Anatomy
    dictionaries: Dictionaries
    ids: tuple[int, ...]
    copies: int
    active: dict[int, Active] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    _leaves: dict[int, Tensor] = field(default_factory=dict)
    _inputs: dict[int, Tensor] = field(default_factory=dict)
    _features: dict[int, Tensor] = field(default_factory=dict)
    _embedding: Tensor = field(default_factory=lambda: torch.empty(0))
    _normed: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        lm, d = self.anatomy.lm, self.dictionaries
        tokens = ModelInput(
            torch.tensor([self.ids] * self.copies), torch.ones(self.copies, len(self.ids), dtype=torch.bool)
        )
        last = ("resid_post", lm.dims.layers - 1)
        edits = [Edit("resid_pre", 0, self._start)]
        for layer in d.layers:
            if d.transcoders:
                edits.append(Edit(d.site, layer, self._reader(layer)))
            edits.append(Edit(d.target, layer, self._cut(layer)))
        with contextlib.ExitStack() as stack:
            stack.enter_context(applied(self.anatomy, d.rules) if d.rules.any else contextlib.nullcontext())
            x = forward(lm, tokens, capture=[last], edits=edits, detach=False).sites[last][:, -1:]
            self._normed = module_at(lm.model, lm.family.final_norm)(x)[:, 0]
        with torch.no_grad():
            self.logits = module_at(lm.model, lm.family.lm_head)(self._normed[:1])[0].float()

    # -- while the pass runs --------------------------------------------------------------------------------------

    def _start(self, x: Tensor) -> Tensor:
        self._embedding = x.detach().requires_grad_()
        return self._embedding

    def _reader(self, layer: int):  # type: ignore[no-untyped-def]
        def look(x: Tensor) -> Tensor:
            self._inputs[layer] = x
            return x

        return look

    def _cut(self, layer: int):  # type: ignore[no-untyped-def]
        d = self.dictionaries

        def cut(y: Tensor) -> Tensor:
            x = self._inputs.setdefault(layer, y)
            with torch.no_grad():
                f = self._features[layer] = d.encode(layer, x[0])
                made = d.made(layer, self._features, x[0]).to(y.dtype)
                position, feature = f.nonzero(as_tuple=True)
                out = y[0].detach()
                self.active[layer] = Active(position, feature, f[position, feature].float(), (out - made).float(), out)
            leaf = y.detach().requires_grad_()
            self._leaves[layer] = leaf
            if (path := d.skip(layer)) is None:
                return leaf
            skip = x.to(path.dtype) @ path.T
            return leaf + (skip - skip.detach()).to(leaf.dtype)

        return cut

    # -- rows -----------------------------------------------------------------------------------------------------

    @property
    def sources(self) -> int:
        """Columns of a row: active features by layer, errors by layer and position, embeddings by position."""
        return sum(len(a.value) for a in self.active.values()) + (len(self.active) + 1) * len(self.ids)

    def feature_rows(self, layers: Sequence[int], positions: Sequence[int], features: Sequence[int]) -> Tensor:
        """Direct effects of all sources on the activation of each target feature, ``[targets, sources]``."""
        if not layers:
            return torch.zeros(0, self.sources)
        order = sorted(
            range(len(layers)), key=lambda i: layers[i]
        )  # a pass backward goes no further than its latest layer
        found = torch.zeros(len(layers), self.sources)
        for start in range(0, len(order), self.copies):
            some = order[start : start + self.copies]
            total = torch.zeros(())
            for layer in sorted({layers[i] for i in some}):
                rows = [row for row, i in enumerate(some) if layers[i] == layer]
                x = self._inputs[layer][rows, [positions[some[row]] for row in rows]]
                f = self.dictionaries.encode(layer, x)
                total = total + f[range(len(rows)), [features[some[row]] for row in rows]].sum()
            found[some] = self._row(total)[: len(some)].to(found.device)
        return found

    def logit_rows(self, directions: Float[Tensor, "targets width"]) -> Tensor:
        """Direct effects of all sources on each direction of the final norm's answer at the last token."""
        parts = []
        for start in range(0, len(directions), self.copies):
            some = directions[start : start + self.copies]
            total = (self._normed[: len(some)] * some.to(self._normed.dtype)).sum()
            parts.append(self._row(total)[: len(some)])
        return torch.cat(parts)

    def _row(self, total: Tensor) -> Float[Tensor, "copies sources"]:
        leaves = [*(self._leaves[layer] for layer in self.dictionaries.layers), self._embedding]
        grads = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
        with torch.no_grad():
            return self.spread([None if g is None else g.float() for g in grads])

    def spread(self, grads: Sequence[Float[Tensor, "rows pos width"] | None]) -> Float[Tensor, "rows sources"]:
        """What each source adds times the gradient where it adds it.

        Args:
            grads: at the layers' outputs and the embedding; None where nothing leads from there to the target.
        """
        d, columns, errors = self.dictionaries, [], []
        n = next(len(g) for g in grads if g is not None)
        at = {layer: g for layer, g in zip(d.layers, grads, strict=False) if g is not None}
        for layer in d.layers:
            active, g = self.active[layer], at.get(layer)
            columns.append(along(d, layer, active, at, n) * active.value)
            nothing = active.error.new_zeros(n, len(self.ids))
            errors.append(nothing if g is None else torch.einsum("rpd,pd->rp", g, active.error))
        start, g = self._embedding[0].detach().float(), grads[-1]
        embedding = start.new_zeros(n, len(self.ids)) if g is None else torch.einsum("rpd,pd->rp", g, start)
        return torch.cat([*columns, *errors, embedding], 1)


def along(
    d: Dictionaries, layer: int, a: Active, grads: Mapping[int, Float[Tensor, "rows pos width"]], rows: int
) -> Float[Tensor, "rows n"]:
    """For each active feature of a layer, what it writes times the gradients where it writes it, at all layers that it reaches.

    One product for each position: features of a position share its gradient, and none is copied for each of them.
    """
    found = a.value.new_zeros(rows, len(a.value))
    for target, g in grads.items():
        if (written := d.rows(layer, target, a.feature)) is not None:
            for position, which in a.places:
                found[:, which] += g[:, position] @ written[which].float().T
    return found


def explained(active: Sequence[Mapping[int, Active]], layer: int, skip_first: bool = True) -> float:
    """Explained variance of a layer over prompts: 1 − Σ error² / Σ (output − mean)². The first token, whose activations dwarf all
    others in many models, is left out."""
    at = slice(1 if skip_first else 0, None)
    outs = torch.cat([a[layer].out[at].float() for a in active])
    error = sum(float(a[layer].error[at].square().sum()) for a in active)
    total = float((outs - outs.mean(0)).square().sum())
    return 1 - error / total if total > 0 else float("nan")


__all__ = ["Active", "Local", "along", "explained"]
