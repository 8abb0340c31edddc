"""What features are of: an SAE or transcoder of each layer, or a cross-layer transcoder of them all.

Both are seen as the same thing: a feature of a layer reads that layer's `site` and writes to the `target` of one or more layers. An
SAE's and a transcoder's (arXiv:2406.11944) write to their own layer, a cross-layer transcoder's to all later ones too (Ameisen et
al. 2025, "Circuit tracing").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from circuits.attribution.rules import PLAIN, Rules

if TYPE_CHECKING:
    from circuits.sae.cross_layer import CrossLayerTranscoder
    from circuits.sae.modules import SAE

FROZEN = Rules(norms=True, attention="frozen")


@dataclass(frozen=True)
class Dictionaries:
    """The SAEs or transcoders of some layers, and where they read and write."""

    saes: Mapping[int, SAE]
    site: str
    target: str

    @property
    def layers(self) -> list[int]:
        """In order."""
        return sorted(self.saes)

    @property
    def transcoders(self) -> bool:
        """Whether they write another site than they read."""
        return self.site != self.target

    @property
    def rules(self) -> Rules:
        """The rules of the backward pass between them."""
        return FROZEN if self.transcoders else PLAIN

    def size(self, layer: int) -> int:
        """How many features a layer has."""
        return self.saes[layer].cfg.d_sae

    def encode(self, layer: int, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d_sae"]:
        """The features of a layer."""
        return self.saes[layer].encode(x)

    def rows(self, layer: int, target: int, features: Tensor | Sequence[int]) -> Float[Tensor, "n width"] | None:
        """What features of a layer write, where active with 1, to the target site of another; None where they do not write."""
        return self.saes[layer].W_dec[features] if layer == target else None

    def made(
        self, layer: int, f: Mapping[int, Float[Tensor, "... d_sae"]], x: Float[Tensor, "... d"]
    ) -> Float[Tensor, "... width"]:
        """The target site as features make it: those of this layer, and of earlier ones where they reach it; `x` is read here."""
        return self.saes[layer].decode(f[layer], x)

    def skip(self, layer: int) -> Float[Tensor, "width d"] | None:
        """The linear path beside the features, where there is one."""
        sae = self.saes[layer]
        return sae.W_skip if sae.cfg.skip else None


@dataclass(frozen=True)
class CrossLayer(Dictionaries):
    """A cross-layer transcoder of the model's layers `of`. Its features are off on a row that is massive in their own layer."""

    clt: CrossLayerTranscoder
    of: tuple[int, ...]

    @property
    def layers(self) -> list[int]:
        """In order."""
        return list(self.of)

    def size(self, layer: int) -> int:
        """How many features a layer has."""
        return self.clt.cfg.d_sae // self.clt.layers

    def encode(self, layer: int, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d_sae"]:
        """The features of a layer."""
        return self.clt.encode_layer(self.of.index(layer), x)

    def rows(self, layer: int, target: int, features: Tensor | Sequence[int]) -> Float[Tensor, "n width"] | None:
        """What features of a layer write to that layer or a later one; None where they do not reach it."""
        table = self.clt.table(self.of.index(layer), self.of.index(target))
        return None if table is None else table[features]

    def made(
        self, layer: int, f: Mapping[int, Float[Tensor, "... d_sae"]], x: Float[Tensor, "... d"]
    ) -> Float[Tensor, "... width"]:
        """What the features of this layer and of all earlier ones make of its target site."""
        at = self.of.index(layer)
        out = self.clt.b_dec.chunk(self.clt.layers)[at]
        for source, layer in enumerate(self.of[: at + 1]):
            table = self.clt.table(source, at)
            out = out if table is None else out + f[layer].to(table.dtype) @ table
        return out

    def skip(self, layer: int) -> None:
        """It has none."""
        return


__all__ = ["FROZEN", "CrossLayer", "Dictionaries"]
