"""Steering directions with their evidence: controls of equal length, a prompt in their place, single prompts, and what is written.

Vectors often act against their intent on single prompts (2407.12404, 2505.22637): ``wrong`` is the share of prompts that moved the
other way. ``steering.parquet`` holds one row a studied direction, ``generations.parquet`` what was written under it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from circuits.activations.answers import rows_of
from circuits.data.journal import Journal
from circuits.data.prompts import PromptSet
from circuits.interventions import steering
from circuits.interventions.ask import Ask, More, Studied
from circuits.interventions.edits.steer import Steer
from circuits.interventions.engine import Engine
from circuits.interventions.generation import MakeHooks, adding, as_rows, as_texts, distinct, generate, nll, no_hooks
from circuits.interventions.prompting import WANTED, Before, demonstrations, prompted, room
from circuits.interventions.units.base import Lens, Unit
from circuits.interventions.units.sites import Sites
from circuits.stats.many import permutation_p

if TYPE_CHECKING:
    from circuits.interventions.edits.base import Edit
    from circuits.interventions.effects import Effects

GENERATED = 20
"""Prompts, at most, after which text is generated: the first ones."""
NONE = "(none)"


class Steering(Studied):
    """The difference of means of each layer and the directions of the named features, random and orthogonal directions of their
    length, and demonstrations in the prompt."""

    def lens(self, ask: Ask) -> Lens:
        return Sites(ask.settings.site)

    def units(self, ask: Ask, lens: Lens) -> list[Unit]:
        return steering.units(ask)

    def controls(self, ask: Ask, lens: Lens, units: Sequence[Unit]) -> list[Unit]:
        return steering.controls(ask)

    def finish(self, ask: Ask, lens: Lens, edit: Edit, effects: Effects) -> More:
        """Add the demonstrations to the units; evidence and generations as tables."""
        if not isinstance(edit, Steer):
            return More(effects)
        shown = demonstrations(ask, room(ask, ask.settings.generate))
        beside = prompted(ask, lens, shown)
        whole = effects if beside is None else effects.joined(beside)
        rows = evidence(ask, whole, edit)
        texts = written(ask, lens, edit, shown)
        fluency = fluent(texts)
        for row in rows:
            row |= {name: value for name, value in fluency.get(row["unit"], {}).items() if name != "n"}
        curves = {unit: chosen.curve for unit, chosen in edit.chosen.items()}
        metrics = {
            "steering": rows,
            "curves": curves,
            "fluency": fluency,
            "shots": {name: list(before.samples) for name, before in shown.items()},
        }
        tables = {"steering": pd.DataFrame(rows)} | ({"generations": texts} if len(texts) else {})
        return More(whole, tables, metrics)


def evidence(ask: Ask, effects: Effects, edit: Steer) -> list[dict[str, Any]]:
    """One row a studied direction: its effect and its share of prompts steered the wrong way, beside each kind of control's."""
    s, values = steering.sign(ask), effects.values["effect"]
    found = []
    for i, unit in enumerate(effects.units):
        if unit.control or unit.layer is None:
            continue
        chosen = edit.chosen[unit.name]
        row: dict[str, Any] = {"unit": unit.name, "layer": unit.layer, "norm": chosen.norm, "strength": chosen.strength}
        row["largest"] = abs(chosen.strength) == max(ask.settings.strength_list)
        row |= {"effect": _mean(values[i]), "wrong": _wrong(s * values[i]), "n": int(np.isfinite(values[i]).sum())}
        for kind in steering.CONTROLS:
            mine = [k for k, other in enumerate(effects.units) if other.control == kind and other.of == unit.name]
            if mine:
                drawn = np.array([np.nanmean(values[k]) for k in mine])
                row |= {f"{kind}_n": len(mine), f"{kind}_mean": _number(drawn.mean())}
                row |= {f"{kind}_best": _number(s * (s * drawn).max()), f"{kind}_wrong": _wrong(s * values[mine])}
                row[f"p_{kind}"] = _number(float(permutation_p(_nan_mean(values[i]), drawn)))
        for k, other in enumerate(effects.units):
            if other.control == "prompting":
                word = other.name.replace(" ", "_")
                row |= {word: _mean(values[k]), f"{word}_wrong": _wrong(s * values[k])}
        found.append(row)
    return found


def written(ask: Ask, lens: Lens, edit: Steer, shown: dict[str, Before]) -> pd.DataFrame:
    """What the model writes after the first prompts: as it is, under each direction and a random one, and prompted."""
    prompts = PromptSet(ask.measured.prompts[:GENERATED], ask.measured.meta)
    rows = rows_of(prompts, base=steering.base(ask), span=True)
    first_row = {row.prompt: r for r, row in reversed(list(enumerate(rows)))}
    starts = [rows[first_row[i]].ids[: rows[first_row[i]].length] for i in range(len(prompts))]
    context, longest = ask.lm.dims.context, max(map(len, starts))
    steps = ask.settings.generate if context is None else min(ask.settings.generate, context - longest)
    if steps < 1:
        return pd.DataFrame()
    engine = Engine(ask.lm, prompts, rows, lens, batch_size=ask.settings.batch_size)
    everything = {unit.name: unit for unit in (*steering.units(ask), *steering.controls(ask))}
    studied = [unit.name for unit in steering.units(ask)]
    first = [steering.control_name(steering.name(layer), "random", 0) for layer in ask.layers]
    names = [NONE, *studied, *(one for one in (*first, WANTED) if one in {*everything, *shown})]
    facts = {"names": names, "steps": steps, "batch": ask.settings.batch_size, "rows": prompts.samples}
    journal, tables = Journal(ask.keep("written"), facts, len(names)), []
    for k, name in enumerate(names):
        mine = [shown[name].of(ids) for ids in starts] if name in shown else starts
        hooks: MakeHooks = no_hooks
        kept = list(range(len(starts)))
        if name in everything:
            hooks, kept = _hooks(ask, engine, edit, everything[name], first_row)

        make = partial(_text, ask, [mine[i] for i in kept], steps, hooks, (k, len(names)))
        made = as_texts(journal.step(name, make))
        tables.append(_table(ask, name, prompts, kept, [starts[i] for i in kept], made))
    journal.end()
    return pd.concat(tables, ignore_index=True)


def _text(ask: Ask, starts: Sequence[tuple[int, ...]], steps: int, hooks: MakeHooks, turn: tuple[int, int]) -> Tensor:
    """What is written after `starts`, as :func:`as_rows` has it; `turn`: its number among how many."""
    k, of = turn

    def tell(done: int, total: int) -> None:
        ask.tell("generating", k * total + done, of * total)

    made = generate(ask.lm, starts, steps, hooks=hooks, batch_size=ask.settings.batch_size, tell=tell)
    return as_rows(made, steps)


def _hooks(
    ask: Ask, engine: Engine, edit: Steer, unit: Unit, first_row: Mapping[int, int]
) -> tuple[MakeHooks, list[int]]:
    """What a unit does while text is generated, and the prompts that have its positions."""
    (place,), n = unit.places, len(engine.prompts)
    everywhere = unit.positions.spec == "all"
    columns = [None if everywhere else engine.columns(unit.positions, first_row[i]) for i in range(n)]
    kept = [i for i in range(n) if everywhere or columns[i] is not None]
    tap, change = engine.tap(place.layer), edit.changes[unit.name]
    return adding(engine.lens, tap, place.layer, change, [columns[i] for i in kept], ask.lm.device), kept


def _table(
    ask: Ask,
    name: str,
    prompts: PromptSet,
    kept: Sequence[int],
    starts: Sequence[tuple[int, ...]],
    made: Sequence[tuple[int, ...]],
) -> pd.DataFrame:
    pairs = [distinct(ids) for ids in made]
    return pd.DataFrame(
        {
            "unit": name,
            "sample": [prompts[i].id for i in kept],
            "text": [ask.lm.tokenizer.decode(list(ids)) for ids in made],
            "tokens": [len(ids) for ids in made],
            "nll": nll(ask.lm, starts, made, batch_size=ask.settings.batch_size),
            "distinct_2": pairs,
            "repetition": [1 - share for share in pairs],
        }
    )


def fluent(texts: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Means over prompts of what was written under each unit; perplexity = exp of the mean over prompts."""
    if not len(texts):
        return {}
    found = {}
    for unit, mine in texts.groupby("unit", sort=False):
        likely = _mean(mine["nll"].to_numpy(float))
        found[str(unit)] = {
            "n": len(mine),
            "tokens": float(mine["tokens"].mean()),
            "nll": likely,
            "perplexity": None if likely is None else float(np.exp(likely)),
            "distinct_2": _mean(mine["distinct_2"].to_numpy(float)),
            "repetition": _mean(mine["repetition"].to_numpy(float)),
        }
    return found


def _nan_mean(values: np.ndarray[Any, Any]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _mean(values: np.ndarray[Any, Any]) -> float | None:
    return _number(_nan_mean(values))


def _wrong(towards: np.ndarray[Any, Any]) -> float | None:
    """The share below 0: an effect of exactly 0 is not the wrong way."""
    known = towards[np.isfinite(towards)]
    return float((known < 0).mean()) if len(known) else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


STUDIED = Steering()
