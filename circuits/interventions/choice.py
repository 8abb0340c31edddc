"""What is chosen before it is measured, on prompts that are not measured; and random sets of equal size as controls.

Features and neurons are ranked by estimated effect, the gradient of the mean difference times the activation: features chosen by
what they do to the output steer far better than those chosen by their activation (arXiv:2505.20063). Heads are ranked by zeroing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.activations.answers import Answers, rows_of
from circuits.data.prompts import batches
from circuits.errors import UserError
from circuits.interventions.ask import Ask
from circuits.interventions.effects import effects_of
from circuits.interventions.engine import Engine
from circuits.interventions.settings import Metric
from circuits.interventions.units.base import Lens, Place, Unit
from circuits.model_input import padded
from circuits.models.hooks import forward
from circuits.stats.draws import different_sets

Head = tuple[int, int]
NEAREST = 50
"""Items nearest in size among which a matched control is drawn."""


def as_list(given: Any) -> list[Any]:
    """A list as it is, one value as a list of it."""
    return list(given) if isinstance(given, (list, tuple)) else [given]


def top_heads(ask: Ask) -> list[Head]:
    """The ``top_k`` heads of the layers with the largest mean effect of zeroing, on the prompts that are not measured.

    Raises:
        UserError: there are no such prompts.
    """
    from circuits.interventions.edits.zero import Zero
    from circuits.interventions.units.heads import STUDIED, Heads

    need_others(ask, "groups are chosen")
    lens, units = Heads(), STUDIED.units(ask, Heads())
    rows = rows_of(ask.others, span=ask.settings.metric is Metric.full_target)
    engine = Engine(ask.lm, ask.others, rows, lens, batch_size=ask.settings.batch_size)
    found = effects_of(engine.measure(units, Zero()), units, "zero", ask.others, rows)
    order = np.argsort(-np.abs(np.nanmean(found.values["effect"], axis=1)), kind="stable")
    return sorted((units[i].items()[0]) for i in order[: ask.settings.top_k])


def need_others(ask: Ask, why: str) -> None:
    """Refuse to choose on what is measured.

    Raises:
        UserError: there is no prompt beside those that are measured.
    """
    if not len(ask.others):
        raise UserError(
            f"{why} on prompts that are not measured, and there are none; raise behaviour.n_samples or behaviour.n_test"
        )


def chosen(ask: Ask, lens: Lens) -> list[tuple[int, tuple[int, ...]]]:
    """``n_groups`` groups of ``group_size`` items a layer with the largest |estimated effect|, strongest first."""
    need_others(ask, "features and neurons are chosen")
    size, n = ask.settings.group_size, ask.settings.n_groups
    found = []
    for layer, score in estimated(ask, lens).items():
        order = score.abs().argsort(descending=True, stable=True)[: n * size]
        order = order[score[order] != 0]
        if not len(order):
            raise UserError(f"layer {layer}: no {lens.word} is active on the prompts; nothing can be chosen")
        found += [(layer, tuple(part.tolist())) for part in order.split(size)]
    return found


def estimated(ask: Ask, lens: Lens) -> dict[int, Tensor]:
    """Gradient × activation of every item of each layer, the mean over the prompts that are not measured."""
    rows = rows_of(ask.others, span=ask.settings.metric is Metric.full_target)
    engine = Engine(ask.lm, ask.others, rows, lens, batch_size=ask.settings.batch_size)
    taps = {layer: engine.tap(layer) for layer in ask.layers}
    total: dict[int, Tensor] = {}
    for members in engine.batches():
        here = [rows[i] for i in members]
        tokens, answers = padded([row.ids for row in here]), Answers.of(here, ask.lm.device)
        found = forward(ask.lm, tokens, capture=list(taps.values()), logits=answers.columns, detach=False)
        gradients = torch.autograd.grad(
            answers.difference(found.read).sum(), [found.sites[key] for key in taps.values()]
        )
        mask = tokens.mask.to(ask.lm.device)
        with torch.no_grad():
            for (layer, key), g in zip(taps.items(), gradients, strict=True):
                score = effect_of_items(lens, found.sites[key].detach(), g, layer, engine) * mask[..., None]
                total[layer] = total.get(layer, torch.zeros(1)) + score.sum((0, 1)).cpu()
    return {layer: score / len(ask.others) for layer, score in total.items()}


def effect_of_items(lens: Lens, x: Tensor, gradient: Tensor, layer: int, engine: Engine) -> Tensor:
    """First-order effect of an item's whole activation, ``[rows, pos, items]``: the gradient at the site along what removing it
    takes away."""
    items = range(lens.count(engine.lm.dims, layer))
    values = lens.values(x, layer, items)[..., 0]
    sae = getattr(lens, "saes", {}).get(layer)
    along = gradient.flatten(2) if sae is None else gradient.flatten(2).to(sae.W_dec.dtype) @ sae.W_dec.T
    return values.float() * along.float()


def random_sets(ask: Ask, lens: Lens, units: Sequence[Unit]) -> list[Unit]:
    """For each signature (how many heads at which layers) up to ``controls`` random sets without any studied head.

    All of them where there are fewer, and none where a layer has not enough other heads. One signature's sets serve all units that
    have it; ``of`` names it.
    """
    studied = {head for unit in units for head in unit.items()}
    rng = np.random.default_rng(ask.draw("controls"))
    found = []
    for shape in dict.fromkeys(map(signature, units)):
        pools = [[i for i in range(lens.count(ask.lm.dims, layer)) if (layer, i) not in studied] for layer, _ in shape]
        if any(len(pool) < k for (_, k), pool in zip(shape, pools, strict=True)):
            continue
        for i, chosen_ in enumerate(different_sets(pools, [k for _, k in shape], ask.settings.controls, rng)):
            places = tuple(Place(layer, items) for (layer, _), items in zip(shape, chosen_, strict=True))
            found.append(
                Unit(f"random {i} of {label(shape)}", places, ask.positions, control="random", of=label(shape))
            )
    return found


def signature(unit: Unit) -> tuple[tuple[int, int], ...]:
    """(layer, number of items) of each place."""
    return tuple((place.layer, len(place.items)) for place in unit.places)


def label(shape: Sequence[tuple[int, int]]) -> str:
    """``2 at L0, 1 at L3``."""
    return ", ".join(f"{k} at L{layer}" for layer, k in shape)


def matched_sets(ask: Ask, lens: Lens, units: Sequence[Unit]) -> list[Unit]:
    """For each unit up to ``controls`` sets of other items of its layer, each drawn among those nearest in mean activation norm.

    What is matched is the size of what an edit takes away: the mean over tokens of |activation| times the length of what it
    writes, measured on the prompts that are measured.
    """
    rng = np.random.default_rng(ask.draw("controls"))
    studied = {item for unit in units for item in unit.items()}
    sizes, found = _sizes(ask, lens), []
    for unit in units:
        drawn: dict[tuple[int, ...], None] = {}
        (place,) = unit.places
        order = sizes[place.layer]
        for _ in range(20 * ask.settings.controls):
            if len(drawn) == ask.settings.controls:
                break
            items = tuple(_near(order, item, place.layer, studied, rng) for item in place.items)
            if -1 not in items and len(set(items)) == len(items):
                drawn.setdefault(tuple(sorted(items)))
        for i, items in enumerate(drawn):
            found.append(
                Unit(
                    f"random {i} of {unit.name}",
                    (Place(place.layer, items),),
                    unit.positions,
                    control="matched",
                    of=unit.name,
                )
            )
    return found


def _near(sizes: Tensor, item: int, layer: int, studied: set[Head], rng: np.random.Generator) -> int:
    """A random item among the active ones nearest in size that are not studied; −1 where there is none."""
    free = [i for i in sizes.nonzero()[:, 0].tolist() if (layer, i) not in studied]
    if not free:
        return -1
    near = sorted(free, key=lambda i: (abs(float(sizes[i]) - float(sizes[item])), i))[:NEAREST]
    return int(rng.choice(near))


@torch.no_grad()
def _sizes(ask: Ask, lens: Lens) -> dict[int, Tensor]:
    """Mean |activation| × length of what is written, of every item of each layer."""
    total: dict[int, Tensor] = {}
    for tokens in batches(ask.measured.sequences(), ask.settings.batch_size):
        found = forward(ask.lm, tokens, capture={lens.site: ask.layers})
        mask = tokens.mask.to(ask.lm.device)[..., None]
        for layer in ask.layers:
            values = lens.values(found.sites[lens.site, layer], layer, range(lens.count(ask.lm.dims, layer)))[..., 0]
            total[layer] = total.get(layer, torch.zeros(1)) + (values.abs() * mask).sum((0, 1)).float().cpu()
    saes = getattr(lens, "saes", {})
    return {
        layer: size * (saes[layer].W_dec.norm(dim=1).float().cpu() if layer in saes else 1.0)
        for layer, size in total.items()
    }
