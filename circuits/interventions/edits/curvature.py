"""The constant that costs least to second order, of all units from the same few backward passes.

Let z_t be a unit's values at its edited tokens and c a constant in their place. With p the answer's distribution in the run without
edits, a = diag(√p) ε − p (√p·ε) for a normal ε, which has the answer's Fisher information as its covariance, and
g_t = ∂(a · logits)/∂z_t, the KL to that run is to second order

    KL(c) ≈ ½ E_a (Σ_t g_tᵀ (c − z_t))²

A least-squares problem in c, solved with a ridge towards the mean (Gauss-Newton; Martens 2020, arXiv:1412.1193). How strong the
ridge is, prompts that are left out say; where none helps on them, the mean it is. One backward pass a direction gives g_t of every
unit of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuits.activations.answers import Answers
from circuits.model_input import padded
from circuits.models.hooks import Edit as Hook
from circuits.models.hooks import forward

if TYPE_CHECKING:
    from circuits.interventions.engine import Engine
    from circuits.interventions.units.base import Unit

DIRECTIONS = 8
RIDGES = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Times the mean squared length of g."""
FOLDS = 4
Constant = dict[tuple[int, int], Tensor]


def second_order(
    engine: Engine, groups: Sequence[Sequence[int]], units: Sequence[Unit], means: Sequence[Constant]
) -> list[Constant]:
    """The constants of `units`.

    Args:
        engine: of the prompts that constants are fitted on.
        groups: numbers of its rows, a pass each.
        units: what is edited.
        means: of each unit, by (layer, item): where the ridge pulls to.
    """
    generator = torch.Generator().manual_seed(0)
    slopes: list[list[Tensor]] = [[] for _ in units]
    wanted: list[list[Tensor]] = [[] for _ in units]
    prompts: list[int] = []  # of each row of the problem
    for members in groups:
        prompts += [*members] * DIRECTIONS
        values, gradients = _gradients(engine, members, units, generator)
        for i, unit in enumerate(units):
            where = engine.where(unit.positions, members)[..., None].to(engine.lm.device)
            g = torch.cat([gradients[key] * where for key in unit.items()], -1)  # [directions, rows, pos, all items]
            z = torch.cat([values[key] for key in unit.items()], -1)
            slopes[i].append(g.sum(2).flatten(0, 1).double().cpu())
            wanted[i].append((g * z).sum((2, 3)).flatten().double().cpu())
    return [
        _best(torch.cat(g), torch.cat(s), torch.tensor(prompts), mean, unit)
        for g, s, mean, unit in zip(slopes, wanted, means, units, strict=True)
    ]


def _gradients(
    engine: Engine, members: Sequence[int], units: Sequence[Unit], generator: torch.Generator
) -> tuple[Mapping[tuple[int, int], Tensor], Mapping[tuple[int, int], Tensor]]:
    """Of every (layer, item): its values ``[rows, pos, dim]``, and g ``[directions, rows, pos, dim]``."""
    rows = [engine.rows[i] for i in members]
    answers, lens = Answers.of(rows, engine.lm.device), engine.lens
    layers: dict[int, set[int]] = {}
    for unit in units:
        for layer, item in unit.items():
            layers.setdefault(layer, set()).add(item)
    leaves: dict[int, Tensor] = {}
    values: dict[tuple[int, int], Tensor] = {}

    def watched(layer: int, items: list[int]) -> Callable[[Tensor], Tensor]:
        def fn(x: Tensor) -> Tensor:
            old = lens.values(x, layer, items)
            values.update({(layer, item): old[:, :, k].detach() for k, item in enumerate(items)})
            leaves[layer] = torch.zeros_like(old).requires_grad_()
            return lens.put(x, layer, items, old, old + leaves[layer])

        return fn

    hooks = [Hook(*engine.tap(layer), watched(layer, sorted(items))) for layer, items in sorted(layers.items())]
    found: dict[tuple[int, int], list[Tensor]] = {key: [] for key in ((la, i) for la in layers for i in layers[la])}
    with torch.enable_grad():
        read = forward(engine.lm, padded([row.ids for row in rows]), edits=hooks, logits=answers.columns, detach=False)
        logits = read.read[:, 0].float()
        p = logits.detach().softmax(-1)
        root = p.sqrt()
        order = sorted(leaves)
        for turn in range(DIRECTIONS):
            noise = torch.randn(p.shape, generator=generator).to(p.device)
            a = root * noise - p * (root * noise).sum(-1, keepdim=True)
            got = torch.autograd.grad(
                (a * logits).sum(), [leaves[layer] for layer in order], retain_graph=turn + 1 < DIRECTIONS
            )
            for layer, g in zip(order, got, strict=True):
                for k, item in enumerate(sorted(layers[layer])):
                    found[layer, item].append(g[:, :, k])
    return values, {key: torch.stack(several) for key, several in found.items()}


def _best(g: Tensor, s: Tensor, prompts: Tensor, mean: Constant, unit: Unit) -> Constant:
    """argmin_c Σ (g·c − s)² + λ ‖c − mean‖² at the λ that does best on prompts that are left out.

    Args:
        g: ``[rows, numbers of the unit]``, a row for each direction and prompt.
        s: ``[rows]``.
        prompts: whose row each is.
        mean: where the ridge pulls to.
        unit: whose numbers they are.
    """
    keys = list(unit.items())
    m = torch.cat([mean[key] for key in keys]).double().cpu()
    rest, fold = s - g @ m, prompts % FOLDS
    scale = float(g.square().sum(1).mean()) + 1e-30
    left_out = torch.zeros(len(RIDGES), dtype=g.dtype)
    for k in range(FOLDS):
        inside, outside = fold != k, fold == k
        if not bool(inside.any()) or not bool(outside.any()):
            continue
        for i, ridge in enumerate(RIDGES):
            left_out[i] += (g[outside] @ _step(g[inside], rest[inside], ridge * scale) - rest[outside]).square().sum()
    best = int(left_out.argmin())
    c = m + _step(g, rest, RIDGES[best] * scale) if 0 < float(left_out[best]) < float(rest.square().sum()) else m
    parts = c.split([len(mean[key]) for key in keys])
    return {key: part.to(mean[key]) for key, part in zip(keys, parts, strict=True)}


def _step(g: Tensor, rest: Tensor, ridge: float) -> Tensor:
    """(gᵀg + λ)⁻¹ gᵀ rest, by as many unknowns as there are rows."""
    return g.T @ torch.linalg.solve(g @ g.T + ridge * torch.eye(len(g), dtype=g.dtype), rest)
