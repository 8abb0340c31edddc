"""From readings to effects: metrics by prompt, one long table for every study, and the summary of each unit (SPEC TL-5 … TL-10).

Metrics of a unit on a prompt, c the run without edits and a the edited one; positive always favours the target:

=====================  ==================================================================================================
``logit_diff``         z_a(target) − z_a(foil), first tokens
``effect``             change of the compared difference, a − c: ``logit_diff``, or ``seq_logprob_diff`` with whole answers
``p_drop``             p_c(target) − p_a(target), first token
``kl``                 KL(c ‖ a) over the vocabulary, nats; the mean over the target's tokens with whole answers
``top1_error``         1 where the likeliest token of a is not the target
``flip``               1 where it was in c and is not in a
``pair_right``         1 where the compared difference of a is above 0
``top_probability``    of the likeliest token of a
``seq_logprob_diff``   ℓ_a(target) − ℓ_a(foil), summed over their tokens (whole answers only)
``seq_p_drop``         ℓ_c(target) − ℓ_a(target), nats (whole answers only)
``recovery``           (d_a − d_c) / (d_other − d_c): the share of the way to the other prompt's difference (patching only)
``direct`` …           see :mod:`circuits.interventions.direct`
=====================  ==================================================================================================

``recovery`` is undefined, not huge, where the two prompts' differences are nearly equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from circuits.activations.answers import Row
from circuits.data.prompts import PromptSet
from circuits.interventions.engine import Readings
from circuits.interventions.readout import NUMBERS
from circuits.interventions.units.base import Unit
from circuits.stats.calibration import binary, calibration
from circuits.stats.many import Clustered, corrected, detectable, equivalence, intervals, sign_flip

Array = NDArray[np.float64]
NEAR_ZERO = 0.1
"""Logits (or nats): where clean and corrupt differences are closer than this, a recovery is undefined."""


@dataclass(frozen=True)
class Effects:
    """What one edit did: ``values`` metric → ``[units, prompts]``, ``base`` metric → ``[prompts]`` without edits."""

    units: tuple[Unit, ...]
    edit: str
    prompts: PromptSet
    values: dict[str, Array]
    base: dict[str, Array]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of the units."""
        return [unit.name for unit in self.units]

    def joined(self, other: Effects) -> Effects:
        """The units of both: of the same prompts under the same edit."""
        values = {name: np.concatenate([self.values[name], other.values[name]]) for name in self.values}
        return replace(self, units=self.units + other.units, values=values)

    def long(self) -> pd.DataFrame:
        """One row a (unit, prompt, metric), and a unit ``(none)`` for the run without edits."""
        units = (*self.units, Unit(NONE, ()))
        tables = []
        for metric, values in self.values.items():
            without = self.base.get(metric, np.full(len(self.prompts), np.nan))
            table = np.concatenate([values, without[None]])
            unit, prompt = np.nonzero(np.isfinite(table))
            tables.append(pd.DataFrame({"u": unit, "s": prompt, "metric": metric, "value": table[unit, prompt]}))
        found = pd.concat(tables, ignore_index=True)
        of_unit = {"unit": [u.name for u in units], "control": [u.control for u in units], "of": [u.of for u in units]}
        of_prompt = {
            "sample": self.prompts.samples,
            "group": self.prompts.groups,
            "condition": [p.behaviour for p in self.prompts],
        }
        for code, texts in (("u", of_unit), ("s", of_prompt)):
            for column, names in texts.items():
                found[column] = pd.Categorical(np.asarray(names, dtype=object)[found[code]], list(dict.fromkeys(names)))
        found["edit"] = pd.Categorical([self.edit] * len(found))
        found["metric"] = found["metric"].astype("category")
        return found[list(COLUMNS)]


NONE = "(none)"
"""The unit of the run without edits."""
COLUMNS = ("unit", "sample", "group", "condition", "edit", "metric", "value", "control", "of")
"""Of the long table."""


def effects_of(
    readings: Readings,
    units: Sequence[Unit],
    edit: str,
    prompts: PromptSet,
    rows: Sequence[Row],
    *,
    other: Array | None = None,
) -> Effects:
    """Metrics by prompt from what was read by row.

    Args:
        readings: of `rows`.
        units: in the readings' order.
        edit: its name.
        prompts: whose rows they are.
        rows: one or two a prompt.
        other: for patching, the compared difference of each pair's other prompt ``[prompts]``.
    """
    n, span = len(prompts), any(row.answer != "both" for row in rows)
    index = {name: np.full(n, -1) for name in ("target", "foil")}
    for r, row in enumerate(rows):
        for name in ("target", "foil") if row.answer == "both" else (row.answer,):
            index[name][row.prompt] = r
    target, foil = index["target"], index["foil"]
    target_ids = np.array([p.target_ids[0] for p in prompts], dtype=float)
    edited = _metrics({k: v.numpy() for k, v in readings.values.items()}, target, foil, target_ids, span)
    base = _metrics({k: v.numpy() for k, v in readings.base.items()}, target, foil, target_ids, span)
    compared = "seq_logprob_diff" if span else "logit_diff"
    edited["effect"] = edited[compared] - base[compared]
    edited["p_drop"] = base.pop("p_target") - edited.pop("p_target")
    was = base["top1_error"] == 0
    edited["flip"] = np.where(np.isfinite(edited["top1_error"]), was & (edited["top1_error"] == 1), np.nan)
    if span:
        edited["seq_p_drop"] = base.pop("logp_target") - edited.pop("logp_target")
    if other is not None:
        gap = other - base[compared]
        way = np.where(np.abs(gap) < NEAR_ZERO, np.nan, gap)
        edited["recovery"] = edited["effect"] / way
    for name in readings.values:
        if name not in NUMBERS:
            edited[name] = readings.values[name].numpy()[..., target]
    return Effects(tuple(units), edit, prompts, edited, base, {"compared": compared})


def _metrics(
    read: Mapping[str, Array], target: NDArray[np.int64], foil: NDArray[np.int64], ids: Array, span: bool
) -> dict[str, Array]:
    """Metrics of one run, ``[..., prompts]``."""
    top = read["top"][..., target]
    found = {
        "logit_diff": read["z_target"][..., target] - read["z_foil"][..., foil],
        "p_target": np.exp(read["logp_first"][..., target]),
        "kl": read["kl"][..., target],
        "top1_error": np.where(np.isfinite(top), (top != ids).astype(float), np.nan),
        "top_probability": read["top_probability"][..., target],
    }
    if span:
        found["seq_logprob_diff"] = read["logp_target"][..., target] - read["logp_foil"][..., foil]
        found["logp_target"] = read["logp_target"][..., target]
    compared = found["seq_logprob_diff" if span else "logit_diff"]
    found["pair_right"] = np.where(np.isfinite(compared), (compared > 0).astype(float), np.nan)
    return found


def summary(
    effects: Effects,
    *,
    cluster: Sequence[object],
    seed: int,
    resamples: int = 5000,
    bound: float | None = None,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """One row a unit: mean effect with its interval, test, correction, equivalence, and the means of the other metrics.

    Args:
        effects: of one edit.
        cluster: the sampling unit of each prompt.
        seed: of bootstrap and permutation.
        resamples: of both.
        bound: an effect within ±bound counts as none; None: a tenth of the mean difference without edits.
        alpha: of q and of the equivalence test.

    ``verdict`` is ``effect`` (q < alpha), ``none`` (equivalent to 0 within the bound) or ``open`` (neither; ``detectable`` says
    what could have been seen). Controls are in the table and in no correction.
    """
    given = Clustered.of(effects.values["effect"], cluster)
    low, high = intervals(given, seed=seed, resamples=resamples)
    p = sign_flip(given, seed=seed, resamples=resamples)
    studied = np.array([not unit.control for unit in effects.units])
    q, q_by = np.full(len(p), np.nan), np.full(len(p), np.nan)
    q[studied], q_by[studied] = corrected(p[studied]), corrected(p[studied], "by")
    if bound is None:
        bound = 0.1 * abs(float(np.nanmean(effects.base[effects.facts["compared"]])))
    outside = equivalence(given, bound)
    verdict = np.where(q < alpha, "effect", np.where(outside < alpha, "none", "open"))
    found = pd.DataFrame(
        {
            "unit": effects.names,
            "edit": effects.edit,
            "layer": pd.array([unit.layer for unit in effects.units], dtype="Int64"),
            "item": pd.array([unit.item for unit in effects.units], dtype="Int64"),
            "positions": [str(unit.positions) for unit in effects.units],
            "group": [unit.group for unit in effects.units],
            "control": [unit.control for unit in effects.units],
            "of": [unit.of for unit in effects.units],
            "n": given.n,
            "clusters": given.clusters,
            "effect": given.mean,
            "low": low,
            "high": high,
            "p": p,
            "q": q,
            "q_by": q_by,
            "bound": bound,
            "p_outside": outside,
            "detectable": detectable(given),
            "verdict": np.where(studied, verdict, ""),
        }
    )
    with np.errstate(invalid="ignore"):
        signs = np.sign(effects.values["effect"]) == np.sign(given.mean)[:, None]
        sign_flips = (effects.values["pair_right"] != effects.base["pair_right"]) & np.isfinite(
            effects.values["pair_right"]
        )
    known = np.isfinite(effects.values["effect"])
    found["abs_effect"] = _mean(np.abs(effects.values["effect"]))
    found["median"] = _median(effects.values["effect"])
    found["std"] = [
        float(np.std(v[k], ddof=1)) if k.sum() > 1 else np.nan
        for v, k in zip(effects.values["effect"], known, strict=True)
    ]
    found["same_sign"] = _mean(np.where(known, signs, np.nan))
    found["sign_flip_rate"] = _mean(np.where(known, sign_flips, np.nan))
    for name in effects.values:
        if name not in found and name != "effect":
            found[name] = _mean(effects.values[name])
    if "recovery" in effects.values:
        shares = Clustered.of(effects.values["recovery"], cluster)
        found["recovery_low"], found["recovery_high"] = intervals(shares, seed=seed, resamples=resamples)
    return found.join(_calibrations(effects))


def _calibrations(effects: Effects) -> pd.DataFrame:
    """Calibration of the edited runs by unit: of the choice between the answers, and of the next token (SPEC TL-9).

    The choice's confidence is the larger of σ(d) and 1 − σ(d), its label whether d > 0: no function of the confidence.
    """
    differences, right = effects.values[effects.facts["compared"]], 1 - effects.values["top1_error"]
    top = np.clip(effects.values["top_probability"], 0, 1)
    rows = []
    for d, y, p in zip(differences, right, top, strict=True):
        known = np.isfinite(d) & np.isfinite(y)
        if not known.any():
            rows.append(dict.fromkeys(("ece", "brier", "nll", "ece_multiclass"), np.nan))
            continue
        two = binary(d[known])
        ece = calibration(p[known], y[known]).ece
        rows.append({"ece": two.ece, "brier": two.brier, "nll": two.nll, "ece_multiclass": ece})
    return pd.DataFrame(rows)


def _mean(values: Array) -> Array:
    known = np.isfinite(values)
    return np.divide(
        np.where(known, values, 0).sum(1), known.sum(1), out=np.full(len(values), np.nan), where=known.any(1)
    )


def _median(values: Array) -> Array:
    return np.array([np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in values])
