"""The description of an SAE's features as files, and how a notebook reads them.

The directory of an ``interpret`` artifact::

    features.parquet       one row a feature: activity, histogram, promoted and suppressed tokens, suggestion
    examples.parquet       feature, rank, activation, sample, position, tokens, activations … of every example
    associations.parquet   feature, factor, level, difference, auc, p, q, … (empty without interpret.associate)
    labels.csv             every feature with a suggestion, to be copied and edited
    meta.json              histogram edges, how promoted tokens were found, what was left out
    metrics.json

No torch::

    found = circuits.open("interpret", layer=2)
    found.features.nlargest(5, "density")
    found.examples.query("feature == 17")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits import tables
from circuits.errors import Damaged
from circuits.files import read_json

if TYPE_CHECKING:
    import pandas as pd

FEATURES, EXAMPLES, ASSOCIATIONS = "features.parquet", "examples.parquet", "associations.parquet"
META, LABELS = "meta.json", "labels.csv"
NAMED = 0.5
"""Share of a feature's examples that must peak on one token for it to be its suggestion."""


class Interpretation:
    """What is known of one SAE's features."""

    def __init__(self, directory: Path) -> None:
        self.path = Path(directory)
        try:
            self.meta: dict[str, Any] = read_json(self.path / META)
            self.metrics: dict[str, Any] = read_json(self.path / "metrics.json")
        except (OSError, ValueError) as e:
            raise Damaged(f"{directory}: no whole description of features ({e})") from e

    def __repr__(self) -> str:
        return f"Interpretation({self.metrics.get('n_features', '?')} features; {self.path})"

    @cached_property
    def features(self) -> pd.DataFrame:
        """One row a feature."""
        return tables.read(self.path / FEATURES)

    @cached_property
    def examples(self) -> pd.DataFrame:
        """One row an example."""
        return tables.read(self.path / EXAMPLES)

    @cached_property
    def associations(self) -> pd.DataFrame:
        """One row for each feature, factor and level."""
        return tables.read(self.path / ASSOCIATIONS)

    @property
    def suggestions(self) -> dict[int, str]:
        """A first guess at each feature's label, in the order of the features."""
        return dict(
            zip(self.features["feature"].astype(int).tolist(), self.features["suggestion"].tolist(), strict=True)
        )


@dataclass(frozen=True)
class Windows:
    """A feature's examples as text, strongest first."""

    texts: Sequence[Sequence[str]]
    peaks: Sequence[int]
    """Where in each the peak stands."""

    @property
    def peak_tokens(self) -> list[str]:
        """The token of each example's peak."""
        return [text[peak] for text, peak in zip(self.texts, self.peaks, strict=True)]

    @property
    def commonest(self) -> tuple[str, float]:
        """The token on which most examples peak, and the share that does."""
        if not self.texts:
            return "", 0.0
        token, n = Counter(self.peak_tokens).most_common(1)[0]
        return token, n / len(self.texts)


def suggestion(windows: Windows, association: Mapping[str, Any] | None, promoted: Sequence[str]) -> str:
    """A first guess from what is measured: the token, the factor's level, or the tokens that are promoted."""
    token, share = windows.commonest
    parts = []
    if share >= NAMED and token.strip():
        parts.append(f"token {token.strip()!r}")
    if association is not None:
        sign = "" if float(association["difference"]) > 0 else "not "
        parts.append(f"{association['factor']}: {sign}{association['level']}")
    if not parts and promoted:
        parts.append("promotes " + " ".join(repr(word.strip()) for word in promoted[:3]))
    return "; ".join(parts)
