"""What runs say of themselves: states that outlive a kill, metrics that outlive a torn write, tables that lie about neither."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from configs import compose, plan

from circuits.errors import RunError, UserError
from circuits.files import write_json
from circuits.launch import answers, launching, sweep
from circuits.launch.local import LocalLauncher
from circuits.launch.plan import After, Plan, Standing
from circuits.run import running as running_module
from circuits.run import status, tracking
from circuits.run.status import Status
from circuits.run.tracking import Tracker
from circuits.schema import TrackingConfig, TrackingMode
from circuits.state import State
from circuits.store import pulse
from circuits.store.store import Store
from circuits.tasks import status as task


def running(directory: Path) -> int:
    """A process that says it runs in `directory`, until it is killed; its pid."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)  # whatever happens to the test
            Status(directory, "sae").progress("training", 10, 100, "step", {"EV": 0.5})
            os.write(tell, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    return pid


def rewrite(directory: Path, **changed: Any) -> None:
    """Change facts in a status file."""
    file = directory / status.FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


# -- status.json -------------------------------------------------------------------------------------------------


def test_a_run_is_running_while_its_process_lives_and_killed_after(tmp_path: Path) -> None:
    pid = running(tmp_path)
    facts = status.read(tmp_path)
    assert facts["state"] == "running" and facts["pid"] == pid and facts["error"] is None
    os.kill(pid, signal.SIGKILL)
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.005)
    facts = status.read(tmp_path)
    assert facts["state"] == "killed" and "left no word" in facts["error"], (
        "although its launcher has not asked how it ended"
    )
    os.waitpid(pid, 0)
    assert status.read(tmp_path)["state"] == "killed"
    assert json.loads((tmp_path / status.FILE).read_text())["state"] == "running", "reading writes nothing"


def test_another_process_with_the_same_pid_is_not_the_run(tmp_path: Path) -> None:
    Status(tmp_path, "sae")
    assert status.read(tmp_path)["state"] == "running"
    rewrite(tmp_path, process_started=psutil.Process().create_time() - 3600)
    assert status.read(tmp_path)["state"] == "killed"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of the real constants become fractions."""
    monkeypatch.setattr(pulse, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(pulse, "STALE_S", 1.0)


@pytest.mark.parametrize("clock", [-1e6, 1e6])
def test_a_run_on_another_host_is_judged_by_its_heartbeat_whatever_the_clocks_say(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, clock: float
) -> None:
    pid = running(tmp_path)
    monkeypatch.setattr(status, "process_alive", lambda *process: None)  # as another host sees it
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + clock)
    said: list[str] = []
    status.look_twice([tmp_path], said.append)
    assert status.read(tmp_path)["state"] == "running", "it has nothing to say, but a heartbeat"
    assert len(said) == 1 and socket.gethostname() in said[0]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    status._watches.clear()
    assert status.read(tmp_path)["state"] == "running", "a first look cannot tell"
    status.look_twice([tmp_path], said.append)
    assert status.read(tmp_path)["state"] == "killed"


def test_a_namesake_of_this_machine_is_another_one(tmp_path: Path, quick: None) -> None:
    Status(tmp_path, "sae").finish("done", 0)
    rewrite(tmp_path, state="running", machine="another boot", pid=1, process_started=0.0)
    assert status.read(tmp_path)["state"] == "running", "its process cannot be seen from here"
    time.sleep(1.1)
    assert status.read(tmp_path)["state"] == "killed"


@pytest.mark.parametrize("state", [state for state in State if not state.live and state is not State.killed])
def test_what_has_ended_stays_as_it_ended(tmp_path: Path, state: str) -> None:
    Status(tmp_path, "sae").finish(state, 0, error="why")
    rewrite(tmp_path, process_started=0.0)
    facts = status.read(tmp_path)
    assert facts["state"] == state and facts["error"] == "why" and facts["ended"]


def test_a_resumed_run_counts_its_restarts_and_forgets_the_old_error(tmp_path: Path) -> None:
    status.write_plain(tmp_path, "waiting", task="sae")
    first = Status(tmp_path, "sae")
    assert first.facts["restarts"] == 0
    first.finish("failed", 1, error="boom", traceback="…")
    second = Status(tmp_path, "sae")
    assert second.facts["restarts"] == 1
    assert status.read(tmp_path)["error"] is None and status.read(tmp_path)["state"] == "running"
    for _ in range(2):
        status.wait_again(tmp_path, "sae")  # recovered, and before it began once more
    assert status.read(tmp_path)["state"] == "waiting" and Status(tmp_path, "sae").facts["restarts"] == 2


def test_no_status_and_an_unreadable_one(tmp_path: Path) -> None:
    assert status.read(tmp_path) == {}
    (tmp_path / status.FILE).write_text('{"state": "runn')
    facts = status.read(tmp_path)
    assert facts["state"] == "failed" and str(tmp_path / status.FILE) in facts["error"]
    assert Status(tmp_path, "sae").facts["state"] == "running", "a new run takes its place"


def test_progress_gives_rate_and_time_left_within_a_phase(tmp_path: Path) -> None:
    writer = Status(tmp_path, "sae")
    writer.progress("training", 0, 100, "step", {})
    time.sleep(0.1)
    writer.progress("training", 50, 100, "step", {"EV": 0.5})
    found = writer.facts["progress"]
    assert found["rate"] > 0 and found["eta_s"] == pytest.approx(50 / found["rate"]) and found["metrics"] == {"EV": 0.5}
    writer.progress("measuring", 5, None, "sequence", {})
    found = writer.facts["progress"]
    assert found["rate"] is None and found["eta_s"] is None, "another phase has another rate"


def test_the_last_step_is_always_on_disk(tmp_path: Path) -> None:
    writer = Status(tmp_path, "sae")
    for step in range(1, 101):
        writer.progress("training", step, 100, "step", {})
    assert status.read(tmp_path)["progress"]["done"] == 100
    writer.finish("done", 0)
    facts = status.read(tmp_path)
    assert facts["peak_rss_bytes"] > 1 << 20 and facts["wall_s"] >= 0 and facts["exit_code"] == 0


# -- metrics.jsonl -----------------------------------------------------------------------------------------------


def log(directory: Path, *steps: int) -> None:
    """Log rows as a run does, from opening the file to closing it."""
    tracker = Tracker(directory, TrackingConfig(mode=TrackingMode.disabled), "group", [])
    for step in steps:
        tracker.log(step, {"loss": 1.0 / step}, layer=0)
    tracker.close()


def test_rows_are_appended_by_whoever_resumes(tmp_path: Path) -> None:
    assert tracking.read(tmp_path) == []
    log(tmp_path, 1, 2)
    log(tmp_path, 3)
    assert [row["step"] for row in tracking.read(tmp_path)] == [1, 2, 3]


def test_a_torn_last_row_is_left_out_and_the_next_run_writes_on_cleanly(tmp_path: Path) -> None:
    file = tmp_path / tracking.FILE
    log(tmp_path, 1, 2, 3)
    whole = file.read_bytes()
    second = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    for size in range(second, len(whole)):
        file.write_bytes(whole[:size])
        left = [row["step"] for row in tracking.read(tmp_path)]
        assert left in ([1, 2], [1, 2, 3])
        log(tmp_path, 4)
        assert [row["step"] for row in tracking.read(tmp_path)] in ([1, 2, 4], [1, 2, 3, 4])


def test_damage_in_the_middle_is_named_with_its_line(tmp_path: Path) -> None:
    log(tmp_path, 1, 2, 3)
    file = tmp_path / tracking.FILE
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:-5], lines[2], ""]))
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2: not JSON"):
        tracking.read(tmp_path)


def test_what_json_has_no_number_for_is_null(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, TrackingConfig(mode=TrackingMode.disabled), "group", [])
    tracker.log(1, {"loss": float("nan"), "norm": float("inf"), "ok": 2.0})
    tracker.close()
    (row,) = tracking.read(tmp_path)
    assert (row["loss"], row["norm"], row["ok"]) == (None, None, 2.0)


# -- sweeps and their table --------------------------------------------------------------------------------------


def made(folder: Path, *words: str) -> sweep.Sweep:
    """A sweep that was launched by this process and has not run."""
    return sweep.create(plan("task=sae", *words, base=folder), folder)


def shown(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What ``task=status`` prints."""
    capsys.readouterr()
    assert task.run(compose("task=status", *words, base=folder)) == 0
    return capsys.readouterr().out


def test_a_sweep_is_found_by_id_name_or_directory_and_a_wrong_one_names_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = made(tmp_path, "layer=0", "name=baseline"), made(tmp_path, "layer=0,1")
    places = (tmp_path / "outputs", tmp_path / "multirun")
    for of in (first.id, "baseline", str(first.path)):
        assert sweep.find(of, *places).path == first.path
    with pytest.raises(UserError, match=f"did you mean {second.id}"):
        sweep.find(second.id[:-1], *places)
    third = made(tmp_path, "layer=1", "name=baseline")
    write_json(third.path / "sweep.json", third.record | {"created": "2099-01-01T00:00:00+00:00"})
    assert not capsys.readouterr().err
    assert sweep.find("baseline", *places).path == third.path
    said = f"this is the newest, {third.id} (2099-01-01T00:00:00+00:00); older: {first.id}"
    assert f"note: of=baseline: 2 sweeps have this name; {said}" in capsys.readouterr().err


def test_sweeps_made_at_the_same_moment_have_directories_of_their_own(tmp_path: Path) -> None:
    elements = plan("task=sae", "layer=0", base=tmp_path)
    assert len({sweep.create(elements, tmp_path).path for _ in range(20)}) == 20


def test_element_directories_are_named_by_what_was_swept(tmp_path: Path) -> None:
    found = made(tmp_path, "layer=0,1", "sae.k=8,16", "note=not swept")
    assert sorted(path.name for path in found.path.iterdir() if path.is_dir()) == [
        "000-layer=0,sae.k=8", "001-layer=0,sae.k=16", "002-layer=1,sae.k=8", "003-layer=1,sae.k=16",
    ]  # fmt: skip
    long = plan("layer=" + ",".join(f"[{','.join('0' * n)}]" for n in range(60, 64)), base=tmp_path)
    assert all(len(element.name) <= 80 for element in long) and len({element.name for element in long}) == 4


def test_an_element_that_waits_for_a_launcher_that_is_gone_never_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = made(tmp_path, "layer=0,1")
    assert "2 waiting" in shown(tmp_path, capsys)
    record = json.loads((found.path / sweep.FILE).read_text())
    record["launcher"] |= {"host": socket.gethostname(), "started": 0.0}
    (found.path / sweep.FILE).write_text(json.dumps(record))
    assert "2 never started" in shown(tmp_path, capsys)
    launched = (found.path / sweep.FILE).stat().st_mtime_ns
    sweep.relaunched(sweep.load(found.path))  # task=recover
    assert "2 waiting" in shown(tmp_path, capsys)
    assert (found.path / sweep.FILE).stat().st_mtime_ns == launched, "by which edits of the code are dated"


def test_elements_of_a_sweep_on_disk_are_planned_as_they_were_room_included(tmp_path: Path) -> None:
    planned = launching.planned(made(tmp_path, "layer=0,[0-1]"))
    first = plan("task=sae", "layer=0,[0-1]", base=tmp_path)
    assert [(e.name, e.keys, e.bytes) for e in planned] == [(e.name, e.keys, e.bytes) for e in first]
    assert planned[0].bytes > (0, 0), "task=recover looks for free space, too"


def test_what_an_element_waits_for_here_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elements = plan("task=sae", "layer=0,1,2,3", base=tmp_path)
    found = sweep.create(elements, tmp_path)
    directories = [found.directory(element) for element in elements]
    standing = Standing(to_run=elements[:3], adopted=elements[3:])
    launcher = LocalLauncher(found, Plan(elements, Store(tmp_path), standing, after={1: After((0,)), 2: After((0, 1))}))

    def waits() -> list[str]:
        """What the table says of the elements that wait."""
        launcher._tell_why()
        lines = shown(tmp_path, capsys, f"of={found.id}").splitlines()
        return [line.partition("waiting")[2].strip() for line in lines if " waiting " in line]

    elsewhere = "for another process, which makes the same"
    assert waits() == [
        "for a free worker",
        "for element 0, which makes an input of it",
        "for elements 0-1, which make its inputs",
        elsewhere,
    ]
    launcher.waiting.remove(elements[0])
    Status(directories[0], "sae").finish("done", 0)
    assert launcher._ready() == [elements[1]]
    assert waits() == ["for a free worker", "for element 1, which makes an input of it", elsewhere]
    Status(directories[1], "sae").finish("failed", 1, error="boom")
    launcher.waiting.remove(elements[1])
    assert launcher._ready() == [] and waits() == [elsewhere]
    assert "reason" not in status.read(directories[0]), "what runs or has ended waits for nothing"


def test_out_of_memory_names_the_keys_to_lower_where_there_are_any() -> None:
    rest = "take fewer layers in one run, or use precision=bf16"
    assert running_module._explain(MemoryError(), compose("task=prompts")) == f"out of memory: {rest}"
    told = running_module._explain(MemoryError(), compose("task=sae"))
    assert told.startswith("out of memory: lower sae.") and told.endswith(f"), {rest}")


def test_cached_elements_have_one_time_for_all_of_them_in_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, said = made(tmp_path, "layer=0,1"), []
    places = [found.directory(item) for item in found.record["elements"]]
    for layer, place in enumerate(places):
        artifact = tmp_path / f"L{layer}"
        artifact.mkdir()
        (artifact / "metrics.json").write_text('{"steps": 7, "l0": 32.0}')
        item = {"id": f"sae/L{layer}", "layer": layer, "path": str(artifact), "metrics": {"steps": 7, "l0": 32.0}}
        status.write_plain(place, "cached", task="sae", artifacts=[item])
    monkeypatch.setattr(answers, "CACHED_S", 0.0)
    answers.log_cached(found, places, said.append)
    assert said == ["2 of 2 cached elements are not in W&B: 0 s were up; their metrics.jsonl has all"]
    assert [tracking.read(place)[0]["l0"] for place in places] == [32.0, 32.0] and not list(tmp_path.rglob("wandb"))


def test_cached_elements_are_told_beside_the_page_and_what_went_wrong_is_said_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, said, paged = made(tmp_path, "layer=0,1"), [], threading.Event()

    def log(sweep: Any, directories: Any, note: Any) -> None:
        assert paged.wait(60), "the page is made meanwhile"
        note("one is not in W&B")
        raise RunError("the disk is full")

    monkeypatch.setattr(answers, "log_cached", log)
    with pytest.raises(RunError, match="full"), answers.telling(found, [], said.append):
        assert not said
        paged.set()
    assert said == ["one is not in W&B"]


def test_the_table_counts_states_and_one_sweep_names_its_errors_and_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = made(tmp_path, "layer=0,1,2")
    directories = [found.directory(item) for item in found.record["elements"]]
    Status(directories[0], "sae").finish("done", 0)
    Status(directories[1], "sae").finish("failed", 1, error="layer 1, step 7: the loss is [nan]")
    pid = running(directories[2])
    assert "1 done  1 failed  1 running" in shown(tmp_path, capsys)
    one = shown(tmp_path, capsys, f"of={found.id}")
    assert "layer 1, step 7: the loss is [nan]" in one and "001-layer=1/run.log" in one
    assert "training  10/100" in one
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert "1 done  1 failed  1 killed" in shown(tmp_path, capsys)


@pytest.mark.parametrize("note", ["see [1]", "[/closing]", "[bold]x", "50% [red]"])
def test_a_note_is_shown_as_it_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], note: str) -> None:
    found = made(tmp_path, "layer=0", f"note='{note}'")
    assert note in shown(tmp_path, capsys)
    assert note in shown(tmp_path, capsys, f"of={found.id}")


def test_an_empty_folder_says_how_to_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no runs yet; try: python launch.py task=sae layer=0" in shown(tmp_path, capsys)


def test_only_the_newest_are_listed_unless_all_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "NEWEST", 2)
    elements = plan("task=sae", "layer=0", base=tmp_path)
    ids = [sweep.create(elements, tmp_path).id for _ in range(3)]
    text = shown(tmp_path, capsys)
    assert sum(one in text for one in ids) == 2 and "1 older ones: status.all=true" in text
    assert all(one in shown(tmp_path, capsys, "status.all=true") for one in ids)


def test_a_sweep_that_is_being_written_or_damaged_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = made(tmp_path, "layer=0"), made(tmp_path, "layer=0")
    (bad.path / sweep.FILE).write_text('{"id": "x')
    assert good.id in shown(tmp_path, capsys)


def test_time_in_which_a_run_waited_for_others_is_no_cost_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    run = status.Status(tmp_path, "sae")
    clock[0] += 5
    with status.waiting():
        clock[0] += 90
    clock[0] += 2
    (tmp_path / "later").mkdir()
    later = status.Status(tmp_path / "later", "sae")
    clock[0] += 1
    assert run.cost()["run_s"] == 8 and later.cost()["run_s"] == 1
