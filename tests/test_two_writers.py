"""Two processes make one artifact: whoever is first, there is one, whole and the same, and both runs tell the truth."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from configs import plan
from conftest import QUICK, Cli, template
from test_launch import Wait
from warm.client import REAL, SOCKET, Running

from circuits.launch import sweep
from circuits.run import status
from circuits.store.store import verify

CAPTURE = ["task=activations", "activations.source=data", "activations.n_sequences=800", "activations.batch_size=4",
           "activations.chunk=16"]  # fmt: skip
TRAIN = [
    "task=sae",
    "sae.steps=80",
    "sae.checkpoint_every=5",
    "sae.block_rows=4096",
    "sae.batch_size=512",
    "sae.heldout_sequences=16",
]
READ = [
    "task=sae",
    "sae.steps=2",
    "sae.block_rows=4096",
    "sae.heldout_sequences=16",
    "sae.allow_small=true",
    "data=text",
    "data.path=text.txt",
]
WORK = {"activations": "shard-*/journal.jsonl", "sae": "step-*.safetensors", "tokens": "tokens.*/.train.npy.part"}


class Writer:
    """An element in a process of its own, without a launcher."""

    def __init__(self, cli: Cli, *words: str) -> None:
        (element,) = plan(*words, base=cli.folder)
        self.directory = sweep.create([element], cli.folder).directory(element)
        status.wait_again(self.directory, element.cfg.task.name)
        env = cli.environment(**{SOCKET: template(), REAL: sys.executable})
        with Path(os.devnull).open("r+") as nothing:
            streams = [nothing.fileno()] * 3
            argv = [str(self.directory)]
            self._process = Running(template(), "element", argv, str(cli.folder), env, sys.executable, streams)

    def stand(self) -> None:
        """Stand still, as on a node that hangs."""
        self._process.signal(signal.SIGSTOP)

    def go(self) -> None:
        """Go on."""
        self._process.signal(signal.SIGCONT)

    def end(self) -> tuple[int, str, str]:
        """Its exit code, its state, and what it said."""
        self.go()
        code = self._process.wait(120)
        return code, status.read(self.directory)["state"], (self.directory / "run.log").read_text()


@pytest.mark.parametrize(
    ("kind", "words", "order"),
    [
        pytest.param("activations", CAPTURE, (1, 0)),
        pytest.param("activations", CAPTURE, (0, 1), marks=pytest.mark.soak),
        pytest.param("sae", TRAIN, (1, 0)),
        pytest.param("sae", TRAIN, (0, 1), marks=pytest.mark.soak),
        pytest.param("tokens", READ, (1, 0)),
        pytest.param("tokens", READ, (0, 1)),
    ],
)
def test_two_writers_end_with_one_whole_artifact(
    warm: Cli, wait_until: Wait, kind: str, words: list[str], order: tuple[int, int]
) -> None:
    lines = (f"the cat number {i} is near the dogs of house {i % 97}\n" for i in range(20_000))
    (warm.folder / "text.txt").write_text("".join(lines))
    words, place = [*words, "layer=1", QUICK, "tracking=off"], warm.outputs / "artifacts"
    writers: list[Writer] = []
    seen: set[tuple[str, int]] = set()
    for _ in range(2):
        for note in (*place.glob("*/*.lease"), *place.glob("*/*.claim")):
            note.unlink()  # as where its holder is judged to be dead
        writers.append(Writer(warm, *words))

        def found() -> set[tuple[str, int]]:
            work = (place / kind).glob(f"*.partial/{WORK[kind]}")
            return {(str(path), path.stat().st_ino) for path in work if path.stat().st_size > 200}

        wait_until(lambda: found() - seen, seconds=60, what="its work")  # noqa: B023
        writers[-1].stand()
        seen = found()
    ends = [writers[number].end() for number in order]
    assert [end[:2] for end in ends] == [(0, "done")] * 2, ends
    (made,) = warm.artifacts(kind)
    verify(made, deep=True)
    assert [path.name for path in (place / kind).iterdir()] == [made.name]
