"""Where a loaded model's writers and readers are, and their matrices.

What a head adds to the stream is z_h W_O[h]; where a norm stands between the attention and the stream (Gemma 3), it is that
vector as the norm scales it: by its weight, divided by what the norm divides the whole attention's output by in that run. Then
the writes of all heads, the MLPs and the embedding, with the biases of the output projections (`constant`), sum to the residual
stream. What a head reads is W_Q[h] norm(x), keys and values likewise; a norm of queries and keys (Qwen 3, Gemma 3) and rotary
positions come after that and belong to the head.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuits.attribution.nodes import PARTS, Nodes
from circuits.errors import UserError
from circuits.models.load import LM
from circuits.models.modules import module_at
from circuits.models.norms import Norm
from circuits.models.sites import Tap

OUT = Tap("", "out")


def matrix(module: Any) -> Float[Tensor, "n_in n_out"]:
    """A projection's weight, inputs first (GPT-2's Conv1D stores it so, nn.Linear the other way round)."""
    weight: Tensor = module.weight
    return weight.T if isinstance(module, nn.Linear) else weight


class Anatomy:
    """The parts of one model.

    Raises:
        UserError: a norm that cannot be taken apart; projections of other sizes than the config says.
    """

    def __init__(self, lm: LM) -> None:
        self.lm, self.inner, d = lm, lm.family.inner, lm.dims
        self.nodes = Nodes(d.layers, d.heads, d.kv_heads, d.parallel)
        self.blocks = module_at(lm.model, lm.family.blocks)
        for layer in range(d.layers):
            self.attn_norm(layer), self.mlp_norm(layer)
        widths = {m: matrix(module_at(self.blocks[0], m)).shape[1] for m in self.inner.qkv}
        if sum(widths.values()) != (d.heads + 2 * d.kv_heads) * d.head_dim:
            raise UserError(
                f"{lm.name}: its projections of query, key and value are {sum(widths.values())} wide, "
                f"{d.heads} heads and 2 × {d.kv_heads} of {d.head_dim} need {(d.heads + 2 * d.kv_heads) * d.head_dim}"
            )

    # -- norms ----------------------------------------------------------------------------------------------------

    @cache  # noqa: B019 - lives as long as the model does
    def _norm(self, layer: int, path: str) -> Norm:
        return Norm.of(module_at(self.blocks[layer], path), self.lm.dims.width, self.lm.device, self.lm.dtype)

    def attn_norm(self, layer: int) -> Norm:
        """The norm before the attention."""
        return self._norm(layer, self.inner.attn_norm)

    def mlp_norm(self, layer: int) -> Norm:
        """The norm before the MLP."""
        return self._norm(layer, self.inner.mlp_norm)

    def attn_post(self, layer: int) -> Norm | None:
        """The norm between the attention and the stream."""
        return self._norm(layer, self.inner.attn_post) if self.inner.attn_post else None

    @cached_property
    def final_norm(self) -> Norm:
        """The norm before the unembedding."""
        return Norm.of(
            module_at(self.lm.model, self.lm.family.final_norm), self.lm.dims.width, self.lm.device, self.lm.dtype
        )

    # -- writes ---------------------------------------------------------------------------------------------------

    @cache  # noqa: B019
    def w_o(self, layer: int) -> Float[Tensor, "heads head_dim width"]:
        """The output projection, head by head."""
        module = module_at(self.blocks[layer], self.lm.family.taps["head_z"].module)
        return matrix(module).unflatten(0, (self.lm.dims.heads, self.lm.dims.head_dim))

    def b_o(self, layer: int) -> Tensor | None:
        """The output projection's bias."""
        bias: Tensor | None = module_at(self.blocks[layer], self.lm.family.taps["head_z"].module).bias
        return bias

    def attn_size(self, layer: int, z: Float[Tensor, "n pos heads head_dim"]) -> Float[Tensor, "n pos 1"] | None:
        """What the norm after the attention divides by in a run with these `z`; None where there is no such norm."""
        norm = self.attn_post(layer)
        if norm is None:
            return None
        raw = z.flatten(2) @ self.w_o(layer).flatten(0, 1)
        bias = self.b_o(layer)
        return norm.size(raw if bias is None else raw + bias)

    def head_writes(
        self, layer: int, z: Float[Tensor, "n pos heads head_dim"], size: Tensor | None = None
    ) -> Float[Tensor, "n heads pos width"]:
        """What each head adds; `size` is :meth:`attn_size` of the run."""
        found = torch.einsum("nphk,hkd->nhpd", z, self.w_o(layer).to(z.dtype))
        norm = self.attn_post(layer)
        return found if norm is None or size is None else norm.along(found, size[:, None]).to(z.dtype)

    def constant(self, layer: int, size: Tensor | None = None) -> Tensor | None:
        """What the attention adds whatever its heads do."""
        bias, norm = self.b_o(layer), self.attn_post(layer)
        if norm is None:
            return bias
        post = module_at(self.blocks[layer], self.inner.attn_post)
        rest = getattr(post, "bias", None)
        if bias is None or size is None:
            return rest
        found = norm.along(bias, size)
        return found if rest is None else found + rest

    # -- reads ----------------------------------------------------------------------------------------------------

    def items(self, part: str) -> int:
        """Readers of a part in one layer."""
        return self.lm.dims.heads if part == "q" else self.lm.dims.kv_heads

    def projection(self, layer: int, part: str) -> nn.Module:
        """The module whose output holds a part."""
        paths = self.inner.qkv
        found: nn.Module = module_at(self.blocks[layer], paths[PARTS.index(part)] if len(paths) == 3 else paths[0])
        return found

    def projections(self, layer: int) -> dict[nn.Module, list[str]]:
        """The modules of a layer's projections, and the parts that each holds."""
        found: dict[nn.Module, list[str]] = {}
        for part in PARTS:
            found.setdefault(self.projection(layer, part), []).append(part)
        return found

    def cut(self, part: str, y: Float[Tensor, "... out"]) -> Float[Tensor, "... items head_dim"]:
        """A part of its projection's output, item by item: a view, so that it can be written to."""
        d, at = self.lm.dims, PARTS.index(part)
        if self.inner.fused == "by_head":
            return y.unflatten(-1, (d.heads, 3 * d.head_dim))[..., at * d.head_dim : (at + 1) * d.head_dim]
        if self.inner.fused == "thirds":
            start = at * d.heads * d.head_dim
            y = y[..., start : start + d.heads * d.head_dim]
        return y.unflatten(-1, (self.items(part), d.head_dim))

    @cache  # noqa: B019
    def w_in(self, layer: int, part: str) -> Float[Tensor, "items width head_dim"]:
        """The projection of a part, item by item."""
        return self.cut(part, matrix(self.projection(layer, part))).transpose(0, 1).contiguous()

    @cache  # noqa: B019
    def folded(self, layer: int, part: str) -> Float[Tensor, "items width head_dim"]:
        """:meth:`w_in` with the norm's weight, and its taking out of the mean, folded in: float32."""
        norm = self.attn_norm(layer)
        found = self.w_in(layer, part).float() * norm.scale[:, None]
        return found - found.mean(1, keepdim=True) if norm.centred else found

    @cache  # noqa: B019
    def constant_read(self, layer: int, part: str) -> Float[Tensor, "items head_dim"]:
        """What a part reads of a stream of zeros: the projection's bias, and its answer to the norm's."""
        bias = getattr(self.projection(layer, part), "bias", None)
        found = torch.einsum("d,hdk->hk", self.attn_norm(layer).bias, self.w_in(layer, part).float())
        return found if bias is None else found + self.cut(part, bias).float()


def check_attention(lm: LM) -> None:
    """Refuse attention whose insides cannot be seen.

    Raises:
        UserError: an implementation other than eager and sdpa.
    """
    given = getattr(lm.model.config, "_attn_implementation", "eager")
    if given not in ("eager", "sdpa"):
        raise UserError(f"attn_implementation={given}: patterns are hidden in it; choices: eager sdpa")
