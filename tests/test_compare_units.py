"""Effects of units in two sweeps: matched by what was measured, held to limits, refused on unlike prompts, exit 3 beyond limits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK, Cli, sharing

from circuits.compare.units import WITHOUT, Joined, Units, joined, other_prompts, ranks, table, units_of
from circuits.compare.units_page import blocks, failures, sentence
from circuits.report.types import ArtifactRef
from circuits.stats.calibration import binary

HEADS = [f"L{layer}.H{head}" for layer in (0, 1) for head in range(5)]


def artifact(
    folder: Path,
    name: str,
    effects: dict[str, float],
    *,
    base: float = 2.0,
    n: int = 8,
    edit: str = "zero",
    condition: str = "facts",
    scale: float = 2.0,
    prompts: str = "p",
) -> ArtifactRef:
    """A study's directory: each unit's logit difference is `base` plus its effect on every prompt, spread about that."""
    path = folder / name
    path.mkdir(parents=True)
    spread = np.linspace(-1, 1, n)
    long, summary = [], []
    for unit, effect in effects.items():
        value = base + effect + spread
        facts = {"unit": unit, "condition": condition, "edit": edit, "control": "", "of": "", "group": ""}
        long += [{**facts, "sample": f"{prompts}{i}", "metric": "logit_diff", "value": v} for i, v in enumerate(value)]
        layer, item = (int(part[1:]) for part in unit.split("."))
        summary.append({**facts, "layer": layer, "item": item, "effect": effect, "logit_diff": value.mean(), "kl": 0.1})
    summary.append(
        {**summary[0], "unit": f"drawn {name}", "control": "heads", "effect": 9.0}
    )  # of another draw in every run
    without = {"difference": base, "ece": binary(base + spread).ece}
    pd.DataFrame(long).to_parquet(path / "effects.parquet")
    pd.DataFrame(summary).astype({"layer": "Int64"}).to_parquet(path / "summary.parquet")
    (path / "metrics.json").write_text(json.dumps({"compared": "logit_diff", "base": {edit: without}}))
    payload = json.dumps({"config": {"intervention": {"scale": scale}}})
    (path / "manifest.json").write_text(json.dumps({"payload": payload, "inputs": {}}))
    return ArtifactRef("interventions", name, path, None, f"interventions/{name}")


def measured(*refs: ArtifactRef, swept: tuple[tuple[str, str], ...] = ()) -> Units:
    """What a sweep of these artifacts measured."""
    return units_of((ref, swept) for ref in refs)


def effects(**moved: float) -> dict[str, float]:
    """Effects of ten heads; `moved` adds to those of some: ``L0_H2=0.1``."""
    return {head: 0.1 * i - 0.2 + moved.get(head.replace(".", "_"), 0.0) for i, head in enumerate(HEADS)}


def pair(folder: Path, a: dict[str, float], b: dict[str, float], judge: bool = True, **how: Any) -> Joined:
    """Two sweeps of one artifact each, side by side."""
    mine, its = artifact(folder, "A", a), artifact(folder, "B", b, **how)
    found = joined(("A", measured(mine)), ("B", measured(its)), judge)
    assert found is not None
    return found


def verdicts(found: Joined, metric: str = "effect") -> dict[str, str]:
    """The verdict of each unit in a metric."""
    rows = found.rows[found.rows["metric"] == metric]
    return dict(zip(rows["unit"], rows["verdict"], strict=True))


# -- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (0.30, 0.32, "within"),  # 0.02: 4% of 0.5
        (0.001, 0.02, "within"),  # small effects are not held to a share of nearly nothing
        (0.30, 0.34, "warning"),  # 0.04: 8% of 0.5
        (0.10, 0.155, "failure"),  # 0.055: 11% of 0.5
        (-0.10, 0.10, "failure"),
        (3.00, 3.04, "within"),
        (3.00, 3.06, "warning"),  # 2%, but 0.05 or more
        (3.00, 3.20, "warning"),  # 6.7%
        (3.00, 3.40, "failure"),  # 13%
        (1.00, 1.00, "within"),
    ],
)
def test_a_difference_is_within_the_limits_a_warning_or_a_failure(
    a: float, b: float, verdict: str, tmp_path: Path
) -> None:
    found = pair(tmp_path, {"L0.H0": a}, {"L0.H0": b})
    assert verdicts(found) == {"L0.H0": verdict}
    assert (failures([found]) is None) is (verdict != "failure")


def test_calibration_fails_for_the_run_without_edits_and_warns_for_a_unit(tmp_path: Path) -> None:
    found = pair(tmp_path, effects(), effects(), base=2.18)  # other confidence, the same effects
    assert set(verdicts(found).values()) == {"within"}
    assert verdicts(found, "ece")[WITHOUT] == "failure"
    assert {v for unit, v in verdicts(found, "ece").items() if unit != WITHOUT} <= {"warning", "within"}
    assert verdicts(found, "logit_diff")[WITHOUT] == "warning", "2.00 and 2.18: 9%"
    told = failures([found])
    assert told is not None and "(none): calibration (ECE)" in told


def test_the_farthest_come_first_and_what_is_not_judged_is_kept(tmp_path: Path) -> None:
    found = pair(tmp_path, effects(), effects(L0_H2=0.2, L1_H0=0.06))
    assert [str(row.unit) for row in found.worst.head(2).itertuples()] == ["L0.H2", "L1.H0"]
    assert found.count("failure") >= 2 and found.count("within") > 10
    rows = table([found])
    assert set(rows[rows["metric"] == "kl"]["verdict"]) == {""} and len(rows[rows["metric"] == "kl"]) == 10
    told = failures([found])
    assert told is not None and "facts, zero, L0.H2: effect 0.000 and 0.200" in told


def test_without_limits_nothing_is_judged_and_the_largest_come_first(tmp_path: Path) -> None:
    found = pair(tmp_path, effects(), effects(L0_H3=0.2), judge=False)
    assert set(found.rows["verdict"]) == {""} and failures([found]) is None
    said = sentence([found], judged=False)
    assert said.startswith(
        "B against A: 10 effects of units match; they differ by 0.020 on average and by 0.200 at most."
    )
    (shown, _) = blocks([found], judged=False)
    assert shown.rows[0][2].text == "L0.H3"  # type: ignore[union-attr]


# -- what matches --------------------------------------------------------------------------------------------------


def test_layers_swept_and_layers_in_one_run_match_and_controls_do_not_count(tmp_path: Path) -> None:
    whole = effects()
    mine = artifact(tmp_path, "whole", whole)
    parts = [artifact(tmp_path, f"L{n}", {u: e for u, e in whole.items() if u.startswith(f"L{n}")}) for n in (0, 1)]
    its = units_of([(part, (("layer", str(n)),)) for n, part in enumerate(parts)])
    found = joined(("A", measured(mine)), ("B", its), True)
    assert found is not None and found.units == 10 and found.only == {"A": [], "B": []}
    assert not found.rows["unit"].str.startswith("drawn").any()
    assert set(found.rows["verdict"]) == {"within", ""} and its.repeated == 0


def test_conditions_scales_and_whatever_else_is_swept_are_not_mixed(tmp_path: Path) -> None:
    one = {"L0.H0": 0.1}
    mine = measured(artifact(tmp_path, "a", one), artifact(tmp_path, "b", {"L0.H0": 0.9}, condition="neg"))
    its = measured(artifact(tmp_path, "c", one), artifact(tmp_path, "d", {"L0.H0": 0.9}, condition="logic"))
    found = joined(("A", mine), ("B", its), True)
    assert found is not None and found.units == 1
    assert found.only == {"A": ["neg, zero, L0.H0"], "B": ["logic, zero, L0.H0"]}
    half = measured(artifact(tmp_path, "e", one, edit="scale", scale=0.5))
    assert joined(("A", half), ("B", measured(artifact(tmp_path, "f", one, edit="scale", scale=2.0))), True) is None
    seeds = measured(artifact(tmp_path, "g", one), swept=(("seed", "1"),))
    assert joined(("A", seeds), ("B", measured(artifact(tmp_path, "h", one), swept=(("seed", "2"),))), True) is None
    twice = measured(artifact(tmp_path, "i", one), artifact(tmp_path, "j", one))
    assert twice.repeated == 1


def test_what_measures_no_units_has_none(tmp_path: Path) -> None:
    empty = units_of([(ArtifactRef("sae", "x", tmp_path, 1, "sae/x"), ())])
    assert not empty and joined(("A", empty), ("B", empty), True) is None


def test_unlike_prompts_are_told_by_condition(tmp_path: Path) -> None:
    mine = measured(artifact(tmp_path, "a", {"L0.H0": 0.1}))
    fewer = measured(artifact(tmp_path, "b", {"L0.H0": 0.1}, n=6))
    others = measured(artifact(tmp_path, "c", {"L0.H0": 0.1}, prompts="q"))
    assert other_prompts(mine, mine) == []
    assert other_prompts(mine, fewer) == ["prompts of facts (8 and 6 sample ids, 6 of them the same)"]
    assert other_prompts(mine, others) == ["prompts of facts (8 and 8 sample ids, 0 of them the same)"]


def test_ranks_agree_by_layer(tmp_path: Path) -> None:
    turned = {head: -effect if head.startswith("L1") else effect for head, effect in effects().items()}
    found = pair(tmp_path, effects(), turned)
    by_layer = ranks([found]).set_index("layer")["rho"]
    assert by_layer[0] == pytest.approx(1) and by_layer[1] == pytest.approx(-1)
    assert "Rank agreement by layer: ρ from -1.000 (facts, zero, layer 1, n = 5)" in sentence([found], True)
    assert len(pair(tmp_path / "few", {"L0.H0": 0.1}, {"L0.H0": 0.1}).ranks) == 0, "fewer than four have no ranks"


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studies(quick_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """Studies of one model: two formats, other prompts, a sweep over layers."""
    cli = sharing(quick_store, tmp_path_factory.mktemp("studies"))
    common = ["task=interventions", "intervention=heads", "intervention.edit=zero", "intervention.resamples=50", QUICK,
              "behaviour.n_samples=30", "behaviour.n_test=10", "force=true", "tracking=off", "cluster.workers=0"]  # fmt: skip
    for words in (
        ["name=A", "layer=0-1"],
        ["name=B", "layer=0-1", "precision=bf16"],
        ["name=few", "layer=0-1", "intervention.samples=20"],
        ["name=swept", "layer=0,1"],
        ["name=seeded", "layer=0-1", "seed=1"],
    ):
        done = cli(*common, *words)
        assert done.code == 0, done.out + done.err
    return cli


def test_another_number_format_is_refused_unless_the_tolerance_is_for_it(studies: Cli) -> None:
    refused = studies("task=compare", "compare.of=[A,B]")
    assert refused.code == 2 and "precision.dtype (fp32 and bf16)" in refused.errors[0]
    done = studies("task=compare", "compare.of=[A,B]", "compare.tolerance=device", "compare.out=device")
    assert done.code == 0, done.out + done.err
    assert "B against A: 8 effects of units match; " in done.out and "no failure. Rank agreement by layer" in done.out
    units = pd.read_csv(studies.folder / "device" / "units.csv")
    assert set(units["metric"]) == {"effect", "logit_diff", "ece", "kl", "p_drop", "top1_error"}
    assert not (units["verdict"] == "failure").any() and units["base_value"].notna().all()
    assert len(pd.read_csv(studies.folder / "device" / "ranks.csv")) == 2
    page = (studies.folder / "device" / "report.html").read_text()
    assert "8 effects of units match" in page and "Effects of units" in page and "Rank agreement by layer" in page
    assert "compare.tolerance=device" in page, "the command that remakes it"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("A,few", "of unlike prompts: prompts of grammar_agreement (40 and 20 sample ids, 20 of them the same)"),
        ("A,seeded", "of unlike data or models: seed (0 and 1)"),
    ],
)
def test_unlike_prompts_are_refused_also_with_a_tolerance_unless_forced(names: str, says: str, studies: Cli) -> None:
    words = ("task=compare", f"compare.of=[{names}]", "compare.tolerance=device")
    refused = studies(*words)
    assert refused.code == 2 and says in refused.errors[0], refused.err
    forced = studies(*words, "compare.force=true")
    assert forced.code in (0, 3) and "Compared by force" in forced.out


def test_a_sweep_over_layers_and_one_run_over_them_are_the_same_study(studies: Cli) -> None:
    done = studies("task=compare", "compare.of=[A,swept]", "compare.tolerance=device", "compare.out=layers")
    assert done.code == 0, done.out + done.err
    units = pd.read_csv(studies.folder / "layers" / "units.csv")
    assert set(units["verdict"].dropna()) == {"within"} and units["difference"].abs().max() < 1e-4
    assert "8 effects of units match" in done.out


def test_a_difference_beyond_the_limits_ends_with_exit_3_after_the_page(studies: Cli, tmp_path: Path) -> None:
    copy = Cli(tmp_path / "copy")
    shutil.copytree(studies.folder, copy.folder, symlinks=False)
    (run,) = (copy.folder / "outputs" / "runs").glob("*/B-*")
    status = json.loads((run / "status.json").read_text())
    for found in status["artifacts"]:
        found["path"] = str(copy.outputs / "artifacts" / found["id"])
    (run / "status.json").write_text(json.dumps(status))
    path = Path(status["artifacts"][0]["path"]) / "summary.parquet"
    summary = pd.read_parquet(path)
    summary.loc[summary["unit"] == "L1.H2", "effect"] += 0.3
    summary.to_parquet(path, index=False)
    done = copy("task=compare", "compare.of=[A,B]", "compare.tolerance=device", "compare.out=out")
    assert done.code == 3 and len(done.errors) == 1, done.out + done.err
    assert (
        "1 of 26 differences are above their limits; farthest grammar_agreement, zero, L1.H2: effect" in done.errors[0]
    )
    assert "1 failure" in (copy.folder / "out" / "report.html").read_text()
    assert "L1.H2  effect" in " ".join(done.out.split("  "))


def test_a_tolerance_needs_effects_of_units(studies: Cli) -> None:
    common = ["task=baseline", QUICK, "behaviour.n_samples=30", "behaviour.n_test=10", "tracking=off",
              "cluster.workers=0", "behaviour.success_threshold=0"]  # fmt: skip
    for words in (["name=M1"], ["name=M2", "precision=bf16"]):
        assert studies(*common, *words).code in (0, 3)
    done = studies("task=compare", "compare.of=[M1,M2]", "compare.tolerance=device")
    assert done.code == 2 and "no effects of units of M1 match those of M2 (task=baseline)" in done.errors[0], done.err
    wrong = studies("task=compare", "compare.of=[A,B]", "compare.tolerance=near")
    assert wrong.code == 2 and "compare.tolerance=near: no such choice" in wrong.errors[0]
