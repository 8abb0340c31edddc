"""A slice of a study measured again on another device or at another precision, in the same run (SPEC TL-22)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from circuits.interventions.effects import Effects

COMPARED = ("logit_diff", "effect", "kl", "p_drop")


def compared(main: Effects, again: Effects, where: Mapping[str, str]) -> dict[str, Any]:
    """Both measurements of the slice and how far they are apart: the largest and the mean |difference| of each metric."""
    place = {p.id: i for i, p in enumerate(main.prompts)}
    columns = [place[p.id] for p in again.prompts]
    names = {unit: i for i, unit in enumerate(again.names)}
    studied = [i for i, name in enumerate(main.names) if name in names]
    rows = [names[main.names[i]] for i in studied]
    found: dict[str, Any] = {**where, "edit": main.edit, "n": len(columns), "units": len(studied)}
    for metric in COMPARED:
        if metric in main.values:
            a, b = main.values[metric][np.ix_(studied, columns)], again.values[metric][rows]
            apart = np.abs(a - b)
            found[metric] = {
                "main": float(np.nanmean(a)),
                "verify": float(np.nanmean(b)),
                "abs_diff": float(np.nanmean(apart)),
                "largest": float(np.nanmax(apart)),
            }
    return found


def told(found: Mapping[str, Any]) -> str:
    """A line for the log."""
    values = found["effect"]
    return (
        f"verified on {found['device']} at {found['dtype']}: effect of {found['units']} units on {found['n']} prompts differs by "
        f"{values['abs_diff']:.2e} in the mean, {values['largest']:.2e} at most"
    )
