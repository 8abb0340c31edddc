"""Mean ablation: the values become their mean over prompts (padding is in no mean).

``over`` says which mean: ``all`` tokens of all prompts; by ``position``, counted from the beginning; or within the prompts that
share a factor's level (``factor:<name>``). The prompts are those that the edit is given: not the ones that are measured, where an
unbiased estimate matters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuits.data.keeper import Keeper, State
from circuits.data.prompts import PromptSet, batches
from circuits.errors import UserError
from circuits.files import sha256_text
from circuits.interventions.ask import Ask
from circuits.interventions.edits.base import Edit, Here
from circuits.models.hooks import forward

if TYPE_CHECKING:
    from circuits.interventions.engine import Engine
    from circuits.interventions.units.base import Unit


class Mean(Edit):
    """The mean of `prompts`.

    Args:
        prompts: whose mean it is.
        over: ``all``, ``position`` or ``factor:<name>``.
        keep: where the sums so far are kept, by a name; may end the work.

    Raises:
        UserError: a factor that a prompt does not have, or of a level that `prompts` do not have.
    """

    name = "mean"

    def __init__(
        self, prompts: PromptSet, over: str = "all", keep: Callable[[str], Keeper[str]] = lambda name: Keeper()
    ) -> None:
        kind, _, factor = over.partition(":")
        if kind not in ("all", "position", "factor") or (kind == "factor") != bool(factor):
            raise UserError(f"mean={over}: choices: all position factor:<name>")
        self.prompts, self.over, self.factor, self.keep = prompts, kind, factor, keep
        self._taken: Any = None

    def fit(self, engine: Engine, units: Sequence[Unit]) -> None:
        """One pass over the prompts; none where the same means were taken for another part of the prompts that are measured."""
        if not len(self.prompts):
            raise UserError("a mean over no prompt")
        items: dict[int, set[int]] = {}
        for unit in units:
            for place in unit.places:
                items.setdefault(place.layer, set()).update(place.items)
        self._items = {layer: sorted(found) for layer, found in items.items()}
        levels = self._levels(self.prompts)
        self._names = sorted(set(levels))
        codes = torch.tensor([self._names.index(level) for level in levels])
        here = [self._level(p.factors, p.id) for p in engine.prompts]
        if unknown := sorted(set(here) - set(self._names)):
            raise UserError(
                f"mean=factor:{self.factor}: no prompt that a mean is taken over has {self.factor}={unknown[0]}"
            )
        self._group = torch.tensor([self._names.index(here[row.prompt]) for row in engine.rows])
        self._sums(engine, codes)

    def _levels(self, prompts: PromptSet) -> list[str]:
        return [self._level(p.factors, p.id) for p in prompts]

    def _level(self, factors: object, name: str) -> str:
        if not self.factor:
            return ""
        if self.factor not in factors:  # type: ignore[operator]
            raise UserError(f"mean=factor:{self.factor}: prompt {name} has no such factor")
        return str(factors[self.factor])  # type: ignore[index]

    @torch.inference_mode()
    def _sums(self, engine: Engine, codes: Tensor) -> None:
        longest = max(len(p.ids) for p in (*self.prompts, *engine.prompts))
        cells = len(self._names) * (longest if self.over == "position" else 1)
        facts = {
            "of": [engine.lm.name, engine.lens.site, self.over, self.factor, self._names, cells],
            "items": sha256_text(json.dumps(self._items)),
            "rows": self.prompts.samples,
            "batch": [engine.batch_size, str(engine.lm.device), str(engine.lm.dtype)],
        }
        if self._taken == (facts, engine.lm, engine.lens):
            return
        keeper = self.keep("means")
        sums: dict[int, Tensor] = {}
        counts = torch.zeros(cells, dtype=torch.float64)

        def state(_: str) -> State:
            return {"counts": counts, **{str(layer): total for layer, total in sums.items()}}, {}

        for tensors, _ in keeper.begin({"effects": facts}).values():
            counts.copy_(tensors.pop("counts"))
            sums = {int(layer): total for layer, total in tensors.items()}
        taps, done = {layer: engine.tap(layer) for layer in self._items}, 0
        for tokens in batches(self.prompts.sequences(), engine.batch_size):
            done += len(tokens)
            if done <= keeper.start:
                continue
            found = forward(engine.lm, tokens, capture=list(taps.values()))
            mask = tokens.mask
            cell = codes[tokens.samples][:, None].expand(mask.shape)
            if self.over == "position":
                cell = cell * longest + torch.arange(mask.shape[1])[None]
            cell = cell[mask]
            counts += torch.bincount(cell, minlength=cells)
            for layer, items in self._items.items():
                seen = engine.lens.values(found.sites[taps[layer]], layer, items).cpu()[mask].double()
                total = sums.setdefault(layer, torch.zeros(cells, *seen.shape[1:], dtype=torch.float64))
                total.index_add_(0, cell, seen)
            keeper.step(done, len(self.prompts), state)
        keeper.end(done, state)
        self._taken = (facts, engine.lm, engine.lens)
        grid = (len(self._names), -1)
        by_level = counts.view(*grid)
        self._means = {}
        for layer, total in sums.items():
            whole = total.view(*grid, *total.shape[1:])
            mean = whole / by_level.clamp(min=1)[..., None, None]
            # Where no prompt is so long (the tokens of an answer), the level's mean over all positions.
            level = whole.sum(1, keepdim=True) / by_level.sum(1).clamp(min=1)[:, None, None, None]
            self._means[layer] = torch.where((by_level > 0)[..., None, None], mean, level).float().to(engine.lm.device)

    def mean(self, layer: int, item: int) -> Tensor:
        """The mean of one item over everything, ``[dim]``: of one level (``over=all``)."""
        return self._means[layer][0, 0, self._items[layer].index(item)]

    def new(self, old: Tensor, here: Here) -> Tensor:
        place = [self._items[here.layer].index(item) for item in here.items]
        table = self._means[here.layer][:, :, place]
        found = table[self._group[here.rows].to(table.device)]
        if self.over != "position":
            return found
        pos, known = old.shape[1], found.shape[1]
        if pos > known:  # columns of an answer
            found = torch.cat([found, found[:, -1:].expand(-1, pos - known, -1, -1)], 1)
        return found[:, :pos]


def make(ask: Ask) -> Edit:
    """Over the prompts that are not measured."""
    return Mean(ask.others, ask.settings.mean, ask.keep)
