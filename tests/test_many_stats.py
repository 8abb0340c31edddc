"""Statistics of many effects: textbook intervals and tests, calibrated p where nothing is there, groups whose synergy is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from edited import random_prompts

from circuits.data.prompts import PromptSet
from circuits.interventions.effects import Effects, summary
from circuits.interventions.groups import among_layer, null_p, orders, prefixes, shapley, synergies
from circuits.interventions.units.base import Place, Unit
from circuits.stats import calibration
from circuits.stats.many import (
    Clustered,
    corrected,
    detectable,
    equivalence,
    intervals,
    permutation_p,
    rank_agreement,
    sign_flip,
)


def alone(values: np.ndarray) -> Clustered:
    return Clustered.of(values, range(values.shape[1]))


def test_means_errors_and_intervals_are_those_of_the_textbook() -> None:
    rng = np.random.default_rng(0)
    values = rng.gamma(2, size=(3, 60))
    found = alone(values)
    np.testing.assert_allclose(found.mean, values.mean(1))
    np.testing.assert_allclose(found.standard_error, scipy.stats.sem(values, axis=1))
    low, high = intervals(found, seed=1, resamples=8000)
    for i in range(3):
        expected = scipy.stats.bootstrap(
            (values[i],), np.mean, n_resamples=8000, method="percentile", rng=0
        ).confidence_interval
        assert low[i] == pytest.approx(expected.low, abs=0.02) and high[i] == pytest.approx(expected.high, abs=0.02)


def test_samples_of_a_cluster_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    few = rng.normal(size=(1, 8))
    many, clusters = np.repeat(few, 25, axis=1), np.repeat(range(8), 25)
    wide, narrow = Clustered.of(many, clusters), alone(many)
    np.testing.assert_allclose(wide.standard_error, alone(few).standard_error)
    assert intervals(wide, seed=0)[1] - intervals(wide, seed=0)[0] > 3 * (
        intervals(narrow, seed=0)[1] - intervals(narrow, seed=0)[0]
    )
    assert sign_flip(wide, seed=0)[0] == pytest.approx(sign_flip(alone(few), seed=0)[0])
    assert list(wide.n) == [200] and list(wide.clusters) == [8]


def test_undefined_values_are_left_out_of_one_unit_and_not_of_others() -> None:
    values = np.array([[1.0, np.nan, 3.0, np.nan], [1.0, 2.0, 3.0, 4.0], [np.nan] * 4])
    found = alone(values)
    np.testing.assert_allclose(found.mean[:2], [2, 2.5])
    assert np.isnan(found.mean[2]) and list(found.n) == [2, 4, 0]
    low, high = intervals(found, seed=0, resamples=500)
    assert (
        np.isfinite(low[:2]).all()
        and np.isnan(low[2])
        and np.isnan(sign_flip(found, seed=0)[2])
        and (low[:2] <= high[:2]).all()
    )


def test_all_sign_patterns_are_counted_where_they_are_few() -> None:
    values = np.array([[1.0, 2.0, 3.0], [1.0, -1.0, 2.0]])
    signs = np.array(list(itertools.product([1, -1], repeat=3)))
    expected = [(np.abs(signs @ row) >= abs(row.sum()) - 1e-12).mean() for row in values]
    np.testing.assert_allclose(sign_flip(alone(values), seed=0, resamples=100), expected)
    p = sign_flip(alone(np.full((1, 40), 5.0)), seed=0, resamples=199)
    assert p[0] == pytest.approx(1 / 200)  # never 0


def test_where_nothing_is_there_p_is_uniform_and_discoveries_stay_at_the_level() -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_t(5, size=(600, 48))
    p = sign_flip(alone(values), seed=5, resamples=2000)
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    found = 0
    for i in range(100):  # a hundred studies of twenty heads that do nothing
        q = corrected(sign_flip(alone(rng.normal(size=(20, 32))), seed=i, resamples=500))
        found += bool((q < 0.05).any())
    assert found <= 12  # 5 are to be expected; P(more than 12) < 0.001


def test_true_effects_are_found_and_by_is_the_stricter_correction() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 60))
    values[:10] += 1.0
    p = sign_flip(alone(values), seed=0)
    bh, by = corrected(p), corrected(p, "by")
    assert (bh[:10] < 0.05).all() and (by >= bh - 1e-12).all()
    np.testing.assert_allclose(
        corrected([0.01, np.nan, 0.04])[[0, 2]], scipy.stats.false_discovery_control([0.01, 0.04])
    )


def test_no_effect_is_said_by_an_equivalence_test_only() -> None:
    rng = np.random.default_rng(0)
    tight, loose = rng.normal(0, 0.1, size=(1, 50)), rng.normal(0, 3, size=(1, 50))
    assert equivalence(alone(tight), 0.2)[0] < 0.001 < 0.2 < equivalence(alone(loose), 0.2)[0]
    assert equivalence(alone(tight + 1), 0.2)[0] > 0.99
    assert list(equivalence(alone(np.zeros((1, 9))), 0.2)) == [0.0]
    # the effect that is called detectable is found four times in five
    size = float(detectable(alone(loose))[0]) * 3 / float(loose.std(ddof=1))
    hits = [scipy.stats.ttest_1samp(rng.normal(size, 3, 50), 0).pvalue < 0.05 for _ in range(400)]
    assert 0.7 < np.mean(hits) < 0.9


def test_p_among_controls_counts_the_observed_one_and_is_never_zero() -> None:
    assert permutation_p(10.0, np.zeros(19)) == pytest.approx(1 / 20)
    assert permutation_p(0.0, np.arange(-9, 10)) == 1
    assert permutation_p(5.0, [1, 2, 9], side="above") == pytest.approx(2 / 4)
    assert np.isnan(permutation_p(5.0, [np.nan]))


def test_rank_agreement_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=12)
    b = a + rng.normal(size=12)
    rho, p = rank_agreement(a, b, seed=0)
    assert rho == pytest.approx(scipy.stats.spearmanr(a, b).statistic) and 0 < p < 0.2
    assert np.isnan(rank_agreement(a, np.ones(12), seed=0)[0]) and np.isnan(rank_agreement(a[:3], b[:3], seed=0)[0])


def effects_of_sets(worth, sets, n: int = 12) -> Effects:  # type: ignore[no-untyped-def]
    """Effects of sets of heads of layer 0 that are a function of the set alone, with a little noise by prompt."""
    prompts = PromptSet(random_prompts(n).prompts)
    rng = np.random.default_rng(0)
    units = [Unit("+".join(f"L0.H{h}" for h in s), (Place(0, tuple(s)),)) for s in sets]
    values = np.stack([worth(set(s)) + 0.01 * rng.normal(size=n) for s in sets])
    read = {
        "effect": values,
        "logit_diff": values + 4,
        "flip": 0 * values,
        "top1_error": 0 * values,
        "pair_right": 0 * values + 1,
    }
    base = {"logit_diff": np.full(n, 4.0), "pair_right": np.ones(n)}
    return Effects(
        tuple(units), "zero", prompts, {**read, "top_probability": 0 * values + 0.75}, base, {"compared": "logit_diff"}
    )


SETS = [s for k in (1, 2, 3) for s in itertools.combinations(range(5), k)]
HOW = {"cluster": list(range(12)), "seed": 0, "resamples": 2000}


def test_a_redundant_trio_is_the_only_group_that_is_found() -> None:
    """Any one of heads 1, 2, 3 keeps the answer; only without all three it is lost. Heads 0 and 4 add what they add."""
    found = synergies(effects_of_sets(lambda s: -3.0 * (s >= {1, 2, 3}) - 0.5 * len(s & {0, 4}), SETS), **HOW)
    strong = found[(found["q"] < 0.05) & (found["synergy"].abs() > 0.1)]
    assert list(strong["unit"]) == ["L0.H1+L0.H2+L0.H3"] and strong["super_additive"].all()
    assert strong["synergy"].item() == pytest.approx(-3, abs=0.05) and strong["extra"].item() == pytest.approx(
        3, abs=0.05
    )
    apart = found.set_index("unit").loc["L0.H0+L0.H4"]
    assert apart["additivity"] == pytest.approx(1, abs=0.05) and apart["joint"] == pytest.approx(-1, abs=0.05)


def test_shapley_values_add_up_and_share_what_is_redundant() -> None:
    heads = [(0, h) for h in (1, 2, 3)]
    drawn = orders(heads, 6, seed=0)
    assert len(drawn) == 6 and all(drawn[i] == drawn[i + 1][::-1] for i in (0, 2, 4))
    sets = [tuple(h for _, h in s) for s in prefixes(drawn)]
    effects = effects_of_sets(lambda s: -3.0 * (s >= {1, 2, 3}), sets)
    found = shapley(effects, drawn, **HOW)
    whole = effects.values["effect"][next(i for i, s in enumerate(sets) if len(s) == 3)].mean()
    assert found["shapley"].sum() == pytest.approx(whole, abs=1e-9) and (found["shapley"] <= 0.1).all()


def test_a_head_is_held_against_the_others_of_its_layer() -> None:
    table = among_layer(effects_of_sets(lambda s: -1.0 * (s == {1}), [(h,) for h in range(5)])).set_index("unit")
    assert (table["layer_n"] == 4).all() and table.loc["L0.H1", "p_layer"] == pytest.approx(0.2) == table[
        "p_layer"
    ].min()
    assert table.loc["L0.H1", "layer_percentile"] == 0


def test_units_are_held_against_their_own_controls_only() -> None:
    effects = effects_of_sets(lambda s: -1.0 * (s == {1, 2}), [(1, 2), (0, 3), (0, 4), (3, 4)])
    units = (
        effects.units[0],
        *(Unit(f"random {i}", u.places, control="random", of="2 at L0") for i, u in enumerate(effects.units[1:])),
    )
    held = Effects(units, "zero", effects.prompts, effects.values, effects.base, effects.facts)
    table = null_p(held, {"L0.H1+L0.H2": "2 at L0"})
    assert table["null_n"].item() == 3 and table["p_null"].item() == pytest.approx(0.25) == pytest.approx(
        table["smallest_p"].item()
    )
    assert null_p(held, {"L0.H1+L0.H2": "3 at L0"}).empty
    rows = summary(held, cluster=list(range(12)), seed=0, resamples=200)
    assert rows.loc[rows["control"] != "", "q"].isna().all() and rows.loc[0, "verdict"] == "effect"
    two = calibration.binary(held.values["logit_diff"][0])
    assert rows.loc[0, "ece"] == pytest.approx(two.ece) and rows.loc[0, "nll"] == pytest.approx(two.nll)
    assert rows["ece_multiclass"].to_numpy() == pytest.approx(0.25)  # always right at a confidence of three quarters
