"""The judgement of a circuit: curves over shares of edges, random circuits beside them, and tests of the circuit itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from circuits.attribution import faithful, hypotheses
from circuits.attribution.anatomy import Anatomy
from circuits.attribution.choose import random_like, ranked
from circuits.attribution.faithful import Alone, Values
from circuits.attribution.nodes import Nodes
from circuits.attribution.pairs import Pairs
from circuits.attribution.settings import Ablation, Judging, count
from circuits.data.keeper import Keeper
from circuits.data.seeds import derive_seed
from circuits.errors import UserError
from circuits.files import write_json
from circuits.interventions.pairing import donors

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
MakeKeeper = Callable[[str], Keeper[str]]


@dataclass
class Judgement:
    """What was found, as it is saved."""

    curve: pd.DataFrame
    long: pd.DataFrame
    edges: pd.DataFrame
    metrics: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """All files of the artifact."""
        self.curve.to_parquet(directory / "curve.parquet", index=False)
        self.long.to_parquet(directory / "alone.parquet", index=False)
        if len(self.edges):
            self.edges.to_parquet(directory / "minimality.parquet", index=False)
        write_json(directory / "metrics.json", self.metrics)


@dataclass(frozen=True)
class Case:
    """One circuit that is run alone."""

    name: str
    """``circuit``, ``random``, ``random by reader``, ``chosen``, ``complement``, ``without``, ``with``."""
    share: float
    number: int
    mask: Mask


def judge(
    anatomy: Anatomy,
    judged: Pairs,
    others: Pairs,
    scores: Array,
    chosen: Mask,
    settings: Judging,
    keeper: MakeKeeper,
    seed: int = 0,
) -> Judgement:
    """Judge a circuit.

    Args:
        anatomy: the model.
        judged: the prompts that it is judged on.
        others: prompts on which constants are fitted.
        scores: of all edges ``[writers, readers]``.
        chosen: the circuit itself.
        settings: how.
        keeper: where what was read is kept, by a name.
        seed: from which each draw derives its own.
    """
    nodes = anatomy.nodes
    rng = np.random.default_rng(derive_seed(seed, "faithfulness", "random"))
    cases = _curve(scores, nodes, settings, rng)
    tested, extra = _tests(scores, chosen, nodes, settings, rng)
    everything = [*cases, Case("chosen", float(chosen.sum() / len(nodes.edges)), 0, chosen),
                  Case("complement", 0.0, 0, nodes.mask & ~chosen), *tested, *extra]  # fmt: skip
    sizes = [case.mask for case in cases if case.name == "circuit"]
    values = _values(anatomy, judged, others, sizes, settings, seed, keeper)
    found = faithful.alone(
        anatomy,
        judged,
        [case.mask for case in everything],
        values,
        batch_size=settings.batch_size,
        keeper=keeper("alone"),
        facts={"ablation": settings.ablation.value, "seed": seed, "sizes": [int(c.mask.sum()) for c in everything]},
    )
    with keeper("alone").cutting():
        return _judgement(judged, nodes, everything, found, settings, seed)


def _curve(scores: Array, nodes: Nodes, s: Judging, rng: np.random.Generator) -> list[Case]:
    found = []
    for share in s.shares:
        mask = ranked(scores, nodes, s.rank, count(share, len(nodes.edges)))
        found.append(Case("circuit", share, 0, mask))
        if share < 1:
            for i in range(s.random):
                found += [
                    Case("random", share, i, random_like(mask, nodes, rng)),
                    Case("random by reader", share, i, random_like(mask, nodes, rng, by_degree=True)),
                ]
    return found


def _tests(
    scores: Array, chosen: Mask, nodes: Nodes, s: Judging, rng: np.random.Generator
) -> tuple[list[Case], list[Case]]:
    """The circuit without each of some of its edges, and with each of some random ones."""
    inside = [tuple(e) for e in np.argwhere(chosen)]
    outside = [tuple(e) for e in np.argwhere(nodes.mask & ~chosen)]
    if not s.minimality or not inside or not outside:
        return [], []
    number = {(int(u), int(v)): i for i, (u, v) in enumerate(nodes.edges)}

    def changed(edge: Any, value: bool) -> Mask:
        mask = chosen.copy()
        mask[edge] = value
        return mask

    inside.sort(key=lambda e: -abs(float(scores[e])))
    picked = (
        inside
        if len(inside) <= s.minimality
        else [inside[i] for i in sorted(rng.choice(len(inside), s.minimality, False))]
    )
    drawn = [outside[i] for i in rng.choice(len(outside), min(s.minimality, len(outside)), False)]
    return (
        [Case("without", 0.0, number[int(u), int(v)], changed((u, v), False)) for u, v in picked],
        [Case("with", 0.0, number[int(u), int(v)], changed((u, v), True)) for u, v in drawn],
    )


def _values(
    anatomy: Anatomy, judged: Pairs, others: Pairs, masks: list[Mask], s: Judging, seed: int, keeper: MakeKeeper
) -> Values:
    name = s.ablation.value
    if s.ablation in (Ablation.mean, Ablation.optimal):
        if not len(others.prompts):
            raise UserError(
                f"ablation={name}: no prompt is left on which constants are fitted; raise behaviour.n_samples"
            )
        constant = faithful.mean_writes(anatomy, others, s.batch_size, keeper("means"))
        if s.ablation is Ablation.optimal:
            constant = faithful.fit_constants(
                anatomy,
                others,
                constant,
                masks[:-1] or masks,
                steps=s.steps,
                batch_size=s.batch_size,
                keeper=keeper("constants"),
            )
        return Values(name, constant)
    if s.ablation is Ablation.resample:
        pool, without = donors(judged.prompts, derive_seed(seed, "faithfulness", "donors"))
        if without:
            raise UserError(
                f"ablation=resample: {len(without)} prompts ({' '.join(without[:3])}) have no prompt of another group that is "
                "as long"
            )
        rows = [pool[row.prompt] for row in judged.rows]
        return Values(name, donors=[None if i is None else judged.prompts[i].ids for i in rows])
    return Values(name)


def _judgement(judged: Pairs, nodes: Nodes, cases: list[Case], found: Alone, s: Judging, seed: int) -> Judgement:
    prompts = judged.prompts
    clusters = [p.prompt for p in prompts]
    counts = faithful.drawn(len(prompts), clusters, seed=derive_seed(seed, "faithfulness", "bootstrap"))
    boot = faithful.resampled(found.circuits, found.model, found.empty, counts)
    span = faithful.span(found.model, found.empty)
    rows = []
    for i, case in enumerate(cases):
        f = faithful.faithfulness(found.circuits[i], found.model, found.empty)
        low, high = np.nanpercentile(boot[i], [2.5, 97.5])
        rows.append({"circuit": case.name, "number": case.number, "share": case.share, "edges": int(case.mask.sum()),
                     "metric": float(found.circuits[i].mean()), "f": f, "low": float(low), "high": float(high)})  # fmt: skip
    table = pd.DataFrame(rows)
    long = pd.DataFrame(
        {
            "circuit": np.repeat([c.name for c in cases if c.name not in ("without", "with")], len(prompts)),
            "share": np.repeat([c.share for c in cases if c.name not in ("without", "with")], len(prompts)),
            "number": np.repeat([c.number for c in cases if c.name not in ("without", "with")], len(prompts)),
            "sample": prompts.samples * sum(c.name not in ("without", "with") for c in cases),
            "metric": found.circuits[[i for i, c in enumerate(cases) if c.name not in ("without", "with")]].ravel(),
        }
    )
    at = {name: i for i, case in enumerate(cases) if (name := case.name) in ("chosen", "complement")}
    chosen, complement = found.circuits[at["chosen"]], found.circuits[at["complement"]]
    edges, minimality = _minimality(cases, found, chosen, nodes)
    curve = table[table["circuit"].isin(["circuit", "random", "random by reader"])]
    metrics = {
        "n": len(prompts),
        "ablation": s.ablation.value,
        "rank": s.rank.value,
        "edges": len(nodes.edges),
        "model": float(found.model.mean()),
        "empty": float(found.empty.mean()),
        **_areas(curve, cases, boot, s),
        "chosen_edges": int(cases[at["chosen"]].mask.sum()),
        "chosen_share": cases[at["chosen"]].share,
        "faithfulness": float(table.iloc[at["chosen"]]["f"]),
        "faithfulness_ci": [float(table.iloc[at["chosen"]][end]) for end in ("low", "high")],
        "completeness": 1 - float(table.iloc[at["complement"]]["f"]),
        "equivalence": hypotheses.equivalent(chosen, found.model, clusters, 0.1 * abs(span)),
        "independence": hypotheses.independent(
            complement, found.model, seed=derive_seed(seed, "faithfulness", "independence")
        ),
        "minimality": minimality,
        "constant_share": float((np.abs(found.model - found.model.mean()) < 1e-9).mean()),
    }
    return Judgement(table, long, edges, metrics)


def _areas(curve: pd.DataFrame, cases: list[Case], boot: Array, s: Judging) -> dict[str, Any]:
    """CPR and CMD of the circuit with intervals, and of random circuits; where f first reaches .85."""
    shares = s.shares
    own = [i for i, case in enumerate(cases) if case.name == "circuit"]
    f = [float(x) for x in curve[curve["circuit"] == "circuit"].sort_values("share")["f"]]
    out: dict[str, Any] = {"shares": shares, "f": f}
    if len(shares) > 1:
        out["cpr"], out["cmd"] = faithful.areas(shares, f)
        cmds = np.array([faithful.areas(shares, column)[1] for column in boot[own].T if np.isfinite(column).all()])
        out["cmd_ci"] = [float(x) for x in np.percentile(cmds, [2.5, 97.5])] if len(cmds) else None
        for name, key in (("random", "random_cmd"), ("random by reader", "random_by_reader_cmd")):
            mine = curve[curve["circuit"] == name]
            values = []
            for i in range(s.random):
                ys = [float(x) for x in mine[mine["number"] == i].sort_values("share")["f"]]
                values.append(faithful.areas(shares, [*ys, *f[len(ys) :]])[1])
            out[key] = float(np.mean(values)) if values else None
    reached = [share for share, value in zip(shares, f, strict=True) if value >= 0.85]
    out["share_85"] = reached[0] if reached else None
    return out


def _minimality(
    cases: list[Case], found: Alone, chosen: Array, nodes: Nodes
) -> tuple[pd.DataFrame, dict[str, Any] | None]:
    without = [i for i, case in enumerate(cases) if case.name == "without"]
    added = [i for i, case in enumerate(cases) if case.name == "with"]
    if not without or not added:
        return pd.DataFrame(), None
    change = (found.circuits - chosen[None]).mean(1)
    tested = hypotheses.minimal(np.abs(change[without]), np.abs(change[added]))
    names = nodes.edge_names
    table = pd.DataFrame(
        {
            "edge": [names[cases[i].number] for i in [*without, *added]],
            "in_circuit": [True] * len(without) + [False] * len(added),
            "change": change[[*without, *added]],
            "p": [*tested["p"], *[np.nan] * len(added)],
            "q": [*tested["q"], *[np.nan] * len(added)],
        }
    )
    inside = int(cases[next(i for i, c in enumerate(cases) if c.name == "chosen")].mask.sum())
    return table, {k: v for k, v in tested.items() if k not in ("p", "q")} | {"circuit_edges": inside}
