"""From the numbers of all head sets to deltas, control distributions and p-values, as plain values for JSON. No torch.

A delta is always ablated − baseline. With R measured control sets, the one-sided p of a delta is (1 + hits) / (R + 1) (Phipson &
Smyth 2010) and the two-sided one twice the smaller of both, at most 1; so no p is below 1/(R + 1), no two-sided one below
2/(R + 1). The q of two-sided p-values is Benjamini-Hochberg's over the metrics of the signature.

The measurement itself is deterministic: another seed draws other controls and changes nothing else, so no interval over seeds is
given. Means over prompts have a bootstrap interval over distinct prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuits.geometry.names import SUBSPACE_K
from circuits.stats.many import Clustered, corrected, intervals, permutation_p

Array = NDArray[np.float64]


def summarise(names: Sequence[str], values: Array, n_controls: int) -> dict[str, Any]:
    """``baseline``, ``ablated``, ``deltas`` and ``random_control``, each by metric.

    Args:
        names: columns of `values`.
        values: ``[sets, names]``: the baseline, the studied set, the controls.
        n_controls: how many controls there are.

    Raises:
        ValueError: another number of sets.
    """
    if values.shape != (2 + n_controls, len(names)):
        raise ValueError(f"values {values.shape}: [2 + {n_controls} sets, {len(names)} names] are expected")
    deltas = values[1:] - values[0]
    control: dict[str, Any] = {}
    tested = [name for name in names if name != SUBSPACE_K]
    two_sided = []
    for name in tested:
        observed, drawn = deltas[0, names.index(name)], deltas[1:, names.index(name)]
        p = p_values(float(observed), drawn)
        two_sided.append(p["p_two_sided"])
        spread = float(np.std(drawn, ddof=1)) if n_controls > 1 else math.nan
        control[name] = {"mean": float(np.mean(drawn)), "std": spread, "values": drawn.tolist(), **p}
    for name, q in zip(tested, corrected(two_sided), strict=True):
        control[name]["q"] = float(q)
    rows = {"baseline": values[0], "ablated": values[1], "deltas": deltas[0]}
    found: dict[str, Any] = {part: dict(zip(names, map(float, row), strict=True)) for part, row in rows.items()}
    plain: dict[str, Any] = finite({**found, "random_control": control})
    return plain


def p_values(observed: float, drawn: Array) -> dict[str, float]:
    """The one-sided p-values of a delta among controls, and the two-sided one."""
    if not math.isfinite(observed):
        return dict.fromkeys(("p_lower", "p_upper", "p_two_sided"), math.nan)
    lower, upper = (float(permutation_p(observed, drawn, side=side)) for side in ("below", "above"))
    return {"p_lower": lower, "p_upper": upper, "p_two_sided": min(1.0, 2 * min(lower, upper))}


def prompt_intervals(
    numbers: Mapping[str, Array], clusters: Sequence[object], *, seed: int, resamples: int
) -> dict[str, list[float] | None]:
    """95% intervals of the mean change of each number ``[2, prompts]``, resampling clusters; None where there is none."""
    changes = np.stack([values[1] - values[0] for values in numbers.values()])
    low, high = intervals(Clustered.of(changes, clusters), seed=seed, resamples=resamples)
    ends = zip(numbers, low, high, strict=True)
    return {name: [float(a), float(b)] if math.isfinite(a) and math.isfinite(b) else None for name, a, b in ends}


def finite(value: Any) -> Any:
    """Nested plain values with None for what is no number: NaN is not JSON."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
