"""``task=interventions`` on the command line: studies, shards, the tables they leave, and what is refused before the start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Cli, sharing

from circuits.tasks.interventions import Interventions

SMALL = ("behaviour=ioi", "behaviour.n_samples=24", "behaviour.n_test=12", "intervention.resamples=200", "tracking=off")


@pytest.fixture(scope="module")
def lab(trained: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A store with the trained embedded model and a baseline of IOI."""
    cli = sharing(trained.outputs / "artifacts", tmp_path_factory.mktemp("lab"))
    done = cli("task=baseline", *SMALL[:3], "tracking=off")
    assert done.code == 0, done.err
    yield cli
    cli.end()


def study(cli: Cli, *words: str) -> tuple[Path, dict, pd.DataFrame]:  # type: ignore[type-arg]
    """The artifact of a study, its metrics and its summary."""
    before = set(cli.artifacts("interventions"))
    done = cli("task=interventions", *SMALL, *words)
    assert done.code == 0, done.out + done.err
    (path,) = set(cli.artifacts("interventions")) - before
    return path, json.loads((path / "metrics.json").read_text()), pd.read_parquet(path / "summary.parquet")


def test_an_optimal_constant_is_the_cheapest_on_prompts_that_it_was_not_fitted_on(lab: Cli) -> None:
    many = ["behaviour=ioi", "behaviour.n_samples=112", "behaviour.n_test=64", "tracking=off"]
    assert lab("task=baseline", *many).code == 0
    edits = "intervention.edit=[zero,mean,resample,optimal]"
    _, metrics, table = study(lab, "intervention=heads", *many, edits, "intervention.steps=30")
    kl = table.pivot_table(index="unit", columns="edit", values="kl")
    assert metrics["n"] == 64 and kl["optimal"].mean() < kl[["zero", "mean", "resample"]].mean().min()


def test_every_head_under_every_edit_with_direct_effects_and_agreement(lab: Cli) -> None:
    path, metrics, table = study(lab, "intervention=heads")
    assert metrics["edits"] == ["zero", "mean", "resample", "counterfactual", "optimal"] and metrics["n"] == 12
    assert len(table) == 5 * 16 and set(table["unit"]) == {f"L{la}.H{h}" for la in range(4) for h in range(4)}
    assert {(row["a"], row["b"]) for row in metrics["agreement"]} >= {("zero", "mean"), ("resample", "optimal")}
    zero = table[table["edit"] == "zero"]
    assert ((zero["low"] <= zero["effect"]) & (zero["effect"] <= zero["high"])).all()
    assert (zero["q_by"] >= zero["q"]).all() and (zero["q"] >= zero["p"] - 1e-12).all()
    assert set(zero["verdict"]) <= {"effect", "none", "open"} and zero["direct"].notna().all()
    long = pd.read_parquet(path / "effects.parquet")
    assert not long.duplicated(["unit", "sample", "edit", "metric"]).any()
    one = long[(long["unit"] == "L0.H3") & (long["edit"] == "zero")].pivot_table(
        index="sample", columns="metric", values="value", observed=True
    )
    base = long[(long["unit"] == "(none)") & (long["edit"] == "zero")].pivot_table(
        index="sample", columns="metric", values="value", observed=True
    )
    np.testing.assert_allclose(one["effect"], one["logit_diff"] - base["logit_diff"], atol=1e-9)
    assert one["effect"].mean() == pytest.approx(float(zero.set_index("unit").loc["L0.H3", "effect"]))
    opened = Interventions().load(path)
    assert len(opened.summary) == 80 and len(opened.effects) == len(long) and "16 units on 12 prompts" in repr(opened)
    again = lab("task=interventions", *SMALL, "intervention=heads")
    assert again.code == 0 and "cached" in again.out


def test_groups_have_synergy_shapley_values_and_random_sets_that_hold_no_studied_head(lab: Cli) -> None:
    path, metrics, table = study(
        lab, "intervention=head_groups", "intervention.sizes=[2]", "intervention.top_k=3", "intervention.shapley=4"
    )
    groups, shapley = pd.read_parquet(path / "groups.parquet"), pd.read_parquet(path / "shapley.parquet")
    assert sorted(groups["size"]) == [2, 2, 2, 3]  # the pairs, and the whole set that Shapley values add up to
    mean = table.set_index("unit")["effect"]
    for row in groups.itertuples():
        assert row.synergy == pytest.approx(row.joint - sum(mean[name] for name in row.unit.split("+")))
    whole = mean["+".join(sorted(f"L{r.layer}.H{r.item}" for r in shapley.itertuples()))]
    assert shapley["shapley"].sum() == pytest.approx(whole)
    studied = {name for unit in table[table["control"] == ""]["unit"] for name in unit.split("+")}
    long = pd.read_parquet(path / "effects.parquet")
    drawn = table[table["control"] == "random"]
    assert metrics["without_controls"] or len(drawn)
    assert len(studied) == 3 and long["control"].isin(["", "random"]).all()


def test_patching_recovers_the_answer_and_the_map_says_where(lab: Cli) -> None:
    _, metrics, table = study(
        lab, "intervention=patch_layers", "intervention.direction=denoising", "intervention.positions=last"
    )
    assert metrics["direction"] == "denoising" and len(table) == 4
    by_layer = table.set_index("layer")["recovery"]
    assert by_layer[3] == pytest.approx(1, abs=1e-5)  # nothing follows the last layer
    _, _, cells = study(lab, "intervention=patch_positions", "layer=[1]", "intervention.last_n=30")
    assert cells["n"].min() >= 1 and cells["unit"].str.contains("@-1$").any()
    early = cells[cells["n"] < 36]
    assert (early["n"] > 0).all()


def test_a_device_to_verify_on_that_is_not_here_is_said_before_anything_is_measured(lab: Cli) -> None:
    done = lab("task=interventions", *SMALL, "intervention=heads", "intervention.verify=cuda:63")
    assert done.code == 1 and "device 'cuda:63' is not present; this machine has:" in done.err, done.err
    assert "measuring" not in done.out + done.err


def test_shards_measure_every_prompt_once_and_the_last_one_puts_them_together(lab: Cli) -> None:
    # Another alpha, and so another artifact with the same effects.
    more = ("intervention.verify=cpu/bf16", "intervention.memory=8")  # finds its batch, and keeps little
    whole, metrics, table = study(lab, "intervention=heads", "intervention.edit=zero", "intervention.alpha=0.04", *more)
    again = metrics["verify"]
    assert (again["device"], again["dtype"], again["n"], again["units"]) == ("cpu", "bf16", 8, 16)
    assert 0 < again["effect"]["abs_diff"] <= again["effect"]["largest"] < 1 and again["effect"]["main"] != 0
    done = lab(
        "task=interventions", *SMALL, "intervention=heads", "intervention.edit=zero", "intervention.alpha=0.03",
        "intervention.world_size=3", "intervention.shard=range(0,3)", "cluster.workers=1", "-m",
    )  # fmt: skip
    assert done.code == 0, done.out + done.err
    (path,) = [
        p for p in lab.artifacts("interventions") if p != whole and "alpha: 0.03" in (p / "config.yaml").read_text()
    ]
    sharded = pd.read_parquet(path / "summary.parquet")
    for name in ("effect", "kl", "p_drop"):
        np.testing.assert_allclose(sharded[name], table[name], atol=1e-5)
    a, b = (pd.read_parquet(p / "effects.parquet") for p in (whole, path))
    assert len(a) == len(b) and set(a["sample"]) == set(b["sample"])


def test_a_rescue_says_how_much_each_head_gives_back(lab: Cli) -> None:
    path, _, _ = study(lab, "intervention=restore", "intervention.groups=[[L0H3,L0H2]]")
    table = pd.read_parquet(path / "rescues.parquet")
    assert list(table["kept"]) == ["L0.H2", "L0.H3"] and (table["unit"] == "L0.H2+L0.H3").all()
    np.testing.assert_allclose(
        table["recovered"], 1 - (table["restored"] - table["base"]) / (table["zeroed"] - table["base"])
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["intervention=headz"], "did you mean heads?"),
        (["intervention.edit=zerro"], "did you mean zero?"),
        (["intervention.heads=[L9H1]"], "L9H1: the model has 4 layers (0-3)"),
        (["intervention.heads=[L1H7]"], "L1H7: layer 1 has 4 heads (0-3)"),
        (["intervention.heads=[]"], "no head named"),
        (["intervention.heads=[banana]"], "'banana' names no head"),
        (["intervention.positions=first"], "choices: all last differing"),
        (["intervention=head_groups", "intervention.groups=[[L0H1,L7H2]]"], "L7H2: the model has 4 layers"),
        (["intervention=head_groups", "intervention.groups=[[]]"], "a group with nothing in it"),
        (["intervention=head_groups", "intervention.sizes=[9]"], "from 2 to top_k=5"),
        (["intervention=heads", "intervention.groups=[[L0H1,L0H2]]"], "groups: units=heads has none"),
        (["intervention.resamples=5"], "the smallest p is 1/6, above alpha=0.05"),
        (["intervention.split=all"], "fitted or chosen on prompts that are not measured"),
        (["intervention.controls=3"], "intervention.units=heads does not read it"),
        (["intervention=patch_layers", "intervention.direction=denosing"], "did you mean denoising?"),
        (["intervention.shard=3", "intervention.world_size=2"], "shard=3: from 0 to world_size-1 (1)"),
        (["intervention.edit=restore"], "units=head_groups has groups"),
        (["intervention.bound=0"], "bound=0"),
        (["intervention.edit=[zero,mean]", "intervention.scale=3"], "intervention.edit=scale does"),
        (["intervention=patch_positions", "intervention.positions=last"], "intervention.last_n says how many"),
        (["intervention.batch_size=many"], "a whole number from 1, or auto"),
        (["intervention.verify=tpu"], "a device (cpu, cuda, cuda:1, mps), a precision (fp32 bf16 fp16)"),
        (["intervention.alpha=2"], "alpha=2"),
        (["intervention.memory=8", "intervention.batch_size=7"], "memory=8: finds the batch by itself; leave batch_size=7 out"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "said",
)  # fmt: skip
def test_what_is_wrong_is_one_line_before_the_start(lab: Cli, words: list[str], said: str) -> None:
    done = lab("task=interventions", "behaviour=ioi", *words)
    assert done.code == 2 and len(done.errors) == 1 and said in done.errors[0], done.err


def test_features_need_an_sae_and_are_held_against_others_of_like_size(lab: Cli) -> None:
    sae = ("layer=1", "sae.steps=60", "sae.expansion=4")
    missing = lab("task=interventions", *SMALL, "intervention=ablate_features", *sae)
    assert missing.code == 2 and "task=sae" in missing.errors[0]
    made = lab("task=sae", *sae, "tracking=off")
    assert made.code == 0, made.err
    _, metrics, table = study(
        lab, "intervention=ablate_features", "intervention.n_groups=4", "intervention.controls=5", *sae
    )
    studied, controls = table[table["control"] == ""], table[table["control"] == "matched"]
    assert len(studied) == 4 and metrics["split"] == "test" and set(controls["of"]) <= set(studied["unit"])
    assert not set(studied["item"]) & set(controls["item"])
    assert (studied["null_n"] > 0).all() and ((studied["p_null"] > 0) & (studied["p_null"] <= 1)).all()
    unknown = lab("task=interventions", *SMALL, "intervention=ablate_features", "intervention.features=[99999]", *sae)
    assert unknown.code != 0 and "99999" in "".join(unknown.errors)


def test_words_that_no_prompt_has_are_said(lab: Cli) -> None:
    for words, said in (("text:zebra", "spell 'zebra'"), ("factor:colour", "has no factor colour")):
        done = lab("task=interventions", *SMALL, "intervention=patch_layers", f"intervention.positions={words}")
        assert done.code == 1 and said in done.out + done.err
