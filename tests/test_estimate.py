"""What an element will take, from what the store has measured; and how long a plan lasts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from configs import plan
from conftest import QUICK, Cli

from circuits.launch.estimate import Rates
from circuits.launch.forecast import simulate
from circuits.launch.packs import JOBS, TOGETHER, packs, short
from circuits.launch.plan import After, Plan, Standing
from circuits.store.store import Store

WORDS = [
    "task=sae",
    "layer=1",
    QUICK,
    "sae.batch_size=64",
    "sae.heldout_sequences=64",
    "sae.block_rows=4096",
    "tracking=off",
]


def test_time_grows_with_the_work_and_memory_is_what_was_measured(warm: Cli) -> None:
    assert warm(*WORDS, "sae.steps=20").code == 0
    (place,) = warm.artifacts("sae")
    manifest = json.loads((place / "manifest.json").read_text())
    cost, store = manifest["cost"], Store(warm.outputs / "artifacts")
    (same,) = plan(*WORDS, "sae.steps=20", base=warm.folder)
    (more,) = plan(*WORDS, "sae.steps=60", base=warm.folder)
    (other,) = plan(*WORDS[:2], "task=sae", "sae.steps=20", base=warm.folder)
    rates = Rates(store)
    one, three, unlike = rates.of(same), rates.of(more), rates.of(other)
    assert one is not None and three is not None and unlike is not None
    assert one.unlike == () and one.by == f"sae/{place.name}" and one.memory == cost["peak_rss_bytes"]
    assert one.wall_s == pytest.approx(cost["run_s"], abs=0.01)
    assert "sae.steps" in three.unlike and three.wall_s - one.wall_s == pytest.approx(
        2 * manifest["made_in_s"], abs=0.05
    )
    assert "sae.heldout_sequences" in unlike.unlike
    assert rates.of(plan("task=geometry", "layer=0", "geometry.heads=[1]", QUICK, base=warm.folder)[0]) is None


def test_a_resumed_artifact_is_no_measurement_and_a_damaged_manifest_is_left_alone(tmp_path: Path) -> None:
    for name, text in {
        "a-0": '{"kind": "sae", "cost": {"resumed": true}}',
        "b-1": "{",
        "c-2": '{"kind": "sae"}',
    }.items():
        (tmp_path / "outputs" / "artifacts" / "sae" / name).mkdir(parents=True)
        (tmp_path / "outputs" / "artifacts" / "sae" / name / "manifest.json").write_text(text)
    (element,) = plan(*WORDS, base=tmp_path)
    assert Rates(Store(tmp_path / "outputs" / "artifacts")).of(element) is None


class Fixed(Rates):
    """Rates of elements that all take as long."""

    def __init__(self, seconds: float, known: object) -> None:
        self.seconds, self.known = seconds, known

    def of(self, element: object) -> object:  # type: ignore[override]
        return replace(self.known, wall_s=self.seconds)  # type: ignore[type-var]


def test_short_work_goes_together_in_few_jobs_and_within_the_time_limit(warm: Cli) -> None:
    words = ["task=prompts", "behaviour.allow_small=true"]
    assert warm(*words, "behaviour.n_samples=20", "tracking=off").code == 0
    many = plan(*words, "behaviour.n_samples=range(20,520)", base=warm.folder)
    known = Rates(Store(warm.outputs / "artifacts")).of(many[0])
    assert short(many, Fixed(5, known), lambda element: 3600) == {"": 13} and len(packs(many, {"": 13})) <= JOBS
    assert short(many[:30], Fixed(5, known), lambda element: 3600) == {"": TOGETHER}
    assert short(many[:30], Fixed(50, known), lambda element: 600) == {"": 6}, "half of the limit at most"
    assert short(many[:30], Fixed(61, known), lambda element: 36000) == {}, "a minute is not short"
    (alone, *_), asked = many, plan(*words, "behaviour.n_samples=20,30", "pack=1", base=warm.folder)
    assert short([alone], Fixed(5, known), lambda element: 3600) == {}
    assert short(asked, Fixed(5, known), lambda element: 3600) == {}, "a size that was asked for stays"


def test_a_plan_lasts_as_long_as_its_longest_way_through_the_workers(tmp_path: Path) -> None:
    elements = plan("task=prompts", "behaviour.n_samples=20,21,22,23", "cluster.workers=2", base=tmp_path)
    after = {3: After((0, 1))}
    made = Plan(elements, Store(tmp_path), Standing(to_run=elements), packs(elements), after)
    assert simulate(made, {0: 5.0, 1: 7.0, 2: 1.0, 3: 2.0}) == 9.0, "2 runs beside 1, 3 when both have ended"
    assert (
        simulate(
            Plan(elements, Store(tmp_path), Standing(to_run=elements), packs(elements)), dict.fromkeys(range(4), 3.0)
        )
        == 6.0
    )
