"""A whole study: units and their controls under each edit, and the tables that come of it.

::

    Ask ── units ── controls ──▶ Engine ──▶ Readings ──▶ Effects ──▶ effects.parquet   every (unit, prompt, metric)
                        ▲ edit                              ├──▶ summary.parquet   one row a unit and edit
                                                            ├──▶ groups.parquet    synergy of groups, Shapley values
                                                            └──▶ agreement         of edits, by rank
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from circuits.data import tensorfile
from circuits.data.keeper import Keeper
from circuits.data.prompts import PromptSet
from circuits.errors import Damaged, UserError
from circuits.files import write_json
from circuits.interventions import groups
from circuits.interventions.ask import Ask, edit, studied
from circuits.interventions.choice import label, signature
from circuits.interventions.direct import Direct
from circuits.interventions.edits.zero import Zero
from circuits.interventions.effects import Array, Effects, effects_of, summary
from circuits.interventions.engine import Engine, Readings
from circuits.interventions.rows import check_pairs, donors, rows_of
from circuits.interventions.settings import Cluster, Direction, Metric, Settings, Split
from circuits.interventions.units.base import Lens, Unit
from circuits.stats.calibration import binary, calibration
from circuits.stats.many import rank_agreement

MakeKeeper = Callable[[str], Keeper[str]]
"""Where the readings of one edit are kept, by a name."""
PART = 100
"""Prompts of one part: what was measured of it is kept by itself."""


@dataclass
class Study:
    """What was measured, and its tables."""

    effects: list[Effects]
    summary: pd.DataFrame
    groups: pd.DataFrame
    shapley: pd.DataFrame
    metrics: dict[str, Any]
    left_out: dict[str, list[str]] = field(default_factory=dict)
    more: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Tables that some units add, by name."""

    def write(self, directory: Path) -> None:
        """All tables, and ``metrics.json``."""
        long = pd.concat([effects.long() for effects in self.effects], ignore_index=True)
        for column in (name for name in long.columns if name != "value"):
            long[column] = long[column].astype("category")
        if long.duplicated(["unit", "sample", "edit", "metric"]).any():
            raise UserError("a unit was measured twice on one prompt; remove the unfinished work and run again")
        long.to_parquet(directory / "effects.parquet", index=False)
        self.summary.to_parquet(directory / "summary.parquet", index=False)
        for name, table in (("groups", self.groups), ("shapley", self.shapley), *self.more.items()):
            if len(table):
                table.to_parquet(directory / f"{name}.parquet", index=False)
        write_json(directory / "metrics.json", self.metrics)


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
) -> Study | None:
    """Measure everything that `ask` names.

    Args:
        ask: the study.
        keeper: where the readings of an edit on a part of the prompts are kept, by a name.
        say: told a line.
        shard: which of `world_size` processes this is; it measures every `world_size`-th part.
        world_size: how many processes share the work.
        whole: put everything together (and measure what is missing); else only this shard's parts, and None is returned.
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
    tables: dict[str, pd.DataFrame] = {}
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
            )
            for start in starts
        ]
        if not whole:
            continue
        together = _joined(readings_of, everything, name, ask, mine if chosen.source == "other" else None)
        more = part.finish(ask, lens, chosen, together)
        if len(rescued := groups.rescues(together)):
            tables["rescues"] = rescued
        found.append(more.effects)
        tables |= more.tables
        metrics |= more.metrics
    if not whole:
        return None
    study = _tables(ask, found, drawn, left_out)
    return replace(study, more=tables, metrics=study.metrics | metrics | {"without_controls": alone})


def _without_controls(units: Sequence[Unit], controls: Sequence[Unit], s: Settings) -> list[str]:
    """Units that are to be held against controls of equal size and have none."""
    if not s.controls or s.units not in ("head_groups", "features", "neurons") or "restore" in s.edits:
        return []
    known, of = {unit.of for unit in controls}, _controls_of(units, s)
    return [unit.name for unit in units if unit.name in of and of[unit.name] not in known]


def part_name(edit_name: str, start: int) -> str:
    """What the readings of an edit on a part of the prompts are called."""
    return f"{edit_name}-{start:06d}"


def unfinished(ask: Ask, path: Callable[[str], Path], world_size: int) -> int:
    """How many parts of all shards are not measured to their end."""
    n = len(ask.measured)
    names = [part_name(name, start) for name in ask.settings.edits for start in range(0, n, part_size(n, world_size))]
    return sum(not _complete(path(name)) for name in names)


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
    )
    return engine.measure(units, chosen, keeper=keeper), prompts, rows


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


def _tables(ask: Ask, found: Sequence[Effects], drawn: Sequence[Any], left_out: dict[str, list[str]]) -> Study:
    s = ask.settings
    summaries, grouped, shapleys = [], [], []
    for effects in found:
        cluster = effects.prompts.groups if s.cluster is Cluster.group else [p.prompt for p in effects.prompts]
        ask.tell(f"intervals of {effects.edit}", 0, 1)
        how: dict[str, Any] = {"cluster": cluster, "seed": ask.draw("bootstrap"), "resamples": s.resamples}
        table = summary(effects, bound=s.bound, alpha=s.alpha, **how)
        null = groups.null_p(effects, _controls_of(effects.units, s))
        summaries.append(table.merge(null, on="unit", how="left") if len(null) else table)
        if s.units == "head_groups":
            grouped.append(groups.synergies(effects, **how))
            if drawn:
                shapleys.append(groups.shapley(effects, drawn, **how))
    table = pd.concat(summaries, ignore_index=True)
    metrics = _metrics(ask, found, table, left_out)
    return Study(list(found), table, _concat(grouped), _concat(shapleys), metrics, left_out)


def _concat(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    kept = [table for table in tables if len(table)]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()


def _controls_of(units: Sequence[Unit], s: Settings) -> dict[str, str]:
    """Which controls a unit is held against."""
    if s.units == "head_groups":
        return {unit.name: label(signature(unit)) for unit in units if len(unit.items()) > 1 and not unit.control}
    return {unit.name: unit.name for unit in units if not unit.control}


def _metrics(ask: Ask, found: Sequence[Effects], table: pd.DataFrame, left_out: dict[str, list[str]]) -> dict[str, Any]:
    s = ask.settings
    studied_ = table[table["control"] == ""]
    known = studied_[studied_["effect"].notna()]
    strongest = known.iloc[int(known["effect"].abs().argmax())] if len(known) else None
    first = found[0]
    compared = first.facts["compared"]
    return {
        "n": len(first.prompts),
        "units": int(studied_["unit"].nunique()),
        "controls": int(table[table["control"] != ""]["unit"].nunique()),
        "edits": s.edits,
        "layers": list(ask.layers),
        "direction": s.direction.value,
        "split": s.measured.value,
        "compared": compared,
        "deterministic": True,
        "base": {edit.edit: _base(edit) for edit in found},
        "significant": int((studied_["verdict"] == "effect").sum()),
        "none": int((studied_["verdict"] == "none").sum()),
        "open": int((studied_["verdict"] == "open").sum()),
        "strongest": None if strongest is None else str(strongest["unit"]),
        "strongest_edit": None if strongest is None else str(strongest["edit"]),
        "effect": None if strongest is None else float(strongest["effect"]),
        "effect_ci": None if strongest is None else _pair(strongest),
        "flip_rate": None if strongest is None else float(strongest["flip"]),
        "sign_flip_rate": None if strongest is None else float(strongest["sign_flip_rate"]),
        "kl": None if strongest is None else float(strongest["kl"]),
        "agreement": agreement(found, ask),
        "left_out": left_out,
    }


def _base(effects: Effects) -> dict[str, Any]:
    """The run without edits: mean difference, top-1 error, calibration of the choice and of the next token."""
    compared = effects.base[effects.facts["compared"]]
    right = 1 - effects.base["top1_error"]
    top = np.clip(effects.base["top_probability"], 0, 1)
    return {
        "difference": float(compared.mean()),
        "pair_acc": float(effects.base["pair_right"].mean()),
        "top1_error": float(effects.base["top1_error"].mean()),
        "ece": binary(compared).ece,
        "ece_multiclass": calibration(top, right).ece,
    }


def _pair(row: pd.Series) -> list[float] | None:
    low, high = float(row["low"]), float(row["high"])
    return [low, high] if np.isfinite(low) and np.isfinite(high) else None


def agreement(found: Sequence[Effects], ask: Ask) -> list[dict[str, Any]]:
    """Spearman's ρ between the mean effects of every two edits over the studied units, with its permutation p."""
    rows = []
    for a, b in itertools.combinations(found, 2):
        both = [i for i, unit in enumerate(a.units) if not unit.control]
        x, y = (np.nanmean(effects.values["effect"][both], axis=1) for effects in (a, b))
        rho, p = rank_agreement(x, y, seed=ask.draw("agreement"))
        rows.append({"a": a.edit, "b": b.edit, "rho": _number(rho), "p": _number(p), "n": len(both)})
    return rows


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
