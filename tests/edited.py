"""Prompt sets of random tokens, and a slow reference for edits: one prompt at a time, plain hooks, the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from small_models import VOCAB
from torch import Tensor

from circuits.data.prompts import Prompt, PromptSet
from circuits.interventions.units.base import Place, Unit
from circuits.models.load import LM
from circuits.models.modules import module_at

HEADS, LAYERS = 4, 3
Fn = Callable[[Tensor], Tensor]


def random_prompts(n: int = 7, answers: tuple[int, int] = (1, 1), lengths: int = 4, seed: int = 5) -> PromptSet:
    """Prompts of several lengths with corrupt ones of the same length; target and foil begin with other tokens."""
    rng = np.random.default_rng(seed)

    def ids(k: int) -> tuple[int, ...]:
        return tuple(int(t) for t in rng.integers(1, VOCAB, size=k))

    found = []
    for i in range(n):
        length = 5 + i % lengths
        target, foil = (3, *ids(answers[0] - 1)), (4, *ids(answers[1] - 1))
        split = "train" if i % 2 else "test"
        found.append(
            Prompt(f"p{i}", f"text {i}", f"corrupt {i}", "a", "b", "toy", split, f"g{i}", {"half": str(i % 2)},
                   ids(length), ids(length), target, foil)
        )  # fmt: skip
    return PromptSet(tuple(found))


def every_head(layers: int = LAYERS, heads: int = HEADS) -> list[Unit]:
    """All heads, one unit each."""
    return [Unit(f"L{layer}.H{h}", (Place(layer, (h,)),)) for layer in range(layers) for h in range(heads)]


@torch.no_grad()
def reference(lm: LM, ids: Sequence[int], edits: Mapping[tuple[str, int], Fn]) -> Tensor:
    """Logits ``[pos, vocab]`` with `edits` of (site, layer): heads are seen as ``[1, pos, heads, head_dim]``."""
    handles = []
    blocks = module_at(lm.model, lm.family.blocks)
    for (site, layer), fn in edits.items():
        tap = lm.family.taps[site]
        module = module_at(blocks[layer], tap.module)
        shape = (lm.dims.heads, lm.dims.head_dim)

        def changed(x: Tensor, fn: Fn = fn, heads: bool = tap.heads, shape: tuple[int, int] = shape) -> Tensor:
            return fn(x.unflatten(-1, shape)).flatten(-2) if heads else fn(x)

        if tap.side == "in":
            handles.append(module.register_forward_pre_hook(lambda _, args, c=changed: (c(args[0]), *args[1:])))
        else:
            handles.append(
                module.register_forward_hook(
                    lambda _, args, out, c=changed: (c(out[0]), *out[1:]) if isinstance(out, tuple) else c(out)
                )
            )
    try:
        found: Tensor = lm.model(torch.tensor([list(ids)])).logits[0].float()
        return found
    finally:
        for handle in handles:
            handle.remove()


def seen(lm: LM, ids: Sequence[int], site: str, layer: int) -> Tensor:
    """A site's tensor of one prompt, by the same plain hooks."""
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.clone())
        return x

    reference(lm, ids, {(site, layer): keep})
    return kept[0]
