"""Which features tell two groups of pictures apart, over layers and languages: tested, corrected, confirmed on other pictures.

Discovery on the training pictures, confirmation on the test pictures; no picture is in both. Each feature that is active anywhere
is tested by Mann-Whitney, and where there are twins by Wilcoxon's signed ranks within them, which is the primary test: all else is
equal between twins. q is Benjamini-Hochberg's over features × layers × languages. The `n_top` features of each side by Cohen's d
are reported for every layer, with `significant` said (q < fdr and |d| > min_d): a list is never empty because nothing is found. Of
those that are reported come a bootstrap interval over groups of pictures, a permutation p, and what the test pictures say.
The same procedure on shuffled labels (the primary test's: within twins the sides change places) shows how much is found where there
is nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from circuits.data.seeds import derive_seed
from circuits.stats.draws import share_beyond
from circuits.stats.groups import GroupTest, PairTest, detectable_d, difference_intervals
from circuits.stats.many import corrected

SIDES = ("male", "female")
LEAST = 5
"""Pictures that each group needs in order to be tested."""


@dataclass(frozen=True)
class Settings:
    """How groups are compared."""

    n_top: int = 50
    fdr: float = 0.05
    min_d: float = 0.3
    shuffles: int = 20
    permutations: int = 1000
    resamples: int = 1000


@dataclass(frozen=True)
class Labelled:
    """Pictures and what is known of them, in the order of the set."""

    label: NDArray[Any]
    """male, female, or anything else for pictures that are left out."""
    split: NDArray[Any]
    group: NDArray[Any]
    seen: NDArray[Any]
    """What the picture shows, where that is known; empty strings otherwise. Twins are of one group and show one gender each."""

    def side(self, split: str, present: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The pictures of a split that are compared, and which of them are male."""
        chosen = np.flatnonzero((self.split == split) & np.isin(self.label, SIDES) & present)
        return chosen, self.label[chosen] == "male"

    def twins(self, split: str, present: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Male and female pictures of the same group, pair by pair."""
        found: dict[str, dict[str, int]] = {}
        for i in np.flatnonzero((self.split == split) & np.isin(self.seen, SIDES) & present):
            found.setdefault(str(self.group[i]), {}).setdefault(str(self.seen[i]), int(i))
        pairs = [(one["male"], one["female"]) for one in found.values() if len(one) == 2]
        return np.array([a for a, _ in pairs], np.int64), np.array([b for _, b in pairs], np.int64)


@dataclass
class Tested:
    """One layer and language: a row for each feature that is active, and what the shuffles gave."""

    layer: int
    language: str
    table: pd.DataFrame
    shuffled: NDArray[np.float64]
    """``[features, shuffles]``: p of the primary test under shuffled labels (within twins, where there are such)."""
    facts: dict[str, Any] = field(default_factory=dict)


def check_groups(labelled: Labelled, present: NDArray[np.bool_], split: str = "train") -> tuple[int, int]:
    """Sizes of the two groups.

    Raises:
        ValueError: one is too small; the message says what could be found.
    """
    _, male = labelled.side(split, present)
    n = int(male.sum()), int((~male).sum())
    if min(n) < LEAST:
        raise ValueError(
            f"{n[0]} male and {n[1]} female {split} pictures: each group needs {LEAST}; with these no d below "
            f"{detectable_d(*n):.2f} would be found"
        )
    return n


def test(
    values: sparse.csc_matrix,
    labelled: Labelled,
    present: NDArray[np.bool_],
    layer: int,
    language: str,
    s: Settings,
    seed: int,
) -> Tested:
    """Compare the groups on every feature of one layer and language; q is not there yet (:func:`together`)."""
    chosen, male = labelled.side("train", present)
    features = np.flatnonzero(np.diff(values[chosen].tocsc().indptr))
    mine = values[chosen][:, features].tocsc()
    tests = GroupTest(mine, male)
    moments = tests.moments()
    table = pd.DataFrame(
        {
            "layer": layer,
            "language": language,
            "feature": features,
            "male_mean": moments["mean_a"],
            "female_mean": moments["mean_b"],
            "differential": moments["differential"],
            "cohens_d": moments["cohens_d"],
            "male_freq": moments["freq_a"],
            "female_freq": moments["freq_b"],
            "auc": tests.auc(),
            "p_value": tests.p(),
        }
    )
    own = derive_seed(seed, "bias", layer, language)
    a, b = labelled.twins("train", present)
    if len(a) >= LEAST:
        twins = PairTest(values[a][:, features].tocsc(), values[b][:, features].tocsc())
        # Where no pair differs the pairs say that there is no difference, whatever the groups say.
        table["twin_differential"], table["twin_p"] = twins.difference, _no_difference(twins.p())
        shuffled = _no_difference(twins.shuffled(s.shuffles, own)) if s.shuffles else np.zeros((len(features), 0))
    else:
        shuffled = tests.shuffled(s.shuffles, own) if s.shuffles else np.zeros((len(features), 0))
        table["twin_differential"], table["twin_p"] = np.nan, np.nan
    again, confirmed = labelled.side("test", present)
    if min(confirmed.sum(), (~confirmed).sum()) >= LEAST:
        held = GroupTest(values[again][:, features].tocsc(), confirmed)
        table["test_d"], table["test_p"] = held.moments()["cohens_d"], held.p()
    else:
        table["test_d"], table["test_p"] = np.nan, np.nan
    _reported(table, mine, labelled, chosen, male, tests, s, own)
    facts = {
        "n_male": tests.n_a,
        "n_female": tests.n_b,
        "n_twins": len(a),
        "n_test": len(again),
        "tested": int(np.isfinite(table["p_value"]).sum()),
        "detectable_d": detectable_d(tests.n_a, tests.n_b),
    }
    return Tested(layer, language, table, shuffled, facts)


def _no_difference(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isnan(p), 1.0, p)


def _reported(
    table: pd.DataFrame,
    values: sparse.csc_matrix,
    labelled: Labelled,
    chosen: NDArray[np.int64],
    male: NDArray[np.bool_],
    tests: GroupTest,
    s: Settings,
    seed: int,
) -> None:
    """Ranks of the first `n_top` of each side by d; their intervals and permutation p."""
    for name in ("male_rank", "female_rank"):
        table[name] = 0
    order = np.argsort(-table["cohens_d"].to_numpy(), kind="stable")
    d = table["cohens_d"].to_numpy()
    up, down = [i for i in order if d[i] > 0][: s.n_top], [i for i in order[::-1] if d[i] < 0][: s.n_top]
    for name, which in (("male_rank", up), ("female_rank", down)):
        table.loc[table.index[which], name] = np.arange(1, len(which) + 1)
    shown = np.array([*up, *down], np.int64)
    for name in ("ci_low", "ci_high", "permutation_p"):
        table[name] = np.nan
    if not len(shown):
        return
    _, clusters = np.unique(labelled.group[chosen].astype(str), return_inverse=True)
    dense = np.asarray(values[:, shown].todense(), np.float64)
    low, high = difference_intervals(dense, male, clusters, seed=seed, resamples=s.resamples)
    table.loc[table.index[shown], "ci_low"], table.loc[table.index[shown], "ci_high"] = low, high
    rng = np.random.default_rng(seed)
    member = np.stack([rng.permutation(male) for _ in range(s.permutations)], axis=1).astype(np.float64)
    total, n_a, n_b = dense.sum(0)[:, None], male.sum(), (~male).sum()
    sums = dense.T @ member
    drawn = np.abs(sums / n_a - (total - sums) / n_b)
    observed = np.abs(table["differential"].to_numpy()[shown])[:, None]
    hits = (drawn >= observed * (1 - 1e-12)).sum(1)
    table.loc[table.index[shown], "permutation_p"] = share_beyond(hits, s.permutations)


def together(tested: Sequence[Tested], s: Settings) -> tuple[pd.DataFrame, dict[str, Any]]:
    """All layers and languages in one table with q, and a summary with the controls."""
    table = pd.concat([one.table for one in tested], ignore_index=True)
    table["q_value"] = corrected(table["p_value"].to_numpy())
    table["twin_q"] = corrected(table["twin_p"].to_numpy())
    primary = table["twin_q"].where(table["twin_q"].notna(), table["q_value"])
    table["significant"] = (primary < s.fdr) & (table["cohens_d"].abs() > s.min_d)
    found = table[table["significant"]]
    known = found[found["test_p"].notna()]
    confirmed = (np.sign(known["test_d"]) == np.sign(known["cohens_d"])) & (known["test_p"] < s.fdr)
    drawn = [np.concatenate([one.shuffled[:, i] for one in tested]) for i in range(s.shuffles)]
    hits = [int((corrected(p) < s.fdr).sum()) for p in drawn]
    sized = int(np.isfinite(table["p_value"]).sum())
    return table, {
        "tested": sized,
        "below_fdr": int((table["q_value"] < s.fdr).sum()),
        "significant": len(found),
        "primary": "twins" if table["twin_p"].notna().any() else "groups",
        "confirmed": float(confirmed.mean()) if len(known) else None,
        "confirmed_of": len(known),
        "shuffles": s.shuffles,
        "shuffled_hits": float(np.mean(hits)) if hits else None,
        "shuffled_any": float(np.mean(np.array(hits) > 0)) if hits else None,
        "detectable_d": max((one.facts["detectable_d"] for one in tested), default=None),
        **{name: max((one.facts[name] for one in tested), default=0) for name in ("n_male", "n_female", "n_twins")},
    }


def layer_results(table: pd.DataFrame, layer: int, language: str) -> dict[str, list[dict[str, Any]]]:
    """A layer's reported features of both sides, in the words of the source documents, by rank."""
    mine = table[(table["layer"] == layer) & (table["language"] == language)]
    names = ("feature", "male_mean", "female_mean", "differential", "cohens_d", "p_value", "q_value", "twin_q", "male_freq",
             "female_freq", "significant", "permutation_p", "ci_low", "ci_high", "test_d", "test_p")  # fmt: skip
    found = {}
    for side in SIDES:
        rows = mine[mine[f"{side}_rank"] > 0].sort_values(f"{side}_rank")
        found[f"{side}_biased_features"] = [
            {name: _plain(row[name]) for name in names} | {"rank": int(row[f"{side}_rank"])}
            for _, row in rows.iterrows()
        ]
    return found


def _plain(value: Any) -> Any:
    found = value.item() if hasattr(value, "item") else value
    return None if isinstance(found, float) and found != found else found


def results(
    table: pd.DataFrame, stats: Mapping[tuple[int, str], Mapping[str, Any]], model: str, primary: str
) -> dict[str, Any]:
    """The whole of it in the schema of the source documents; the lists of the layers are those of the language `primary`."""
    layers: dict[str, Any] = {}
    for layer in sorted(table["layer"].unique()):
        languages = sorted(table.loc[table["layer"] == layer, "language"].unique())
        first = primary if primary in languages else languages[0]
        layers[str(layer)] = {
            **{f"{language}_stats_summary": dict(stats[int(layer), language]) for language in languages},
            **layer_results(table, int(layer), first),
            "by_language": {language: layer_results(table, int(layer), language) for language in languages},
        }
    return {"model": model, "layers": layers}


def by_layer(table: pd.DataFrame, layers: Sequence[int], languages: Sequence[str]) -> list[dict[str, Any]]:
    """How many features were tested and are significant, and the largest |d|, of each layer and language."""
    found = []
    for layer in layers:
        for language in languages:
            mine = table[(table["layer"] == layer) & (table["language"] == language)]
            found.append(
                {
                    "layer": layer,
                    "language": language,
                    "tested": int(mine["p_value"].notna().sum()),
                    "significant": int(mine["significant"].sum()),
                    "largest_d": float(mine["cohens_d"].abs().max()) if len(mine) else None,
                }
            )
    return found
