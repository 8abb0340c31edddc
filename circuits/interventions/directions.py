"""What a vision-language model says of pictures as it is: agreement, and two biases that one number never stands for.

* **context → gender**: of people whose gender cannot be seen, mean preference (P(male), see :mod:`.captioning`) at places coded
  male minus that at places coded female.
* **gender → words**: of people whose gender is seen, mean P(the first of two attribute words) for men minus that for women.

Each stands beside the same difference in the captions that the pictures came with; *amplification* is model − captions. The unit
is the picture, both languages together; intervals draw whole groups. Controls of the stimulus are measured the same way: the prompt
with a blank picture (what the text alone decides), the person masked, the background swapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from circuits.activations.pictures import PictureRows
from circuits.data.journal import Journal
from circuits.data.pictures import lexicon
from circuits.data.pictures.saved import PictureSet
from circuits.data.seeds import derive_seed
from circuits.interventions import captioning
from circuits.models.load import LM
from circuits.stats.bootstrap import ratio_interval
from circuits.stats.groups import difference_intervals

Array = NDArray[np.float64]
SHARE = 0.5
"""Share of the distance to parity that the text alone must leave for a bias to be flagged as answerable without the picture."""


def measure(
    lm: LM,
    pictures: PictureSet,
    chosen: Sequence[int],
    *,
    control: str | None = None,
    steps: int,
    batch_size: int,
    journal: Journal | None = None,
) -> pd.DataFrame:
    """A row for each picture and language: preference, first attribute word's share, the caption and what it says."""
    rows, found = PictureRows(pictures, lm, control), []
    for language in pictures.languages:
        name = f"{control or 'plain'}/{language}"
        asked = captioning.ask(lm, rows, chosen, language, steps, batch_size, journal, name)
        words = pictures.meta.get("words", {}).get(language)
        share = np.full(len(chosen), np.nan)
        if words:
            about = captioning.attribute_words(lm, words)
            share = captioning.preferences(lm, rows, asked.about(about), batch_size, journal, f"{name}/words")
        texts = [captioning.decoded(lm, ids) for ids in asked.said]
        found.append(
            pd.DataFrame(
                {
                    "control": control or "",
                    "language": language,
                    "picture": list(chosen),
                    "preference": captioning.preferences(lm, rows, asked, batch_size, journal, name),
                    "word_share": share,
                    "caption": texts,
                    "says": [lexicon.label(text, language) for text in texts],
                }
            )
        )
    return pd.concat(found, ignore_index=True)


def described(rows: pd.DataFrame, pictures: PictureSet) -> pd.DataFrame:
    """The rows with what is known of each picture: id, group, what is seen, what its place is coded."""
    at = rows["picture"].to_numpy()
    seen = np.array([p.factors.get("seen") or p.label for p in pictures], dtype=object)
    return rows.assign(
        id=[pictures[i].id for i in at],
        group=[pictures[i].group for i in at],
        split=[pictures[i].split for i in at],
        seen=np.where(np.isin(seen[at], ["male", "female"]), seen[at], "unseen"),
        coded=[pictures[i].factors.get("coded", "") for i in at],
    )


def summarise(rows: pd.DataFrame, pictures: PictureSet, *, seed: int, resamples: int) -> dict[str, Any]:
    """Agreement, both directions with intervals and amplification, the stimulus controls, and what is flagged."""
    plain = rows[rows["control"] == ""]
    found: dict[str, Any] = {
        "n": int(plain["picture"].nunique()),
        "languages": sorted(plain["language"].unique()),
        **_agreement(plain, seed),
        "context_to_gender": _context(plain, pictures, seed, resamples),
        "gender_to_words": _words(plain, pictures, seed, resamples),
        "undecided": float(plain["preference"].isna().mean()),
        "controls": {},
    }
    for name, mine in rows[rows["control"] != ""].groupby("control", sort=False):
        found["controls"][str(name)] = {
            **_agreement(mine, seed),
            "context_to_gender": _context(mine, pictures, seed, resamples, data=False),
        }
    found["text_only"] = text_only(plain, rows[rows["control"] == "blank"], seed=seed)
    return found


def _agreement(rows: pd.DataFrame, seed: int) -> dict[str, Any]:
    """How often the likelier gender is the one that is seen, over pictures; interval over groups."""
    seen = rows[rows["seen"].isin(["male", "female"]) & rows["preference"].notna()]
    if not len(seen):
        return {"agreement": None, "agreement_ci": None, "n_seen": 0}
    right = ((seen["preference"] > 0.5) == (seen["seen"] == "male")).astype(float)
    _, unit = np.unique(seen["group"].astype(str), return_inverse=True)
    interval = ratio_interval(np.bincount(unit, weights=right), np.bincount(unit), seed=derive_seed(seed, "agreement"))
    return {
        "agreement": float(right.mean()),
        "agreement_ci": None if interval is None else list(interval),
        "n_seen": int(seen["picture"].nunique()),
    }


def _difference(
    values: Array, in_a: NDArray[np.bool_], groups: Sequence[str], seed: int, resamples: int
) -> dict[str, Any] | None:
    """mean_a − mean_b with its interval; None with fewer than two on a side."""
    if min(int(in_a.sum()), int((~in_a).sum())) < 2:
        return None
    _, code = np.unique(np.asarray(groups, str), return_inverse=True)
    low, high = difference_intervals(values[:, None], in_a, code, seed=seed, resamples=resamples)
    return {
        "value": float(values[in_a].mean() - values[~in_a].mean()),
        "ci": [float(low[0]), float(high[0])],
        "n": [int(in_a.sum()), int((~in_a).sum())],
    }


def _context(
    rows: pd.DataFrame, pictures: PictureSet, seed: int, resamples: int, data: bool = True
) -> dict[str, Any] | None:
    mine = rows[(rows["seen"] == "unseen") & rows["coded"].isin(["male", "female"]) & rows["preference"].notna()]
    if not len(mine):
        return None
    per = mine.groupby("picture").agg(value=("preference", "mean"), coded=("coded", "first"), group=("group", "first"))
    said = np.array([_said_share(pictures, int(i)) for i in per.index])
    return _beside(
        per["value"].to_numpy(), said, (per["coded"] == "male").to_numpy(), per["group"].tolist(), seed, resamples, data
    )


def _words(rows: pd.DataFrame, pictures: PictureSet, seed: int, resamples: int) -> dict[str, Any] | None:
    mine = rows[rows["seen"].isin(["male", "female"]) & rows["word_share"].notna()]
    if not len(mine):
        return None
    per = mine.groupby("picture").agg(value=("word_share", "mean"), seen=("seen", "first"), group=("group", "first"))
    said = np.array([_word_share(pictures, int(i)) for i in per.index])
    return _beside(
        per["value"].to_numpy(), said, (per["seen"] == "male").to_numpy(), per["group"].tolist(), seed, resamples, True
    )


def _beside(
    model: Array, said: Array, in_a: NDArray[np.bool_], groups: Sequence[str], seed: int, resamples: int, data: bool
) -> dict[str, Any] | None:
    """The model's difference; with `data` that of the captions, and the amplification, where captions decide."""
    found = _difference(model, in_a, groups, derive_seed(seed, "model"), resamples)
    if found is None or not data:
        return found
    known = np.isfinite(said)
    own = [g for g, k in zip(groups, known, strict=True) if k]
    captions = _difference(said[known], in_a[known], own, derive_seed(seed, "captions"), resamples)
    amplified = _difference((model - said)[known], in_a[known], own, derive_seed(seed, "amplified"), resamples)
    return {**found, "captions": captions, "amplification": amplified}


def _said_share(pictures: PictureSet, index: int) -> float:
    """Share of a picture's captions that say male, among those that say male or female."""
    one = pictures[index]
    labels = [lexicon.label(text, language) for language, texts in one.captions.items() for text in texts]
    known = [label for label in labels if label in ("male", "female")]
    return known.count("male") / len(known) if known else float("nan")


def _word_share(pictures: PictureSet, index: int) -> float:
    """Share of a picture's captions with the first attribute word, among those with one of the two."""
    first = second = 0
    for language, texts in pictures[index].captions.items():
        pair = pictures.meta.get("words", {}).get(language)
        if not pair:
            continue
        sets = [{word for form in side for word in lexicon.words(form)} for side in pair]
        for text in texts:
            said = set(lexicon.words(text))
            first, second = first + bool(said & sets[0]), second + bool(said & sets[1])
    return first / (first + second) if first + second else float("nan")


def text_only(plain: pd.DataFrame, blank: pd.DataFrame, *, seed: int, resamples: int = 1000) -> dict[str, Any] | None:
    """How much of the leaning on open pictures is there without the picture: Σ sign(p − ½)(p_blank − ½) / Σ |p − ½|.

    ``flagged``: the share's interval lies above 0 and the share reaches `SHARE`: the bias can be answered from the prompt alone.
    """
    if not len(blank):
        return None
    both = plain.merge(blank, on=["picture", "language"], suffixes=("", "_blank"))
    mine = both[(both["seen"] == "unseen") & both["preference"].notna() & both["preference_blank"].notna()]
    if not len(mine):
        return None
    leaning = mine["preference"].to_numpy() - 0.5
    kept = np.sign(leaning) * (mine["preference_blank"].to_numpy() - 0.5)
    _, unit = np.unique(mine["group"].astype(str), return_inverse=True)
    top, bottom = np.bincount(unit, weights=kept), np.bincount(unit, weights=np.abs(leaning))
    interval = ratio_interval(top, bottom, seed=derive_seed(seed, "text"), resamples=resamples)
    share = float(top.sum() / bottom.sum()) if bottom.sum() else 0.0
    return {
        "share": share,
        "ci": None if interval is None else list(interval),
        "flagged": bool(interval is not None and interval[0] > 0 and share >= SHARE),
    }
