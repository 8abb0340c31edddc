"""Optimal ablation: the constant that costs the model least (Li & Janson 2024, arXiv:2409.09951).

For each unit the values become one constant at all edited tokens, chosen to minimise the mean KL to the run without edits over
prompts that are not measured. Zero and mean ablation are such constants, too, so that what they lose beyond the optimal one
("spoofing") is no sign of importance. Adam sets out from the constant that is best to second order
(:mod:`circuits.interventions.edits.curvature`), or from the mean where that is better; the constants of several units are fitted in
one pass, whose loss is the sum of theirs. Which of mean, second-order constant and fitted one it is, prompts of neither fit decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuits.activations.answers import rows_of
from circuits.data.journal import Journal
from circuits.data.keeper import Keeper
from circuits.data.prompts import PromptSet
from circuits.interventions.ask import Ask
from circuits.interventions.edits.base import Edit, Here
from circuits.interventions.edits.curvature import Constant, second_order
from circuits.interventions.edits.mean import Mean
from circuits.models.hooks import forward

if TYPE_CHECKING:
    from circuits.interventions.engine import Batch, Engine
    from circuits.interventions.units.base import Unit

DIRECTED = 6
"""Groups of prompts that the second-order constant is taken from."""


class Optimal(Edit):
    """A constant for each unit, fitted on `prompts`.

    Args:
        prompts: what the constants are fitted on.
        steps: gradient steps of each unit, each over `rows` prompts.
        rows: prompts of one step.
        rate: of Adam, in units of the mean absolute value of the unit's mean (at least 1e-3).
        keep: where the means and the constants found so far are kept, by a name; may end the work.
    """

    name = "optimal"

    def __init__(
        self,
        prompts: PromptSet,
        *,
        steps: int = 2,
        rows: int = 4,
        rate: float = 0.1,
        keep: Callable[[str], Keeper[str]] = lambda name: Keeper(),
    ) -> None:
        self.prompts, self.steps, self.size, self.rate, self.keep = prompts, steps, rows, rate, keep
        self._fitted: dict[str, Any] | None = None
        self.loss: dict[str, tuple[float, float]] = {}
        """KL of each unit on the prompts that judge: under the mean, under the constant."""
        self._start: list[Constant] = []

    def fit(self, engine: Engine, units: Sequence[Unit]) -> None:
        """Fit all constants, a batch of units of one starting layer at a time; what is fitted for these units already stays."""
        from circuits.interventions.engine import Engine as Runner

        facts = {"units": [unit.name for unit in units], "batch": engine.batch_size, "rows": self.prompts.samples}
        facts |= {"device": str(engine.lm.device), "dtype": str(engine.lm.dtype)}
        if facts == self._fitted:
            return
        mean = Mean(self.prompts, keep=self.keep)
        mean.fit(engine, units)
        self._constant: list[dict[tuple[int, int], Tensor]] = [
            {(layer, item): mean.mean(layer, item).clone() for layer, item in unit.items()} for unit in units
        ]
        # batches of few prompts with as many units beside them as the measurement's batches hold rows
        size = min(self.size, len(self.prompts), engine.batch_size)
        fitting = Runner(engine.lm, self.prompts, rows_of(self.prompts, span=True), engine.lens, batch_size=size)
        groups = list(fitting.batches())
        copies = max(1, engine.batch_size // size)
        *own, judging = groups if len(groups) > 1 else groups * 2  # what a constant is judged by, it was not fitted on
        passes = list(fitting.passes(units, copies))
        journal = Journal(self.keep("constants"), facts, 1 + len(passes))
        start = journal.step("start", lambda: _flat(second_order(fitting, own[:DIRECTED], units, self._constant)))
        self._start = _like(start, self._constant)
        batches = [fitting.prepare(m, units, self, copies=copies) for m in (judging, *own[: max(1, self.steps)])]
        for chosen in passes:
            found = journal.step(f"fit/{chosen[0]}", partial(self._fit, fitting, batches, units, chosen))
            before, after, flat = found.split([len(chosen), len(chosen), len(found) - 2 * len(chosen)])
            self.loss |= {units[i].name: (float(before[n]), float(after[n])) for n, i in enumerate(chosen)}
            fitted = _like(flat, [self._constant[i] for i in chosen])
            for i, one in zip(chosen, fitted, strict=True):
                self._constant[i] = one
        journal.end()
        self._fitted = facts

    def _fit(self, engine: Engine, batches: Sequence[Batch], units: Sequence[Unit], chosen: Sequence[int]) -> Tensor:
        """Adam on the constants of one pass's units; the pass's loss is the sum of theirs, so that each has its own gradient.

        Returns:
            The units' losses under the mean, those under the constants, and the constants, one after the other.
        """
        means, starts = ([one[i] for i in chosen] for one in (self._constant, self._start))
        with torch.no_grad():
            of_mean, of_start = (self._loss(engine, batches[0], units, chosen, given) for given in (means, starts))
        begun = [b if y < x else a for a, b, x, y in zip(means, starts, of_mean, of_start, strict=True)]
        constants = [{key: value.clone() for key, value in one.items()} for one in begun]
        flat = [value for one in constants for value in one.values()]
        size = [max(float(value.abs().mean()), 1e-3) for value in flat]
        moments = [(torch.zeros_like(v), torch.zeros_like(v)) for v in flat]
        first = torch.minimum(of_mean, of_start)
        for step in range(self.steps):
            for value in flat:
                value.requires_grad_(True)
            loss = self._loss(engine, batches[1 + step % (len(batches) - 1)], units, chosen, constants)
            gradients = torch.autograd.grad(loss.sum(), flat)
            with torch.no_grad():
                for i, (value, g) in enumerate(zip(flat, gradients, strict=True)):
                    value.requires_grad_(False)
                    m, v = moments[i]
                    m.mul_(0.9).add_(g, alpha=0.1)
                    v.mul_(0.95).addcmul_(g, g, value=0.05)
                    m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.95 ** (step + 1))
                    value.sub_(self.rate * size[i] * (1 - step / self.steps) * m_hat / (v_hat.sqrt() + 1e-12))
        with torch.no_grad():
            last = self._loss(engine, batches[0], units, chosen, constants) if self.steps else first
        best = [constants[n] if last[n] < first[n] else begun[n] for n in range(len(chosen))]
        return torch.cat([of_mean.float(), torch.minimum(first, last).float(), _flat(best).float()])

    def _loss(
        self,
        engine: Engine,
        batch: Batch,
        units: Sequence[Unit],
        chosen: Sequence[int],
        constants: Sequence[dict[tuple[int, int], Tensor]],
    ) -> Tensor:
        """Mean KL of each unit of a pass over a batch's rows, ``[chosen]``."""
        self._now = {i: constants[slot] for slot, i in enumerate(chosen)}
        found = forward(
            engine.lm,
            batch.tokens,
            edits=engine.hooks(batch, units, chosen, self),
            logits=batch.answers.columns,
            prefix=engine.prefix(batch, units, chosen),
            detach=not torch.is_grad_enabled(),
        )
        self._now = {}
        logp = found.read[:, 0].float().log_softmax(-1)
        clean = batch.logp[:, 0]
        kl = (clean.exp() * (clean - logp)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).sum(-1)
        return kl.view(batch.copies, -1)[: len(chosen)].mean(1)

    _now: dict[int, dict[tuple[int, int], Tensor]] = {}

    def new(self, old: Tensor, here: Here) -> Tensor:
        n = len(here.units)
        by_unit = {}
        for unit in dict.fromkeys(here.units):
            known = self._now.get(unit, self._constant[unit])
            rows = [known.get((here.layer, item)) for item in here.items]
            zero = old.new_zeros(old.shape[-1])
            by_unit[unit] = torch.stack([zero if row is None else row.to(old.dtype) for row in rows])
        return torch.stack([by_unit[here.units[r]] for r in range(n)])[:, None]


def _flat(constants: Sequence[Constant]) -> Tensor:
    """All numbers, one after the other."""
    return torch.cat([value.flatten() for one in constants for value in one.values()])


def _like(flat: Tensor, constants: Sequence[Constant]) -> list[Constant]:
    """Back from :func:`_flat`, with the keys, sizes, types and device of `constants`."""
    parts = iter(flat.split([value.numel() for one in constants for value in one.values()]))
    return [{key: next(parts).to(value).view(value.shape) for key, value in one.items()} for one in constants]


def make(ask: Ask) -> Edit:
    """Fitted on the prompts that are not measured."""
    return Optimal(ask.others, steps=ask.settings.steps, keep=ask.keep)
