"""Fixtures `slurm` (one cluster for the session, all its workers) and `own_slurm` (private), and the end of both whatever happens.

The process that runs the session names the folder before its workers start; the worker that first asks starts the cluster under
a lock; that process takes it down at the end, and a guard does so if it was killed.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm import debian
from slurm.cluster import Cluster, StartError
from slurm.config import Options
from slurm.queueing import Queue

SESSION = (
    "TESTS_SLURM_SESSION"  # folder of the shared cluster and the pid that owns it, from the controller to its workers
)
NEEDED = "CIRCUITS_NEED_SLURM"  # set: no Slurm is a failure, not a skip
ABSENT = "no Slurm here"


def session() -> tuple[Path, int]:
    """The shared cluster's folder, and the process whose end is its end."""
    folder, _, owner = os.environ[SESSION].rpartition(":")
    return Path(folder), int(owner)


def pytest_configure(config: pytest.Config) -> None:
    """Name the session's folder; nothing is started."""
    if not hasattr(config, "workerinput"):  # not a worker of xdist
        os.environ[SESSION] = f"/tmp/slurm-{secrets.token_hex(3)}:{os.getpid()}"
        atexit.register(finish)


def pytest_unconfigure(config: pytest.Config) -> None:
    """After the last worker has ended."""
    finish()


def finish() -> None:
    """Take the shared cluster down, in the process that owns it."""
    if SESSION in os.environ and session()[1] == os.getpid():
        folder = session()[0]
        Cluster(folder).down()
        shutil.rmtree(folder.with_suffix(".state"), ignore_errors=True)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many tests were not run for want of Slurm."""
    lines = [
        str(report.longrepr[2])
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, (tuple, list))
    ]
    absent = [line for line in lines if ABSENT in line]
    if absent:
        text = f"{len(absent)} tests of launching on Slurm were NOT RUN: {absent[0].removeprefix('Skipped: ')}"
        terminalreporter.write_line(text, yellow=True, bold=True)


def unavailable(error: Exception) -> None:
    """Fail where Slurm is needed; else skip, with the reason."""
    if os.environ.get(NEEDED):
        pytest.fail(f"{ABSENT}, and {NEEDED} is set: {error}", pytrace=False)
    pytest.skip(f"{ABSENT}: {error} ({NEEDED}=1 makes this a failure)")


def available(accounting: bool) -> None:
    """Install Slurm if need be, once a session: a reason why it cannot be is kept for the other tests and workers."""
    place = session()[0].with_suffix(".state")
    place.mkdir(exist_ok=True)
    with debian.locked(place / "lock"):
        said = place / "absent"
        if said.exists():
            unavailable(debian.SlurmUnavailable(said.read_text()))
        try:
            debian.install(accounting)
        except debian.SlurmUnavailable as error:
            said.write_text(str(error))
            unavailable(error)


def started(folder: Path, options: Options, owner: int) -> Cluster:
    """A cluster that ends with its owner."""
    cluster = Cluster(folder, options)
    for attempt in range(2):
        try:
            cluster.up()
            break
        except StartError:
            if attempt:
                raise
            time.sleep(2)
    with debian.locked(folder / ".lock"):
        if cluster.daemon("guard").pid is None:
            cluster.guarded_by(owner)
    return cluster


@pytest.fixture(scope="session")
def slurm() -> Queue:
    """The session's Slurm, with accounting, shared by all workers: know your jobs by number or comment; leave its daemons alone."""
    available(accounting=True)
    folder, owner = session()
    return Queue(started(folder, Options(), owner))


@pytest.fixture
def own_slurm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    """A private Slurm, without accounting; `parametrize(..., indirect=True)` with lines of slurm.conf, or a dict of `Options`."""
    given = getattr(request, "param", ())
    words: dict[str, Any] = dict(given) if isinstance(given, dict) else {"changes": given}
    options = Options(**{"accounting": False, **words, "changes": tuple(words.get("changes", ()))})
    available(options.accounting)
    folder = Path(f"/tmp/slurm-{secrets.token_hex(4)}")
    try:
        cluster = started(folder, options, os.getpid())
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
        yield Queue(cluster)
    finally:
        Cluster(folder).down()


@pytest.fixture(autouse=True)
def _clients_find_slurm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """During a test that asks for `slurm`, its commands find that cluster; other tests see none."""
    if "own_slurm" not in request.fixturenames:
        monkeypatch.delenv("SLURM_CONF", raising=False)
        if "slurm" in request.fixturenames:
            for name, value in request.getfixturevalue("slurm").env.items():
                monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def _leave_nothing_queued(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever became of a test on the shared cluster, the jobs of its sweeps go (a private cluster goes with its jobs)."""
    if "slurm" not in request.fixturenames:
        yield
        return
    from slurm.sweeps import ours

    queue, folder = request.getfixturevalue("slurm"), request.getfixturevalue("tmp_path")
    yield
    for record in folder.glob("**/sweep.json"):
        queue.cancel(*ours(queue, record.parent))
