"""Sparse probing: on features that are known to say something, or nothing, and from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, Cli
from pieces import Stop

from circuits.data import kept_tables
from circuits.features import absorption, probing
from circuits.features.association import Factor
from circuits.features.probing import Settings
from circuits.sae.modules import SAEConfig, architecture


def drawn(n: int = 240, seed: int = 0) -> tuple[dict[str, np.ndarray], list[Factor], np.ndarray, list[str]]:
    """Prompts in groups of four. Feature 3 says the first factor, features 5 and 7 the second one together; the third one is in
    the raw activations alone, the fourth nowhere."""
    rng = np.random.default_rng(seed)
    a, b, c, d = (rng.integers(0, 2, n) for _ in range(4))
    sae = rng.random((n, 40)) * (rng.random((n, 40)) < 0.3)
    sae[:, 3] = a * (1 + rng.random(n))
    half = rng.integers(0, 2, n)
    sae[:, 5], sae[:, 7] = b * half * 2.0, b * (1 - half) * 2.0
    raw = rng.standard_normal((n, 16))
    raw[:, 0] += 6 * c
    random = rng.random((n, 40)) * (rng.random((n, 40)) < 0.3)
    factors = [Factor(name, ("0", "1"), codes) for name, codes in (("a", a), ("b", b), ("c", c), ("d", d))]
    groups = [str(i // 4) for i in range(n)]
    train = np.array([(i // 4) % 3 < 2 for i in range(n)])
    values = {"sae": sae.astype(np.float32), "random": random.astype(np.float32), "raw": raw.astype(np.float32)}
    return values, factors, train, groups


def of(table: pd.DataFrame, factor: str, name: str, k: int | None = None) -> float:
    mine = table[(table["factor"] == factor) & (table["probe"] == name)]
    return float((mine if k is None else mine[mine["k"] == k])["accuracy"].iloc[0])


def test_what_features_say_is_found_with_as_few_as_it_takes() -> None:
    values, factors, train, groups = drawn()
    table, left = probing.probe(values, factors, train, groups, Settings())
    assert not left
    assert of(table, "a", "sae", 1) == 1.0
    assert of(table, "b", "sae", 1) < 0.9 < of(table, "b", "sae", 2)
    assert of(table, "c", "raw") > 0.95 and of(table, "c", "all") < 0.75
    named = table[(table["factor"] == "a") & (table["probe"] == "sae") & (table["k"] == 1)]["features"].iloc[0]
    assert list(named) == [3]
    for factor in "abcd":
        assert abs(of(table, factor, "random", 1) - 0.5) < 0.17 and abs(of(table, factor, "shuffled", 5) - 0.5) < 0.17
    assert abs(of(table, "d", "sae", 1) - 0.5) < 0.17
    row = table[(table["factor"] == "b") & (table["probe"] == "sae") & (table["k"] == 1)].iloc[0]
    assert row["low"] < row["accuracy"] < row["high"]


def test_a_rare_class_counts_as_much_as_the_common_one() -> None:
    """Of 90% and 10%, always saying the larger one is worth a half."""
    y = np.array([True] * 12 + [False] * 108)
    assert probing.balanced(~y, y) == 0.5 and probing.balanced(np.ones(120, bool), y) == 1.0
    values, _, train, groups = drawn(240)
    codes = (np.random.default_rng(3).random(240) < 0.1).astype(np.int64)
    table, _ = probing.probe(values, [Factor("rare", ("0", "1"), codes)], train, groups, Settings())
    assert abs(of(table, "rare", "sae", 5) - 0.5) < 0.25


def test_levels_without_enough_prompts_are_named() -> None:
    values, _, train, groups = drawn(120)
    codes = np.zeros(120, np.int64)
    codes[np.flatnonzero(train)[:9]] = 1
    table, left = probing.probe(values, [Factor("lone", ("0", "1"), codes)], train, groups, Settings())
    assert len(table) == 0 and left == {"lone=0": "0 test prompts without it; 2 are needed"}


def test_a_layer_that_is_cut_goes_on_at_the_next_level(tmp_path: Path) -> None:
    values, factors, train, groups = drawn(120)
    rng, made = np.random.default_rng(1), []
    both = {name: (rng.standard_normal((40, 16)), np.zeros(16)) for name in ("sae", "random")}

    def keep(name: str, make: Callable[[], pd.DataFrame], most: int = 99) -> pd.DataFrame:
        def counted() -> kept_tables.Found:
            if len(made) == most:
                raise Stop
            made.append(name)
            return {"rows": make()}, {}, {}

        return kept_tables.once(tmp_path / name, counted)[0]["rows"]

    def work(keep: probing.Keep) -> list[pd.DataFrame]:
        probes, _ = probing.probe(values, factors, train, groups, Settings(), 0, keep)
        return [probes, absorption.table(values, both, factors, train, groups, 0, keep)]

    whole = work(lambda name, make: make())
    for cut in (1, 3, 6):
        with pytest.raises(Stop):
            work(partial(keep, most=cut))
    for mine, theirs in zip(work(keep), whole, strict=True):
        pd.testing.assert_frame_equal(mine.drop(columns=["features", "main"], errors="ignore"),
                                      theirs.drop(columns=["features", "main"], errors="ignore"))  # fmt: skip
        for name in {"features", "main"} & set(mine):
            assert [list(row) for row in mine[name]] == [list(row) for row in theirs[name]]
    assert made == [f"{name}-{i}" for name in ("probes", "absorption") for i in range(4)], "no level twice"


def test_raw_activations_come_back_from_the_identity() -> None:
    x = torch.randn(5, 8)
    assert np.allclose(probing.raw_of(probing.identity(8).encode(x).numpy()), x.numpy(), atol=1e-6)


def test_the_random_dictionary_has_the_saes_size_and_sparsity() -> None:
    sae = architecture("relu").sae(SAEConfig(16, 64))
    found = probing.random_dictionary(sae, 3.4, 0)
    x = torch.randn(200, 16)
    assert found.W_enc.shape == sae.W_enc.shape and float((found.encode(x) > 0).sum(1).float().mean()) == pytest.approx(
        3, abs=0.1
    )


def test_from_the_command_line_to_the_table_and_the_page(warm: Cli) -> None:
    words = [
        QUICK,
        "layer=1",
        "behaviour=grammar_agreement",
        "behaviour.n_samples=60",
        "behaviour.n_test=40",
        "tracking=off",
    ]
    sae = ["sae.steps=60", "sae.k=8", "sae.expansion=2", "sae.heldout_sequences=16"]
    made = warm("task=sae", "layer=1", *sae, QUICK, "tracking=off")
    assert made.code == 0, made.err
    done = warm("task=probing", *words, *sae)
    assert done.code == 0, done.err
    (place,) = warm.artifacts("probing")
    metrics = json.loads((place / "metrics.json").read_text())
    table = pd.read_parquet(place / "probes.parquet")
    assert set(table["probe"]) == {"sae", "random", "shuffled", "all", "raw"} and set(table["k"]) >= {1, 2, 5}
    assert metrics["raw"] > 0.6 and metrics["n_levels"] == len(table[table["probe"] == "raw"])
    page = next((warm.outputs / "runs").rglob("probing*/report.html")).read_text()
    assert "Sparse probing" in page and "Absorption, layer 1" in page
    swallowed = pd.read_parquet(place / "absorption.parquet")
    assert len(swallowed) == 2 * metrics["n_levels"] and swallowed["fraction"].dropna().between(0, 1).all()
    assert (swallowed["full"].dropna() <= 1).all() and metrics["absorption_random"] is not None
    refused = warm("task=probing", *words, *sae, "probing.sizes=[0]")
    assert refused.code == 2 and "probing.sizes=[0]: different numbers of features, each at least 1" in refused.err
