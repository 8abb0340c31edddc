"""The geometric signature of a set of heads: what zeroing them does to the residual stream's geometry, and what random sets do.

Set 0 is the run without an ablation, set 1 the studied heads, the others are the controls. Everything of a set comes from one pass.
Numbers are those of :mod:`~circuits.geometry.entropy` at the last valid token, the entropy of the output, KL(baseline ‖ ablated) of
the Gaussian fits, and the means over prompts of :mod:`~circuits.geometry.paths`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.data.keeper import Keeper, State
from circuits.geometry import entropy
from circuits.geometry.entropy import Fit
from circuits.geometry.names import BY_PROMPT, METHODS, SUBSPACE_K, metrics_of
from circuits.geometry.passes import Captured, Passes


@dataclass(frozen=True)
class Measured:
    """What was measured at one layer."""

    names: tuple[str, ...]
    """The columns of `values`: :func:`~circuits.geometry.names.metrics_of`, and ``subspace_k`` where it is measured."""
    values: Float[Tensor, "sets names"]
    prompts: Mapping[str, Float[Tensor, "2 prompts"]]
    """Each prompt's own numbers without an ablation, and with the studied heads at 0."""


def measure(
    passes: Passes,
    sets: Sequence[Sequence[int]],
    methods: Sequence[str] = METHODS,
    keeper: Keeper[int] | None = None,
) -> dict[int, Measured]:
    """Every set of heads at every layer of `passes`.

    Args:
        passes: the prompts; made with ``positions`` where ``per_token`` is asked for.
        sets: the first is empty (the baseline), the second is what is studied.
        methods: entropies, of :data:`~circuits.geometry.names.METHODS`.
        keeper: keeps what was found, set by set, one accumulator a layer; may end the work.
    """
    keeper = keeper or Keeper()
    names = (*metrics_of(methods), *([SUBSPACE_K] if "subspace" in methods else []))
    n = len(passes.names)
    values = {layer: torch.full((len(sets), len(names)), torch.nan, dtype=torch.float64) for layer in passes.layers}
    numbers = {layer: torch.zeros(len(BY_PROMPT), 2, n, dtype=torch.float64) for layer in passes.layers}
    facts = {
        "sets": [list(heads) for heads in sets],
        "names": list(names),
        "prompts": passes.names,
        "head_layer": passes.head_layer,
    }

    def state(layer: int) -> State:
        return {"values": values[layer], "numbers": numbers[layer]}, {}

    for layer, (tensors, _) in keeper.begin(dict.fromkeys(passes.layers, facts)).items():
        values[layer].copy_(tensors["values"])
        numbers[layer].copy_(tensors["numbers"])
    base: dict[int, Fit] = {}
    for i, heads in enumerate(sets):
        if 0 < i < keeper.start:  # the baseline is needed again, to compare with
            continue
        for layer, captured in passes.run(heads, keeper.ask).items():
            fit = Fit.of(captured.last)
            base.setdefault(layer, fit)
            row = numbers_of(captured, fit, base[layer], methods)
            values[layer][i] = torch.tensor([row[name] for name in names], dtype=torch.float64)
            if i < 2:
                numbers[layer][:, i] = torch.stack([captured.numbers[name] for name in BY_PROMPT])
        keeper.step(max(i + 1, keeper.start), len(sets), state)
    keeper.end(len(sets), state)
    return {
        layer: Measured(names, values[layer], dict(zip(BY_PROMPT, numbers[layer], strict=True)))
        for layer in passes.layers
    }


def numbers_of(captured: Captured, fit: Fit, base: Fit, methods: Sequence[str] = METHODS) -> dict[str, float]:
    """All numbers of one set of heads; `fit` is that of its last tokens, `base` that without an ablation."""
    found: dict[str, float] = {}
    if "full" in methods:
        found["full"] = entropy.full(fit)
    if "diagonal" in methods:
        found["diagonal"] = entropy.diagonal(fit)
    if "subspace" in methods:
        found["subspace"], found[SUBSPACE_K] = entropy.subspace(fit)
    if "per_token" in methods:
        found["per_token"] = entropy.per_token(captured.shared)
    found["activation_kl"] = 0.0 if fit is base else entropy.gaussian_kl(base, fit)
    return found | {name: float(values.nanmean()) for name, values in captured.numbers.items()}
