"""A study of features: contributions on every prompt, the graphs of some, checks by running the model, and the tables.

::

    prompt ── contributions ──▶ features.parquet   α by feature over prompts, how often it is there
       │            └── strongest taken out for real ──▶ slope, R²
       └── Local ── trace ──▶ nodes.parquet, links.parquet
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from circuits.attribution import study
from circuits.attribution.features.dictionaries import CrossLayer, Dictionaries
from circuits.attribution.features.drawn import draw, drawn, graphs_of, undrawn
from circuits.attribution.features.effects import Key, contributions, line, observe, removed
from circuits.attribution.features.local import Active, explained
from circuits.attribution.settings import Reference
from circuits.attribution.study import Ask
from circuits.data.keeper import Keeper, State
from circuits.errors import UserError
from circuits.files import write_json

MakeKeeper = Callable[[str], Keeper[str]]
WHAT = "contributions"
CHECKED = 12
"""Strongest features that are taken out one by one; beside them the 2, 4 and 8 strongest together."""


@dataclass
class Features:
    """What was found, as it is saved."""

    features: pd.DataFrame
    nodes: pd.DataFrame
    links: pd.DataFrame
    metrics: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """All files of the artifact."""
        for name, table in (("features", self.features), ("nodes", self.nodes), ("links", self.links)):
            table.to_parquet(directory / f"{name}.parquet", index=False)
        write_json(directory / "metrics.json", self.metrics)


def run(
    ask: Ask,
    dictionaries: Dictionaries,
    keeper: MakeKeeper,
    labels: Mapping[int, Mapping[int, str]] | None = None,
    say: Callable[[str], None] = lambda text: None,
    tell: Callable[[int, int], None] = lambda done, total: None,
    place: Path | None = None,
    world_size: int = 1,
) -> Features:
    """The whole study; `tell` is told (graphs done, all), and may end the work; in `place` each graph is kept until all are there.

    What `world_size` processes have checked and made by :func:`share` is taken as it is.

    Raises:
        UserError: SAEs that explain too little of these prompts; a site that cannot be cut.
    """
    if world_size == 1:
        check(ask, dictionaries, say)
    parts = study.parts(len(ask.prompts), world_size)
    found = [_contributions(ask, dictionaries, part, keeper(study.part_name(part, WHAT))) for part in parts]
    rows, facts = (pd.concat(tables, ignore_index=True) for tables in zip(*found, strict=True))
    table = _features(ask, rows, labels or {})
    checks = _checks(ask, dictionaries, rows, table, keeper("checks"))
    nodes, links, graphs = drawn(ask, dictionaries, tell, labels or {}, place)
    return Features(table, nodes, links, _metrics(ask, dictionaries, table, rows, facts, checks, graphs))


def share(
    ask: Ask,
    dictionaries: Dictionaries,
    keeper: MakeKeeper,
    place: Path,
    shard: int,
    world_size: int,
    labels: Mapping[int, Mapping[int, str]] | None = None,
    say: Callable[[str], None] = lambda text: None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """What one of `world_size` processes makes of the study: contributions on its prompts, and its graphs.

    Raises:
        UserError: as :func:`run`.
    """
    check(ask, dictionaries, say)
    for part in study.share(len(ask.prompts), shard, world_size):
        _contributions(ask, dictionaries, part, keeper(study.part_name(part, WHAT)))
    draw(ask, dictionaries, tell, labels or {}, place, range(shard, graphs_of(ask), world_size))


def unfinished(ask: Ask, place: Path, world_size: int, labels: Mapping[int, Mapping[int, str]] | None = None) -> int:
    """How many parts and graphs of all shares are not there yet."""
    return study.unfinished(ask, place, world_size, WHAT) + undrawn(ask, place, labels or {})


def check(ask: Ask, dictionaries: Dictionaries, say: Callable[[str], None]) -> None:
    """Refuse what cannot be taken apart.

    Raises:
        UserError: SAEs that explain too little of these prompts; a site that cannot be cut.
    """
    if "head_z" in (dictionaries.site, dictionaries.target):
        raise UserError(
            "site=head_z: heads write through their own projection; take attn_out, or another site of the stream"
        )
    check_explained(ask, dictionaries, say)


def check_explained(ask: Ask, d: Dictionaries, say: Callable[[str], None]) -> None:
    """Refuse SAEs that do not explain what these prompts make.

    Raises:
        UserError: with the layers and the numbers.
    """
    some: list[Mapping[int, Active]] = [observe(ask.anatomy, d, p.ids, None)[0] for p in ask.prompts.prompts[:16]]
    found = {layer: explained(some, layer) for layer in d.layers}
    say("explained variance on these prompts: " + ", ".join(f"L{layer} {value:.2f}" for layer, value in found.items()))
    low = {layer: value for layer, value in found.items() if not value >= ask.settings.min_explained}
    if low:
        raise UserError(
            f"SAEs explain too little of these prompts (layer {', '.join(f'{la}: {v:.2f}' for la, v in low.items())}; "
            f"min_explained={ask.settings.min_explained:g}): train them longer or on text like the prompts, or lower the bound"
        )


def _contributions(ask: Ask, d: Dictionaries, part: range, keeper: Keeper[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of some prompts one row a (prompt, layer, feature), summed over positions; and one a (prompt, layer) with errors."""
    s = ask.settings
    steps = s.steps if s.method == "eap_ig_inputs" else 1
    found: list[list[float]] = []
    facts: list[list[float]] = []
    known = {
        "rows": ask.prompts.samples[part.start : part.stop],
        "method": s.method,
        "steps": steps,
        "reference": s.reference.value,
    }

    def state(_: str) -> State:
        tensors = {"found": torch.tensor(found, dtype=torch.float64), "facts": torch.tensor(facts, dtype=torch.float64)}
        return tensors, {"total": len(part)}

    for tensors, _ in keeper.begin({"effects": known}).values():
        found += tensors["found"].tolist()
        facts += tensors["facts"].tolist()
    for done, i in enumerate(part[keeper.start :], keeper.start):
        p = ask.prompts[i]
        c = contributions(ask.anatomy, d, p, steps, s.reference is Reference.corrupt)
        for layer, a in c.active.items():
            every, inverse = torch.unique(a.feature, return_inverse=True)
            alpha = torch.zeros(len(every), dtype=torch.float64).index_add_(
                0, inverse.cpu(), c.alpha[layer].double().cpu()
            )
            most = torch.zeros(len(every), dtype=torch.float64).scatter_reduce_(
                0, inverse.cpu(), a.value.double().cpu(), "amax"
            )
            found += [
                [i, layer, f, al, m] for f, al, m in zip(every.tolist(), alpha.tolist(), most.tolist(), strict=True)
            ]
            frozen, whole = c.frozen[layer], c.alpha[layer]
            facts.append([i, layer, float(whole.sum()), float(c.errors[layer].sum()), float(whole.abs().sum()),
                          float(c.errors[layer].abs().sum()), float((whole - frozen).abs().sum()), c.metric])  # fmt: skip
        keeper.step(done + 1, len(part), state)
    keeper.end(len(part), state)
    columns = ["prompt", "layer", "alpha", "error", "size", "error_size", "through_patterns", "metric"]
    return (
        pd.DataFrame(found, columns=["prompt", "layer", "feature", "alpha", "activation"]).astype({"prompt": int, "layer": int,
        "feature": int}), pd.DataFrame(facts, columns=columns).astype({"prompt": int, "layer": int}),
    )  # fmt: skip


def _features(ask: Ask, rows: pd.DataFrame, labels: Mapping[int, Mapping[int, str]]) -> pd.DataFrame:
    """Over prompts: a prompt without the feature counts as 0."""
    n = len(ask.prompts)
    grouped = rows.groupby(["layer", "feature"])
    total, square = grouped["alpha"].sum(), grouped["alpha"].apply(lambda a: float(np.square(a).sum()))
    mean = total / n
    spread = np.sqrt(np.maximum(square / n - np.square(mean), 0) / max(n - 1, 1))
    table = pd.DataFrame(
        {
            "prompts": grouped.size(),
            "frequency": grouped.size() / n,
            "effect_mean": mean,
            "effect_se": spread if n > 1 else np.nan,
            "activation_mean": grouped["activation"].mean(),
        }
    ).reset_index()
    table["label"] = [labels.get(la, {}).get(f, "") for la, f in zip(table["layer"], table["feature"], strict=True)]
    order = table["effect_mean"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def _checks(
    ask: Ask, d: Dictionaries, rows: pd.DataFrame, table: pd.DataFrame, keeper: Keeper[str]
) -> list[dict[str, Any]]:
    """The strongest features taken out, one by one and together, beside what is predicted."""
    if ask.settings.reference is Reference.corrupt:  # α says what the pair changes, and not what absence does
        return []
    strongest: list[Key] = [(int(r["layer"]), int(r["feature"])) for r in table.head(CHECKED).to_dict("records")]
    groups: list[list[Key]] = [[key] for key in strongest] + [strongest[:k] for k in (2, 4, 8) if len(strongest) > k]
    by = rows.set_index(["prompt", "layer", "feature"])["alpha"].to_dict()
    found: list[dict[str, Any]] = []
    some = ask.prompts.prompts[: ask.settings.verify_samples]

    def state(_: str) -> State:
        return {}, {"found": found}

    facts = {"rows": [p.id for p in some], "groups": [[list(key) for key in group] for group in groups]}
    for _, meta in keeper.begin({"effects": facts}).values():
        found += meta["found"]
    for i, p in enumerate(some[keeper.start :], keeper.start):
        for group, change in zip(groups, removed(ask.anatomy, d, p, groups), strict=True):
            there = [key for key in group if (i, *key) in by]
            if not there:
                continue
            found.append(
                {
                    "sample": p.id,
                    "layer": group[0][0],
                    "feature": group[0][1],
                    "together": len(group),
                    "predicted": -float(sum(by[(i, *key)] for key in there)),
                    "measured": change,
                }
            )
        keeper.step(i + 1, len(some), state)
    keeper.end(len(some), state)
    return found


def _metrics(
    ask: Ask, d: Dictionaries, table: pd.DataFrame, rows: pd.DataFrame, facts: pd.DataFrame, checks: Sequence[dict[str, Any]],
    graphs: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    s = ask.settings
    singles = [c for c in checks if c["together"] == 1]
    slope, r2 = line([c["predicted"] for c in singles], [c["measured"] for c in singles])
    joint = [c for c in checks if c["together"] > 1]
    joint_slope, joint_r2 = line([c["predicted"] for c in joint], [c["measured"] for c in joint])
    mean = lambda name: _mean([g[name] for g in graphs.values()])  # noqa: E731
    whole = float(facts["size"].sum())
    last = facts[facts["layer"] == d.layers[-1]]
    return {
        "n": len(ask.prompts),
        "level": "features",
        "method": s.method,
        "steps": s.steps if s.method == "eap_ig_inputs" else 1,
        "site": d.site,
        "target_site": d.target,
        "transcoders": d.transcoders,
        "cross_layer": isinstance(d, CrossLayer),
        "layers": d.layers,
        "reference": s.reference.value,
        "logits": s.logits.value,
        "split": s.split.value,
        "features": len(table),
        "metric_mean": float(last["metric"].mean()),
        "by_layer": [
            {"layer": layer, "alpha": float(mine["alpha"].mean()), "error": float(mine["error"].mean())}
            for layer in d.layers
            for mine in [facts[facts["layer"] == layer]]
        ],
        "error_share": float(facts["error_size"].sum() / (whole + facts["error_size"].sum())) if whole else None,
        "attention_share": float(facts["through_patterns"].sum() / whole) if whole else None,
        "replacement": mean("replacement"),
        "completeness": mean("completeness"),
        "kept_mass": mean("kept_mass"),
        "graph_nodes": mean("nodes"),
        "slope": slope,
        "r2": r2,
        "joint_slope": joint_slope,
        "joint_r2": joint_r2,
        "strongest": [
            {"layer": int(r["layer"]), "feature": int(r["feature"])}
            | {"effect_mean": float(r["effect_mean"]), "label": str(r["label"])}
            for r in table.head(10).to_dict("records")
        ],
        "checks": [dict(c) for c in checks],
        "samples": {sample: dict(g) for sample, g in graphs.items()},
    }  # fmt: skip


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
