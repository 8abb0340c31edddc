"""A whole study: units and their controls under each edit, and the tables that come of it.

::

    Ask ── units ── controls ──▶ Engine ──▶ Readings ──▶ Effects ──▶ effects.parquet   every (unit, prompt, metric)
                        ▲ edit                              ├──▶ summary.parquet   one row a unit and edit
                                                            ├──▶ groups.parquet    synergy of groups, Shapley values
                                                            └──▶ agreement         of edits, by rank
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from circuits.activations.answers import rows_of
from circuits.data import tensorfile
from circuits.data.keeper import Keeper
from circuits.data.prompts import PromptSet
from circuits.errors import Damaged, UserError
from circuits.interventions import batching, groups, tables, verify
from circuits.interventions.ask import Ask, edit, studied
from circuits.interventions.direct import Direct
from circuits.interventions.edits.zero import Zero
from circuits.interventions.effects import Array, Effects, effects_of
from circuits.interventions.engine import Engine, Readings
from circuits.interventions.pairing import check_pairs, donors
from circuits.interventions.settings import CONTROLLED, Direction, Metric, Settings, Split
from circuits.interventions.units.base import Lens, Place, Unit

if TYPE_CHECKING:
    from circuits.models.load import LM

MakeKeeper = Callable[[str], Keeper[str]]
"""Where the readings of one edit are kept, by a name."""
PART = 100
"""Prompts of one part: what was measured of it is kept by itself."""


def sides(prompts: PromptSet, settings: Settings) -> tuple[PromptSet, PromptSet]:
    """The prompts that are measured, and those on which is fitted and chosen.

    Raises:
        UserError: an empty side; answers of several tokens where first tokens are compared.
    """
    split = settings.measured
    several = [p.id for p in prompts if max(len(p.target_ids), len(p.foil_ids)) > 1]
    if settings.metric is Metric.first_token and several:
        raise UserError(
            f"metric=first_token: {len(several)} prompts ({' '.join(several[:3])}) have answers of several tokens; "
            "metric=full_target compares whole answers"
        )
    measured = prompts if split is Split.all else prompts.only(split.value)
    others = PromptSet((), prompts.meta)
    if settings.fits:
        other = "train" if split is Split.test else "test"
        if other not in prompts.splits:
            raise UserError(
                f"split={split.value}: no prompt is left in {other}, where constants are fitted and groups are chosen"
            )
        others = prompts.only(other)
    if settings.samples is not None:
        if settings.samples > len(measured):
            raise UserError(f"samples={settings.samples}: there are {len(measured)} prompts in split={split.value}")
        measured = PromptSet(measured.prompts[: settings.samples], prompts.meta)
    return measured, others


def part_size(n: int, world_size: int) -> int:
    """Prompts of a part: 100, and fewer where so many processes share the work that some would have none."""
    return max(1, min(PART, -(-n // world_size)))


def run(
    ask: Ask,
    keeper: MakeKeeper = lambda name: Keeper(),
    say: Callable[[str], None] = lambda text: None,
    *,
    shard: int = 0,
    world_size: int = 1,
    whole: bool = True,
    again: Callable[[], tuple[LM, dict[str, str]]] | None = None,
) -> tables.Study | None:
    """Measure everything that `ask` names.

    Args:
        ask: the study.
        keeper: where the readings of an edit on a part of the prompts are kept, by a name.
        say: told a line.
        shard: which of `world_size` processes this is; it measures every `world_size`-th part.
        world_size: how many processes share the work.
        whole: put everything together (and measure what is missing); else only this shard's parts, and None is returned.
        again: opens the model that a slice of the first edit is verified with, and says on what.
    """
    s = ask.settings
    part = studied(s.units)
    lens = part.lens(ask)
    units = part.units(ask, lens)
    controls = part.controls(ask, lens, units) if s.controls else []
    extra, drawn = groups.shapley_units(ask, units) if s.units == "head_groups" and s.shapley else ([], [])
    alone = _without_controls(units, controls, s)
    if alone:
        say(f"no controls of equal size for {len(alone)} units ({alone[0]} …): too few others at their layers")
    say(f"{len(units)} units, {len(controls)} controls, {len(extra)} further sets, on {len(ask.measured)} prompts")
    everything = [*units, *extra, *controls]
    left_out: dict[str, list[str]] = {}
    other = _other(ask, lens) if s.pairs else None
    found: list[Effects] = []
    further: dict[str, pd.DataFrame] = {}
    metrics: dict[str, Any] = {}
    for name in s.edits:
        chosen = edit(name, ask)
        prompts, mine = ask.measured, other
        pool: list[int | None] = []
        if chosen.source == "donor":
            pool, without = donors(prompts, ask.draw("donors"))
            if without:
                left_out[name] = without
                say(
                    f"{name}: {len(without)} of {len(prompts)} prompts have no donor of another group, and are left out"
                )
        if chosen.source == "other" or s.direction is Direction.denoising:
            check_pairs(prompts, all(unit.positions.from_end for unit in units))
        size = part_size(len(prompts), world_size)
        starts = [start for i, start in enumerate(range(0, len(prompts), size)) if whole or i % world_size == shard]
        readings_of = [
            _measure(
                ask,
                lens,
                everything,
                chosen,
                range(start, min(start + size, len(prompts))),
                pool,
                keeper(part_name(name, start)),
                left_out.get(name, []),
                say,
            )
            for start in starts
        ]
        if not whole:
            continue
        together = _joined(readings_of, everything, name, ask, mine if chosen.source == "other" else None)
        more = part.finish(ask, lens, chosen, together)
        if len(rescued := groups.rescues(together)):
            further["rescues"] = rescued
        found.append(more.effects)
        further |= more.tables
        metrics |= more.metrics
    if not whole:
        return None
    if again is not None:
        metrics["verify"] = _verified(ask, everything, found[0], again)
        say(verify.told(metrics["verify"]))
    study = tables.tables(ask, found, drawn, left_out)
    return replace(study, more=further, metrics=study.metrics | metrics | {"without_controls": alone})


def largest_batch(ask: Ask, memory: float | None = None) -> int:
    """Rows of a pass that fit (in `memory` bytes, the model's among them), for the study's first edit."""
    lens = studied(ask.settings.units).lens(ask)
    units = [Unit(f"L{layer}", (Place(layer),)) for layer in ask.layers]
    rows = _rows(ask, ask.measured)
    return batching.largest_batch(
        Engine(ask.lm, ask.measured, rows, lens, low_memory=ask.settings.low_memory), units, Zero(), len(rows), memory
    )


def _verified(
    ask: Ask, units: Sequence[Unit], main: Effects, again: Callable[[], tuple[LM, dict[str, str]]]
) -> dict[str, Any]:
    """The first prompts once more under the first edit, with another copy of the model."""
    lm, where = again()
    prompts = PromptSet(main.prompts.prompts[: ask.settings.verify_samples], main.prompts.meta)
    saes = {layer: sae.to(lm.device) for layer, sae in ask.saes.items()}
    other = replace(ask, lm=lm, measured=prompts, saes=saes, keep=lambda name: Keeper())  # nothing of the first model's
    lens = studied(ask.settings.units).lens(other)
    studied_ = [unit for unit in units if not unit.control]
    chosen = edit(main.edit, other)
    tokens: list[tuple[int, ...] | None] = []
    if chosen.source == "donor":  # the same ones as in the study
        pool = dict(zip(ask.measured.samples, donors(ask.measured, ask.draw("donors"))[0], strict=True))
        tokens = [None if (i := pool[p.id]) is None else ask.measured[i].ids for p in prompts]
    rows = _rows(other, prompts)
    engine = Engine(lm, prompts, rows, lens, batch_size=ask.settings.batch_size, donor=tokens)
    return verify.compared(
        main, effects_of(engine.measure(studied_, chosen), studied_, main.edit, prompts, rows), where
    )


def _without_controls(units: Sequence[Unit], controls: Sequence[Unit], s: Settings) -> list[str]:
    """Units that are to be held against controls of equal size and have none."""
    if not s.controls or s.units not in CONTROLLED or s.units == "steer" or "restore" in s.edits:
        return []
    known, of = {unit.of for unit in controls}, tables.controls_of(units, s)
    return [unit.name for unit in units if unit.name in of and of[unit.name] not in known]


def part_name(edit_name: str, start: int) -> str:
    """What the readings of an edit on a part of the prompts are called."""
    return f"{edit_name}-{start:06d}"


def unfinished(ask: Ask, kept: Path, world_size: int) -> int:
    """How many parts of all shards are not measured to their end, of what is kept in directory `kept`."""
    n = len(ask.measured)
    names = [part_name(name, start) for name in ask.settings.edits for start in range(0, n, part_size(n, world_size))]
    return sum(not _complete(kept / f"{name}.safetensors") for name in names)


def _complete(path: Path) -> bool:
    try:
        _, meta = tensorfile.load(path)
    except (FileNotFoundError, Damaged):
        return False
    return bool(meta["done"] >= meta["total"])


def _rows(ask: Ask, prompts: PromptSet, flipped: bool = False) -> list[Any]:
    denoising = (ask.settings.direction is Direction.denoising) != flipped
    return rows_of(prompts, base="corrupt" if denoising else "clean", span=ask.settings.metric is Metric.full_target)


def _measure(
    ask: Ask,
    lens: Lens,
    units: Sequence[Unit],
    chosen: Any,
    part: range,
    pool: Sequence[int | None],
    keeper: Keeper[str],
    without: Sequence[str],
    say: Callable[[str], None],
) -> tuple[Readings, PromptSet, list[Any]]:
    """One part of the prompts. Those without a donor are in no batch and read as undefined."""
    s = ask.settings
    kept = [i for i in part if ask.measured[i].id not in without]
    prompts = PromptSet(tuple(ask.measured.prompts[i] for i in kept), ask.measured.meta)
    rows = _rows(ask, prompts)
    single = s.units == "heads" and s.direct and s.metric is Metric.first_token
    engine = Engine(
        ask.lm,
        prompts,
        rows,
        lens,
        batch_size=s.batch_size,
        donor=[ask.measured[pool[i]].ids if pool[i] is not None else None for i in kept] if pool else (),  # type: ignore[index]
        watch=Direct() if single else None,
        low_memory=s.low_memory,
    )
    found = engine.measure(units, chosen, keeper=keeper)
    if s.low_memory and engine.kept:
        say(
            f"{chosen.name}: {engine.kept / 1e6:,.1f} MB kept between passes instead of {engine.kept_whole / 1e6:,.1f} MB"
        )
    return found, prompts, rows


def _joined(
    parts: Sequence[tuple[Readings, PromptSet, list[Any]]],
    units: Sequence[Unit],
    name: str,
    ask: Ask,
    other: Array | None,
) -> Effects:
    """The parts as one, every prompt once."""
    place = {p.id: i for i, p in enumerate(ask.measured)}
    made = [
        effects_of(
            r, units, name, prompts, rows, other=None if other is None else other[[place[p.id] for p in prompts]]
        )
        for r, prompts, rows in parts
        if len(prompts)
    ]
    if not made:
        raise UserError(f"edit={name}: no prompt can be measured")
    together = tuple(p for effects in made for p in effects.prompts)
    if len({p.id for p in together}) != len(together):
        raise UserError(f"edit={name}: a prompt is in two parts; remove the unfinished work and run again")
    values = {metric: np.concatenate([e.values[metric] for e in made], axis=1) for metric in made[0].values}
    base = {metric: np.concatenate([e.base[metric] for e in made]) for metric in made[0].base}
    return replace(made[0], prompts=PromptSet(together, ask.measured.meta), values=values, base=base)


def _other(ask: Ask, lens: Lens) -> Array:
    """The compared difference of each pair's other prompt, without edits."""
    rows = _rows(ask, ask.measured, flipped=True)
    engine = Engine(ask.lm, ask.measured, rows, lens, batch_size=ask.settings.batch_size)
    sham = [Unit("sham", ())]
    found = effects_of(engine.measure(sham, Zero()), sham, "zero", ask.measured, rows)
    return found.base[found.facts["compared"]]
