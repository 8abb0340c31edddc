"""Tests of a circuit (Shi et al., "Hypothesis testing the circuit hypothesis in LLMs", arXiv:2410.13032).

* Equivalence: on which share of the prompts does the circuit do better than the model? One half if it is as good (sign test);
and two
  one-sided t tests of the mean difference within a stated bound.
* Independence: does what the circuit leaves out still say something about what the model answers? HSIC (Gretton et al. 2005) of the
  metric without the circuit and the model's, by permutation.
* Minimality: for every edge, is the damage of taking it out larger than that of taking out a random edge that was added?
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from circuits.stats.draws import share_beyond
from circuits.stats.many import Clustered, corrected, detectable, equivalence

Array = NDArray[np.float64]


def equivalent(circuit: Array, model: Array, clusters: list[str], bound: float) -> dict[str, Any]:
    """Is the circuit as good as the model? Metrics by prompt; `bound` in the metric's units."""
    better, worse = int((circuit > model).sum()), int((circuit < model).sum())
    n = better + worse
    sign = float(stats.binomtest(better, n).pvalue) if n else 1.0
    given = Clustered.of((circuit - model)[None], clusters)
    p = float(equivalence(given, bound)[0])
    return {
        "share_better": better / n if n else 0.5,
        "p_sign": sign,
        "difference": float(given.mean[0]),
        "bound": bound,
        "p_equivalence": p,
        "detectable": float(detectable(given)[0]),
    }


def independent(without: Array, model: Array, *, seed: int, permutations: int = 2000) -> dict[str, Any]:
    """Is what is left without the circuit independent of the model's answers? A small p says that it is not."""
    if len(without) < 5 or without.std() == 0 or model.std() == 0:
        return {"hsic": None, "p": None}
    a, b = _kernel(without), _kernel(model)
    observed = float((a * b).mean())
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(permutations):
        order = rng.permutation(len(a))
        hits += float((a * b[order][:, order]).mean()) >= observed
    return {"hsic": observed, "p": share_beyond(hits, permutations)}


def _kernel(x: Array) -> Array:
    """A centred Gaussian kernel, its width the median distance."""
    distance = np.abs(x[:, None] - x[None])
    width = np.median(distance[np.triu_indices(len(x), 1)])
    k = np.exp(-0.5 * np.square(distance / max(float(width), 1e-12)))
    return np.asarray(k - k.mean(0) - k.mean(1)[:, None] + k.mean())


def minimal(damage: Array, added: Array, alpha: float = 0.05) -> dict[str, Any]:
    """For each edge of a circuit, is it needed?

    Args:
        damage: |m(C) − m(C without the edge)|, the mean over prompts, by edge.
        added: |m(C with a random edge) − m(C)|, by random edge.
        alpha: of the corrected p.
    """
    p = share_beyond((added[None] >= damage[:, None]).sum(1), len(added))
    q = corrected(p)
    return {"p": p, "q": q, "needed": int((q < alpha).sum()), "tested": len(damage), "smallest_p": 1 / (1 + len(added))}
