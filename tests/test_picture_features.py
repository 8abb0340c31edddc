"""Where in its pictures a feature is active: maps of the examples, from activations to the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_interpret import planted
from torch import Tensor

from circuits.errors import UserError
from circuits.features.collect import Collected, Collector
from circuits.features.tables import describe
from circuits.model_input import ModelInput
from circuits.report.sections import interpret as section

D, POS, PATCHES = 12, 14, 4


def rows(n: int = 30) -> tuple[ModelInput, Tensor]:
    """Sequences with four picture tokens each, at other places in each, and activations of random sizes."""
    g = torch.Generator().manual_seed(3)
    starts = torch.randint(1, POS - PATCHES, (n, 1), generator=g)
    shown = (torch.arange(POS) >= starts) & (torch.arange(POS) < starts + PATCHES)
    ids = torch.randint(0, 20, (n, POS), generator=g)
    return ModelInput(ids, torch.ones(n, POS, dtype=torch.bool), shown=shown), torch.rand(n, POS, D, generator=g)


def collected(given: ModelInput, x: Tensor, cuts: list[int], resumed: bool = False) -> Collected:
    def new() -> Collector:
        return Collector(planted(D, {0: torch.eye(D)[0], 1: torch.eye(D)[1]}), torch.arange(D), top_k=5, window=2)

    found = new()
    for start, stop in zip([0, *cuts], [*cuts, len(given)], strict=True):
        part = slice(start, stop)
        found.add(x[part], given.mask[part], torch.ones(stop - start, dtype=torch.bool), given.shown[part])  # type: ignore[index]
        if resumed:
            state = found.state()
            found = new()
            found.load(*state)
    return found.result()


@pytest.mark.parametrize("resumed", [False, True])
def test_the_map_of_an_example_is_the_feature_at_each_token_of_its_picture(resumed: bool) -> None:
    given, x = rows()
    x[:, :, 1] = torch.where(given.shown, x[:, :, 1], 0)  # type: ignore[arg-type]  # this feature reads pictures alone
    for cuts in ([], [7, 19]):
        found = collected(given, x, cuts, resumed)
        for feature in (0, 1):
            sequences = found.sequence[feature]
            assert (sequences >= 0).all()
            for rank, sequence in enumerate(sequences.tolist()):
                at = given.shown[sequence].nonzero()[:, 0]  # type: ignore[index]
                naive = (x[sequence, at, feature] - 0.5).relu()
                assert found.maps[feature, rank] == pytest.approx(naive.numpy())
        assert found.maps[1].max(1) == pytest.approx(found.values[1]), "its peak is in the picture"
    none = pd.DataFrame({name: [] for name in ("feature", "factor", "difference", "significant", "q")})
    table = describe(found, given, {i: f" w{i}" for i in range(20)}, None, none, {}).examples
    mine = table[table["feature"] == 1]
    assert [row["map"][row["patch"]] for row in mine.to_dict("records")] == pytest.approx(mine["activation"].tolist())


def test_rows_whose_pictures_differ_in_their_tokens_are_refused() -> None:
    given, x = rows()
    given.shown[4, given.shown[4].nonzero()[0]] = False  # type: ignore[index]
    with pytest.raises(UserError, match="a row has 3 picture tokens, others have 4"):
        collected(given, x, [4])


@pytest.mark.parametrize(
    ("values", "patch", "active", "peak"),
    [
        ([0.0, 1.0, 0.5, 0.0], 1, [(50, 0, 0.5), (0, 50, 0.25)], (50, 0)),
        ([0.0, 0.5, 0.0, 0.0], -1, [(50, 0, 0.25)], None),
        ([0.5, 0.5, 0.5], 0, [], None),
    ],
    ids=["peak in the picture", "peak in the text", "no square of tokens"],
)
def test_the_page_shows_where(values: list[float], patch: int, active: Any, peak: Any, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "7.png")
    row = {"sample": 7, "map": np.array(values), "patch": patch}
    png, squares, framed = section._picture(row, 2.0, tmp_path)
    assert png and [(one.left, one.top, one.share) for one in squares] == active
    assert (framed and (framed.left, framed.top)) == peak
    assert section._picture({**row, "sample": 8}, 2.0, tmp_path) == ("", (), None)
