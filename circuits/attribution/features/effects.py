"""What every active feature contributes to the answer, on every prompt, and what really happens when features are taken out.

α = (f − f_ref) · (∂m/∂h · W_dec): the gradient where the feature is written, through everything that follows; f_ref is 0 or the
activation in the pair's other prompt. Positive favours the target. What is predicted for taking a feature out of all positions
is −Σ α; it is held against running the model without it, h − f W_dec, alone and for the strongest ones together (supernodes).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuits.activations.answers import Answers, Row
from circuits.attribution.anatomy import Anatomy
from circuits.attribution.features.dictionaries import Dictionaries
from circuits.attribution.features.local import Active, along
from circuits.attribution.passes import read
from circuits.attribution.rules import PLAIN, Rules, applied
from circuits.data.prompts import Prompt
from circuits.model_input import ModelInput, padded
from circuits.models.hooks import Edit, Prefix, forward

Key = tuple[int, int]
"""(layer, feature)."""


@dataclass(frozen=True)
class Contributions:
    """Of one prompt: α of each active feature ``[n]`` by layer, of the errors ``[pos]`` by layer, and the metric itself."""

    active: Mapping[int, Active]
    alpha: Mapping[int, Tensor]
    errors: Mapping[int, Tensor]
    metric: float
    frozen: Mapping[int, Tensor]
    """α with attention patterns held constant: what of it does not go through queries and keys."""

    def by_feature(self) -> dict[Key, float]:
        """α summed over positions."""
        found: dict[Key, float] = {}
        for layer, a in self.active.items():
            for feature, value in zip(a.feature.tolist(), self.alpha[layer].tolist(), strict=True):
                found[layer, feature] = found.get((layer, feature), 0.0) + value
        return found


def answers_of(p: Prompt, device: torch.device, copies: int = 1) -> Answers:
    """What is read of a prompt: the logits of the answers' first tokens."""
    row = Row(0, "both", p.ids, len(p.ids), (p.target_ids[0], p.foil_ids[0]))
    return Answers.of([row] * copies, device)


def contributions(anatomy: Anatomy, d: Dictionaries, p: Prompt, steps: int, corrupt: bool) -> Contributions:
    """The features of one prompt; `steps` above 1 takes the mean gradient along the way from the other prompt's embeddings."""
    device = anatomy.lm.device
    answers = answers_of(p, device)
    active, metric = observe(anatomy, d, p.ids, answers)
    other = observe(anatomy, d, p.corrupt_ids or (), None)[0] if corrupt and p.corrupt_ids else None
    starts: list[Tensor | None] = [None]
    if steps > 1:
        near, far = (_embedded(anatomy, ids) for ids in (p.ids, p.corrupt_ids or p.ids))
        starts = [far + k / steps * (near - far) for k in range(1, steps + 1)]
    alpha, errors = _along(anatomy, d, p.ids, answers, starts, PLAIN, active, other)
    frozen, _ = _along(anatomy, d, p.ids, answers, starts[-1:], Rules(attention="frozen"), active, other)
    return Contributions(active, alpha, errors, metric, frozen)


def _embedded(anatomy: Anatomy, ids: Sequence[int]) -> Tensor:
    return forward(anatomy.lm, padded([tuple(ids)]), capture=[("resid_pre", 0)]).sites["resid_pre", 0]


@torch.no_grad()
def observe(
    anatomy: Anatomy, d: Dictionaries, ids: Sequence[int], answers: Answers | None
) -> tuple[dict[int, Active], float]:
    """What is active in a prompt, and its metric."""
    last = ("resid_post", anatomy.lm.dims.layers - 1)
    wanted = [(site, layer) for layer in d.layers for site in dict.fromkeys((d.site, d.target))]
    found = forward(anatomy.lm, padded([tuple(ids)]), capture=[*wanted, last]).sites
    active: dict[int, Active] = {}
    features: dict[int, Tensor] = {}
    for layer in d.layers:
        x, out = found[d.site, layer][0].flatten(1), found[d.target, layer][0].flatten(1)
        f = features[layer] = d.encode(layer, x)
        position, feature = f.nonzero(as_tuple=True)
        error = (out - d.made(layer, features, x).to(out.dtype)).float()
        active[layer] = Active(position, feature, f[position, feature].float(), error, out)
    return active, float(read(anatomy, found[last], answers)[1][0]) if answers is not None else 0.0


def _along(
    anatomy: Anatomy,
    d: Dictionaries,
    ids: Sequence[int],
    answers: Answers,
    starts: Sequence[Tensor | None],
    rules: Rules,
    active: Mapping[int, Active],
    other: Mapping[int, Active] | None,
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    keys = [(d.target, layer) for layer in d.layers]
    last = ("resid_post", anatomy.lm.dims.layers - 1)
    total: list[Tensor] = []
    for start in starts:
        prefix = None if start is None else Prefix(0, start)
        with contextlib.ExitStack() as stack:
            stack.enter_context(applied(anatomy, rules) if rules.any else contextlib.nullcontext())
            found = forward(anatomy.lm, padded([tuple(ids)]), capture=[*keys, last], detach=False, prefix=prefix).sites
            metric = read(anatomy, found[last], answers)[1].sum()
            grads = torch.autograd.grad(metric, [found[key] for key in keys], materialize_grads=True)
        total = (
            [t + g / len(starts) for t, g in zip(total, grads, strict=True)]
            if total
            else [g / len(starts) for g in grads]
        )
    alpha, errors = {}, {}
    with torch.no_grad():
        at = {layer: g[:1].flatten(2).float() for layer, g in zip(d.layers, total, strict=True)}
        for layer in d.layers:
            a = active[layer]
            change = a.value
            if other is not None:
                there = torch.zeros(len(ids), d.size(layer))
                b = other[layer]
                near = b.position < len(ids)
                there[b.position[near], b.feature[near]] = b.value[near].cpu()
                change = change - there[a.position.cpu(), a.feature.cpu()].to(change.device)
            alpha[layer] = change * along(d, layer, a, at, 1)[0]
            errors[layer] = (a.error * at[layer][0]).sum(1)
    return alpha, errors


@torch.no_grad()
def removed(
    anatomy: Anatomy, d: Dictionaries, p: Prompt, groups: Sequence[Sequence[Key]], copies: int = 32
) -> list[float]:
    """The change of the metric when the features of each group are taken out at all positions, by running the model."""
    found: list[float] = []
    for start in range(0, len(groups), copies):
        some = groups[start : start + copies]
        answers = answers_of(p, anatomy.lm.device, len(some) + 1)
        tokens = ModelInput(
            torch.tensor([p.ids] * (len(some) + 1)), torch.ones(len(some) + 1, len(p.ids), dtype=torch.bool)
        )
        edits = _without(d, some)
        last = ("resid_post", anatomy.lm.dims.layers - 1)
        metric = read(anatomy, forward(anatomy.lm, tokens, capture=[last], edits=edits).sites[last], answers)[1]
        found += (metric[:-1] - metric[-1]).tolist()  # the last copy is left as it is
    return found


def _without(d: Dictionaries, groups: Sequence[Sequence[Key]]) -> list[Edit]:
    """Take out the features of a group in each row, wherever they write; they are what they are in the run without them."""
    sources = sorted({layer for group in groups for layer, _ in group})
    seen: dict[int, Tensor] = {}

    def look(layer: int) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            seen[layer] = x
            return x

        return run

    def change(layer: int) -> Callable[[Tensor], Tensor]:
        def run(y: Tensor) -> Tensor:
            for source in sources:
                for row, group in enumerate(groups):
                    mine = [f for la, f in group if la == source]
                    written = d.rows(source, layer, mine) if mine else None
                    if written is not None:
                        f = d.encode(source, seen.get(source, y)[row])[:, mine]
                        y[row] -= (f @ written).to(y.dtype)
            return y

        return run

    reads = [Edit(d.site, layer, look(layer)) for layer in sources] if d.transcoders else []
    reached = [layer for layer in d.layers if any(d.rows(source, layer, []) is not None for source in sources)]
    return [*reads, *(Edit(d.target, layer, change(layer)) for layer in reached)]


def line(predicted: Sequence[float], measured: Sequence[float]) -> tuple[float | None, float | None]:
    """Slope of measured on predicted through the origin, and R² of measured = predicted."""
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    if len(x) < 3 or float(x @ x) == 0 or y.std() == 0:
        return None, None
    return float(x @ y / (x @ x)), float(1 - np.square(y - x).sum() / np.square(y - y.mean()).sum())
