"""The engine: every unit on every row, by running the model.

Per batch of rows one pass without edits gives the residual stream entering each layer, and one pass of the source run (the pair's
other prompt, a donor) gives the values that edits take. Then each pass starts at the first layer that its units touch, edits there
and above, and reads logits only where an answer is read. What an edit cannot change is so computed once: on average half of the
model, and with a large vocabulary more than half of the time.

Several units share a pass when there are fewer rows than `batch_size`. All passes of a batch have one shape, the one without edits
included: the same numbers go through the same kernels, and a unit that changes nothing has an effect of exactly 0. Results depend
on `batch_size` by rounding only (1e-5).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.activations.answers import Answers, Row
from circuits.data.keeper import Keeper, State
from circuits.data.prompts import PromptSet
from circuits.errors import UserError
from circuits.interventions.edits.base import Edit, Here
from circuits.interventions.positions import Positions, columns
from circuits.interventions.readout import NUMBERS, numbers, relative
from circuits.interventions.units.base import Lens, Unit
from circuits.model_input import ModelInput, padded
from circuits.models.hooks import Edit as Hook
from circuits.models.hooks import Prefix, forward
from circuits.models.load import LM
from circuits.models.sites import check_layer, check_site

Key = tuple[str, int]


class Watch(ABC):
    """Reads more of each pass than its logits: sites at the token where an answer begins to be read."""

    names: ClassVar[tuple[str, ...]]
    """The numbers that it adds."""

    @abstractmethod
    def base(self, engine: Engine, units: Sequence[Unit]) -> list[Key]:
        """Sites of the run without edits that it compares with."""

    @abstractmethod
    def edited(self, units: Sequence[Unit], chosen: Sequence[int]) -> list[Key]:
        """Sites of a pass with these units."""

    @abstractmethod
    def read(
        self, engine: Engine, batch: Batch, units: Sequence[Unit], chosen: Sequence[int], sites: Mapping[Key, Tensor]
    ) -> dict[str, Tensor]:
        """Its numbers ``[copies · rows]``; `sites` are ``[copies · rows, width]``."""


@dataclass(frozen=True)
class Readings:
    """What was read of every row.

    `values`: a number of :data:`~circuits.interventions.readout.NUMBERS` → ``[units, rows]`` under the edits, NaN where a unit does
    not exist in a row; `base`: the same ``[rows]`` without edits.
    """

    values: Mapping[str, Float[Tensor, "units rows"]]
    base: Mapping[str, Float[Tensor, " rows"]]


@dataclass(frozen=True)
class Batch:
    """Some rows in one padded shape, `copies` times over, with what the passes of all units start from."""

    rows: Int[Tensor, " n"]
    """Numbers of the rows, once."""
    copies: int
    tokens: ModelInput
    """``[copies · n, pos]``"""
    answers: Answers
    prefixes: Mapping[int, Tensor]
    """The residual stream entering a layer, ``[copies · n, pos, width]``."""
    base: Mapping[Key, Tensor]
    """Sites of the run without edits."""
    source: Mapping[Key, Tensor]
    """Sites of the source run, ``[n, pos, ...]``, at matching columns."""
    logp: Tensor
    """Log-probabilities without edits where answers are read, ``[copies · n, read, vocab]``."""
    numbers: Mapping[str, Tensor]
    """What is read without edits, ``[copies · n]``."""
    watched: Mapping[Key, Tensor]
    """What a watch compares with, ``[copies · n, width]`` at the token where an answer begins to be read."""

    @property
    def kept(self) -> int:
        """Bytes that all passes of the batch share."""
        held = [*self.prefixes.values(), *self.base.values(), *self.source.values(), *self.watched.values(), self.logp]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def at_answer(self, x: Tensor) -> Tensor:
        """``[copies · n, pos, ...]`` at the token where an answer begins to be read."""
        return x[torch.arange(len(x), device=x.device), self.answers.columns[:, 0]]


class Engine:
    """Runs units over the rows of one prompt set.

    Args:
        lm: the model.
        prompts: whose rows they are; positions are named on these prompts.
        rows: from :func:`circuits.activations.answers.rows_of`.
        lens: how units stand in the site's tensor.
        batch_size: rows of a pass, and so what bounds the memory.
        donor: the tokens of another prompt for each prompt, for edits that resample.
        watch: reads more of each pass than its logits.
        low_memory: keep the stream entering one layer at a time instead of all, for one more pass without edits a layer.

    `kept` is the most that was kept between passes, in bytes, `kept_whole` what it is without `low_memory`.

    Raises:
        UserError: rows longer than the model's context; a site that the model does not have.
    """

    def __init__(
        self,
        lm: LM,
        prompts: PromptSet,
        rows: Sequence[Row],
        lens: Lens,
        *,
        batch_size: int = 32,
        donor: Sequence[tuple[int, ...] | None] = (),
        watch: Watch | None = None,
        low_memory: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"a batch of {batch_size} rows: at least 1")
        self.lm, self.prompts, self.rows, self.lens = lm, prompts, list(rows), lens
        self.batch_size, self.donor, self.watch, self.low_memory = batch_size, list(donor), watch, low_memory
        self.kept = self.kept_whole = 0
        check_site(lens.site, lm.dims)
        prompts.check_vocabulary(lm.dims.vocab, lm.name)
        prompts.check_lengths(lm.dims.context, lm.name)
        self._columns: dict[tuple[Positions, int], tuple[int, ...] | None] = {}

    # -- what is run ----------------------------------------------------------------------------------------------

    def measure(self, units: Sequence[Unit], edit: Edit, *, keeper: Keeper[str] | None = None) -> Readings:
        """Every unit on every row under `edit`.

        Args:
            units: what is edited, one at a time.
            edit: what takes its place.
            keeper: keeps what was read (one accumulator, ``effects``), and may end the work.
        """
        self._check(units)
        keeper = keeper or Keeper()
        shape = (len(units), len(self.rows))
        names = (*NUMBERS, *(self.watch.names if self.watch else ()))
        values = {name: torch.full(shape, float("nan"), dtype=torch.float64) for name in names}
        base = {name: torch.full(shape[1:], float("nan"), dtype=torch.float64) for name in NUMBERS}
        facts = {"units": [unit.name for unit in units], "edit": edit.name, "batch": self.batch_size,
                 "rows": [self.prompts[row.prompt].id for row in self.rows]}  # fmt: skip

        def state(_: str) -> State:
            kept = dict(values)
            return kept | {f"base.{name}": tensor for name, tensor in base.items()}, {"total": total}

        for tensors, _ in keeper.begin({"effects": facts}).values():
            for name, tensor in values.items():
                tensor.copy_(tensors[name])
            for name, tensor in base.items():
                tensor.copy_(tensors[f"base.{name}"])
        done, total = 0, len(units) * len(self.rows)
        if keeper.start < total:
            edit.fit(self, units)
        with torch.inference_mode():
            for members in self.batches():
                cells = len(members) * len(units)
                if done + cells > keeper.start:
                    done = self._batch(members, units, edit, values, base, keeper, done, total, state)
                else:
                    done += cells
        keeper.end(done, state)
        return Readings(values, base)

    def batches(self) -> Iterator[list[int]]:
        """Numbers of rows that share a shape's padding: longest first, at most `batch_size`."""
        order = sorted(range(len(self.rows)), key=lambda i: (-len(self.rows[i].ids), i))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _batch(
        self,
        members: Sequence[int],
        units: Sequence[Unit],
        edit: Edit,
        values: Mapping[str, Tensor],
        base: Mapping[str, Tensor],
        keeper: Keeper[str],
        done: int,
        total: int,
        state: Callable[[str], State],
    ) -> int:
        n, copies, whole = len(members), max(1, min(self.batch_size // len(members), len(units))), 0
        for part in self._parts(units):
            batch = None
            for chosen in self.passes(units, copies, part):
                if done + len(chosen) * n > keeper.start:
                    if batch is None:
                        batch = self.prepare(members, [units[i] for i in part], edit, copies)
                        whole += batch.kept
                        self.kept = max(self.kept, batch.kept)
                        for name, column in batch.numbers.items():
                            base[name][batch.rows] = column[:n]
                    for name, read in self.run(batch, units, chosen, edit).items():
                        for i, unit in enumerate(chosen):
                            values[name][unit, batch.rows] = read[i * n : (i + 1) * n]
                    self._undefined(units, chosen, members, values)
                done += len(chosen) * n
                keeper.step(done, total, state)
        self.kept_whole = max(self.kept_whole, whole)
        return done

    def _parts(self, units: Sequence[Unit]) -> list[list[int]]:
        """The units that are prepared together: all, or with `low_memory` those whose passes start at one layer."""
        every = list(range(len(units)))
        return self._by_start(units, every) if self.low_memory else [every]

    def _by_start(self, units: Sequence[Unit], part: Sequence[int]) -> list[list[int]]:
        """Units of `part` by the layer at which their pass can start, the lowest first."""
        found: dict[int, list[int]] = {}
        for i in part:
            found.setdefault(self._start(units[i]), []).append(i)
        return [found[start] for start in sorted(found)]

    def passes(self, units: Sequence[Unit], copies: int, part: Sequence[int] | None = None) -> Iterator[list[int]]:
        """Units (those of `part`) in the order of the layer at which their pass can start, `copies` of one layer at a time."""
        for mine in self._by_start(units, range(len(units)) if part is None else part):
            for at in range(0, len(mine), copies):
                yield mine[at : at + copies]

    def prepare(self, members: Sequence[int], units: Sequence[Unit], edit: Edit, copies: int) -> Batch:
        """The run without edits of some rows, `copies` times over, and the source run of `edit`."""
        rows = [self.rows[i] for i in members]
        tokens = padded([row.ids for row in rows] * copies)
        answers = Answers.of(rows * copies, self.lm.device)
        starts = sorted({self._start(unit) for unit in units})
        keys = sorted({self.tap(place.layer) for unit in units for place in (*unit.places, *unit.restored)})
        wanted = [("resid_pre", layer) for layer in starts if layer < self.lm.dims.layers]
        mine = keys if edit.source == "base" else []
        watched = self.watch.base(self, units) if self.watch else []
        found = forward(self.lm, tokens, capture=[*wanted, *mine, *watched], logits=answers.columns)
        logp = found.read.float().log_softmax(-1)
        first, every = answers.columns[:, 0], torch.arange(len(tokens), device=self.lm.device)
        return Batch(
            rows=torch.tensor(members),
            copies=copies,
            tokens=tokens,
            answers=answers,
            prefixes={layer: found.sites["resid_pre", layer] for _, layer in wanted},
            base={key: found.sites[key] for key in mine},
            source=self._source(members, edit, keys),
            logp=logp,
            numbers=numbers(found.read, logp, answers),
            watched={key: found.sites[key][every, first] for key in watched},
        )

    def run(self, batch: Batch, units: Sequence[Unit], chosen: Sequence[int], edit: Edit) -> dict[str, Tensor]:
        """One pass in which each copy of the rows has a unit of its own; numbers ``[copies · rows]``, in main memory."""
        found = forward(
            self.lm,
            batch.tokens,
            capture=self.watch.edited(units, chosen) if self.watch else (),
            edits=self.hooks(batch, units, chosen, edit),
            logits=batch.answers.columns,
            prefix=self.prefix(batch, units, chosen),
        )
        read = relative(numbers(found.read, batch.logp, batch.answers), batch.numbers, len(batch.rows))
        if self.watch is None:
            return read
        sites = {key: batch.at_answer(x) for key, x in found.sites.items()}
        return read | {k: v.cpu().double() for k, v in self.watch.read(self, batch, units, chosen, sites).items()}

    def prefix(self, batch: Batch, units: Sequence[Unit], chosen: Sequence[int]) -> Prefix:
        """Where the pass of these units starts."""
        start = min(self._start(units[i]) for i in chosen)
        return Prefix(start, batch.prefixes[start])

    def hooks(self, batch: Batch, units: Sequence[Unit], chosen: Sequence[int], edit: Edit) -> list[Hook]:
        """What is done at each layer that these units touch. Copies beyond them are left as they are."""
        layers: dict[int, set[int]] = {}
        for i in chosen:
            for place in (*units[i].places, *units[i].restored):
                layers.setdefault(place.layer, set()).update(place.items)
        return [self._hook(batch, units, chosen, edit, layer, sorted(items)) for layer, items in sorted(layers.items())]

    def _hook(
        self, batch: Batch, units: Sequence[Unit], chosen: Sequence[int], edit: Edit, layer: int, items: list[int]
    ) -> Hook:
        n, key = len(batch.rows), self.tap(layer)
        slots = [*chosen, *[chosen[-1]] * (batch.copies - len(chosen))]
        mask = self._mask(batch, units, chosen, layer, items)
        origin = batch.base if edit.source == "base" else batch.source
        here = Here(
            layer=layer,
            items=items,
            rows=batch.rows.repeat(batch.copies),
            units=[unit for unit in slots for _ in range(n)],
            source=torch.empty(0)
            if edit.source is None
            else self._seen(origin[key], layer, items, 1 if edit.source == "base" else batch.copies),
        )

        def fn(x: Tensor) -> Tensor:
            old = self.lens.values(x, layer, items)
            new = torch.where(mask, edit.new(old, here).to(old.dtype), old)
            return self.lens.put(x, layer, items, old, new)

        return Hook(*key, fn)

    def _seen(self, x: Tensor, layer: int, items: list[int], copies: int) -> Tensor:
        found = self.lens.values(x.to(self.lm.device), layer, items)
        return found.repeat(copies, *[1] * (found.dim() - 1)) if copies > 1 else found

    def _mask(
        self, batch: Batch, units: Sequence[Unit], chosen: Sequence[int], layer: int, items: list[int]
    ) -> Bool[Tensor, "rows pos items 1"]:
        """What is edited: of each copy its unit's items at its unit's positions."""
        members, pos = batch.rows.tolist(), batch.tokens.ids.shape[1]
        place = {item: i for i, item in enumerate(items)}
        which = torch.zeros(batch.copies, len(items), dtype=torch.bool)
        where = torch.zeros(batch.copies, len(members), pos, dtype=torch.bool)
        for slot, i in enumerate(chosen):
            for one in (*units[i].places, *units[i].restored):
                if one.layer == layer:
                    which[slot, [place[item] for item in one.items]] = True
            where[slot] = self._where(units[i].positions, members, pos)
        mask = where[..., None] & which[:, None, None, :]
        return mask.flatten(0, 1).unsqueeze(-1).to(self.lm.device)

    # -- positions ------------------------------------------------------------------------------------------------

    def where(self, positions: Positions, members: Sequence[int]) -> Bool[Tensor, "rows pos"]:
        """Which columns of these rows, in one padded shape, `positions` names."""
        return self._where(positions, members, max(len(self.rows[i].ids) for i in members))

    def _where(self, positions: Positions, members: Sequence[int], pos: int) -> Bool[Tensor, "rows pos"]:
        known = (positions, tuple(members), pos)
        if known not in self._masks:
            found = torch.zeros(len(members), pos, dtype=torch.bool)
            for r, i in enumerate(members):
                if positions.spec == "all":
                    found[r, : len(self.rows[i].ids)] = True
                elif (at := self.columns(positions, i)) is not None:
                    found[r, list(at)] = True
            self._masks[known] = found
        return self._masks[known]

    @cached_property
    def _masks(self) -> dict[tuple[Positions, tuple[int, ...], int], Tensor]:
        return {}

    def columns(self, positions: Positions, row: int) -> tuple[int, ...] | None:
        """The columns of a row; None where a numbered position does not exist in it."""
        if (positions, row) not in self._columns:
            here, decode = self.rows[row], lambda ids: str(self.lm.tokenizer.decode(list(ids)))
            self._columns[positions, row] = columns(positions, self.prompts[here.prompt], here.length, decode)
        return self._columns[positions, row]

    def _undefined(
        self, units: Sequence[Unit], chosen: Sequence[int], members: Sequence[int], values: Mapping[str, Tensor]
    ) -> None:
        """NaN where a row has no such position or no donor: nothing was edited there, which is no effect of 0."""
        for unit in chosen:
            if units[unit].positions.spec == "all":
                continue
            gone = [i for i in members if self.columns(units[unit].positions, i) is None]
            for tensor in values.values():
                tensor[unit, gone] = float("nan")

    # -- sources --------------------------------------------------------------------------------------------------

    def _source(self, members: Sequence[int], edit: Edit, keys: Sequence[Key]) -> dict[Key, Tensor]:
        """Sites of the source run, moved to the columns of the rows that take them."""
        if edit.source not in ("other", "donor") or not keys:
            return {}
        sequences = [self._given(i, edit) for i in members]
        pos = max(len(self.rows[i].ids) for i in members)
        tokens = padded(sequences)
        found = forward(self.lm, tokens, capture=keys)
        shifts = [self._shift(i, edit) for i in members]
        if not any(shifts) and tokens.ids.shape[1] == pos:
            return dict(found.sites)
        take = torch.arange(pos)[None] + torch.tensor(shifts)[:, None]
        take = take.clamp(0, tokens.ids.shape[1] - 1).to(self.lm.device)
        rows = torch.arange(len(members), device=self.lm.device)[:, None]
        return {key: tensor[rows, take] for key, tensor in found.sites.items()}

    def _given(self, i: int, edit: Edit) -> tuple[int, ...]:
        """The sequence whose values row `i` takes."""
        row = self.rows[i]
        if edit.source == "other":
            if row.other is None:
                raise UserError(
                    f"prompt {self.prompts[row.prompt].id} has no corrupt prompt; give one in the file's field 'corrupt'"
                )
            return row.other
        donor = self.donor[row.prompt]
        if donor is None:
            raise UserError(f"prompt {self.prompts[row.prompt].id} has no donor; leave it out")
        return donor + row.ids[row.length :]

    def _shift(self, i: int, edit: Edit) -> int:
        """How far the source's prompt end lies to the right of the row's."""
        row = self.rows[i]
        return len(self._given(i, edit)) - len(row.ids)

    # -- layers ---------------------------------------------------------------------------------------------------

    def tap(self, layer: int) -> Key:
        """Where a layer's site is hooked. What leaves a block is what enters the next one, from where a pass can start."""
        if self.lens.site == "resid_post" and layer + 1 < self.lm.dims.layers:
            return "resid_pre", layer + 1
        return self.lens.site, layer

    def _start(self, unit: Unit) -> int:
        """The layer at which a pass with this unit can start: the last one for a unit that touches nothing."""
        taps = [self.tap(place.layer)[1] for place in (*unit.places, *unit.restored)]
        return min(taps, default=self.lm.dims.layers - 1)

    def _check(self, units: Sequence[Unit]) -> None:
        if not units:
            raise UserError("nothing to edit: no unit was named")
        names = [unit.name for unit in units]
        if (
            twice := next((name for name in names if names.count(name) > 1), None)
            if len(set(names)) < len(names)
            else None
        ):
            raise UserError(f"unit {twice} is named twice")
        for unit in units:
            for place in (*unit.places, *unit.restored):
                count = self.lens.count(self.lm.dims, check_layer(place.layer, self.lm.dims))
                if bad := [item for item in place.items if not 0 <= item < count]:
                    raise UserError(
                        f"{unit.name}: {self.lens.word} {bad[0]} is out of range: layer {place.layer} has {count} (0-{count - 1})"
                    )
