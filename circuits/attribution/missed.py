"""What a circuit leaves out and the model needs: nodes outside of it are patched for real.

Scores that follow gradients can miss the deep part of a circuit: behind a saturated gate the gradient is zero, and all that is
found is what writes to the logits. Edges that are patched exactly would show it only where one of them is drawn. So beside them all
heads of a layer that are outside the circuit get the other run's values at once, and each MLP that is outside; where that moves the
metric by more than a tenth of what the whole run moves it, heads are patched one by one to name them. A pass costs what an edge's
does, and there are two a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from circuits.activations.answers import Answers
from circuits.attribution.anatomy import Anatomy
from circuits.attribution.choose import connected
from circuits.attribution.exact import prepared
from circuits.attribution.nodes import Nodes
from circuits.attribution.pairs import Batch, Pairs
from circuits.attribution.passes import Run, read
from circuits.attribution.study import Ask, Found, MakeKeeper, circuit, matrix
from circuits.data.keeper import Keeper, State
from circuits.data.prompts import PromptSet
from circuits.model_input import ModelInput
from circuits.models.edits import added
from circuits.models.hooks import Edit, Prefix, forward

SHARE = 0.1
"""Of the difference between the two runs: what outside of a circuit is reported."""


@dataclass(frozen=True)
class Unit:
    """Nodes of one layer that are patched at once: heads, or the MLP."""

    name: str
    layer: int
    writers: tuple[int, ...]
    mlp: bool


def outside(nodes: Nodes, kept: NDArray[np.bool_]) -> list[Unit]:
    """The nodes on no way from the input to the logits through `kept` ``[writers, readers]``, by layer."""
    used = set(np.flatnonzero(connected(kept, nodes).any(axis=1)).tolist())
    found = []
    for layer in range(nodes.layers):
        heads = tuple(w for h in range(nodes.heads) if (w := nodes.writer(layer, h)) not in used)
        if heads:
            found.append(Unit(f"a{layer} ({len(heads)} of {nodes.heads} heads)", layer, heads, False))
        if (mlp := nodes.writer(layer)) not in used:
            found.append(Unit(nodes.writers[mlp], layer, (mlp,), True))
    return found


def alone(nodes: Nodes, unit: Unit) -> list[Unit]:
    """The nodes of a unit one by one."""
    return [Unit(nodes.writers[w], unit.layer, (w,), unit.mlp) for w in unit.writers]


@torch.no_grad()
def effects(anatomy: Anatomy, batch: Batch, units: Sequence[Unit], copies: int = 1) -> Float[Tensor, "n units"]:
    """metric(nodes patched) − metric of each row, the other run's values in and everything after them free to follow.

    Args:
        anatomy: the model.
        batch: the rows.
        units: what is patched, each alone.
        copies: units of a layer that share a pass.
    """
    n, copies = len(batch.rows), max(1, min(copies, len(units)))
    tokens, answers, base, metric, delta = prepared(anatomy, batch, copies)
    found, done = torch.zeros(n, len(units)), 0
    order = sorted(range(len(units)), key=lambda i: (units[i].layer, units[i].mlp))
    while done < len(order):
        first = units[order[done]]
        some = [i for i in order[done : done + copies] if (units[i].layer, units[i].mlp) == (first.layer, first.mlp)]
        more = torch.cat([delta[:, list(units[i].writers)].sum(1) for i in some])
        patched = _patched(anatomy, tokens, answers, base, first, more)
        found[:, some] = (patched - metric).view(copies, n)[: len(some)].T.cpu()
        done += len(some)
    return found


def _patched(
    anatomy: Anatomy, tokens: ModelInput, answers: Answers, base: Run, unit: Unit, more: Float[Tensor, "rows pos width"]
) -> Float[Tensor, " rows"]:
    """The metric where `more` is added to the stream after a layer's attention, or after its MLP."""
    last = ("resid_post", anatomy.nodes.layers - 1)
    site = "resid_post" if unit.mlp or anatomy.nodes.parallel else "resid_mid"
    prefix = Prefix(unit.layer, base.streams["pre", unit.layer])
    found = forward(anatomy.lm, tokens, capture=[last], edits=[Edit(site, unit.layer, added(more))], prefix=prefix)
    return read(anatomy, found.sites[last], answers)[1]


def search(
    anatomy: Anatomy, rows: Pairs, units: Sequence[Unit], size: int, keeper: Keeper[str], copies: int = 4
) -> NDArray[np.float64]:
    """Effects of some units, ``[prompts, units]``, in batches of `size` rows of `rows` (:class:`Pairs`); goes on where it was."""
    found, done = torch.zeros(len(rows), len(units)), 0
    facts = {"rows": [rows.prompts[row.prompt].id for row in rows.rows], "units": [list(u.writers) for u in units]}

    def state(_: str) -> State:
        return {"missed": found}, {"total": len(rows)}

    for tensors, _ in keeper.begin({"effects": facts}).values():
        found.copy_(tensors["missed"])
    for batch in rows.batches(size, anatomy.lm.device):
        if done + len(batch.rows) > keeper.start:
            share = max(1, copies * size // len(batch.rows))
            found[torch.tensor(batch.rows)] = effects(anatomy, batch, units, share)
        done += len(batch.rows)
        keeper.step(done, len(rows), state)
    keeper.end(done, state)
    return np.asarray(rows.per_prompt(found).double().numpy())


def missed(ask: Ask, read: Found, keeper: MakeKeeper) -> dict[str, Any]:
    """What of the model outside of a study's circuit moves the metric by more than `SHARE` of the two runs' difference.

    Returns:
        ``tested``: how many units; ``bound``: the share; ``largest``: the largest share of any; ``found``: those beyond the bound,
        with their nodes, the largest first; ``told``: that in a sentence.
    """
    s, anatomy = ask.settings, ask.anatomy
    rows = ask.pairs(PromptSet(ask.prompts.prompts[: s.verify_samples], ask.prompts.meta))
    chosen = circuit(ask, read.scores.mean(0, dtype=np.float64))
    difference = float((read.other - read.base)[: s.verify_samples].mean())
    return beyond_bound(anatomy, rows, matrix(ask.nodes, chosen).astype(bool), difference, s.batch_size, keeper)


def beyond_bound(
    anatomy: Anatomy, rows: Pairs, kept: NDArray[np.bool_], difference: float, size: int, keeper: MakeKeeper
) -> dict[str, Any]:
    """As :func:`missed`, of a circuit ``[writers, readers]`` on some rows."""
    nodes = anatomy.nodes
    units = outside(nodes, kept)
    if not units or not difference:
        return {"tested": len(units), "bound": SHARE, "largest": None, "found": [], "told": ""}
    together = search(anatomy, rows, units, size, keeper("missed")).mean(0)
    shares = np.abs(together / difference)
    beyond = [units[i] for i in np.argsort(-shares, kind="stable") if shares[i] > SHARE]
    singles = [one for unit in beyond for one in alone(nodes, unit)]
    each = search(anatomy, rows, singles, size, keeper("missed-alone")).mean(0) if singles else np.zeros(0)
    effect = dict(zip([one.name for one in singles], each.tolist(), strict=True))
    found = []
    for unit in beyond:
        mine = sorted(((effect[nodes.writers[w]], nodes.writers[w]) for w in unit.writers), key=lambda e: -abs(e[0]))
        found.append(
            {
                "unit": unit.name,
                "layer": unit.layer,
                "effect": float(together[units.index(unit)]),
                "share": float(together[units.index(unit)] / difference),
                "nodes": [{"node": name, "effect": value} for value, name in mine[:NAMED]],
            }
        )
    return {"tested": len(units), "bound": SHARE, "largest": float(shares.max()), "found": found, "told": _told(found)}


NAMED = 4
"""Nodes of a unit that are named."""


def _told(units: Sequence[Mapping[str, Any]]) -> str:
    """What a reader is to know; nothing where nothing was missed."""
    if not units:
        return ""
    named = [
        f"{unit['unit']} {unit['share']:+.0%}"
        + (f" ({', '.join(str(one['node']) for one in unit['nodes'])})" if len(unit["nodes"]) > 1 else "")
        for unit in units[:NAMED]
    ]
    more = f" and {len(units) - NAMED} more" if len(units) > NAMED else ""
    return (
        f"The circuit misses what the model uses: of the whole difference, nodes outside of it make up, patched for real, "
        f"{', '.join(named)}{more}. More edges (attribution.edges) or another method may find them."
    )


__all__ = ["SHARE", "Unit", "beyond_bound", "effects", "missed", "outside", "search"]
