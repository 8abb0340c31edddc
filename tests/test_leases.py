"""Leases: one holder at a time, taken over from the dead and the silent, never from the living."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from circuits.store import leases, pulse
from circuits.store.leases import Lease, Note, owner, process_alive


def held_elsewhere(path: Path, **changed: Any) -> dict[str, Any]:
    """A lease file as another process (on another host, unless `host` is given) left it."""
    facts = {**owner(by="them"), "host": "another", **changed}
    path.write_text(json.dumps(facts))
    return facts


def process_with(path: Path) -> int:
    """A process that holds the lease at `path` until it is killed; its pid."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)  # whatever happens to the test
            Lease(path, by="child").acquire()
            os.write(tell, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    return pid


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the lease is."""
    return tmp_path / "sae-1.lease"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of the real constants become fractions."""
    monkeypatch.setattr(pulse, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(pulse, "STALE_S", 0.4)


# -- exclusive ---------------------------------------------------------------------------------------------------


def test_one_holder_at_a_time(path: Path) -> None:
    first, second = Lease(path, by="a"), Lease(path, by="b")
    assert first.acquire() and not second.acquire() and not first.acquire()
    holder = Note(path).live()
    assert holder is not None and holder["by"] == "a" and holder["pid"] == os.getpid()
    first.release()
    assert not path.exists()
    assert second.acquire()
    second.release()


def test_the_folder_of_a_first_lease_need_not_exist(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "artifacts" / "sae" / "x.lease")
    assert lease.acquire()
    lease.release()


def test_a_lease_of_another_process_is_respected_and_free_when_that_is_killed(path: Path) -> None:
    pid = process_with(path)
    assert not Lease(path).acquire()
    os.kill(pid, signal.SIGKILL)
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.005)
    mine = Lease(path)
    assert mine.acquire(), "a process that died is dead although nobody has asked how it ended"
    mine.release()
    os.waitpid(pid, 0)


def test_a_stale_lease_has_exactly_one_new_holder_however_many_reach_for_it(path: Path) -> None:
    for _ in range(150):
        held_elsewhere(path, host=socket.gethostname(), started=0.0)
        start, won = threading.Barrier(4), []

        def reach(start: threading.Barrier = start, won: list[str] = won) -> None:
            facts = owner()
            note = Note(path)
            start.wait()
            if note.take(facts):
                won.append(facts["token"])

        threads = [threading.Thread(target=reach) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        holder = Note(path).read()
        assert holder is not None and holder["token"] == won[0]
        path.unlink()
    assert list(path.parent.iterdir()) == []


def test_a_slow_watcher_leaves_the_lease_that_a_quick_one_has_just_taken(path: Path) -> None:
    stale = held_elsewhere(path, host=socket.gethostname(), started=0.0)
    slow = Note(path)
    assert slow.live() is None, "the slow one has looked …"
    quick = Lease(path, by="quick")
    assert quick.acquire(), "… and the quick one has taken it since"
    slow._break(stale["token"], owner())
    holder = Note(path).live()
    assert holder is not None and holder["by"] == "quick"
    quick.release()
    assert list(path.parent.iterdir()) == []


def test_a_watcher_that_died_while_it_removed_a_stale_lease_stops_nobody(path: Path) -> None:
    held_elsewhere(path, host=socket.gethostname(), started=0.0)
    held_elsewhere(path.with_name(f".{path.name}.break"), host=socket.gethostname(), started=0.0)
    lease = Lease(path)
    assert lease.acquire()
    lease.release()
    assert list(path.parent.iterdir()) == []


# -- stale or not ------------------------------------------------------------------------------------------------


def test_a_pid_that_is_used_again_is_not_the_old_process(path: Path) -> None:
    me = psutil.Process().create_time()
    assert process_alive(socket.gethostname(), os.getpid(), me)
    assert process_alive(socket.gethostname(), os.getpid(), me - 60) is False
    held_elsewhere(path, host=socket.gethostname(), started=me - 60)
    assert Note(path).live() is None
    lease = Lease(path)
    assert lease.acquire()
    lease.release()


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_a_corrected_clock_does_not_declare_the_living_dead(path: Path, shift: float) -> None:
    """Linux gives start times relative to a boot time in whole seconds that moves as the clock is corrected."""
    held_elsewhere(path, host=socket.gethostname(), started=psutil.Process().create_time() + shift)
    assert Note(path).live() is not None and not Lease(path).acquire()


def test_on_another_host_only_silence_counts(path: Path, quick: None) -> None:
    held_elsewhere(path)
    note = Note(path)
    assert note.live() is not None
    end, steps = time.monotonic() + 1.2, 0
    while time.monotonic() < end:  # three times as long as silence may last
        os.utime(path)
        assert note.live() is not None and not note.take(owner())
        steps += 1
        time.sleep(0.05)
    assert steps > 3
    time.sleep(0.5)
    assert note.live() is None
    assert note.take(owner())


def test_the_watcher_goes_by_its_own_clock(path: Path, quick: None) -> None:
    held_elsewhere(path)
    os.utime(path, (0, 0))
    assert Note(path).live() is not None, "another host's clock may be decades off"
    os.utime(path, (time.time() + 1e6,) * 2)
    note = Note(path)
    assert note.live() is not None
    time.sleep(0.5)
    assert note.live() is None


@pytest.mark.parametrize("content", ["", '{"host": "a', "\0\0\0\0"])
def test_a_note_that_was_not_written_whole_ages_like_any_other(path: Path, quick: None, content: str) -> None:
    path.write_text(content)
    note = Note(path)
    assert note.live() is not None and not note.take(owner())
    time.sleep(0.5)
    assert note.take(owner(by="me"))
    holder = note.live()
    assert holder is not None and holder["by"] == "me"


# -- heartbeat ---------------------------------------------------------------------------------------------------


def test_a_holder_keeps_its_lease_for_watchers_on_other_hosts(
    path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(path, by="me")
    assert lease.acquire()
    watcher = Note(path)
    monkeypatch.setattr(leases, "process_alive", lambda *process: None)  # as another host sees it
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert watcher.live() is not None
        time.sleep(0.05)
    pulse.PULSE.remove(lease.beat)
    time.sleep(0.1)
    assert watcher.live() is not None, "the last beat still counts …"
    time.sleep(0.5)
    assert watcher.live() is None, "… for as long as silence may last"
    lease.release()


def test_a_heartbeat_survives_a_file_system_that_is_away_for_a_moment(path: Path, quick: None) -> None:
    lease = Lease(path)
    assert lease.acquire()
    away = path.with_name("away")
    path.rename(away)
    time.sleep(0.2)
    away.rename(path)
    before = path.stat().st_mtime_ns
    end = time.monotonic() + 5
    while path.stat().st_mtime_ns == before and time.monotonic() < end:
        time.sleep(0.02)
    assert path.stat().st_mtime_ns > before
    lease.release()


def test_a_lease_that_was_taken_from_us_is_neither_kept_alive_nor_dropped(path: Path, quick: None) -> None:
    lease = Lease(path)
    assert lease.acquire()
    held_elsewhere(path)
    before = path.stat().st_mtime_ns
    time.sleep(0.2)
    assert path.stat().st_mtime_ns == before
    lease.release()
    theirs = Note(path).read()
    assert theirs is not None and theirs["by"] == "them"


# -- waiting -----------------------------------------------------------------------------------------------------


def waiting(path: Path, finished: Callable[[], bool]) -> tuple[bool, list[str]]:
    """What waiting for a lease comes to, and who was seen holding it."""
    seen: list[str] = []
    lease = Lease(path, by="me")
    got = lease.wait(lambda holder: seen.append(holder["by"]), finished)
    lease.release()
    return got, seen


def test_waiting_ends_when_nobody_needs_it_any_more(path: Path) -> None:
    answers = iter([False, False, True])
    pid = process_with(path)
    got, seen = waiting(path, lambda: next(answers))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not got and set(seen) == {"child"}
    holder = Note(path).read()
    assert holder is not None and holder["by"] == "child", "what was never ours is not dropped"


def test_waiting_ends_when_the_holder_is_killed(path: Path) -> None:
    pid = process_with(path)
    killer = threading.Timer(0.3, os.kill, args=(pid, signal.SIGKILL))
    killer.start()
    got, seen = waiting(path, lambda: False)
    os.waitpid(pid, 0)
    assert got and set(seen) == {"child"} and not path.exists()


def test_a_stop_that_is_asked_for_while_waiting_is_heard(path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(holder: dict[str, Any]) -> None:
        raise Stop

    pid = process_with(path)
    with pytest.raises(Stop):
        Lease(path).wait(stop, lambda: False)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
