"""Directions to steer along: the difference of means, and random and orthogonal directions of equal length beside it.

With a pair's clean prompt c and corrupt prompt k, and the site's vector h at a prompt's last token,

    v = mean over pairs of (h_c − h_k)                                    (difference of means, Marks & Tegmark 2310.06824)
    r = ‖v‖ · g / ‖g‖            g a draw of the standard normal distribution
    o = ‖v‖ · g⊥ / ‖g⊥‖          g⊥ = g − (g·v / v·v) v

The pairs are those that are not measured. Orthogonal directions of equal length can steer nearly as well as the one that was found
(2602.06801), so a vector that works is no evidence by itself: it is held against these. In AxBench (2501.17148) the difference of
means is the baseline to beat among vectors, and a prompt beats most of them (:mod:`circuits.interventions.prompting`).

With ``features=[3,17]`` the decoder rows of these features of each layer's SAE stand beside it, at its length and with controls of
their own, along either sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from circuits.activations.answers import Base
from circuits.data.prompts import batches
from circuits.errors import NonFinite, UserError
from circuits.interventions.ask import Ask
from circuits.interventions.choice import as_list, need_others
from circuits.interventions.pairing import check_pairs
from circuits.interventions.settings import Direction
from circuits.interventions.units.base import Lens, Place, Unit
from circuits.models.hooks import forward
from circuits.models.sites import check_layer, check_site

if TYPE_CHECKING:
    from jaxtyping import Float

STUDIED = "dom"
"""The difference of means."""
CONTROLS = ("random", "orthogonal")
LEAST = 1e-6
"""A difference that is a smaller share of the vectors' own length is rounding."""


@dataclass(frozen=True)
class Directions:
    """A direction of one layer that is studied and its controls, all of one length.

    Attributes:
        layer: where they are added.
        dom: the difference of means, or a feature's decoder row at its length.
        controls: by kind, ``[R, width]``.
    """

    layer: int
    dom: Float[Tensor, " width"]
    controls: dict[str, Float[Tensor, "controls width"]]
    kind: str = STUDIED

    @property
    def unit(self) -> str:
        """The name of the unit that adds it."""
        return name(self.layer, self.kind)

    @property
    def norm(self) -> float:
        """Their length."""
        return float(self.dom.norm())

    def named(self) -> dict[str, Tensor]:
        """Each under the name of the unit that adds it."""
        found = {self.unit: self.dom}
        for kind, vectors in self.controls.items():
            found |= {control_name(self.unit, kind, i): vector for i, vector in enumerate(vectors)}
        return found


def name(layer: int, kind: str = STUDIED) -> str:
    """``L12.dom``, ``L12.F3``."""
    return f"L{layer}.{kind}"


def control_name(unit: str, kind: str, number: int) -> str:
    """``L12.random 3`` of the difference of means, ``L12.F3 random 3`` of a feature."""
    layer, _, studied = unit.partition(".")
    return f"{layer}.{kind} {number}" if studied == STUDIED else f"{unit} {kind} {number}"


def features(ask: Ask) -> list[int]:
    """The features whose directions are studied, each once."""
    return list(dict.fromkeys(map(int, as_list(ask.settings.features)))) if ask.settings.features is not None else []


def units(ask: Ask) -> list[Unit]:
    """The difference of means of each layer, then the features' directions."""
    kinds = [STUDIED, *(f"F{feature}" for feature in features(ask))]
    return [Unit(name(layer, kind), (Place(layer),), ask.positions) for layer in ask.layers for kind in kinds]


def controls(ask: Ask) -> list[Unit]:
    """``controls`` random and as many orthogonal directions of each that is studied."""
    return [
        Unit(control_name(unit.name, kind, i), unit.places, ask.positions, control=kind, of=unit.name)
        for unit in units(ask)
        for kind in CONTROLS
        for i in range(ask.settings.controls)
    ]


def base(ask: Ask) -> Base:
    """Which prompt of a pair is steered: the corrupt one towards the target, or the clean one away from it."""
    return "corrupt" if ask.settings.direction is Direction.denoising else "clean"


def sign(ask: Ask) -> int:
    """Of the effect that is wanted: +1 towards the target, −1 away from it."""
    return 1 if base(ask) == "corrupt" else -1


def directions(ask: Ask, lens: Lens) -> dict[int, Directions]:
    """All directions of each layer, a function of the prompts that are not measured and of the seed.

    Raises:
        UserError: there are no such prompts, one has no corrupt prompt, or clean and corrupt ones do not differ.
    """
    need_others(ask, "directions are made and strengths chosen")
    if base(ask) == "corrupt":
        check_pairs(ask.others, ask.positions.from_end)
    found = {}
    for layer, dom in mean_differences(ask, lens).items():
        found[layer] = Directions(layer, dom, _drawn(ask, dom, str(layer)))
    return found


def of_features(ask: Ask, beside: Directions) -> list[Directions]:
    """The decoder rows of the named features of a layer's SAE, each at the length of the difference of means.

    Raises:
        UserError: the SAE has no such feature, writes to another site than it reads, or the row is zero.
    """
    if not (wanted := features(ask)):
        return []
    layer, sae = beside.layer, ask.saes[beside.layer]
    if sae.cfg.d_out is not None:
        raise UserError(f"layer {layer}: a transcoder writes to another site than it reads; take an SAE")
    found = []
    for feature in wanted:
        if not 0 <= feature < sae.cfg.d_sae:
            raise UserError(
                f"features={feature}: layer {layer}'s SAE has {sae.cfg.d_sae} features (0-{sae.cfg.d_sae - 1})"
            )
        row = sae.W_dec[feature].detach().float().cpu()
        if not float(row.norm()):
            raise UserError(f"features={feature}: layer {layer}'s SAE has no direction for it (a decoder row of zeros)")
        vector, kind = row * (beside.norm / row.norm()), f"F{feature}"
        found.append(Directions(layer, vector, _drawn(ask, vector, str(layer), kind), kind))
    return found


def _drawn(ask: Ask, like: Tensor, *purpose: str) -> dict[str, Tensor]:
    n = ask.settings.controls
    return {
        kind: draw(like, n, ask.draw("steer", kind, *purpose), orthogonal=kind == "orthogonal") for kind in CONTROLS
    }


@torch.no_grad()
def mean_differences(ask: Ask, lens: Lens) -> dict[int, Float[Tensor, " width"]]:
    """Mean of clean − corrupt at the last token of the prompts that are not measured, by layer.

    Raises:
        UserError: it is zero, up to rounding.
    """
    check_site(lens.site, ask.lm.dims)
    layers = [check_layer(layer, ask.lm.dims) for layer in ask.layers]
    clean, corrupt = (means(ask, lens, layers, which) for which in ("prompt", "corrupt"))
    found = {}
    for layer in layers:
        v = clean[layer] - corrupt[layer]
        if not bool(torch.isfinite(v).all()):
            raise NonFinite(f"non-finite activation at {lens.site} layer {layer}; use precision=fp32 or bf16")
        if float(v.norm()) <= LEAST * float(clean[layer].norm()):
            raise UserError(
                f"layer {layer}: clean and corrupt prompts have the same mean {lens.site} at their last token, so there is "
                "no direction to steer along; take a later layer, or prompts whose pairs differ before their end"
            )
        found[layer] = v.float()
    return found


def means(ask: Ask, lens: Lens, layers: Sequence[int], which: str) -> dict[int, Tensor]:
    """The mean of the site's vector at the last tokens of the prompts that are not measured, float64 in main memory.

    Args:
        which: ``prompt`` or ``corrupt``.
    """
    total: dict[str, Tensor] = {}
    sequences, done, keeper = ask.others.sequences(which), 0, ask.keep(f"directions {which}")  # type: ignore[arg-type]
    facts = {
        "of": [ask.lm.name, lens.site, list(layers)],
        "rows": ask.others.samples,
        "batch": [ask.settings.batch_size, str(ask.lm.device), str(ask.lm.dtype)],
    }
    for tensors, _ in keeper.begin({"effects": facts}).values():
        total = tensors
    for tokens in batches(sequences, ask.settings.batch_size):
        done += len(tokens)
        if done > keeper.start:
            sites = forward(ask.lm, tokens, capture={lens.site: layers}, positions=1).sites
            for layer in layers:
                h = lens.values(sites[lens.site, layer], layer, (0,))[:, 0, 0].double().cpu().sum(0)
                total[str(layer)] = total.get(str(layer), torch.zeros_like(h)) + h
            keeper.step(done, len(sequences), lambda _: (total, {}))
    keeper.end(done, lambda _: (total, {}))
    return {int(layer): h / len(sequences) for layer, h in total.items()}


def draw(like: Float[Tensor, " width"], n: int, seed: int, *, orthogonal: bool = False) -> Float[Tensor, "n width"]:
    """`n` directions of the length of `like`, of the standard normal distribution or of what of it is orthogonal to `like`.

    Raises:
        UserError: nothing is orthogonal in one dimension.
    """
    if orthogonal and len(like) < 2:
        raise UserError("one dimension has no orthogonal direction; controls=0 goes without")
    v = like.double().cpu()
    g = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, len(v))))
    if orthogonal:
        for _ in range(2):  # once more for what rounding left
            g = g - (g @ v / (v @ v))[:, None] * v
    return (g * (v.norm() / g.norm(dim=1, keepdim=True))).to(like.dtype)
