"""From effects to a study's tables and the numbers of ``metrics.json``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from circuits.errors import UserError
from circuits.files import write_json
from circuits.interventions import groups
from circuits.interventions.ask import Ask
from circuits.interventions.choice import label, signature
from circuits.interventions.effects import Effects, summary
from circuits.interventions.settings import Cluster, Settings
from circuits.interventions.units.base import Unit
from circuits.stats.calibration import binary, calibration
from circuits.stats.many import rank_agreement


@dataclass
class Study:
    """What was measured, and its tables."""

    effects: list[Effects]
    summary: pd.DataFrame
    groups: pd.DataFrame
    shapley: pd.DataFrame
    metrics: dict[str, Any]
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


def tables(ask: Ask, found: Sequence[Effects], drawn: Sequence[Any], left_out: dict[str, list[str]]) -> Study:
    """The tables of a study from the effects of each edit; `drawn` are the orders of its Shapley values."""
    s = ask.settings
    summaries, grouped, shapleys = [], [], []
    for effects in found:
        cluster = effects.prompts.groups if s.cluster is Cluster.group else [p.prompt for p in effects.prompts]
        ask.tell(f"intervals of {effects.edit}", 0, 1)
        how: dict[str, Any] = {"cluster": cluster, "seed": ask.draw("bootstrap"), "resamples": s.resamples}
        table = summary(effects, bound=s.bound, alpha=s.alpha, **how)
        alone = s.units == "heads"
        null = groups.among_layer(effects) if alone else groups.null_p(effects, controls_of(effects.units, s))
        summaries.append(table.merge(null, on="unit", how="left") if len(null) else table)
        if s.units == "head_groups":
            grouped.append(groups.synergies(effects, **how))
            if drawn:
                shapleys.append(groups.shapley(effects, drawn, **how))
    table = pd.concat(summaries, ignore_index=True)
    metrics = _metrics(ask, found, table, left_out)
    return Study(list(found), table, _concat(grouped), _concat(shapleys), metrics)


def _concat(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    kept = [table for table in tables if len(table)]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()


def controls_of(units: Sequence[Unit], s: Settings) -> dict[str, str]:
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
        "kind": s.units,
        "edits": s.edits,
        **({"site": s.site} if s.units in ("sites", "positions", "features", "steer") else {}),
        "positions": f"the last {s.last_n} tokens, one at a time" if s.units == "positions" else str(s.positions),
        "cluster": s.cluster.value,
        "alpha": s.alpha,
        "bound": float(table["bound"].iloc[0]),
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
