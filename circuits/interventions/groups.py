"""What a group does beyond its members: synergy, redundancy, and each member's share (SPEC TL-15).

With E(S) the effect of editing the set S on a prompt:

    synergy(S) = E(S) − Σ_{h∈S} E({h})        additivity(S) = E(S) / Σ E({h})        extra(S) = |E(S)| − max_h |E({h})|

A group is super-additive (its members stand in for each other) where synergy has the sign of the joint effect. The Shapley value
of a head is its mean marginal effect over random orders (Castro et al. 2009): every order is drawn with its reverse, and the
effects of all beginnings of all orders are measured, each set once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from circuits.interventions.effects import Effects
from circuits.interventions.units.base import Unit
from circuits.stats.many import Clustered, corrected, intervals, permutation_p, sign_flip

if TYPE_CHECKING:
    from circuits.interventions.ask import Ask

Head = tuple[int, int]


def synergies(effects: Effects, *, cluster: Sequence[object], seed: int, resamples: int) -> pd.DataFrame:
    """One row a studied group of at least two items whose members were measured alone, with interval and test of the synergy."""
    single = {unit.items()[0]: i for i, unit in enumerate(effects.units) if len(unit.items()) == 1 and not unit.control}
    values = effects.values["effect"]
    chosen = [
        i
        for i, unit in enumerate(effects.units)
        if len(unit.items()) > 1 and not unit.control and not unit.restored and set(unit.items()) <= set(single)
    ]
    if not chosen:
        return pd.DataFrame(columns=COLUMNS)
    sums = np.stack([sum(values[single[item]] for item in effects.units[i].items()) for i in chosen])
    largest = np.stack(
        [np.abs([np.nanmean(values[single[h]]) for h in effects.units[i].items()]).max() for i in chosen]
    )
    joint = values[chosen]
    given = Clustered.of(joint - sums, cluster)
    low, high = intervals(given, seed=seed, resamples=resamples)
    p = sign_flip(given, seed=seed, resamples=resamples)
    joint_mean, sum_mean = np.nanmean(joint, axis=1), np.nanmean(sums, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        additivity = np.where(np.abs(sum_mean) < 1e-9, np.nan, joint_mean / sum_mean)
    return pd.DataFrame(
        {
            "unit": [effects.units[i].name for i in chosen],
            "edit": effects.edit,
            "size": [len(effects.units[i].items()) for i in chosen],
            "joint": joint_mean,
            "sum": sum_mean,
            "synergy": given.mean,
            "low": low,
            "high": high,
            "p": p,
            "q": corrected(p),
            "additivity": additivity,
            "extra": np.abs(joint_mean) - largest,
            "super_additive": given.mean * np.sign(joint_mean) > 0,
        }
    )


COLUMNS = [
    "unit",
    "edit",
    "size",
    "joint",
    "sum",
    "synergy",
    "low",
    "high",
    "p",
    "q",
    "additivity",
    "extra",
    "super_additive",
]
"""Of the table of groups."""


def rescues(effects: Effects, within: float = 0.01) -> pd.DataFrame:
    """One row a head that was given back to its zeroed group (SPEC TL-17).

    ``recovered`` is the share of the group's effect that giving the head back undoes, ``rescued`` whether the difference is within
    `within` of that without edits; undefined where the group has no effect to speak of.
    """
    mean = dict(zip(effects.names, np.nanmean(effects.values["effect"], axis=1), strict=True))
    base = float(np.nanmean(effects.base[effects.facts["compared"]]))
    rows = []
    for unit in effects.units:
        if unit.restored:
            (place,) = unit.restored
            taken, left = float(mean[unit.group]), float(mean[unit.name])
            rows.append(
                {
                    "unit": unit.group,
                    "kept": f"L{place.layer}.H{place.items[0]}",
                    "base": base,
                    "zeroed": base + taken,
                    "restored": base + left,
                    "recovered": np.nan if abs(taken) < within * abs(base) else 1 - left / taken,
                    "rescued": abs(left) <= within * abs(base),
                }
            )
    return pd.DataFrame(rows)


def null_p(effects: Effects, of: dict[str, str]) -> pd.DataFrame:
    """Each studied unit among its measured controls, by mean effect.

    Args:
        effects: of studied units and controls.
        of: the controls that each studied unit is held against, as their ``of``; a unit that is not named has none.

    The columns ``null_n``, ``null_mean``, ``null_low``, ``null_high`` (2.5 and 97.5%), ``percentile``, ``p_null`` (two-sided in the
    distance from the controls' mean) and ``smallest_p``, the least that so many controls can give.
    """
    means = dict(zip(effects.names, np.nanmean(effects.values["effect"], axis=1), strict=True))
    drawn: dict[str, list[float]] = {}
    for unit in effects.units:
        if unit.control:
            drawn.setdefault(unit.of, []).append(means[unit.name])
    rows = []
    for unit in effects.units:
        null = np.asarray(drawn.get(of.get(unit.name, ""), []), dtype=float)
        if unit.control or not len(null):
            continue
        value = float(means[unit.name])
        rows.append(
            {
                "unit": unit.name,
                "null_n": len(null),
                "null_mean": float(null.mean()),
                "null_low": float(np.quantile(null, 0.025)),
                "null_high": float(np.quantile(null, 0.975)),
                "percentile": float(100 * (null <= value).mean()),
                "p_null": float(permutation_p(value, null)),
                "smallest_p": 1 / (len(null) + 1),
            }
        )
    return pd.DataFrame(rows)


def among_layer(effects: Effects) -> pd.DataFrame:
    """Each single item among the other ones of its layer, which were measured anyway: the control of a battery over all heads.

    ``layer_percentile`` and ``p_layer`` = (1 + hits) / (R + 1) in the distance from the others' mean, R = ``layer_n``.
    """
    means = np.nanmean(effects.values["effect"], axis=1)
    layers = np.array([-1 if unit.layer is None or unit.control else unit.layer for unit in effects.units])
    rows = []
    for i, unit in enumerate(effects.units):
        others = np.flatnonzero((layers == layers[i]) & (np.arange(len(layers)) != i))
        if unit.item is None or not len(others) or layers[i] < 0:
            continue
        null, value = means[others], float(means[i])
        rows.append(
            {
                "unit": unit.name,
                "layer_n": len(others),
                "layer_percentile": float(100 * (null <= value).mean()),
                "p_layer": float(permutation_p(value, null)),
            }
        )
    return pd.DataFrame(rows)


def orders(heads: Sequence[Head], n: int, seed: int) -> list[tuple[Head, ...]]:
    """`n` random orders, each with its reverse (`n` is rounded up to even)."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(-(-n // 2)):
        drawn = tuple(heads[i] for i in rng.permutation(len(heads)))
        found += [drawn, drawn[::-1]]
    return found


def prefixes(drawn: Sequence[Sequence[Head]]) -> list[tuple[Head, ...]]:
    """The sets that the orders' values need: all their beginnings, each once."""
    return list(dict.fromkeys(tuple(sorted(order[: i + 1])) for order in drawn for i in range(len(order))))


def shapley(
    effects: Effects, drawn: Sequence[Sequence[Head]], *, cluster: Sequence[object], seed: int, resamples: int
) -> pd.DataFrame:
    """The sampled Shapley value of each head with its interval over prompts; they sum to the effect of the whole set."""
    of_set = {
        tuple(sorted(unit.items())): effects.values["effect"][i]
        for i, unit in enumerate(effects.units)
        if not unit.control
    }
    heads = sorted(set(drawn[0]))
    values = {head: np.zeros(len(effects.prompts)) for head in heads}
    for order in drawn:
        before = np.zeros(len(effects.prompts))
        for i, head in enumerate(order):
            now = of_set[tuple(sorted(order[: i + 1]))]
            values[head] += (now - before) / len(drawn)
            before = now
    given = Clustered.of(np.stack([values[head] for head in heads]), cluster)
    low, high = intervals(given, seed=seed, resamples=resamples)
    alone = [float(np.nanmean(of_set[(head,)])) if (head,) in of_set else np.nan for head in heads]
    return pd.DataFrame(
        {
            "layer": [head[0] for head in heads],
            "item": [head[1] for head in heads],
            "edit": effects.edit,
            "shapley": given.mean,
            "low": low,
            "high": high,
            "alone": alone,
            "orders": len(drawn),
        }
    )


def shapley_units(ask: Ask, units: Sequence[Unit]) -> tuple[list[Unit], list[tuple[Head, ...]]]:
    """The sets that Shapley values need beyond `units`, and the orders."""
    from circuits.interventions.units.head_groups import group_unit
    from circuits.interventions.units.heads import Heads

    heads = sorted({item for unit in units if not unit.control for item in unit.items()})
    drawn = orders(heads, ask.settings.shapley, ask.draw("shapley"))
    known = {tuple(sorted(unit.items())) for unit in units}
    return [group_unit(group, Heads(), ask) for group in prefixes(drawn) if group not in known], drawn
