"""Group statistics of pictures and of languages: equal to scipy's, right on planted biases, silent where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from scipy import sparse, stats

from circuits.features import bias, cross_lingual
from circuits.interventions import directions, feature_edits
from circuits.interventions.bias_choice import Condition, candidates, matched
from circuits.interventions.bias_effects import cross_layer
from circuits.model_input import padded
from circuits.sae.modules import SAE, SAEConfig, architectures
from circuits.stats import probes
from circuits.stats.groups import GroupTest, PairTest, detectable_d, difference_intervals, paired, tails

F = 120


def values(n: int, seed: int, features: int = F) -> NDArray[np.float32]:
    """Sparse activations with ties."""
    rng = np.random.default_rng(seed)
    found = np.maximum(rng.normal(-0.6, 1, (n, features)), 0).astype(np.float32)
    found[:, ::3] = found[:, ::3].round(1)
    return found


# -- tests -------------------------------------------------------------------------------------------------------


def test_features_of_both_languages_take_turns_also_where_one_has_fewer() -> None:
    tops = {"male": [[1, 2], [7, 8, 9, 1]], "female": [[], [4]]}
    pooled = [sparse.csc_matrix(np.eye(40)), sparse.csc_matrix(np.eye(40))]
    found = candidates(tops, pooled, {1, 7}, 4)
    assert found.sides == {"male": [1, 7, 2, 8], "female": [4]} and found.barred == {1, 7}
    assert candidates(tops, pooled, set(range(30)), 4).barred == set(), "nearly all: controls among all others"


def test_group_tests_are_scipy_s() -> None:
    x, a = values(90, 0), np.random.default_rng(1).random(90) < 0.4
    x[:, 0], x[:, 1] = 0, 2.5
    tests = GroupTest(sparse.csc_matrix(x), a)
    p, auc, moments = tests.p(), tests.auc(), tests.moments()
    assert np.isnan(p[:2]).all(), "where all values are equal there is nothing to test"
    for i in range(2, F):
        known = stats.mannwhitneyu(x[a, i].astype(float), x[~a, i].astype(float), method="asymptotic")
        assert p[i] == pytest.approx(known.pvalue, abs=1e-8)
        assert auc[i] == pytest.approx(known.statistic / (a.sum() * (~a).sum()))
    m, f = x[a, 5].astype(float), x[~a, 5].astype(float)
    pooled = np.sqrt(((len(m) - 1) * m.var(ddof=1) + (len(f) - 1) * f.var(ddof=1)) / (len(m) + len(f) - 2))
    assert moments["cohens_d"][5] == pytest.approx((m.mean() - f.mean()) / pooled, rel=1e-6)
    assert moments["freq_a"][5] == pytest.approx((m > 0).mean())
    again = tests.p(np.stack([a, np.random.default_rng(2).permutation(a)], axis=1))
    assert np.allclose(again[:, 0], p, equal_nan=True) and not np.allclose(again[:, 1], p, equal_nan=True)


def test_a_feature_of_few_pictures_is_counted_exactly() -> None:
    x = np.zeros((60, 2), np.float32)
    x[:5, 0] = [1, 2, 3, 4, 5]
    x[::12, 1] = 1
    a = np.arange(60) < 20
    p = GroupTest(sparse.csc_matrix(x), a).p()
    assert p[0] == pytest.approx(2 * stats.hypergeom.sf(4, 60, 5, 20)) and p[1] > 0.3
    assert tails(60, 5, 20)[5, 5] == pytest.approx(p[0])


def test_pairs_are_tested_by_wilcoxon_and_few_of_them_by_their_signs() -> None:
    x, y = values(60, 3), values(60, 4)
    x[:, 1::3], y[:, 1::3] = np.random.default_rng(0).random((2, 60, len(range(1, F, 3)))).astype(np.float32)
    found = paired(sparse.csc_matrix(x), sparse.csc_matrix(y))
    for i in range(1, F, 3):
        known = stats.wilcoxon(x[:, i].astype(float), y[:, i].astype(float), method="approx")
        assert found.p[i] == pytest.approx(known.pvalue, abs=1e-4)
    few = paired(sparse.csc_matrix(np.ones((6, 1), np.float32)), sparse.csc_matrix(np.zeros((6, 1), np.float32)))
    assert few.p[0] == pytest.approx(2 / 64) and few.difference[0] == 1 and few.n == 6
    assert np.isnan(paired(sparse.csc_matrix(x[:, :1]), sparse.csc_matrix(x[:, :1])).p[0])


def test_under_swapped_sides_pairs_give_what_chance_gives() -> None:
    x, y = values(60, 3), values(60, 4)
    x[:, :40] += np.abs(y[:, :40]) + 1  # far apart, in every pair
    test = PairTest(sparse.csc_matrix(x), sparse.csc_matrix(y))
    assert np.array_equal(test.p(np.zeros((60, 2), bool))[:, 1], test.p(), equal_nan=True)
    assert np.allclose(test.p(np.ones((60, 1), bool))[:, 0], test.p(), equal_nan=True), "both sides are alike"
    swapped = np.random.default_rng(1).random(60) < 0.5
    a, b = np.where(swapped[:, None], y, x), np.where(swapped[:, None], x, y)
    by_hand = paired(sparse.csc_matrix(a), sparse.csc_matrix(b)).p
    assert np.allclose(test.p(swapped[:, None])[:, 0], by_hand, equal_nan=True)
    drawn = test.shuffled(500, 0)[:40]
    assert (test.p()[:40] < 1e-6).all() and (drawn < 0.05).mean() == pytest.approx(0.05, abs=0.015)


def test_the_smallest_detectable_effect_is_found_four_times_in_five() -> None:
    d, rng = detectable_d(40, 40), np.random.default_rng(0)
    hits = [stats.ttest_ind(rng.normal(d, 1, 40), rng.normal(0, 1, 40)).pvalue < 0.05 for _ in range(1000)]
    assert np.mean(hits) == pytest.approx(0.8, abs=0.05) and detectable_d(0, 10) == float("inf")


def test_intervals_draw_whole_groups() -> None:
    rng = np.random.default_rng(0)
    offset = rng.normal(0, 1, 30)
    x = np.repeat(offset, 4)[:, None] + rng.normal(0, 0.01, (120, 1))
    groups, a = np.repeat(np.arange(30), 4), np.tile([True, True, False, False], 30)
    low, high = difference_intervals(x, a, groups, seed=0)
    assert high[0] - low[0] < 0.02, "what is equal within a group leaves the difference of its members"
    alone_low, alone_high = difference_intervals(x, a, np.arange(120), seed=0)
    assert alone_high[0] - alone_low[0] > 10 * (high[0] - low[0])


# -- planted biases ----------------------------------------------------------------------------------------------


def planted(strength: float, n: int = 300, seed: int = 0) -> tuple[sparse.csc_matrix, bias.Labelled]:
    """Pictures of which features 0-4 lean male and 5-9 female by `strength`; twins side by side, a third for testing."""
    rng = np.random.default_rng(seed)
    x = values(n, seed + 1)
    male = np.arange(n) % 2 == 0
    for j in range(10):
        leaning = male if j < 5 else ~male
        x[:, j] = np.maximum(rng.normal(0.5, 0.5, n) + strength * leaning, 0)
    label = np.where(male, "male", "female").astype(object)
    split = np.where(np.arange(n) // 2 % 3 == 2, "test", "train").astype(object)
    group = (np.arange(n) // 2).astype(str).astype(object)
    return sparse.csc_matrix(x), bias.Labelled(label, split, group, label)


def found_at(
    strength: float, s: bias.Settings, twins: bool = True, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, object]]:
    x, labelled = planted(strength, seed=seed)
    if not twins:
        labelled = bias.Labelled(
            labelled.label, labelled.split, labelled.group, np.full(len(labelled.label), "", object)
        )
    present = np.ones(x.shape[0], bool)
    one = [bias.test(x, labelled, present, 0, language, s, 0) for language in ("english", "arabic")]
    return bias.together(one, s)


@pytest.mark.parametrize("twins", [True, False])
def test_planted_features_are_found_in_both_languages_and_confirmed_on_other_pictures(twins: bool) -> None:
    table, summary = found_at(0.8, bias.Settings(shuffles=5, permutations=200, resamples=200), twins)
    found = table[table["significant"]]
    assert {f for f in found["feature"] if f < 10} == set(range(10)) and (found["feature"] >= 10).mean() < 0.1
    for language in ("english", "arabic"):
        results = bias.layer_results(table, 0, language)
        assert {one["feature"] for one in results["male_biased_features"][:5]} == set(range(5))
        assert {one["feature"] for one in results["female_biased_features"][:5]} == set(range(5, 10))
        first = results["male_biased_features"][0]
        assert first["ci_low"] < first["differential"] < first["ci_high"] and first["permutation_p"] == pytest.approx(
            1 / 201
        )
    assert summary["confirmed"] > 0.9 and summary["primary"] == ("twins" if twins else "groups")  # type: ignore[operator]


@pytest.mark.parametrize("twins", [True, False])
def test_without_a_bias_and_under_shuffled_labels_nothing_is_found_beyond_the_fdr_level(twins: bool) -> None:
    table, summary = found_at(0.0, bias.Settings(shuffles=200, permutations=50, resamples=50), twins)
    biased = found_at(0.8, bias.Settings(shuffles=200, permutations=50, resamples=50), twins)[1]
    assert biased["shuffled_any"] <= 0.1 < biased["significant"], "the primary test's, where there is something to find"  # type: ignore[operator]
    assert summary["shuffled_any"] <= 0.1, "at a level of 0.05, over 200 shuffles"  # type: ignore[operator]
    assert int(table["significant"].sum()) <= 1
    lists = bias.layer_results(table, 0, "english")
    assert len(lists["male_biased_features"]) > 10, "the list is there, whatever was found"
    assert not any(one["significant"] for one in lists["male_biased_features"][5:])


def test_duplicated_groups_that_are_too_small_say_what_could_be_found() -> None:
    _, labelled = planted(1.0, n=12)
    with pytest.raises(ValueError, match=r"4 male and 4 female train pictures: each group needs 5; .*no d below 2\.3"):
        bias.check_groups(labelled, np.ones(12, bool))
    with pytest.raises(ValueError, match=r"values below 0"):
        GroupTest(sparse.csc_matrix(-np.ones((4, 2))), np.array([True, True, False, False]))


# -- languages ---------------------------------------------------------------------------------------------------


def test_features_planted_as_shared_are_matched_across_languages() -> None:
    rng, n = np.random.default_rng(0), 400
    a, b = values(n, 1), values(n, 2)
    for j in range(40):
        b[:, j] = np.maximum(a[:, j] * 1.5 + rng.normal(0, 0.15, n), 0)
    table, facts = cross_lingual.shared(sparse.csc_matrix(a), sparse.csc_matrix(b), cross_lingual.Settings(), 0)
    found = set(table.loc[table["shared"], "feature"])
    precision, recall = len(found & set(range(40))) / len(found), len(found & set(range(40))) / 40
    assert precision >= 0.9 and recall >= 0.9
    assert facts["shared_by_chance"] < 0.02 < facts["shared_share"]
    r = np.corrcoef(a[:, 3], b[:, 3])[0, 1]
    assert table.set_index("feature").loc[3, "r"] == pytest.approx(r, abs=1e-5)


def test_an_overlap_stands_beside_that_of_random_lists() -> None:
    rng = np.random.default_rng(0)
    drawn = [cross_lingual.overlap(rng.choice(200, 50, False), rng.choice(200, 50, False), 200) for _ in range(300)]
    expected = drawn[0]
    assert np.mean([one["jaccard"] for one in drawn]) == pytest.approx(expected["jaccard_random"], abs=0.01)
    assert expected["common_random"] == pytest.approx(50 * 50 / 200)
    assert np.mean([one["p"] < 0.05 for one in drawn]) < 0.09
    same = cross_lingual.overlap(range(50), range(50), 200)
    assert same["jaccard"] == 1 and same["p"] < 1e-30 and cross_lingual.overlap([], [], 0)["p"] is None


def test_probes_carry_over_where_features_are_shared_and_are_at_chance_where_labels_are_shuffled() -> None:
    x, labelled = planted(1.0)
    male, groups = labelled.label == "male", labelled.group.tolist()
    both = {"english": x, "arabic": sparse.csc_matrix(x * 1.3)}
    found = {
        (p["fitted"], p["tested"]): p for p in cross_lingual.probe(both, male, groups, cross_lingual.Settings(), 0)
    }
    assert found["english", "arabic"]["accuracy"] > 0.9 and found["english", "english"]["ci"][0] > 0.85
    drawn = np.random.default_rng(0).permutation(male)
    chance = cross_lingual.probe(both, drawn, groups, cross_lingual.Settings(), 0)
    assert all(p["accuracy"] < 0.65 for p in chance) and chance[0]["majority"] == 0.5
    fold = probes.folds(groups, 5, 0)
    assert all(len(set(fold[np.array(groups) == one])) == 1 for one in groups), "twins stand on one side"


# -- edits -------------------------------------------------------------------------------------------------------


def sae(normalize: str = "none") -> SAE:
    made = architectures()["topk"].sae(SAEConfig(16, 64, k=8, normalize=normalize))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made.W_enc.copy_(torch.randn(16, 64))
        made.W_dec.copy_(torch.nn.functional.normalize(torch.randn(64, 16), dim=-1))
        made.b_dec.copy_(torch.randn(16))
    return made


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_amplification_is_exactly_as_many_times_the_ablation(normalize: str) -> None:
    made, x = sae(normalize), torch.randn(50, 16)
    ablated = feature_edits.change(made, [3, 17, 40], 0.0, x)
    assert float(ablated.norm()) > 0
    for factor in (1.5, 2.0, 3.0):
        amplified = feature_edits.change(made, [3, 17, 40], factor, x)
        assert torch.allclose(amplified, -(factor - 1) * ablated, atol=1e-5)
    assert torch.equal(feature_edits.change(made, [], 0.0, x) if normalize == "none" else ablated * 0, ablated * 0)


def test_projection_leaves_nothing_along_the_encoder_and_edits_leave_other_tokens_alone() -> None:
    made, x = sae(), torch.randn(50, 16)
    left = x + feature_edits.projected(made, [3, 17], x) - made.b_dec
    assert float((left @ made.W_enc[:, [3, 17]]).abs().max()) < 1e-4
    rows = padded([[1, 2, 3], [1, 2]])
    (edit,) = feature_edits.edits({0: made}, {0: [3, 17]}, "resid_post", rows, kind="project", skip_first=1)
    stream = torch.randn(2, 3, 16)
    after = edit.fn(stream.clone())
    moved = (after != stream).any(-1)
    assert moved.tolist() == [[False, True, True], [False, True, False]]


def test_controls_are_as_active_as_what_they_stand_for_and_none_of_it() -> None:
    activation = np.concatenate([[5.0, 4.0, 0.2], np.linspace(0.01, 6, 97)])
    drawn = matched([0, 1, 2], activation, {10, 11}, 25, 0)
    assert len(drawn) == 25 and len(set(drawn)) > 20
    for one in drawn:
        assert len(set(one)) == 3 and not set(one) & {0, 1, 2, 10, 11}
        assert abs(activation[one[0]] - 5) < 2 and activation[one[2]] < 2.1
    with pytest.raises(ValueError, match=r"too few are active"):
        matched([0, 1], np.array([1.0, 1.0, 1.0]), set(), 5, 0)


# -- directions --------------------------------------------------------------------------------------------------


def said(context: float, words: float, blank: float = 0.0, n: int = 60) -> pd.DataFrame:
    """Preferences of pictures with these strengths, and those under a blank picture."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(3 * n):
        seen = ("male", "female", "unseen")[i % 3]
        coded = ("male", "female")[i // 3 % 2]
        lean = context / 2 * (1 if coded == "male" else -1)
        preference = {"male": 0.95, "female": 0.05, "unseen": 0.5 + lean}[seen] + rng.normal(0, 0.02)
        word = 0.5 + words / 2 * {"male": 1, "female": -1, "unseen": 0}[seen] + rng.normal(0, 0.02)
        shared = {"language": "english", "picture": i, "group": str(i // 3), "seen": seen, "coded": coded}
        rows.append({**shared, "control": "", "preference": preference, "word_share": word})
        rows.append({**shared, "control": "blank", "preference": 0.5 + blank * lean, "word_share": 0.5})
    return pd.DataFrame(rows)


def measured(frame: pd.DataFrame) -> dict[str, object]:
    from circuits.data.pictures.saved import Picture, PictureSet

    made = [Picture(str(i), "test", str(i // 3), "", {}, {"english": []}, {}) for i in range(len(frame) // 2)]
    pictures = PictureSet(tuple(made), {"languages": ["english"]})
    return directions.summarise(frame, pictures, seed=0, resamples=300)


def test_each_direction_is_measured_apart_and_grows_with_what_is_planted() -> None:
    for context in (0.0, 0.25, 0.5, 0.75, 1.0):
        found = measured(said(context, 0.0))
        there, flat = found["context_to_gender"], found["gender_to_words"]
        assert there["value"] == pytest.approx(context, abs=0.02)  # type: ignore[index]
        assert flat["value"] == pytest.approx(0, abs=0.02)  # type: ignore[index]
    found = measured(said(0.0, 0.6))
    assert found["gender_to_words"]["value"] == pytest.approx(0.6, abs=0.02)  # type: ignore[index]
    assert abs(found["context_to_gender"]["value"]) < 0.02 and found["agreement"] == 1.0  # type: ignore[index]


def test_a_bias_that_the_prompt_alone_answers_is_flagged() -> None:
    assert measured(said(0.6, 0.0, blank=1.0))["text_only"]["flagged"] is True  # type: ignore[index]
    assert measured(said(0.6, 0.0, blank=0.0))["text_only"]["flagged"] is False  # type: ignore[index]


# -- the source documents' own readers ---------------------------------------------------------------------------

READER = """
import torch
import json
from pathlib import Path

# Load comprehensive analysis
with open('visualizations/comprehensive_all_layers/comprehensive_analysis_results.json') as f:
    results = json.load(f)

# Get top gender-biased features for layer 10
layer_10 = results['layers']['10']
male_features = layer_10['male_biased_features'][:5]
female_features = layer_10['female_biased_features'][:5]

print("Top 5 male-biased features:", [f['feature'] for f in male_features])
print("Top 5 female-biased features:", [f['feature'] for f in female_features])

# Load cross-layer analysis
with open('visualizations/cross_layer_analysis_full/cross_layer_results.json') as f:
    cross_results = json.load(f)

# Compare layers 10 vs 22
layer_10_diff = cross_results['male_biased_ablation']['10']['differential']
layer_22_diff = cross_results['male_biased_ablation']['22']['differential']

print(f"Male bias differential - Layer 10: {layer_10_diff:.2f}, Layer 22: {layer_22_diff:.2f}")
"""

FIGURE = """
import matplotlib.pyplot as plt
import numpy as np

# Plot gender bias evolution across all layers
layers = sorted([int(k) for k in results['layers'].keys()])
male_diffs = [results['layers'][str(l)]['male_biased_features'][0]['male_mean'] -
              results['layers'][str(l)]['male_biased_features'][0]['female_mean']
              for l in layers]

plt.figure(figsize=(12, 6))
plt.plot(layers, male_diffs, marker='o')
plt.xlabel('Layer')
plt.ylabel('Gender Differential (Male - Female)')
plt.title('Male Bias Evolution Across Network Depth')
plt.grid(True)
plt.savefig('custom_analysis.png', dpi=150)
"""


def test_the_source_documents_code_reads_the_results_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    s = bias.Settings(shuffles=0, permutations=50, resamples=50)
    x, labelled = planted(0.8)
    present = np.ones(x.shape[0], bool)
    table, _ = bias.together([bias.test(x, labelled, present, layer, "english", s, 0) for layer in (10, 22)], s)
    facts = {
        (layer, "english"): {"l0_per_sample": 8.0, "dead_features": 1, "mean_activation": 0.5} for layer in (10, 22)
    }
    rows = [
        {"kind": "scale", "factor": 0.0, "layers": str(layer), "which": side, "recon_male_mean": 2.0, "recon_male_std": 0.1,
         "recon_female_mean": 1.0, "recon_female_std": 0.1, "recon_share": 0.2}
        for layer in (10, 22) for side in ("male", "female")
    ]  # fmt: skip
    for name, content in (
        ("comprehensive_all_layers/comprehensive_analysis_results.json", bias.results(table, facts, "m", "english")),
        ("cross_layer_analysis_full/cross_layer_results.json", cross_layer(pd.DataFrame(rows))),
    ):
        path = tmp_path / "visualizations" / name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    exec(compile(READER + FIGURE, "the source document", "exec"), {})
    told = capsys.readouterr().out
    assert "Layer 10: 1.00, Layer 22: 1.00" in told and (tmp_path / "custom_analysis.png").stat().st_size > 1000


def test_a_condition_names_itself() -> None:
    one = Condition((2, 3), "both", "scale", 1.5, {2: (1,), 3: (2,)})
    assert one.name == "L2-3 both ×1.5" and Condition((2,), "male", "project", 0, {}).name == "L2 male projected"
