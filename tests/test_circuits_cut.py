"""Passes of circuits that are cut, and go on: edge scores, exact patching, what lies outside of a circuit, the circuit alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pieces import in_pieces
from small_models import build
from test_circuit_features import prompts

from circuits.attribution import faithful, missed
from circuits.attribution.choose import random_like
from circuits.attribution.faithful import Values
from circuits.attribution.settings import Settings
from circuits.attribution.study import Ask, score, verify
from circuits.data.keeper import Keeper


@pytest.fixture(scope="module")
def ask() -> Ask:
    return Ask(build("llama"), prompts(9), Settings(method="eap", batch_size=2, verify_samples=6))


def test_scores_of_edges(ask: Ask, tmp_path: Path) -> None:
    def work(keeper: Keeper[str]) -> list[np.ndarray]:
        found = score(ask, lambda _: keeper)
        assert found is not None
        return [found.scores, found.base, found.other]

    again = in_pieces({"effects": tmp_path / "scores"}, work, (1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(again, work(Keeper()), strict=True))


def test_exact_patching(ask: Ask, tmp_path: Path) -> None:
    edges = np.arange(0, len(ask.nodes.edges), 7)

    def work(keeper: Keeper[str]) -> tuple[list[str], np.ndarray]:
        return verify(ask, edges, keeper)

    (ids, found), (same, whole) = in_pieces({"effects": tmp_path / "exact"}, work, (2, 3)), work(Keeper())
    assert ids == same and np.array_equal(found, whole) and np.abs(whole).max() > 0


def test_what_lies_outside_of_a_circuit(ask: Ask, tmp_path: Path) -> None:
    kept = random_like(ask.nodes.mask, ask.nodes, np.random.default_rng(0)) & (
        np.random.default_rng(1).random(ask.nodes.mask.shape) < 0.2
    )
    units = missed.outside(ask.nodes, kept)

    def work(keeper: Keeper[str]) -> np.ndarray:
        return missed.search(ask.anatomy, ask.pairs(ask.prompts), units, 2, keeper)

    again, whole = in_pieces({"effects": tmp_path / "missed"}, work, (1, 2)), work(Keeper())
    assert len(units) > 2 and np.array_equal(again, whole) and np.abs(whole).max() > 0


def test_circuits_alone(ask: Ask, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = [ask.nodes.mask, *(ask.nodes.mask & (rng.random(ask.nodes.mask.shape) < 0.5) for _ in range(3))]

    def work(keeper: Keeper[str]) -> list[np.ndarray]:
        got = faithful.alone(
            ask.anatomy, ask.pairs(ask.prompts), masks, Values("counterfactual"), batch_size=4, keeper=keeper, facts={}
        )
        return [got.model, got.empty, *got.circuits]

    again, whole = in_pieces({"effects": tmp_path / "alone"}, work, (2, 3)), work(Keeper())
    assert all(np.array_equal(a, b) for a, b in zip(again, whole, strict=True))
