"""What tests share: the real command line in a temporary outputs folder, and the embedded model trained once a session."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from warm.client import AT_IMPORT, BARE, PYTHON, REAL, SOCKET, Running, Template

pytest_plugins = [
    "slurm.fixtures",
    "real_fixtures",
    "picture_fixtures",
    "kept",
]  # slurm and own_slurm; real_model and real_text; study and mine
ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = "TESTS_SHARED_TEMPLATE"
NOBODY = os.environ["CIRCUITS_USER"] = (
    "nobody"  # whose conf/user/nobody.yaml is not there: tests read no one's own values
)
if os.environ.get("PYTEST_XDIST_WORKER"):  # the workers fill the cores: more threads of theirs only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
FEW = ("sae.steps=4", "sae.heldout_sequences=16", "sae.block_rows=1024")
TRAINED = ("task=sae", "layer=0", *FEW, "tracking=off")
QUICK = "model.embedded.steps=10"  # an embedded model that knows little, made in seconds


@dataclass
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that begin with ``error:``."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]

    def __post_init__(self) -> None:
        """A sweep ends well without its page; no test does."""
        lost = [line for line in (self.out + self.err).splitlines() if "no report (" in line]
        assert not lost, f"the page could not be made: {lost[0]}"


@functools.cache
def template() -> str:
    """The socket of the process that command lines are forked from; the workers of one session share it."""
    if TEMPLATE in os.environ:
        return os.environ[TEMPLATE]
    made = Template(Cli(ROOT).environment())
    atexit.register(made.close)
    return made.path


def _listen() -> None:
    """Signals are heard as in a terminal, whatever ran the tests: nohup and a shell's background hand on that some are ignored."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)


class Cli:
    """Runs ``launch.py`` in a folder of its own, as a person would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    @property
    def outputs(self) -> Path:
        """The store's parent."""
        return self.folder / "outputs"

    def environment(self, **extra: str) -> dict[str, str]:
        """The environment of a command: no colours, no hub, no threads but our own."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "CIRCUITS", "OMP", "MKL", "HYDRA"))}
        plain = {
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "160",
            "CIRCUITS_USER": NOBODY,
        }
        return {**kept, **plain, **extra}

    def command(self, *words: str) -> list[str]:
        """The command line."""
        return [sys.executable, str(ROOT / "launch.py"), *words]

    def __call__(self, *words: str, timeout: float = 300, **extra: str) -> Done:
        """Run it to its end, in a copy of a process that has imported everything (tests/warm)."""
        if any(name.startswith(AT_IMPORT) for name in extra):
            return self.plain(*words, timeout=timeout, **extra)
        on_slurm = any(word.startswith(("cluster=", "hydra/launcher=", "task=recover")) for word in words)
        env = self.environment(**{SOCKET: template(), REAL: sys.executable, **extra})
        return self._forked(template(), "launch", words, env, sys.executable if on_slurm else str(PYTHON), timeout)

    def python(self, *words: str, timeout: float = 300, **extra: str) -> Done:
        """Run ``python FILE …`` or ``python -c TEXT …`` to its end, in a copy of a process that has imported libraries only."""
        on_slurm = any("cluster=" in word for word in words)
        if words[0] != "-c":
            return self._forked(template() + BARE, "script", words, self.environment(**extra), sys.executable, timeout)
        env = self.environment(**{SOCKET: template(), REAL: sys.executable, "PYTHONPATH": str(ROOT), **extra})
        python = sys.executable if on_slurm else str(PYTHON)
        return self._forked(template() + BARE, "code", words[1:], env, python, timeout)

    def _forked(
        self, socket: str, run: str, words: Sequence[str], env: Mapping[str, str], python: str, timeout: float
    ) -> Done:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, Path(os.devnull).open() as nothing:
            fds = [nothing.fileno(), out.fileno(), err.fileno()]
            code = Running(socket, run, words, str(self.folder), env, python, fds).wait(timeout)
            out.seek(0)
            err.seek(0)
            return Done(code, out.read().decode(), err.read().decode())

    def plain(self, *words: str, timeout: float = 300, **extra: str) -> Done:
        """Run it to its end, as a process of its own."""
        done = subprocess.run(
            self.command(*words), cwd=self.folder, env=self.environment(**extra), capture_output=True, text=True, timeout=timeout,
            stdin=subprocess.DEVNULL, check=False, preexec_fn=_listen,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str, output: int = subprocess.PIPE, **extra: str) -> subprocess.Popen[str]:
        """Start it and leave it running."""
        process = subprocess.Popen(
            self.command(*words), cwd=self.folder, env=self.environment(**extra), stdout=output, stderr=subprocess.STDOUT,
            text=True, stdin=subprocess.DEVNULL, preexec_fn=_listen,  # noqa: PLW1509 (signals set, no lock taken)
        )  # fmt: skip
        self.started.append(process)
        return process

    def end(self) -> None:
        """Kill whatever a test started and left running, in this folder or from it: it would slow down all others."""
        for started in self.started:
            if started.poll() is None:
                started.kill()
                started.wait()
        for process in psutil.process_iter(["cmdline", "cwd"]):
            inside = str(self.folder) in " ".join(process.info["cmdline"] or [])
            if (inside or process.info["cwd"] == str(self.folder)) and process.pid != os.getpid():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def artifacts(self, kind: str) -> list[Path]:
        """The complete artifacts of a kind."""
        return sorted(p.parent for p in (self.outputs / "artifacts" / kind).glob("[!.]*/manifest.json"))


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """The command line in an empty folder."""
    made = Cli(tmp_path)
    yield made
    made.end()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start what workers share, and the training of the embedded model (``make test``): who needs it later waits for its lease."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return
    if session.config.getoption("numprocesses", None):
        os.environ[TEMPLATE] = template()
    if os.environ.get("CIRCUITS_TRAIN_FIRST"):
        factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
        cli = Cli(factory.getbasetemp() / "trained")
        cli.folder.mkdir()
        borrow(cli)
        cli.start(*TRAINED, output=subprocess.DEVNULL)
        atexit.register(cli.end)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An order that keeps the cores busy from the first to the last test.

    Files that need the trained model come last in each worker's share, and the tests that wait for Slurm lie spread among those
    that compute.
    """
    waiting = {item for item in items if {"slurm", "own_slurm"} & set(getattr(item, "fixturenames", ()))}
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if item not in waiting:
            files.setdefault(item.path, []).append(item)
    shares: list[list[pytest.Item]] = [[] for _ in range(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))]
    for tests in sorted(files.values(), key=lambda tests: any("trained" in one.fixturenames for one in tests)):  # type: ignore[attr-defined]
        min(shares, key=len).extend(tests)
    others = [item for share in shares for item in share]
    every = len(others) / max(1, len(waiting))
    placed = [((i + 0.5) * every, item) for i, item in enumerate(item for item in items if item in waiting)]
    items[:] = [item for _, item in sorted([*placed, *enumerate(others)], key=lambda pair: pair[0])]


def borrow(cli: Cli) -> None:
    """``TESTS_TINY=DIR`` names a folder with embedded models of an earlier session (their artifacts' directories lie in it).

    Whoever runs single test files all day does not train them for each.
    """
    for found in Path(os.environ.get("TESTS_TINY", os.devnull)).glob("tiny-*"):
        (cli.outputs / "artifacts" / "tiny").mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (cli.outputs / "artifacts" / "tiny" / found.name).symlink_to(found)


def train_embedded(cli: Cli) -> None:
    """One SAE of a few steps, for the sake of the model that it needs."""
    borrow(cli)
    done = cli(*TRAINED, timeout=1500)
    if done.code != 0:
        raise RuntimeError(f"the embedded model could not be made: {done.out}{done.err}")


def shared(factory: pytest.TempPathFactory, name: str) -> Cli:
    """A folder that all workers of one test session share: what they ask for at the same time is made once, by our own leases."""
    base = factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / name
    folder.mkdir(exist_ok=True)
    return Cli(folder)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A folder whose store has the embedded model, fully trained by the framework itself: once a session."""
    cli = shared(tmp_path_factory, "trained")
    train_embedded(cli)
    return cli


@pytest.fixture(scope="session")
def tiny_dir(trained: Cli) -> Path:
    """The directory of the fully trained embedded model."""
    (found,) = trained.artifacts("tiny")
    return found


def sharing(store: Path, folder: Path) -> Cli:
    """The command line in `folder`, with the embedded models of `store` and nothing else in its own."""
    cli = Cli(folder)
    place = cli.outputs / "artifacts" / "tiny"
    place.mkdir(parents=True)
    for found in (store / "tiny").glob("[!.]*"):
        (place / found.name).symlink_to(found)
    return cli


@pytest.fixture(scope="session")
def quick_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose embedded model was trained for a few steps only: enough wherever quality does not matter."""
    cli = shared(tmp_path_factory, "quick")
    done = cli("task=sae", "layer=0", *FEW, QUICK, "tracking=off")
    assert done.code == 0, done.err + done.out
    return cli.outputs / "artifacts"


@pytest.fixture
def warm(quick_store: Path, tmp_path: Path) -> Iterator[Cli]:
    """The command line in a folder whose store has the quick embedded model (add the override `QUICK`)."""
    made = sharing(quick_store, tmp_path)
    yield made
    made.end()


@pytest.fixture
def able(trained: Cli, tmp_path: Path) -> Iterator[Cli]:
    """The command line in a folder whose store has the fully trained embedded model."""
    made = sharing(trained.outputs / "artifacts", tmp_path)
    yield made
    made.end()


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Wait for something that another process does."""
    import time

    def wait(condition: Callable[[], object], seconds: float = 180, what: str = "it") -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds} s for {what}")
            time.sleep(0.05)

    return wait
