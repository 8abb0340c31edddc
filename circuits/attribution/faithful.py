"""How well a circuit does the behaviour alone: every other edge ablated, over shares of edges, beside random circuits.

With m(C) the mean metric of the circuit alone, M the whole model and ∅ no edge at all, f(C) = (m(C) − m(∅)) / (m(M) − m(∅)), so
that f(M) = 1 and f(∅) = 0. Over shares of edges k (MIB, arXiv:2504.13151): CPR = ∫ f dk, which learned masks can push above 1, and
CMD = ∫ |1 − f| dk, by which circuits are ranked. Intervals draw prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from circuits.attribution.ablated import ablated
from circuits.attribution.anatomy import Anatomy
from circuits.attribution.pairs import Batch, Pairs
from circuits.attribution.passes import run
from circuits.attribution.scores import writes
from circuits.data.keeper import Keeper, State
from circuits.errors import UserError

Mask = NDArray[np.bool_]
Array = NDArray[np.float64]
SMALL = 1e-3
"""A difference between model and no circuit below this share of the model's metric is none."""


@dataclass
class Values:
    """What a writer adds where it is ablated.

    Attributes:
        name: ``counterfactual zero mean resample optimal``.
        constant: ``[writers, width]`` of mean and optimal ablation.
        donors: of resample: the tokens of another prompt for each row.
    """

    name: str
    constant: Tensor | None = None
    donors: Sequence[tuple[int, ...] | None] = ()

    def of(self, anatomy: Anatomy, batch: Batch) -> Float[Tensor, "n writers pos width"]:
        """The values for a batch (broadcast where they are constants)."""
        from circuits.model_input import padded

        if self.name == "zero":
            lm = anatomy.lm
            return torch.zeros(1, len(anatomy.nodes.writers), 1, lm.dims.width, device=lm.device)
        if self.constant is not None:
            return self.constant[None, :, None]
        with torch.no_grad():
            if self.name == "counterfactual":
                found = writes(anatomy, run(anatomy, batch.other))
                at = batch.at
                return (
                    found
                    if at is None
                    else found.gather(2, at[:, None, :, None].expand(*found.shape[:2], -1, found.shape[3]))
                )
            width = batch.base.ids.shape[1]
            rows = [(self.donors[i] or ())[:width] for i in batch.rows]
            short = max(len(row) for row in rows)
            found = writes(anatomy, run(anatomy, padded(rows)))
            return torch.nn.functional.pad(found, (0, 0, 0, width - short)) if short < width else found


def _known(pairs: Pairs, batch_size: int, **facts: Any) -> dict[str, dict[str, Any]]:
    """What a pass over all prompts is a function of, beside the model."""
    return {"effects": {"rows": [pairs.prompts[row.prompt].id for row in pairs.rows], "batch": batch_size, **facts}}


@torch.no_grad()
def mean_writes(
    anatomy: Anatomy, pairs: Pairs, batch_size: int, keeper: Keeper[str] | None = None
) -> Float[Tensor, "writers width"]:
    """What each writer adds on average over all tokens of the runs that are edited; `keeper` keeps the sums so far."""
    keeper = keeper or Keeper()
    total = torch.zeros(len(anatomy.nodes.writers), anatomy.lm.dims.width, device=anatomy.lm.device)
    n, done = 0, 0

    def state(_: str) -> State:
        return {"total": total}, {"n": n}

    for tensors, meta in keeper.begin(_known(pairs, batch_size)).values():
        total.copy_(tensors["total"])
        n = meta["n"]
    for batch in pairs.batches(batch_size, anatomy.lm.device):
        done += len(batch.rows)
        if done > keeper.start:
            mask = batch.base.mask.to(anatomy.lm.device)
            found = writes(anatomy, run(anatomy, batch.base)).float()
            total += torch.einsum("nupd,np->ud", found, mask.float())
            n += int(mask.sum())
            keeper.step(done, len(pairs), state)
    keeper.end(done, state)
    return total / max(n, 1)


def fit_constants(
    anatomy: Anatomy,
    pairs: Pairs,
    start: Float[Tensor, "writers width"],
    masks: Sequence[Mask],
    *,
    steps: int,
    batch_size: int,
    rate: float = 0.05,
    keeper: Keeper[str] | None = None,
) -> Tensor:
    """Optimal constants (Li and Janson, arXiv:2409.09951): those with which the circuits come nearest to the model, by Adam from
    the means; each step takes one of the circuits and one batch of prompts that are not judged. `keeper` keeps the steps."""
    keeper = keeper or Keeper()
    values = start.clone().requires_grad_()
    scale = start.square().mean().sqrt().clamp(min=1e-3)
    adam = torch.optim.Adam([values], lr=float(rate * scale))
    batches = list(pairs.batches(batch_size, anatomy.lm.device))

    def state(_: str) -> State:
        moments = {name: value for name, value in adam.state[values].items() if name != "step"}
        return {"values": values.detach(), **moments}, {"steps": steps}

    for tensors, meta in keeper.begin(_known(pairs, batch_size, sizes=[int(mask.sum()) for mask in masks])).values():
        values.data.copy_(tensors.pop("values"))
        moments = {name: value.to(values.device) for name, value in tensors.items()}
        adam.state[values] = {"step": torch.tensor(float(meta["done"])), **moments}
    for step in range(keeper.start, steps):
        batch, mask = batches[step % len(batches)], masks[step % len(masks)]
        with torch.no_grad():
            wanted = run(anatomy, batch.base, batch.answers).metric
        got = ablated(anatomy, batch.base, batch.answers, cut(mask, anatomy), values[None, :, None], graph=True)[0]
        loss = (got - wanted).square().mean() if wanted is not None else got.square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        keeper.step(step + 1, steps, state)
    keeper.end(steps, state)
    return values.detach()


def cut(kept: Mask | Sequence[Mask], anatomy: Anatomy) -> Tensor:
    """1 where an edge is ablated, ``[circuits, writers, readers]``."""
    masks = np.stack(list(kept)) if not isinstance(kept, np.ndarray) else kept[None] if kept.ndim == 2 else kept
    return torch.from_numpy(~masks & anatomy.nodes.mask[None]).to(anatomy.lm.device)


@dataclass
class Alone:
    """The metric of each circuit alone on each prompt ``[circuits, prompts]``, of the whole model and of no edge ``[prompts]``."""

    circuits: Array
    model: Array
    empty: Array
    facts: dict[str, Any] = field(default_factory=dict)


def alone(
    anatomy: Anatomy,
    pairs: Pairs,
    masks: Sequence[Mask],
    values: Values,
    *,
    batch_size: int,
    keeper: Keeper[str],
    facts: dict[str, Any],
) -> Alone:
    """Run every circuit alone on every prompt.

    Args:
        anatomy: the model.
        pairs: the prompts.
        masks: circuits ``[writers, readers]``.
        values: what ablated edges carry.
        batch_size: rows of a pass, all circuits of it together.
        keeper: keeps what was read.
        facts: what the circuits are a function of.
    """
    every = [np.ones_like(anatomy.nodes.mask), np.zeros_like(anatomy.nodes.mask), *masks]
    found = torch.full((len(every), len(pairs)), float("nan"), dtype=torch.float64)
    total, done = found.numel(), 0

    def state(_: str) -> State:
        return {"alone": found}, {"total": total}

    known = {"rows": [pairs.prompts[row.prompt].id for row in pairs.rows], "circuits": len(every), **facts}
    for tensors, _ in keeper.begin({"effects": known}).values():
        found.copy_(tensors["alone"])
    for batch in pairs.batches(batch_size, anatomy.lm.device):
        n = len(batch.rows)
        copies = max(1, batch_size // n)
        put: Tensor | None = None
        for start in range(0, len(every), copies):
            some = every[start : start + copies]
            if done + len(some) * n > keeper.start:
                put = values.of(anatomy, batch) if put is None else put
                got = ablated(anatomy, batch.base, batch.answers, cut(some, anatomy), put)
                found[start : start + len(some), torch.tensor(batch.rows)] = got.double().cpu()
            done += len(some) * n
            keeper.step(done, total, state)
    keeper.end(done, state)
    whole = pairs.per_prompt(found.T).T.numpy()
    return Alone(whole[2:], whole[0], whole[1])


def faithfulness(metric: Array, model: Array, empty: Array) -> float:
    """f(C) from the metrics by prompt.

    Raises:
        UserError: the model does no better than no edge at all.
    """
    return float((metric.mean() - empty.mean()) / span(model, empty))


def span(model: Array, empty: Array) -> float:
    """m(M) − m(∅).

    Raises:
        UserError: it is as good as zero.
    """
    difference = float(model.mean() - empty.mean())
    if abs(difference) <= SMALL * max(abs(float(model.mean())), 1e-9):
        raise UserError(
            f"the metric is {model.mean():.4g} with all edges and {empty.mean():.4g} without any: faithfulness is "
            "undefined; another ablation (faithfulness.ablation=zero or mean) or behaviour tells them apart"
        )
    return difference


def areas(fractions: Sequence[float], f: Sequence[float]) -> tuple[float, float]:
    """CPR and CMD: the areas under f and |1 − f| over shares of edges, by trapezoids from the smallest to the largest share."""
    x, y = np.asarray(fractions, dtype=np.float64), np.asarray(f, dtype=np.float64)
    return float(np.trapezoid(y, x)), float(np.trapezoid(np.abs(1 - y), x))


def drawn(prompts: int, clusters: Sequence[object], *, seed: int, resamples: int = 2000) -> Array:
    """How often each prompt is drawn, ``[resamples, prompts]``; prompts of one cluster together."""
    _, index = np.unique(np.array([str(c) for c in clusters]), return_inverse=True)
    k = int(index.max()) + 1
    rng = np.random.default_rng(seed)
    return rng.multinomial(k, np.full(k, 1 / k), size=resamples)[:, index].astype(np.float64)


def resampled(metric: Array, model: Array, empty: Array, counts: Array) -> Array:
    """f of each resample, ``[circuits, resamples]``."""
    whole = counts.sum(1)
    m, e, c = counts @ model / whole, counts @ empty / whole, (counts @ metric.T).T / whole
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((c - e) / (m - e))
