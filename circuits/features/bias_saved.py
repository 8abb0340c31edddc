"""The group statistics of pictures as files, and how a notebook reads them.

The directory of a ``bias_stats`` artifact::

    statistics.parquet          a row for each feature, layer and language: means, d, p, q, twins, confirmation, ranks
    results.json                the reported features in the schema of the source documents
    pooled-L3-english.npz       one sparse number for each picture and feature
    examples.json examples/     the pictures on which reported features are most active, as small PNGs
    pictures.parquet            id, split, group, label of each picture, in the order of the rows of pooled
    meta.json  metrics.json
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.errors import Damaged, UserError
from circuits.files import read_json, write_json
from circuits.stats.saved import Saved

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from scipy import sparse

    from circuits.data.pictures.saved import PictureSet

TABLE, RESULTS, PICTURES, META = "statistics.parquet", "results.json", "pictures.parquet", "meta.json"


EXAMPLES, SHOWN_FEATURES, SHOWN_PICTURES = "examples.json", 3, 6


def write_examples(
    out: Path, pictures: PictureSet, table: pd.DataFrame, pooled: Mapping[str, sparse.csc_matrix]
) -> None:
    """The pictures on which each side's first features are most active, as small PNGs beside a list."""
    import numpy as np

    from circuits.data.pictures import lexicon
    from circuits.data.pictures.saved import write_thumbnails

    folder, found = out / "examples", []
    drawn: set[int] = set()
    for side in ("male", "female"):
        first = table[(table[f"{side}_rank"] > 0) & (table[f"{side}_rank"] <= SHOWN_FEATURES)]
        for _, row in first.sort_values(["layer", "language", f"{side}_rank"]).iterrows():
            layer, language, feature = int(row["layer"]), str(row["language"]), int(row["feature"])
            values = np.asarray(pooled[pooled_name(layer, language)][:, [feature]].todense()).ravel()
            top = [int(i) for i in np.argsort(-values, kind="stable")[:SHOWN_PICTURES] if values[i] > 0]
            drawn.update(top)
            found.append(
                {
                    "layer": layer,
                    "language": language,
                    "side": side,
                    "feature": feature,
                    "cohens_d": float(row["cohens_d"]),
                    "q_value": float(row["q_value"]),
                    "significant": bool(row["significant"]),
                    "themes": lexicon.themes(text for i in top for text in pictures[i].captions.get("english", [])[:1]),
                    "pictures": [
                        {
                            "picture": i,
                            "id": pictures[i].id,
                            "value": float(values[i]),
                            "label": pictures[i].label,
                            "captions": {name: list(texts[:1]) for name, texts in pictures[i].captions.items()},
                        }
                        for i in top
                    ],
                }
            )
    write_thumbnails(pictures, sorted(drawn), folder)
    write_json(out / EXAMPLES, {"examples": found})


def pooled_name(layer: int, language: str) -> str:
    """The file of one layer's and language's pooled features."""
    return f"pooled-L{layer}-{language}.npz"


class BiasStatistics(Saved):
    """What tells male and female pictures apart."""

    what = "group statistics"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        try:
            self.meta: dict[str, Any] = read_json(self.path / META)
        except (OSError, ValueError) as e:
            raise Damaged(f"{directory}: no whole {self.what} ({e})") from e

    def __repr__(self) -> str:
        return f"BiasStatistics(layers {self.layers}, {' '.join(self.languages)}; {self.path})"

    @property
    def layers(self) -> list[int]:
        """Those that were tested."""
        return list(self.meta["layers"])

    @property
    def languages(self) -> list[str]:
        """Those that were asked in."""
        return list(self.meta["languages"])

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row for each feature, layer and language."""
        return self._table("statistics")

    @cached_property
    def pictures(self) -> pd.DataFrame:
        """A row for each picture."""
        return self._table("pictures")

    @cached_property
    def results(self) -> dict[str, Any]:
        """The reported features, layer by layer."""
        found: dict[str, Any] = read_json(self.path / RESULTS)
        return found

    def absent(self, layer: int, language: str) -> list[int]:
        """Pictures that were dropped there: their rows of :meth:`pooled` are zeros and say nothing."""
        return list(self.meta.get("absent", {}).get(f"L{layer}/{language}", []))

    def pooled(self, layer: int, language: str) -> sparse.csc_matrix:
        """``[pictures, features]``.

        Raises:
            UserError: no such layer or language.
        """
        from scipy import sparse

        file = self.path / pooled_name(layer, language)
        if not file.exists():
            raise UserError(
                f"layer {layer}, {language}: not in {self.path.name} (layers {self.layers}; {self.languages})"
            )
        return sparse.csc_matrix(sparse.load_npz(file))

    def top(self, layer: int, language: str, side: str, n: int) -> list[int]:
        """The `n` features with the largest d of one side (``male`` or ``female``), significant ones first."""
        mine = self.table.query("layer == @layer and language == @language")
        mine = mine[mine[f"{side}_rank"] > 0].sort_values(["significant", f"{side}_rank"], ascending=[False, True])
        return [int(feature) for feature in mine["feature"].head(n)]


class CrossLingual(Saved):
    """Two languages compared, as a notebook reads it."""

    what = "comparison of languages"

    @cached_property
    def features(self) -> pd.DataFrame:
        """A row for each feature and layer: its correlation over pictures, whether it is shared, d in both languages."""
        return self._table("features")
