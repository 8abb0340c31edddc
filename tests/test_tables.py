"""Tables are read whole or named; the small helpers that many rooms share."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from circuits import tables
from circuits.errors import Damaged
from circuits.model_input import padded
from circuits.stats.draws import different_sets, share_beyond


def test_a_table_that_cannot_be_read_is_named_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    with pytest.raises(Damaged, match=r"t\.parquet: missing$"):
        tables.read(file)
    pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}).to_parquet(file)
    assert list(tables.read(file, ["b"])["b"]) == ["x", "y"]
    with pytest.raises(Damaged, match=r"t\.parquet: damaged \(.*c.*\)$"):
        tables.read(file, ["a", "c"])
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(Damaged, match=r"t\.parquet: damaged \(.+\)$") as e:
        tables.read(file)
    assert "\n" not in str(e.value) and str(e.value).count(str(tmp_path)) == 1


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_first_tokens_of_a_row_are_counted_from_where_it_begins(side: str) -> None:
    rows = padded([[5, 6, 7, 8], [9, 10]], side=side)
    assert [rows.ids[i][rows.after(1)[i]].tolist() for i in range(2)] == [[6, 7, 8], [10]]
    assert torch.equal(rows.after(0), rows.mask) and not rows.after(4).any()


def test_sets_are_all_different_and_all_of_them_where_there_are_no_more() -> None:
    drawn = different_sets([range(10), range(3)], [2, 1], 40, np.random.default_rng(0))
    assert len(set(drawn)) == 40 and all(len(a) == 2 and len(b) == 1 and a[0] < a[1] for a, b in drawn)
    assert len(different_sets([range(3)], [2], 40, np.random.default_rng(0))) == 3
    assert share_beyond(0, 99) == 0.01 and math.isnan(share_beyond(0, 0))
