"""What the tests of keeping and moving results share: one small study, made once a process, and copies of it to do things to."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import QUICK, Cli, sharing

from circuits.store.leases import machine

TEXT = [QUICK, "tracking=off", "cluster.workers=0"]
SAE = [*TEXT, "sae.heldout_sequences=16", "sae.block_rows=1024", "sae.steps=6", "sae.batch_size=64", "sae.forward_batch=16",
       "sae.dead_after=64", "sae.warmup=2"]  # fmt: skip
STUDY = ["task=sae", "layer=0,1", "name=study", *SAE]
FEATURES = ["task=interpret", "layer=0", "interpret.associate=false", "interpret.n_sequences=16", "interpret.max_features=8",
            "interpret.top_k=2", *SAE]  # fmt: skip
ROWS = ["task=activations", "activations.source=data", "activations.n_sequences=32", "layer=0", "name=rows", *TEXT]


def made(quick_store: Path, factory: pytest.TempPathFactory) -> Cli:
    """A store with two SAEs, the features of one, and activations."""
    folder = factory.getbasetemp() / "kept"
    if folder.exists():
        return Cli(folder)
    cli = sharing(quick_store, folder)
    for words in (STUDY, FEATURES, ROWS):
        done = cli(*words)
        assert done.code == 0, done.err + done.out
    return cli


def copied(cli: Cli, folder: Path) -> Cli:
    """The same store and sweeps in `folder`, as rsync would copy them."""
    for name in ("outputs", "multirun"):
        shutil.copytree(cli.folder / name, folder / name, symlinks=True)
    return Cli(folder)


def sweep_of(cli: Cli) -> Path:
    """The study's directory."""
    (found,) = (cli.folder / "multirun").glob("*/study-*")
    return found


def rewrite(file: Path, **changed: object) -> None:
    """Change facts in a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder, and what is in them."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def alive() -> dict[str, object]:
    """The facts of a run whose process lives: this one."""
    return {"state": "running", "host": socket.gethostname(), "pid": os.getpid(), "machine": machine(),
            "process_started": psutil.Process().create_time()}  # fmt: skip


@pytest.fixture(scope="session")
def study(quick_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The small study, to be looked at only."""
    return made(quick_store, tmp_path_factory)


@pytest.fixture
def mine(study: Cli, tmp_path: Path) -> Iterator[Cli]:
    """A copy of it to do things to."""
    cli = copied(study, tmp_path)
    yield cli
    cli.end()
