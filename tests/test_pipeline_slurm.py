"""Whole studies on a real Slurm: detached, each element after exactly its producers, closed by a job of their own."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from slurm.queueing import Queue
from slurm.sweeps import LONG, SLURM, SMALL, status, submitted, sweep_dir, training
from test_chain import TRAIN
from test_pipeline import record, states, study

from circuits.slurm_commands import numbers, queue

ASKED = [*SMALL, SLURM]
PROMPTS = ["task=prompts", "tracking=off", "task.resources.memory=500M", "behaviour.allow_small=true", SLURM]


def jobs(sweep: Path) -> dict[str, Any]:
    return json.loads((sweep / "jobs.json").read_text())


def closed(slurm: Queue, sweep: Path) -> tuple[str, str]:
    """How the job ended that closes the study, and with which exit code."""
    job = int(jobs(sweep)["closing"])
    return slurm.wait_ended(job)[str(job)]


def test_a_failed_element_stops_only_its_descendants_and_the_study_closes_itself(slurm: Queue, warm: Cli) -> None:
    word, words = study(warm), ["pipeline.until=features", "seed=11", *ASKED]
    here = [word for word in SMALL if not word.startswith("task.resources.")]
    one = warm("task=sae", "layer=1", "seed=11", *(word for word in TRAIN if word.startswith("sae.")), *here)
    assert one.code == 0, one.err + one.out  # one of the two is there already: the other pairs with its own reader
    began = time.monotonic()
    done = warm("task=pipeline", word, *words, "sae.min_r2=-9")
    assert done.code == 0 and "submitted" in done.out, done.err + done.out
    assert time.monotonic() - began < 60, "detached"
    sweep = sweep_dir(warm)
    assert closed(slurm, sweep) == ("COMPLETED", "0:0")
    assert set(states(sweep)) <= {"done", "cached"} and (sweep / "report.html").exists()
    assert not (sweep / "failed_items.json").exists()
    found = {item["name"]: status(sweep / item["dir"]) for item in record(sweep)["elements"]}
    for layer in (1, 2):
        reader = next(facts for name, facts in found.items() if "features" in name and f"layer={layer}" in name)
        maker = next(facts for name, facts in found.items() if "saes" in name and f"layer={layer}" in name)
        assert maker["artifacts"][0]["id"] in reader["artifacts"][0]["inputs"], "each reads its own layer's"


PACKED = """
overrides: [model=tiny, layer=1, sae.steps=40, sae.batch_size=64, sae.heldout_sequences=64, sae.block_rows=4096, sae.log_every=1,
            sae.clip=1e30, sae.warmup=0, "sae.lr=1e-3,1e38", pack=2]
stages:
  saes: {task: sae}
  features:
    task: interpret
    overrides: [interpret.associate=false, interpret.n_sequences=16, interpret.max_features=8, interpret.top_k=2]
"""


@pytest.mark.soak
def test_one_that_fails_in_a_pack_stops_only_its_own_reader_and_recovery_repeats_nothing(
    slurm: Queue, warm: Cli
) -> None:
    done = warm("task=pipeline", study(warm, PACKED), "seed=12", *ASKED)
    assert done.code == 0, done.err + done.out
    sweep = sweep_dir(warm)
    assert closed(slurm, sweep) == ("FAILED", "1:0"), "its exit code is the study's"
    assert states(sweep) == ["done", "failed", "done", "cancelled"]
    failed = json.loads((sweep / "failed_items.json").read_text())
    assert [item["state"] for item in failed] == ["failed", "cancelled"]
    assert failed[1]["error"] == "not started: element 1, which makes an input of it, ended as failed"
    shown = warm("task=status", f"of={sweep.name}")
    assert "1 done  1 failed" in shown.out and "task=recover" in shown.out, shown.out + shown.err
    made = {path: path.stat().st_mtime_ns for path in (warm.outputs / "artifacts").glob("*/*/manifest.json")}
    again = warm("task=recover", f"of={sweep.name}")
    assert again.code == 0 and "2 to run · 2 cached" in again.out, again.err + again.out
    assert closed(slurm, sweep) == ("FAILED", "1:0")
    assert [item["state"] for item in json.loads((sweep / "failed_items.json").read_text())] == ["failed", "cancelled"]
    assert {path: path.stat().st_mtime_ns for path in made} == made, "nothing is made twice"


@pytest.mark.soak
def test_a_study_inside_one_job_goes_on_where_its_time_was_up(slurm: Queue, warm: Cli) -> None:
    words = ["pipeline.until=saes", "sae.steps=400", "sae.checkpoint_every=20", "layer=1", "seed=13"]
    done = warm(
        "task=pipeline", study(warm), *words, "cluster.allocation=true", "hydra.launcher.timeout_min=10", *ASKED
    )
    assert done.code == 0 and "all in one job" in done.out, done.err + done.out
    sweep = sweep_dir(warm)
    job = jobs(sweep)["allocation"]
    slurm.wait(lambda: training(sweep, 1), what="the SAE to train in the job")
    subprocess.run(["scancel", "--batch", "--signal=USR2", job], check=True, env={**os.environ, **slurm.env})
    assert slurm.wait_ended(int(job))[job] == ("COMPLETED", "0:0")
    assert states(sweep) == ["done", "done"]
    facts = status(sweep / record(sweep)["elements"][1]["dir"])
    assert facts["restarts"] == 1 and "resum" in (sweep / record(sweep)["elements"][1]["dir"] / "run.log").read_text()
    assert (sweep / "report.html").exists()


@pytest.mark.soak
@pytest.mark.parametrize("own_slurm", [["MaxArraySize=4"]], indirect=True)
def test_more_elements_than_an_array_takes_are_several_arrays(own_slurm: Queue, cli: Cli) -> None:
    words = [*PROMPTS, "behaviour.n_samples=range(20,29)"]
    done = cli(*words)
    assert done.code == 0, done.err + done.out
    sweep = sweep_dir(cli)
    arrays = jobs(sweep)["arrays"]
    assert [array.get("offset", 0) for array in arrays] == [0, 4, 8]
    for array in arrays:
        assert {state for state, _ in own_slurm.wait_ended(int(array["job"])).values()} == {"COMPLETED"}
    made = [status(sweep / item["dir"])["artifacts"][0]["id"] for item in record(sweep)["elements"]]
    assert made == [name for item in record(sweep)["elements"] for name in item["artifacts"].values()], (
        "each made its own"
    )
    # now that the store knows how short they are, they go together; one that fails stops no other
    more = cli(*words[:-1], "behaviour.n_samples=range(30,39)", "cluster.wait=true")
    assert more.code == 0, more.err + more.out
    assert len(jobs(sweep_dir(cli))["arrays"][0]["packs"][0]) == 9, "one job"


@pytest.mark.soak
def test_a_node_on_which_two_jobs_died_is_left_out_and_named(slurm: Queue, warm: Cli) -> None:
    words = ["layer=1,2", "seed=14", *LONG, SLURM, "cluster.sbatch=['--nodelist=node1']"]
    job = int(submitted(warm("task=sae", *words)))
    sweep = sweep_dir(warm)
    for number in (0, 1):
        slurm.wait(lambda number=number: training(sweep, number), what="both SAEs to train")
    slurm.kill_tasks(f"{job}_0")
    slurm.kill_tasks(f"{job}_1")
    assert {state for state, _ in slurm.wait_ended(job).values()} == {"FAILED"}
    again = warm("task=recover", f"of={sweep.name}")
    assert "note: node1 is left out: elements 0-1 died on it without a word" in again.err, again.err + again.out
    assert again.code == 1 and "sbatch: " in again.err, "the study itself insists on node1, and nothing else is left"


def test_the_queue_shows_every_waiting_element_whatever_the_step_of_their_numbers(slurm: Queue, tmp_path: Path) -> None:
    for wanted in (range(0, 1000, 25), range(5, 65, 10), range(100), (0, 3, 4, 9)):
        job = slurm.submit("true", f"--array={','.join(map(str, wanted))}", "--begin=now+1hour", folder=tmp_path)
        try:
            assert sorted(queue(str(job))) == sorted(f"{job}_{number}" for number in wanted)
        finally:
            slurm.cancel(str(job))


def test_numbers_of_an_array_as_slurm_writes_them() -> None:
    assert numbers("0-2,7%2") == [0, 1, 2, 7] and numbers("10-40:10%1") == [10, 20, 30, 40] and numbers("N/A") == []
