"""How many threads the elements of a sweep here take: settled at the plan, recorded, equal when unfinished work goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from configs import plan
from conftest import Cli

from circuits.launch import cores
from circuits.launch.local import pool_size
from circuits.launch.plan import Element
from circuits.run import machine, threads
from circuits.run.machine import _cpu_quota
from circuits.store.store import Store


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine, "gpus", lambda: 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def settled(folder: Path, *words: str) -> list[Element]:
    found = plan(*words, f"outputs={folder}")
    cores.settle(found, Store(folder / "artifacts"))
    return found


@pytest.mark.parametrize(
    ("words", "threads", "workers"),
    [
        (["layer=2"], 8, 1),
        (["layer=0,1"], 4, 2),
        (["layer=0,1,2"], 2, 3),
        (["sae.k=2,3,4,5,6,7,8,9,10"], 1, 8),  # many elements: as many workers as cores, one thread each
        (["sae.k=2,3,4,5", "pack=2"], 4, 2),
        (["layer=0,1,2,3", "cluster.workers=2"], 4, 2),
        (["layer=0,1", "cluster.workers=0"], 8, 0),
        (["layer=0", "cluster.workers=3"], 8, 3),  # one of them is all that runs
        (["layer=0,1", "task.resources.cpus=3"], 3, 2),
        (["layer=2", "cluster=slurm"], 1, None),
    ],
)
def test_the_cores_are_divided_by_the_workers_that_run(
    words: list[str], threads: int, workers: int | None, tmp_path: Path
) -> None:
    found = settled(tmp_path, "task=sae", *words)
    assert {element.cfg.task.resources.cpus for element in found} == {threads}
    assert workers is None or pool_size(found[0].cfg, len(found)) == workers


def test_the_shell_bounds_the_threads_and_work_goes_on_with_those_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (element,) = settled(tmp_path, "task=sae", "layer=2")
    (key,) = element.keys.values()
    threads.note(Store(tmp_path / "artifacts").partial(key), 3)
    assert [e.cfg.task.resources.cpus for e in settled(tmp_path, "task=sae", "layer=2")] == [3]
    assert [e.cfg.task.resources.cpus for e in settled(tmp_path, "task=sae", "layer=1,2")] == [4, 3]
    assert [e.cfg.task.resources.cpus for e in settled(tmp_path, "task=sae", "layer=2", "task.resources.cpus=5")] == [5]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [e.cfg.task.resources.cpus for e in settled(tmp_path, "task=sae", "layer=1")] == [2]


def test_a_container_s_share_of_time_bounds_the_cores(tmp_path: Path) -> None:
    assert _cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert _cpu_quota(tmp_path) == 2.5


@pytest.mark.soak
def test_a_single_run_takes_the_machine_and_says_so(warm: Cli) -> None:
    done = warm("layer=2", "sae.steps=20", "model.embedded.steps=10", "tracking=off", OMP_NUM_THREADS="2")
    assert done.code == 0, done.err
    (made,) = warm.artifacts("sae")
    threads = json.loads((made / "manifest.json").read_text())["environment"]["threads"]
    (record,) = (warm.outputs / "runs").glob("*/*/config.yaml")
    assert threads == min(2, len(os.sched_getaffinity(0))) and f"cpus: {threads}" in record.read_text()
