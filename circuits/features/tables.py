"""From what was measured of a layer's features to the tables that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from circuits.features import labels
from circuits.features.association import strongest
from circuits.features.collect import EDGES, Collected
from circuits.features.logits import TokenEffects
from circuits.features.saved import ASSOCIATIONS, EXAMPLES, FEATURES, LABELS, META, Windows, suggestion
from circuits.files import write_json
from circuits.model_input import ModelInput


@dataclass(frozen=True)
class Described:
    """One layer's features."""

    features: pd.DataFrame
    examples: pd.DataFrame
    associations: pd.DataFrame
    meta: dict[str, Any]
    single_token: float | None
    """Share of the active features whose examples all peak on the same token."""

    def write(self, out: Path) -> None:
        """The tables and the facts beside them."""
        self.features.to_parquet(out / FEATURES, index=False)
        self.examples.to_parquet(out / EXAMPLES, index=False)
        self.associations.to_parquet(out / ASSOCIATIONS, index=False)
        write_json(out / META, self.meta)
        guesses = dict(zip(self.features["feature"].tolist(), self.features["suggestion"].tolist(), strict=True))
        labels.write_template(out / LABELS, int(self.meta["layer"]), guesses, {})


def wanted_tokens(tokens: ModelInput, effects: TokenEffects | None) -> set[int]:
    """Every token id whose text the tables need."""
    ids = set(tokens.ids[tokens.mask].unique().tolist())
    if effects is not None:
        ids |= set(effects.promoted.unique().tolist()) | set(effects.suppressed.unique().tolist())
    return ids


def describe(
    found: Collected,
    tokens: ModelInput,
    texts: Mapping[int, str],
    effects: TokenEffects | None,
    associations: pd.DataFrame,
    meta: Mapping[str, Any],
) -> Described:
    """Join a layer's measurements; `tokens` are the sequences that were collected from, `texts` every token's text."""
    examples, windows = _examples(found, tokens, texts)
    best: dict[int, Any] = {
        int(row["feature"]): row
        for row in strongest(associations[associations["significant"].astype(bool)])
        .sort_values("q", kind="stable")
        .drop_duplicates("feature")
        .to_dict("records")
    }
    rows = []
    for i, feature in enumerate(found.features.tolist()):
        promoted, promoted_effect, suppressed, suppressed_effect = [], [], [], []
        if effects is not None:
            promoted = [texts[token] for token in effects.promoted[i].tolist()]
            suppressed = [texts[token] for token in effects.suppressed[i].tolist()]
            promoted_effect = effects.promoted_effect[i].tolist()
            suppressed_effect = effects.suppressed_effect[i].tolist()
        token, share = windows[i].commonest
        rows.append(
            {
                "feature": feature,
                "n_active": int(found.n_active[i]),
                "density": found.n_active[i] / max(found.rows, 1),
                "sequence_share": found.n_sequences[i] / max(found.sequences, 1),
                "mean": found.mean[i],
                "maximum": found.maximum[i],
                "peak_token": token,
                "peak_token_share": share,
                "promoted": promoted,
                "promoted_effect": promoted_effect,
                "suppressed": suppressed,
                "suppressed_effect": suppressed_effect,
                "histogram": found.histogram[i].tolist(),
                "suggestion": suggestion(windows[i], best.get(feature), promoted),
            }
        )
    active = [window for window in windows if len(window.texts) > 1]
    single = float(np.mean([window.commonest[1] == 1 for window in active])) if active else None
    return Described(pd.DataFrame(rows), examples, associations, {**meta, "edges": EDGES.tolist()}, single)


def _examples(found: Collected, tokens: ModelInput, texts: Mapping[int, str]) -> tuple[pd.DataFrame, list[Windows]]:
    ids, lengths, samples = tokens.ids.cpu().numpy(), tokens.lengths.cpu().numpy(), tokens.samples.cpu().numpy()
    reach = found.windows.shape[2] // 2
    shown_at = None if tokens.shown is None else tokens.shown.cpu().numpy()
    rows: list[dict[str, Any]] = []
    windows = []
    for i, feature in enumerate(found.features.tolist()):
        shown, peaks = [], []
        for rank in np.flatnonzero(found.sequence[i] >= 0).tolist():
            sequence, position = int(found.sequence[i, rank]), int(found.position[i, rank])
            first, last = max(0, position - reach), min(int(lengths[sequence]), position + reach + 1)
            part = ids[sequence, first:last].tolist()
            start = first - (position - reach)
            words = [texts[token] for token in part]
            shown.append(words)
            peaks.append(position - first)
            rows.append(
                {
                    "feature": feature,
                    "rank": rank,
                    "activation": float(found.values[i, rank]),
                    "sample": int(samples[sequence]),
                    "position": position,
                    "peak": position - first,
                    "first": first,
                    "token_ids": part,
                    "tokens": words,
                    "activations": found.windows[i, rank, start : start + len(part)].tolist(),
                    **({} if shown_at is None else _patch(shown_at[sequence], position)),
                    **({} if shown_at is None else {"map": found.maps[i, rank].tolist()}),
                }
            )
        windows.append(Windows(shown, peaks))
    columns = (
        "feature",
        "rank",
        "activation",
        "sample",
        "position",
        "peak",
        "first",
        "token_ids",
        "tokens",
        "activations",
        *(() if shown_at is None else ("patch", "patches", "map")),
    )
    return pd.DataFrame(rows, columns=list(columns)), windows


def _patch(shown: NDArray[np.bool_], position: int) -> dict[str, int]:
    """Which of a picture's tokens, row by row, an activation stands at (-1: at text), and how many there are."""
    return {"patch": int(shown[:position].sum()) if shown[position] else -1, "patches": int(shown.sum())}
