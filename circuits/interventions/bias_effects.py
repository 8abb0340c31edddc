"""What edits of captions did, condition by condition: effects with intervals, beside what the random sets did.

The unit is the picture, both languages together. Two questions, two tests. Is there an effect? Paired over pictures (Wilcoxon, two-
sided); q is Benjamini-Hochberg's over the edits. Is it more than random sets have? (1 + hits) / (R + 1) among R of them, of each
edit by itself: so few sets give no p that would survive a correction over many edits. An edit is significant where both say so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from circuits.data.pictures.saved import PictureSet
from circuits.stats.draws import share_beyond
from circuits.stats.groups import difference_intervals
from circuits.stats.many import Clustered, corrected, intervals


def summarise(
    effects: pd.DataFrame, texts: pd.DataFrame, pictures: PictureSet, *, alpha: float, resamples: int, seed: int
) -> pd.DataFrame:
    """A row for each condition (both languages together, and each) with its effects, intervals, controls and q."""
    seen = np.array(
        [p.factors.get("seen") or ("unseen" if p.label in ("mixed", "unknown") else p.label) for p in pictures]
    )
    groups = np.array([p.group for p in pictures])
    coded = np.array([p.factors.get("coded", "") for p in pictures])
    texts = texts.assign(seen=seen[texts["picture"]], group=groups[texts["picture"]])
    effects = effects.assign(
        seen=seen[effects["picture"]], group=groups[effects["picture"]], coded=coded[effects["picture"]]
    )
    effects["parity"] = (effects["preference"] - 0.5).abs()
    effects["base_parity"] = (effects["base"] - 0.5).abs()
    right = np.where(effects["seen"] == "male", effects["preference"], 1 - effects["preference"])
    effects["agrees"] = np.where(
        effects["seen"].isin(["male", "female"]) & effects["preference"].notna(), right > 0.5, np.nan
    )
    rows = []
    keys = ["condition", "layers", "which", "kind", "factor"]
    studied = effects[(effects["control"] == 0) & (effects["condition"] != "none")]
    plain = _text_facts(texts[texts["condition"] == "none"])
    for name, mine in studied.groupby(keys, sort=False):
        whole = dict(zip(keys, name, strict=True))
        controls = effects[(effects["control"] > 0) & (effects["condition"] == whole["condition"])]
        own = _row(mine, controls, resamples, seed)
        under = texts[texts["condition"] == whole["condition"]]
        text = _text_facts(under[under["control"] == 0])
        words = _words(under, texts[texts["condition"] == "none"], resamples, seed)
        rows.append(whole | own | text | words | {f"base_{key}": value for key, value in plain.items()})
    table = pd.DataFrame(rows)
    if len(table):
        table["q"] = corrected(table["p"].to_numpy())
        table["significant"] = (table["q"] < alpha) & ((table["p_controls"] < alpha) | (table["controls"] == 0))
    return table


def _row(mine: pd.DataFrame, controls: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    open_ = mine[(mine["seen"] == "unseen") & mine["preference"].notna()]
    seen = mine[mine["agrees"].notna()]
    # One number a picture, both languages together: the picture is the unit.
    per = open_.groupby("picture").agg(base=("base_parity", "mean"), now=("parity", "mean"), group=("group", "first"))
    moved = (per["now"] - per["base"]).to_numpy()
    between = Clustered.of(moved[None], per["group"].tolist()) if len(per) else None
    low, high = intervals(between, seed=seed, resamples=resamples) if between is not None else ([np.nan], [np.nan])
    paired = _wilcoxon(moved)
    null = _by_control(controls[(controls["seen"] == "unseen")], "parity")
    base = float(per["base"].mean()) if len(per) else np.nan
    reduction = 1 - float(per["now"].mean()) / base if len(per) and base > 0 else np.nan
    null_reduction = 1 - null / base if base > 0 else null
    among = share_beyond(int((np.abs(null_reduction) >= abs(reduction) - 1e-12).sum()), len(null))
    agrees = float(seen["agrees"].mean()) if len(seen) else np.nan
    before = (
        float((np.where(seen["seen"] == "male", seen["base"], 1 - seen["base"]) > 0.5).mean()) if len(seen) else np.nan
    )
    null_agrees = _by_control(controls, "agrees")
    found = {
        **_context(open_, controls, resamples, seed),
        "n_open": len(per),
        "n_seen": int(seen["picture"].nunique()),
        "base_parity": base,
        "parity": float(per["now"].mean()) if len(per) else np.nan,
        "parity_change": float(moved.mean()) if len(per) else np.nan,
        "parity_low": float(low[0]),
        "parity_high": float(high[0]),
        "reduction": reduction,
        "control_reduction": float(null_reduction.mean()) if len(null) else np.nan,
        "control_reduction_95": float(np.quantile(null_reduction, 0.95)) if len(null) else np.nan,
        "controls": len(null),
        "p": paired,
        "p_controls": among,
        "base_agreement": before,
        "agreement": agrees,
        "control_agreement": float(null_agrees.mean()) if len(null_agrees) else np.nan,
    }
    if "recon" in mine and mine["recon"].notna().any():
        for side in ("male", "female"):
            part = mine[mine["seen"] == side]
            found |= {f"recon_{side}_mean": part["recon"].mean(), f"recon_{side}_std": part["recon"].std()}
        found["recon_share"] = float(mine["recon_share"].mean())
    return found


def _context(open_: pd.DataFrame, controls: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    """P(male) at places coded male minus that at places coded female, before and under the edit, beside the controls."""
    mine = open_[open_["coded"].isin(["male", "female"])]
    per = mine.groupby("picture").agg(
        base=("base", "mean"), now=("preference", "mean"), coded=("coded", "first"), group=("group", "first")
    )
    male = (per["coded"] == "male").to_numpy()
    if min(int(male.sum()), int((~male).sum())) < 2:
        return {}
    _, code = np.unique(per["group"].astype(str), return_inverse=True)
    moved = (per["now"] - per["base"]).to_numpy()[:, None]
    low, high = difference_intervals(moved, male, code, seed=seed, resamples=resamples)
    before = float(per["base"][male].mean() - per["base"][~male].mean())
    now = float(per["now"][male].mean() - per["now"][~male].mean())
    null = []
    for _, one in controls[(controls["seen"] == "unseen") & controls["coded"].isin(["male", "female"])].groupby(
        "control"
    ):
        means = one.groupby("coded")["preference"].mean()
        null.append(1 - float(means["male"] - means["female"]) / before if before else np.nan)
    return {
        "base_context": before,
        "context": now,
        "context_change_low": float(low[0]),
        "context_change_high": float(high[0]),
        "context_reduction": 1 - now / before if before else np.nan,
        "control_context_reduction": float(np.mean(null)) if null else np.nan,
        "control_context_reduction_95": float(np.quantile(null, 0.95)) if null else np.nan,
        "p_context_controls": share_beyond(sum(abs(one) >= abs(1 - now / before) - 1e-12 for one in null), len(null))
        if before
        else np.nan,
    }


def _by_control(controls: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """The mean over pictures of each random set."""
    known = controls[controls[column].notna()]
    per = known.groupby(["control", "picture"])[column].mean().groupby("control").mean()
    return np.asarray(per.to_numpy(), np.float64)


def _wilcoxon(moved: NDArray[np.float64]) -> float:
    if len(moved) < 6 or not np.any(moved):
        return float("nan") if len(moved) < 6 else 1.0
    return float(wilcoxon(moved, zero_method="pratt", method="approx").pvalue)


def _text_facts(texts: pd.DataFrame) -> dict[str, float]:
    if not len(texts):
        return {}
    clear = texts[texts["seen"].isin(["male", "female"])]
    open_ = texts[texts["seen"] == "unseen"]
    return {
        "gender_rate": float(texts["gender_words"].sum() / max(1, texts["tokens"].sum())),
        "says_seen": float((clear["says"] == clear["seen"]).mean()) if len(clear) else float("nan"),
        "says_male_open": float((open_["says"] == "male").mean()) if len(open_) else float("nan"),
        "caption_nll": float(texts["nll"].mean()),
    }


def _words(under: pd.DataFrame, base: pd.DataFrame, resamples: int, seed: int) -> dict[str, float]:
    """Gender words of a picture's captions (mean of the languages): change under the edit, and under random sets."""
    before = base.groupby("picture")["gender_words"].mean()
    mine = under[under["control"] == 0].groupby("picture").agg(now=("gender_words", "mean"), group=("group", "first"))
    moved = (mine["now"] - before.reindex(mine.index)).to_numpy()
    low, high = intervals(Clustered.of(moved[None], mine["group"].tolist()), seed=seed, resamples=resamples)
    null = np.array(
        [
            float((one.groupby("picture")["gender_words"].mean() - before).mean())
            for _, one in under[under["control"] > 0].groupby("control")
        ]
    )
    change = float(moved.mean())
    hits = int((np.abs(null) >= abs(change) - 1e-12).sum())
    return {
        "words_change": change,
        "words_low": float(low[0]),
        "words_high": float(high[0]),
        "p_words": _wilcoxon(moved),
        "control_words_change": float(null.mean()) if len(null) else np.nan,
        "control_words_std": float(null.std(ddof=1)) if len(null) > 1 else np.nan,
        "p_words_controls": share_beyond(hits, len(null)),
        "caption_controls": len(null),
    }


def strongest(summary: pd.DataFrame) -> dict[str, Any]:
    """The condition that moves the distance to parity most, in ``metrics.json``'s words; none where none was measured."""
    nothing = {"strongest": None, "significant": 0, "base_parity": float("nan"), "parity": float("nan")}
    some = summary[summary["reduction"].notna()] if len(summary) else summary
    if not len(some):
        return nothing
    best = some.iloc[int(some["reduction"].abs().to_numpy().argmax())]
    names = ("base_parity", "parity", "reduction", "control_reduction", "agreement", "base_agreement")
    return {
        "strongest": best["condition"],
        "significant": int(summary["significant"].sum()),
        "effect": float(best["parity_change"]),
        "effect_ci": [float(best["parity_low"]), float(best["parity_high"])],
        **{name: float(best[name]) for name in names},
    }


def cross_layer(summary: pd.DataFrame) -> dict[str, Any]:
    """Ablations layer by layer in the words of the source documents: changes of the reconstruction by what is seen."""
    found: dict[str, Any] = {"layers": [], "male_biased_ablation": {}, "female_biased_ablation": {}}
    for _, row in summary.iterrows():
        if row["kind"] != "scale" or row["factor"] != 0 or "+" in row["layers"] or row["which"] == "both":
            continue
        layer = row["layers"]
        if int(layer) not in found["layers"]:
            found["layers"].append(int(layer))
        found[f"{row['which']}_biased_ablation"][layer] = {
            **{
                f"{side}_{what}": float(row[f"recon_{side}_{what}"])
                for side in ("male", "female")
                for what in ("mean", "std")
            },
            "differential": float(row["recon_male_mean"] - row["recon_female_mean"]),
            "relative_change": float(row["recon_share"]),
        }
    return found
