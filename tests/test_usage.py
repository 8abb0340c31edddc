"""What elements take while they run, beside what they were given: samples, hints, the overrides for next time, accounting."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK, Cli
from test_report import Page

from circuits import slurm_commands
from circuits.run import machine, sampler, usage
from circuits.run.gpu_watch import GpuWatch
from circuits.state import State

GIB = 1 << 30


def sample(cpu: float = 1.0, rss: int = 10**9, **more: Any) -> dict[str, Any]:
    """One second."""
    return {"s": 1.0, "cpu": cpu, "rss": rss, "memory": 0.5, **more}


def card(busy: float | None, memory: int = 4 * GIB) -> dict[str, Any]:
    """A GPU of 80 GB, as it is sampled."""
    return {"busy": busy, "memory": memory, "of": 80 * GIB, "celsius": 61.0, "watts": 250.0}


# -- samples -----------------------------------------------------------------------------------------------------


def test_a_days_samples_are_a_small_file_that_loses_no_peak_and_no_second(tmp_path: Path) -> None:
    recorder = sampler.Recorder(tmp_path, lambda: "training")
    gpus = [card(0.25) for _ in range(8)]
    for second in range(1, 24 * 3600 + 1):
        peak = 5 * 10**9 if second == 4000 else 10**9
        recorder.add(sample(second % 2, peak, gpus=gpus), recorder._began + second)
    recorder.close()
    assert (tmp_path / sampler.FILE).stat().st_size < 1 << 20
    rows = sampler.read(tmp_path)
    assert sampler.ROWS / 2 <= len(rows) <= sampler.ROWS + 1 and recorder.rows[-1]["t"] == 24 * 3600
    found = usage.summary(recorder.rows, 2, gpu=True)
    assert found["seconds"] == pytest.approx(24 * 3600, abs=2) and found["rss_peak_bytes"] == 5 * 10**9
    assert found["cpu_mean"] == pytest.approx(0.5, abs=0.01) and found["gpus"][7]["busy_mean"] == 0.25


def test_a_run_that_is_queued_again_goes_on_with_its_samples(tmp_path: Path) -> None:
    for turn in range(2):
        recorder = sampler.Recorder(tmp_path, lambda turn=turn: f"phase {turn}")  # type: ignore[misc]
        for second in range(1, 6 + turn):
            recorder.add(sample(), recorder._began + second)
        recorder.close()
        with (tmp_path / sampler.FILE).open("a") as file:
            file.write('{"t": 9')  # a kill in the middle of a line
    assert [row["t"] for row in sampler.read(tmp_path)] == [*range(1, 12)]
    assert usage.summary(sampler.read(tmp_path), 1, gpu=False)["phases"] == {"phase 1": 6.0, "phase 0": 5.0}


def test_what_ends_within_two_seconds_leaves_no_file(tmp_path: Path) -> None:
    recorder = sampler.Recorder(tmp_path)
    recorder.add(sample(), recorder._began + 1)
    recorder.close()
    assert not list(tmp_path.iterdir())


def test_one_thread_samples_for_all_elements_of_a_process_and_costs_next_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    monkeypatch.setattr(sampler, "PERIOD_S", 0.01)
    own = sampler.Sampler()
    recorders = [sampler.Recorder(tmp_path / name) for name in "ab"]
    for recorder in recorders:
        own.add(recorder)
    thread = own._thread
    wait_until(lambda: all(recorder.rows for recorder in recorders), 10)
    own.remove(recorders[0])
    assert own._thread is thread and thread is not None and thread.is_alive()
    own.remove(recorders[1])
    thread.join(5)
    assert not thread.is_alive() and own._thread is None
    source = sampler.Source()
    began = time.thread_time()
    for _ in range(100):
        recorders[0].add(source.take(1.0), time.monotonic())
    assert (time.thread_time() - began) / 100 < 0.005, "of a second"


def test_gpus_are_watched_by_one_program_that_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    cards = [
        "0, GPU-a0, 10, 1000, 81559, 60, 70.5",
        "1, GPU-b1, 20, 2000, 81559, 61, [N/A]",
        "2, GPU-c2, [N/A], 3000, 81559, 62, 90",
    ]
    lines = "".join(f"echo '{line}'\n" for line in cards)
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nwhile true; do\n{lines}sleep 0.05; done\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-b1")
    monkeypatch.setattr(machine, "gpus", lambda: 2)
    watch = GpuWatch()
    wait_until(watch.latest, 10)
    assert watch.latest() == [
        {"busy": None, "memory": 3000 << 20, "of": 81559 << 20, "celsius": 62.0, "watts": 90.0},
        {"busy": 0.2, "memory": 2000 << 20, "of": 81559 << 20, "celsius": 61.0, "watts": None},
    ]
    assert "--loop-ms=1000" in (tmp_path / "asked").read_text()
    source = sampler.Source()
    assert "gpus" not in source.take(1.0), "this process uses none"
    monkeypatch.setattr(sampler, "_on_gpu", lambda: True)
    wait_until(lambda: source.take(1.0).get("gpus") == watch.latest(), 10)
    source.close()
    process = watch._process
    watch.close()
    assert process is not None and process.poll() is not None and watch.latest()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert GpuWatch().latest() == []


# -- what they say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "busy", "said"),
    [
        ("sae", 0.22, "GPU 22% busy while an SAE trains; 40–60% is usual: raise sae.batch_size"),
        ("sae", 0.5, None),
        ("sae", 0.99, None),
        ("attribution", 0.7, "GPU 70% busy while scores are computed; 85–95% is usual: raise sae.batch_size"),
        ("activations", 0.55, "GPU 55% busy while the model reads; 60–80% is usual: raise sae.batch_size"),
        ("prompts", 0.0, None),
        ("sae", None, None),
    ],
)
def test_a_gpu_that_waits_is_hinted_at_by_its_longest_phase(task: str, busy: float | None, said: str | None) -> None:
    rows = [
        {"t": i, "phase": "loading" if i < 3 else "main", **sample(gpus=[card(0.0 if i < 3 else busy)])}
        for i in range(9)
    ]
    assert usage.hint(task, usage.summary(rows, 1, gpu=True), ["sae.batch_size"]) == said
    assert usage.hint(task, usage.summary(rows, 1, gpu=False), ["sae.batch_size"]) is None, "it computed elsewhere"


def use(seconds: float = 700, memory: float = 1.5, state: State = State.done, **more: Any) -> usage.Use:
    """An element that asked for 4 GB, 12 hours and 8 cores."""
    given: dict[str, Any] = {"cores": 7.0, "asked_seconds": 43200.0, "asked_memory": 4 * GIB, "asked_cores": 8} | more
    return usage.Use("sae", state, seconds, int(memory * GIB), **given)


@pytest.mark.parametrize(
    ("uses", "words"),
    [
        ([use()], "task.resources.memory=3G task.resources.time=00:20:00"),
        ([use(), use(seconds=7000, memory=3.1)], "task.resources.time=03:00:00"),
        ([use(cores=1.9)], "task.resources.memory=3G task.resources.time=00:20:00 task.resources.cpus=3"),
        ([use(seconds=20, cores=1.9)], "task.resources.memory=3G task.resources.time=00:10:00"),
        ([use(memory=50)], "task.resources.memory=64G task.resources.time=00:20:00"),
        ([use(pack=4)], "task.resources.memory=3G task.resources.time=01:10:00"),
        ([use(state=State.cached)], ""),
        (
            [use(), use(state=State.killed, slurm="OUT_OF_MEMORY")],
            "task.resources.memory=8G task.resources.time=00:20:00",
        ),
        ([use(state=State.failed, slurm="TIMEOUT")], "task.resources.time=24:00:00"),
        ([], ""),
    ],
)
def test_what_was_taken_gives_what_to_ask_for(uses: list[usage.Use], words: str) -> None:
    assert usage.next_time(uses) == words


@pytest.mark.parametrize(
    ("text", "value"),
    [("4G", 4 * GIB), ("512M", 512 << 20), ("3916K", 3916 << 10), ("2000Mc", 2000 << 20), ("1.5Gn", 3 << 29), ("64", 64 << 20),
     ("", None), ("0", None), (None, None), ("x", None)],
)  # fmt: skip
def test_slurms_sizes(text: str | None, value: int | None) -> None:
    assert usage.bytes_of(text) == value


def test_slurms_times() -> None:
    assert [usage.seconds_of(t) for t in ("1-02:03:04", "02:03:04", "03:04.5", "UNLIMITED", "")] == [
        93784,
        7384,
        184.5,
        None,
        None,
    ]
    assert [usage.limit_of(t) for t in ("90", "12:00:00", "1-12", "2-06:30", "x")] == [
        5400,
        43200,
        129600,
        196200,
        None,
    ]


SACCT = """#!/bin/sh
for word in "$@"; do case $word in --format=*) fields=${word#--format=};; esac; done
[ "$fields" = JobID,State,ExitCode,Elapsed,MaxRSS,NodeList,TotalCPU,ReqMem,Timelimit,AllocCPUS ] || exit 1
echo '7_0|COMPLETED|0:0|00:10:00||n1|18:30.500|8G|12:00:00|4'
echo '7_0.batch|COMPLETED|0:0|00:10:00|2097152K|n1|18:30.500|||4'
echo '7_[1-2%4]|PENDING|0:0|00:00:00|||00:00:00|8G|12:00:00|4'
"""


def test_accounting_gives_efficiency_and_peak_against_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "sacct"
    program.write_text(SACCT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    known = slurm_commands.accounting(["7"])
    assert known["7_2"].state == "PENDING" and known["7_0"].max_rss == "2097152K" and known["7_0"].alloc_cpus == "4"
    config = {"task": {"name": "sae", "resources": {"memory": "8G", "time": "12:00:00", "cpus": 4}}, "pack": 1}
    facts = {"state": "done", "wall_s": 590.0, "peak_rss_bytes": GIB}
    found = usage.use_of(config, facts, {"accounting": {"job": "7_0", **vars(known["7_0"])}})
    assert found.memory == 2 * GIB and found.memory_share == 0.25, "of the job, not of its process alone"
    assert found.cpu_share == pytest.approx(1110.5 / 2400) and found.time_share == pytest.approx(600 / 43200)
    assert usage.next_time([found]) == "task.resources.memory=3G task.resources.time=00:20:00 task.resources.cpus=3"
    alone = usage.use_of({**config, "pack": 3}, facts, {"accounting": {"job": "7_0", **vars(known["7_0"])}})
    assert alone.seconds == 590.0 and alone.memory == GIB, "a pack's job is that of all its elements"


# -- a real run --------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_took_in_its_files_on_its_page_and_in_status(warm: Cli) -> None:
    words = [
        "task=sae",
        "layer=0,1",
        "sae.steps=700",
        "sae.log_every=20",
        "sae.baselines=false",
        "sae.heldout_sequences=16",
        QUICK,
        "tracking=off",
    ]
    done = warm(*words, "cluster.workers=0")
    assert done.code == 0, done.out + done.err
    (sweep,) = (warm.folder / "multirun").glob("*/*")
    for place in sorted(sweep.glob("0*")):
        rows, status = sampler.read(place), json.loads((place / "status.json").read_text())
        taken = status["usage"]
        assert len(rows) >= 2 and taken["main"] == "training" and taken["threads"] == 1, (
            "it takes longer than two seconds"
        )
        assert 0.2 < taken["main_cpu"] < 1.5 and taken["rss_peak_bytes"] <= status["peak_rss_bytes"] * 1.01
        assert taken["seconds"] == pytest.approx(status["wall_s"], abs=2.5) and "gpus" not in taken
        assert json.loads((place / "provenance.json").read_text())["usage"] == taken
    page = Page(sweep / "report.html")
    assert re.search(r"Resources .* of 2 elements; the longest took", page.text) and "Where the time went" in page.text
    assert "Next time: task.resources.memory=" in page.text
    assert "GPU" not in page.text[page.text.index("Asked for and taken") :][:400]
    assert ("usage.csv" in page.downloads) == any(len(sampler.read(place)) >= 3 for place in sweep.glob("0*"))
    shown = warm("task=status", f"of={sweep.name}")
    line = r"^next time task\.resources\.memory=\dG task\.resources\.time=00:10:00 +\(on a cluster\)$"
    assert re.search(line, shown.out, re.M), shown.out
    again = warm(*words, "cluster.workers=0")
    cached = Page(next(p for p in (warm.folder / "multirun").glob("*/*/report.html") if p.parent != sweep))
    assert again.code == 0 and "Asked for and taken" not in cached.text, "what answers from the store takes nothing"
