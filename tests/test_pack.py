"""``pack=N``: elements that share a process keep their own directory, log and outcome, and load the model once."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from configs import key, plan
from conftest import QUICK, Cli, sharing
from slurm.queueing import Queue
from slurm.sweeps import SLURM, SMALL, element, ours, state, status, steps_taken, submitted, sweep_dir

from circuits.errors import UserError
from circuits.launch.packs import packs

BASELINE = ["task=baseline", QUICK, "behaviour.n_samples=30", "behaviour.n_test=10",
            "baseline.resamples=50", "tracking=off"]  # fmt: skip
SAE = [QUICK, "sae.heldout_sequences=16", "sae.block_rows=2048", "tracking=off"]
Wait = Callable[..., None]


def logs(sweep: Path) -> list[str]:
    return [path.read_text() for path in sorted(sweep.glob("*/run.log"))]


def made(cli: Cli, kind: str) -> dict[str, str]:
    """The artifacts of a kind and their measurements."""
    return {path.name: (path / "metrics.json").read_text() for path in cli.artifacts(kind)}


def test_a_pack_loads_the_model_once_and_makes_what_elements_of_their_own_make(
    warm: Cli, quick_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    alone = sharing(quick_store, tmp_path_factory.mktemp("alone"))
    codes = {
        warm(*BASELINE, "behaviour=grammar_agreement,induction", "pack=2").code,
        alone(*BASELINE, "behaviour=induction").code,
    }
    assert len(codes) == 1 and codes <= {0, 3}, codes
    sweep = sweep_dir(warm)
    assert [log.count("loading the model") for log in logs(sweep)] == [1, 0]
    assert [re.findall(r"pack \d/\d", log) for log in logs(sweep)] == [["pack 1/2"], ["pack 2/2"]]
    assert len({status(element(sweep, number))["pid"] for number in (0, 1)}) == 1
    (own,), both = made(alone, "baseline").items(), made(warm, "baseline")
    assert len(both) == 2 and both[own[0]] == own[1], "the one that did not load the model is the same as alone"


def test_one_that_fails_stops_no_other_of_its_pack(warm: Cli) -> None:
    words = ["sae.lr=1e-3,1e38,1e-4", "sae.clip=1e30", "sae.warmup=0", "sae.steps=40", "sae.log_every=1"]
    done = warm("layer=1", *words, *SAE, "pack=3")
    assert done.code == 1 and "1 of 3 failed (2 done, kept):" in done.out, done.out + done.err
    sweep = sweep_dir(warm)
    assert [state(sweep, number) for number in range(3)] == ["done", "failed", "done"]
    assert ["Traceback" in log for log in logs(sweep)] == [False, True, False]
    assert len(warm.artifacts("sae")) == 2 and not list((warm.outputs / "artifacts" / "sae").glob("*.claim"))


def test_saes_of_a_pack_share_one_stream_and_are_what_each_would_be_alone(
    warm: Cli, quick_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Other architectures, layers and numbers of steps: bit by bit what elements of their own make, each with its W&B run."""
    given = [QUICK, "sae.heldout_sequences=16", "sae.block_rows=2048", "sae.log_every=5", "sae.checkpoint_every=7"]
    swept = ["sae=topk,batchtopk", "layer=0,1-2", "sae.steps=10,20", "sae.warmup=5"]
    done = warm(*given, *swept, "pack=8")
    assert done.code == 0, done.out + done.err
    sweep = sweep_dir(warm)
    assert all(
        "trained on one stream with the other elements of its pack: 000 001 002 003 004 005 006 007" in log
        for log in logs(sweep)
    )
    assert [log.count("loading the model") for log in logs(sweep)] == [1] + [0] * 7
    for number in range(8):
        place = element(sweep, number)
        assert (
            state(sweep, number) == "done"
            and len(list((place / "wandb").glob("offline-run-*"))) == (1, 1, 2, 2)[number % 4]
        )
        rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        assert {row["layer"] for row in rows} == ({0}, {0}, {1, 2}, {1, 2})[number % 4]
        assert max(row["step"] for row in rows) == (10, 20)[number % 2]
    alone = sharing(quick_store, tmp_path_factory.mktemp("alone"))
    for words in (["sae=topk", "layer=0", "sae.steps=20"], ["sae=batchtopk", "layer=2", "sae.steps=10"]):
        assert alone(*given, *words, "sae.warmup=5", "tracking=off").code == 0
    both = {path.name: path for path in warm.artifacts("sae")}
    for own in alone.artifacts("sae"):
        for name in ("sae_weights.safetensors", "metrics.json"):
            assert (own / name).read_bytes() == (both[own.name] / name).read_bytes(), (own.name, name)


@pytest.mark.soak
def test_a_pack_that_was_cut_goes_on_where_each_of_its_saes_was(
    warm: Cli, quick_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = [
        "layer=1",
        "sae.k=8,16",
        QUICK,
        "sae.steps=300",
        "sae.heldout_sequences=16",
        "sae.block_rows=4096",
        "tracking=off",
    ]
    whole = sharing(quick_store, tmp_path_factory.mktemp("whole"))
    assert whole(*words).code == 0
    running = warm.start(*words, "pack=2", "sae.checkpoint_every=20")
    sweep = sweep_dir(warm)
    while running.poll() is None and not list((warm.outputs / "artifacts" / "sae").glob("*.partial/step-*")):
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=240)
    assert running.returncode == 130 and {state(sweep, 0), state(sweep, 1)} == {"interrupted"}
    done = warm(*words, "pack=2")
    assert done.code == 0 and all("resumed at step" in log for log in logs(sweep_dir(warm))), done.out + done.err
    made_whole = {path.name: (path / "sae_weights.safetensors").read_bytes() for path in whole.artifacts("sae")}
    assert made_whole == {path.name: (path / "sae_weights.safetensors").read_bytes() for path in warm.artifacts("sae")}


def worker(cli: Cli) -> psutil.Process:
    """The one process that runs elements in this folder."""
    (found,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "circuits.launch.element" in (words := process.info["cmdline"] or []) and str(cli.folder) in words[-1]
    ]
    return found


@pytest.mark.soak
def test_a_killed_pack_goes_on_in_another_process_and_an_ended_one_another_time(warm: Cli, wait_until: Wait) -> None:
    words = ["layer=1", "seed=0,1,2", "sae.steps=100000", *SAE, "pack=3"]  # of another seed each: three streams
    running = warm.start(*words)
    sweep = sweep_dir(warm)

    def trains(number: int) -> bool:
        return steps_taken(status(element(sweep, number))) > 0

    wait_until(lambda: trains(0) or running.poll() is not None, 120, "the first to train")
    worker(warm).send_signal(signal.SIGKILL)
    wait_until(lambda: trains(1) or running.poll() is not None, 120, "the second to train")
    running.send_signal(signal.SIGTERM)
    out, _ = running.communicate(timeout=240)
    assert running.returncode == 130, out
    assert [state(sweep, number) for number in range(3)] == ["failed", "interrupted", "interrupted"], out
    assert "killed by SIGKILL" in status(element(sweep, 0))["error"]
    assert status(element(sweep, 2))["error"] == "not begun; the same command runs it"
    log = element(sweep, 2) / "run.log"
    assert not log.exists() or not log.read_text()


def test_packs_are_of_equal_resources_and_models_and_of_at_least_one() -> None:
    elements = plan("task=sae", "layer=0,1,2,3,0-1", "pack=2")
    assert [[e.index for e in pack] for pack in packs(elements)] == [[0, 1], [2, 3], [4]]
    mixed = plan("task=sae", "layer=0", "model.embedded.width=64,128", "pack=2")
    with pytest.raises(UserError, match="pack=2: elements 0 and 1 would share a process, and their model differs"):
        packs(mixed)
    with pytest.raises(UserError, match=r"and their task\.resources differs"):
        packs(plan("task=sae", "layer=0", "task.resources.cpus=1,2", "pack=5"))
    for size in ("0", "-2"):
        with pytest.raises(UserError, match=f"pack={size}: at least 1 element a process"):
            plan("task=sae", "layer=0", f"pack={size}")
    assert key("pack=3").hash == key().hash
    with pytest.raises(UserError, match="pack: one sweep is over one value of it"):
        plan("task=sae", "layer=0", "pack=1,2")


@pytest.mark.soak
def test_on_slurm_a_pack_is_one_array_element_under_its_first_number(slurm: Queue, warm: Cli) -> None:
    done = warm("task=sae", "layer=range(0,3)", "-m", SLURM, "sae.steps=8", *SMALL, "pack=2")
    job = submitted(done)
    sweep = sweep_dir(warm)
    try:
        assert slurm.wait_ended(job) == {f"{job}_0": ("COMPLETED", "0:0"), f"{job}_2": ("COMPLETED", "0:0")}
        places = [element(sweep, number) for number in range(3)]
        assert [status(place)["job"] for place in places] == [f"{job}_0", f"{job}_0", f"{job}_2"]
        (array,) = json.loads((sweep / "jobs.json").read_text())["arrays"]
        assert array["elements"] == [0, 1, 2] and array["packs"] == [[0, 1]]
        assert [log.count("loading the model") for log in logs(sweep)] == [1, 0, 1]
        assert len(warm.artifacts("sae")) == 3 and (sweep / "report.html").exists()
        assert not list((warm.outputs / "artifacts").glob("*/*.claim"))
        shown = warm("task=status", f"of={sweep.name}")
        assert shown.code == 0 and shown.out.count("  done  ") == 3, shown.out
    finally:
        slurm.cancel(*ours(slurm, sweep))
