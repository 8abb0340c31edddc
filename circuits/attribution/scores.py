"""Scores of all edges: what each writer changes, times the gradient of what each reader reads.

score(u → v) = Σ over positions of Δ_u · ∂m/∂x_v, Δ_u the writer's change (corrupt − clean, or − clean itself) and x_v the stream
that v reads. With W the reader's projection (the norm's weight folded in), s what the norm divides by and x̂ = x / s::

    ∂m/∂x = W g / s − x̂ (x̂ · W g) / (d s)                 g = ∂m/∂(output of the projection)

The second term is the norm's own. W g is linear in g / s, so several points of a path are summed before the large product; x̂ ·
W g is the projection's output, times g. Without the second term the norm is frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.attribution.anatomy import Anatomy
from circuits.attribution.nodes import LOGITS, PARTS
from circuits.attribution.passes import Gradients, Run
from circuits.models.norms import Norm

Key = tuple[str, int]


def changes(
    anatomy: Anatomy, base: Run, other: Run | None, at: Tensor | None = None
) -> Float[Tensor, "n writers pos width"]:
    """What each writer would add in the other run, less what it adds in this one; without another run, less all of it.

    Args:
        anatomy: the model.
        base: the run that is edited.
        other: the run whose values are put in.
        at: for each position the one of the other run that it is held against, ``[n, pos]``; the same where None.
    """
    parts = []
    for name, i in _writers(anatomy):
        mine = _write(anatomy, base, name, i)
        if other is None:
            parts.append(-mine)
        else:
            theirs = _write(anatomy, other, name, i)
            parts.append((theirs if at is None else theirs.gather(2, at[:, None, :, None].expand_as(mine))) - mine)
    return torch.cat(parts, 1)


def writes(anatomy: Anatomy, done: Run) -> Float[Tensor, "n writers pos width"]:
    """What each writer adds in a run."""
    return torch.cat([_write(anatomy, done, name, i) for name, i in _writers(anatomy)], 1)


def _writers(anatomy: Anatomy) -> Iterator[tuple[str, int]]:
    yield "input", 0
    for i in range(anatomy.nodes.layers):
        yield "heads", i
        yield "mlp", i


def _write(anatomy: Anatomy, done: Run, name: str, i: int) -> Float[Tensor, "n some pos width"]:
    if name == "input":
        return done.streams["pre", 0][:, None]
    return anatomy.head_writes(i, done.z[i], done.sizes.get(i)) if name == "heads" else done.mlp[i][:, None]


@dataclass
class Slopes:
    """Gradients of one or several points of a path, as far as they can be summed: Σ w g / s in the projections' own space, and the
    norms' own terms already multiplied by the changes."""

    anatomy: Anatomy
    delta: Float[Tensor, "n writers pos width"]
    frozen: bool = False
    by_position: bool = False
    first: int = 0
    """The number of the first writer that `delta` holds."""
    sums: dict[Key, Tensor] = field(default_factory=dict)
    own: dict[Key, Tensor] = field(default_factory=dict)

    def add(self, done: Run, found: Gradients, weight: float = 1.0) -> None:
        """One point of the path, with its weight."""
        for key, g in found.at.items():
            if not self._seen(key):
                continue
            x, norm = stream(self.anatomy, done, key), norm_of(self.anatomy, key)
            size = norm.size(x)
            small = weight * (g.float() / size[..., None] if key[0] in PARTS else g.float() / size)
            self.sums[key] = self.sums[key] + small if key in self.sums else small
            if not self.frozen:
                seen = self._seen(key)
                unit = norm.unit(x)
                if key[0] in PARTS:
                    out = found.reads[key].float() - self.anatomy.constant_read(key[1], key[0])
                    share = (out * small).sum(-1)
                else:
                    share = (unit * norm.scale * small).sum(-1, keepdim=True)
                along = torch.einsum("nupd,npd->nup", self.delta[:, :seen].float(), unit) / x.shape[-1]
                term = self._product(along[..., None], share.transpose(1, 2)[..., None])
                self.own[key] = self.own[key] + term if key in self.own else term

    def _seen(self, key: Key) -> int:
        """How many of `delta`'s writers a reader sees."""
        reach = len(self.anatomy.nodes.writers) if key[0] == LOGITS else self.anatomy.nodes.seen(key[1], key[0])
        return min(max(reach - self.first, 0), self.delta.shape[1])

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        """``[n, u, pos, k]`` × ``[n, v, pos, k]``, over k and (unless by position) over positions."""
        if self.by_position:
            return torch.einsum("nupk,nvpk->npuv", left, right)
        return left.flatten(2) @ right.flatten(2).transpose(1, 2)

    def scores(self) -> Float[Tensor, "n writers readers"] | Float[Tensor, "n pos writers readers"]:
        """The score of every edge of each row, 0 where there is no edge."""
        nodes = self.anatomy.nodes
        n, pos, writers = len(self.delta), self.delta.shape[2], len(nodes.writers)
        shape = (n, pos, writers, len(nodes.readers)) if self.by_position else (n, writers, len(nodes.readers))
        total = self.delta.new_zeros(shape, dtype=torch.float32)
        for key, small in self.sums.items():
            part, layer = key
            seen = self._seen(key)
            at = slice(len(nodes.readers) - 1, None) if part == LOGITS else nodes.slots(layer, part)
            if part in PARTS:
                g = torch.einsum("nphk,hdk->nhpd", small, self.anatomy.folded(layer, part))
            else:
                norm = norm_of(self.anatomy, key)
                g = small * norm.scale
                g = (g - g.mean(-1, keepdim=True) if norm.centred else g)[:, None]
            found = self._product(self.delta[:, :seen].float(), g)
            if key in self.own:
                found = found - self.own[key]
            total[..., self.first : self.first + seen, at] = found
        return total


def stream(anatomy: Anatomy, done: Run, key: Key) -> Float[Tensor, "n pos width"]:
    """The residual stream that a reader reads."""
    part, layer = key
    if part == LOGITS:
        return done.streams["post", anatomy.nodes.layers - 1]
    if part == "mlp" and not anatomy.nodes.parallel:
        return done.streams["mid", layer]
    return done.streams["pre", layer]


def norm_of(anatomy: Anatomy, key: Key) -> Norm:
    """The norm between the stream and a reader."""
    part, layer = key
    if part == LOGITS:
        return anatomy.final_norm
    return anatomy.mlp_norm(layer) if part == "mlp" else anatomy.attn_norm(layer)


def total_write(anatomy: Anatomy, done: Run) -> Mapping[str, Tensor]:
    """The last stream, the sum of all writes and constants, and what is between them: a check of a family."""
    total = writes(anatomy, done).sum(1)
    for layer in range(anatomy.nodes.layers):
        constant = anatomy.constant(layer, done.sizes.get(layer))
        total = total if constant is None else total + constant
    last = done.streams["post", anatomy.nodes.layers - 1]
    return {"stream": last, "sum": total, "error": (last - total).abs().max() / last.abs().max()}
