"""Writers, readers and the edges between them, by number and by name. No torch.

Writers stand in the order in which the model computes them, so what a reader can see is always the first `reach` of them::

    writers   input  a0.h0 a0.h1 … m0  a1.h0 … m1 …
    readers   a0.h0<q> … a0.g0<k> … a0.g0<v> … m0  a1.h0<q> …  logits

Keys and values are the model's own: with grouped-query attention a group of query heads shares one, which is named by its group,
``g``. Where attention and MLP read the same stream (parallel residual), an MLP does not see its own layer's heads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from circuits.errors import UserError, suggest

INPUT, LOGITS = "input", "logits"
PARTS = ("q", "k", "v")


@dataclass(frozen=True)
class Reader:
    """One reader: `part` is ``q``, ``k``, ``v``, ``mlp`` or ``logits``; `item` its head (q) or key-value head (k, v)."""

    layer: int
    part: str
    item: int = 0

    @property
    def name(self) -> str:
        """``a3.h2<q>``, ``a3.g0<k>``, ``m3``, ``logits``."""
        if self.part == "mlp":
            return f"m{self.layer}"
        return (
            LOGITS
            if self.part == LOGITS
            else f"a{self.layer}.{'h' if self.part == 'q' else 'g'}{self.item}<{self.part}>"
        )


@dataclass(frozen=True)
class Nodes:
    """All writers and readers of a model of these sizes."""

    layers: int
    heads: int
    kv_heads: int
    parallel: bool = False

    @property
    def per_layer(self) -> int:
        """Writers of a layer."""
        return self.heads + 1

    @cached_property
    def writers(self) -> list[str]:
        """Names in order."""
        each = [[*(f"a{i}.h{h}" for h in range(self.heads)), f"m{i}"] for i in range(self.layers)]
        return [INPUT, *(name for layer in each for name in layer)]

    @cached_property
    def readers(self) -> list[Reader]:
        """Readers in order."""
        found = []
        for layer in range(self.layers):
            for part, n in zip(PARTS, (self.heads, self.kv_heads, self.kv_heads), strict=True):
                found += [Reader(layer, part, i) for i in range(n)]
            found.append(Reader(layer, "mlp"))
        return [*found, Reader(self.layers, LOGITS)]

    @cached_property
    def reader_names(self) -> list[str]:
        """Names of the readers in order."""
        return [reader.name for reader in self.readers]

    def seen(self, layer: int, part: str) -> int:
        """How many writers, from the first on, a part of a layer can see."""
        before = 1 + layer * self.per_layer
        return before + self.heads if part == "mlp" and not self.parallel else before

    @cached_property
    def reach(self) -> NDArray[np.int64]:
        """Writers that each reader sees."""
        return np.array([self.seen(reader.layer, reader.part) for reader in self.readers])

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """``[writers, readers]``: where an edge is."""
        return np.arange(len(self.writers))[:, None] < self.reach[None]

    @cached_property
    def edges(self) -> NDArray[np.int64]:
        """``[edges, 2]``: writer and reader of each edge, by writer."""
        return np.argwhere(self.mask)

    @cached_property
    def edge_names(self) -> list[str]:
        """``a0.h1->a2.h3<q>`` of each edge."""
        return [f"{self.writers[u]}->{self.reader_names[v]}" for u, v in self.edges.tolist()]

    def slots(self, layer: int, part: str) -> slice:
        """Numbers of a layer's readers of a part (``q k v mlp``)."""
        width = self.heads + 2 * self.kv_heads + 1
        sizes = (self.heads, self.kv_heads, self.kv_heads, 1)
        at = (*PARTS, "mlp").index(part)
        start = layer * width + sum(sizes[:at])
        return slice(start, start + sizes[at])

    def writer(self, layer: int, head: int | None = None) -> int:
        """The number of a head, or of the layer's MLP."""
        return 1 + layer * self.per_layer + (self.heads if head is None else head)

    def feeds(self, v: int) -> list[int]:
        """The writers whose work a reader enters: a query's own head, all heads of a key's or value's group, the MLP; none of the
        logits."""
        reader = self.readers[v]
        if reader.part == LOGITS:
            return []
        if reader.part == "mlp":
            return [self.writer(reader.layer)]
        if reader.part == "q":
            return [self.writer(reader.layer, reader.item)]
        group = self.heads // self.kv_heads
        return [self.writer(reader.layer, reader.item * group + i) for i in range(group)]

    def find(self, name: str) -> tuple[int, int]:
        """Writer and reader of an edge's name; ``h`` of a key or value is a query head, and means its group.

        Raises:
            UserError: the model has no such edge.
        """
        left, arrow, right = name.partition("->")
        known = {writer: i for i, writer in enumerate(self.writers)}
        readers = {reader: i for i, reader in enumerate(self.reader_names)}
        if (found := re.fullmatch(r"a(\d+)\.h(\d+)<([kv])>", right)) and int(found[2]) < self.heads:
            right = f"a{found[1]}.g{int(found[2]) // (self.heads // self.kv_heads)}<{found[3]}>"
        for part, names, what in ((left, known, "writers"), (right, readers, "readers")):
            if not arrow or part not in names:
                raise UserError(
                    f"edge {name!r}: this model ({self.layers} layers, {self.heads} heads, {self.kv_heads} key-value heads) has "
                    f"no {part!r}" + suggest(part, names, what)
                )
        u, v = known[left], readers[right]
        if not self.mask[u, v]:
            raise UserError(f"edge {name!r}: {right} comes before {left}, and cannot read it")
        return u, v
