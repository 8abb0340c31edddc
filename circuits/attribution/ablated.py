"""A circuit alone: the model with every edge outside a circuit ablated, in one forward pass.

Each reader has a residual stream of its own: what the writers before it add in this very pass, and for each edge that is cut, the
ablation's value in place of it. With E_u = value_u − write_u (in this pass)::

    x_v = x + Σ_u (1 − mask[u, v]) E_u

so a layer costs one product [readers, writers] × [writers, positions · width] more than the model's own. What a reader gets is what
the model computes plus a difference: with the whole circuit the pass is the model's, exactly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.activations.answers import Answers
from circuits.attribution.anatomy import OUT, Anatomy
from circuits.attribution.nodes import PARTS
from circuits.attribution.passes import read
from circuits.model_input import ModelInput
from circuits.models.hooks import Edit, forward
from circuits.models.modules import hooked
from circuits.models.norms import Norm


def ablated(
    anatomy: Anatomy,
    tokens: ModelInput,
    answers: Answers,
    cut: Bool[Tensor, "copies writers readers"] | Float[Tensor, "copies writers readers"],
    values: Float[Tensor, "n writers pos width"],
    graph: bool = False,
) -> Float[Tensor, "copies n"]:
    """The metric of each row under each circuit.

    Args:
        anatomy: the model.
        tokens: ``[n, pos]``.
        answers: what is read of each row.
        cut: 1 where an edge is ablated, one circuit a copy.
        values: what a writer adds where it is ablated; may be broadcast over rows and positions.
        graph: keep the graph, for values that are learned.
    """
    from circuits.attribution.exact import repeated

    copies, n = len(cut), len(tokens)
    rows = ModelInput(tokens.ids.repeat(copies, 1), tokens.mask.repeat(copies, 1))
    streams = _Streams(anatomy, cut.to(values.dtype), values, copies, n, graph)
    with contextlib.ExitStack() as stack:
        edits = streams.attach(stack)
        last = ("resid_post", anatomy.nodes.layers - 1)
        found = forward(anatomy.lm, rows, capture=[last], edits=edits, detach=not graph).sites[last]
    with torch.set_grad_enabled(graph):
        more = streams.correction(slice(len(anatomy.nodes.readers) - 1, None), len(anatomy.nodes.writers))
        if more is not None:
            found = found + more[:, :, 0].flatten(0, 1).to(found.dtype)
        return read(anatomy, found, repeated(answers, copies))[1].view(copies, n)


class _Streams:
    """What stands at each reader, as the pass goes."""

    def __init__(self, anatomy: Anatomy, cut: Tensor, values: Tensor, copies: int, n: int, graph: bool) -> None:
        self.anatomy, self.cut, self.values, self.copies, self.n, self.graph = anatomy, cut, values, copies, n, graph
        self.error: list[Tensor] = []
        """E of the writers so far, ``[copies, n, writers, pos, width]``: parts where the graph is kept, else one tensor for all."""
        self.pre: Tensor = torch.empty(0)
        self.mid: Tensor = torch.empty(0)

    def _write(self, first: int, writes: Float[Tensor, "rows some pos width"]) -> None:
        value = self.values[:, first : first + writes.shape[1]].expand(self.n, -1, *writes.shape[2:])
        error = value - writes.float().unflatten(0, (self.copies, self.n))
        if self.graph:
            self.error.append(error)
            return
        if not self.error:
            shape = (self.copies, self.n, len(self.anatomy.nodes.writers), *writes.shape[2:])
            self.error.append(error.new_empty(shape))
        self.error[0][:, :, first : first + writes.shape[1]] = error

    def correction(self, slots: slice, seen: int) -> Float[Tensor, "copies n readers pos width"] | None:
        """What is added to the streams of these readers; None where none of their edges is cut."""
        cut = self.cut[:, :seen, slots]
        if not bool(cut.any()):
            return None
        if len(self.error) > 1:
            self.error = [torch.cat(self.error, 2)]
        error = self.error[0][:, :, :seen]
        return (cut.transpose(1, 2)[:, None] @ error.flatten(3)).unflatten(3, error.shape[3:])

    def attach(self, stack: contextlib.ExitStack) -> list[Edit]:
        """Hook every layer; the edits of the pass."""
        anatomy, edits = self.anatomy, []
        for layer in range(anatomy.nodes.layers):
            edits += [Edit("resid_pre", layer, self._enter(layer)), Edit("head_z", layer, self._heads(layer))]
            if not anatomy.nodes.parallel:
                edits.append(Edit("resid_mid", layer, self._middle))
            edits += [Edit("mlp_in", layer, self._mlp_in(layer)), Edit("mlp_out", layer, self._mlp_out(layer))]
            for module, parts in anatomy.projections(layer).items():
                stack.enter_context(hooked(module, OUT, self._reads(layer, parts)))
        return edits

    def _enter(self, layer: int) -> Callable[[Tensor], Tensor]:
        def look(x: Tensor) -> Tensor:
            self.pre = x
            if layer == 0:
                self._write(0, x[:, None])
            return x

        return look

    def _middle(self, x: Tensor) -> Tensor:
        self.mid = x
        return x

    def _difference(self, norm: Norm, x: Tensor, more: Tensor) -> Float[Tensor, "rows readers pos width"]:
        x, more = x[:, None].float(), more.flatten(0, 1)
        return norm.normed(x + more) - norm.normed(x)

    def _reads(self, layer: int, parts: list[str]) -> Callable[[Tensor], Tensor]:
        def change(y: Tensor) -> Tensor:
            anatomy = self.anatomy
            pieces = {}
            for part in parts:
                more = self.correction(anatomy.nodes.slots(layer, part), anatomy.nodes.seen(layer, part))
                if more is not None:
                    normed = self._difference(anatomy.attn_norm(layer), self.pre, more)
                    pieces[part] = torch.einsum("nhpd,hdk->nphk", normed, anatomy.w_in(layer, part).float())
            return y if not pieces else y + _assembled(anatomy, y, pieces).to(y.dtype)

        return change

    def _heads(self, layer: int) -> Callable[[Tensor], Tensor]:
        def look(z: Tensor) -> Tensor:
            size = self.anatomy.attn_size(layer, z)
            self._write(self.anatomy.nodes.writer(layer, 0), self.anatomy.head_writes(layer, z, size))
            return z

        return look

    def _mlp_in(self, layer: int) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            nodes = self.anatomy.nodes
            more = self.correction(nodes.slots(layer, "mlp"), nodes.seen(layer, "mlp"))
            if more is None:
                return x
            at = self.pre if nodes.parallel else self.mid
            return x + self._difference(self.anatomy.mlp_norm(layer), at, more)[:, 0].to(x.dtype)

        return change

    def _mlp_out(self, layer: int) -> Callable[[Tensor], Tensor]:
        def look(x: Tensor) -> Tensor:
            self._write(self.anatomy.nodes.writer(layer), x[:, None])
            return x

        return look


def _assembled(anatomy: Anatomy, y: Tensor, pieces: Mapping[str, Tensor]) -> Tensor:
    """The parts of a projection's output side by side, as the module gives them; zero where there is none."""
    d = anatomy.lm.dims
    n, pos = y.shape[:2]
    held = [part for part in PARTS if part in pieces or anatomy.inner.fused]
    parts = [
        pieces[part] if part in pieces else y.new_zeros(n, pos, anatomy.items(part), d.head_dim, dtype=torch.float32)
        for part in held
    ]
    if anatomy.inner.fused == "by_head":
        return torch.stack(parts, 3).flatten(2)
    return torch.cat([part.flatten(2) for part in parts], -1)
